"""What a network can be asked for, in words: plain values, without torch, whose import takes seconds."""

from dataclasses import dataclass, field
from typing import Literal, get_args

Stem = Literal["default", "cifar"]
Site = Literal["P2", "P3"]
Kind = Literal["mhsa", "se", "eca", "cbam", "spatial"]


@dataclass(frozen=True)
class Attention:
    """What to insert at one site: ``Attention("mhsa", heads=4)``, ``Attention("eca")``.

    Raises:
        ValueError: the kind is unknown, there is no head, or a kind without heads is given several.
    """

    kind: Kind
    heads: int = field(default=1, kw_only=True)  # of mhsa; no other kind has any

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"attention: expected one of {', '.join(get_args(Kind))}, found {self.kind!r}")
        if self.heads < 1:
            raise ValueError(f"heads: expected a positive number, found {self.heads}")
        if self.heads != 1 and self.kind != "mhsa":
            raise ValueError(f"heads: expected none for {self.kind}, found {self.heads}")
