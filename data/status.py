"""Whether a data set can be used, without raising: for a doctor's report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import store, synthetic, tiny
from .errors import DataError, Missing
from .roots import resolve
from .sources import SOURCES


@dataclass(frozen=True)
class Status:
    """state: "ready", "missing" or "damaged". detail: one line for a person."""

    name: str
    state: Literal["ready", "missing", "damaged"]
    detail: str


def status(name: str, root: Path | str | None = None, verify: bool = False) -> Status:
    """The state of one data set.

    With `verify` the arrays are hashed against the canonical SHA-256, which reads all of them.
    """
    try:
        if name in EMBEDDED:
            dataset = EMBEDDED[name]()
            how = "part of the suite, verified"
        elif name in SOURCES:
            dataset = store.open_prepared(SOURCES[name].spec, resolve(root), verify=verify)
            how = f"prepared under {resolve(root)}" + (", verified" if verify else "")
        else:
            return Status(name, "missing", f"there is no data set of this name; there are {', '.join(NAMES)}")
    except Missing as error:
        return Status(name, "missing", f"{error}: run `make data`, or `make data FROM=DIR`")
    except (DataError, OSError) as error:
        return Status(name, "damaged", f"{error}: run `make data`, or `make data FROM=DIR`, to make it again")
    return Status(name, "ready", f"{len(dataset.train.labels):,} train and {len(dataset.test.labels):,} test images, {how}")


EMBEDDED = {tiny.NAME: tiny.load, synthetic.NAME: synthetic.load}  # need no root and no preparation
NAMES = (*SOURCES, *EMBEDDED)
