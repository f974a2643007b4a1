"""The lock files against what they were made from, without a network and without installing anything.

A lock names each package once for every Python that it is resolved for; where versions differ between them, a marker says which is
whose (https://packaging.python.org/en/latest/specifications/dependency-specifiers/).
"""

import ast
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LOCKS = (
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-cluster.lock",
)  # beside each lies its source, with the suffix .in
PYTHONS = ("3.11", "3.12", "3.13")  # what the locks are resolved for; the container has one of them
PLATFORM = {  # the container's
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
}
COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class LockError(ValueError):
    """A line that does not belong in a lock or its source."""


@dataclass(frozen=True)
class Pin:
    """One package of a lock, by its canonical name; an empty marker always holds. ``hashes``: SHA-256 of each of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def pins(lock: str) -> list[Pin]:
    """The packages of a lock's text.

    Raises:
        LockError: a line is neither a comment nor a pinned package.
    """
    found = []
    for line in _lines(lock.replace("\\\n", " ")):
        pin = re.fullmatch(r"([\w.-]+)==(\S+)(?: ; ([^\\]+?))?((?:\s+--hash=sha256:[0-9a-f]{64})*)", line)
        if not pin:
            raise LockError(f"expected a pinned package, found {line[:80]!r}")
        found.append(Pin(canonical_name(pin[1]), pin[2], pin[3] or "", tuple(re.findall("[0-9a-f]{64}", pin[4]))))
    return found


def wanted(source: str) -> list[tuple[str, str]]:
    """Name and version (empty: any) of each package that an .in file asks for.

    Raises:
        LockError: a line asks in another way than ``name`` or ``name==version``.
    """
    found = []
    for line in _lines(source):
        request = re.fullmatch(r"([\w.-]+)(?:==([\w.]+))?", line)
        if request:
            found.append((canonical_name(request[1]), request[2] or ""))
        elif not line.startswith("-c "):  # another lock that this one rests on
            raise LockError(f"expected NAME or NAME==VERSION, found {line[:80]!r}")
    return found


def disagreements(source: str, lock: str) -> Iterator[tuple[str, str, str]]:
    """Yield what an .in file asks for and its lock does not give: package and Python, what was expected, what found.

    Raises:
        LockError: one of the two cannot be read.
    """
    pinned = pins(lock)
    for name, version in wanted(source):
        for python in PYTHONS:
            found = [pin.version for pin in pinned if pin.name == name and applies(pin.marker, python)]
            if len(found) != 1 or version not in ("", found[0]):
                yield f"{name}, Python {python}", version or "one version", " and ".join(found) or "none"


def applies(marker: str, python: str) -> bool:
    """Whether a marker holds for a Python such as ``3.12`` on the container's platform.

    Raises:
        LockError: the marker compares something else than the Python and the platform.
    """
    environment = PLATFORM | {"python_full_version": python}
    try:
        return not marker or _holds(ast.parse(marker, mode="eval").body, environment)
    except (SyntaxError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise LockError(f"expected a marker on the Python or the platform, found {marker[:80]!r}") from error


def canonical_name(name: str) -> str:
    """One spelling for a package: https://packaging.python.org/en/latest/specifications/name-normalization/."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _lines(text: str) -> Iterator[str]:
    """What the lines say, without comments."""
    stripped = (re.split(r"(?:^|\s)#", line)[0].strip() for line in text.splitlines())
    return (line for line in stripped if line)


def _holds(node: Any, environment: dict[str, str]) -> bool:
    """Markers have the grammar of Python's expressions: comparisons, ``and``, ``or``, brackets."""
    if isinstance(node, ast.BoolOp):
        together = all if isinstance(node.op, ast.And) else any
        return together([_holds(value, environment) for value in node.values])
    (comparison,), (constant,) = node.ops, node.comparators
    found, expected = environment[node.left.id], constant.value
    if node.left.id == "python_full_version":
        return bool(COMPARISONS[type(comparison)](_version(found), _version(expected)))
    return bool(COMPARISONS[type(comparison)](found, expected))


def _version(text: str) -> tuple[int, ...]:
    """``3.12`` is the same as ``3.12.0``."""
    numbers = [int(part) for part in text.split(".")]
    return (*numbers, *(0,) * (3 - len(numbers)))
