"""The .in files, their locks and the imports agree. Nothing here needs a network."""

import ast
import re
import sys
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
PYTHONS = ("3.11", "3.12", "3.13")


@dataclass(frozen=True)
class Entry:
    """One pinned package of a lock."""

    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]

    def applies_to(self, python: str) -> bool:
        environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
        return self.marker is None or self.marker.evaluate(environment)


def entries(lock: str) -> list[Entry]:
    """The entries of a lock's text; a line that is neither comment nor entry is an error."""
    found = []
    for line in re.sub(r"\\\n", " ", lock).splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        pin = re.fullmatch(r"([\w.-]+)==(\S+)(?: ; ([^\\]+?))?((?:\s+--hash=\S+)*)", text)
        assert pin, f"not a pinned package: {text[:80]}"
        marker = Marker(pin[3]) if pin[3] else None
        found.append(Entry(canonicalize_name(pin[1]), pin[2], marker, tuple(re.findall(r"--hash=(\S+)", pin[4]))))
    return found


def wanted(text: str) -> list[Requirement]:
    """The packages that an .in file asks for."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def disagreements(source: str, lock: str) -> list[str]:
    """What an .in file asks for and its lock does not give, for each supported Python."""
    pinned = entries(lock)
    problems = []
    for requirement in wanted(source):
        for python in PYTHONS:
            name = canonicalize_name(requirement.name)
            versions = [entry.version for entry in pinned if entry.name == name and entry.applies_to(python)]
            if len(versions) != 1 or not requirement.specifier.contains(versions[0], prereleases=True):
                problems.append(f"Python {python}: expected one {requirement}, found {versions}; run `make lock`")
    return problems


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_gives_what_its_source_asks_for(lock: str) -> None:
    source = (ROOT / lock).with_suffix(".in").read_text()
    assert wanted(source)
    assert disagreements(source, (ROOT / lock).read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [("absent", "[]"), ("numpy>=3", "['2.4.6']"), ("twice", "['1.0', '1.0']")],
)
def test_a_disagreement_is_seen(source: str, found: str) -> None:
    lock = "numpy==2.4.6 --hash=sha256:00\ntwice==1.0 --hash=sha256:00\ntwice==1.0 --hash=sha256:00\n"
    assert disagreements("numpy", lock) == []
    assert [problem.partition("found ")[2] for problem in disagreements(source, lock)] == [f"{found}; run `make lock`"] * 3


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_hashes(lock: str) -> None:
    for entry in entries((ROOT / lock).read_text()):
        assert entry.hashes, entry.name
        for digest in entry.hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest), f"{entry.name}: {digest}"


@pytest.mark.parametrize("lock", LOCKS)
def test_no_line_names_a_host_a_path_or_an_index(lock: str) -> None:
    for line in (ROOT / lock).read_text().splitlines():
        assert not re.search(r"://|index|find-links|(^|[\s=])/", line), line
    assert (ROOT / lock).read_text().splitlines()[1] == "#    make lock"


def test_the_locks_agree_on_the_packages_in_both() -> None:
    main, dev = ({entry.name: entry.version for entry in entries((ROOT / lock).read_text())} for lock in LOCKS)
    assert main.keys() & dev.keys()
    assert {name: dev[name] for name in main.keys() & dev.keys()} == {name: main[name] for name in main.keys() & dev.keys()}


def test_every_package_that_the_code_imports_is_asked_for_by_hand() -> None:
    asked = {canonicalize_name(requirement.name) for requirement in wanted((ROOT / "requirements.in").read_text())}
    distributions = packages_distributions()
    for folder in ("bench", "models", "data"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for package in imported_packages(path) - sys.stdlib_module_names - {"bench", "models", "data"}:
                names = {canonicalize_name(name) for name in distributions.get(package, [])}
                assert names & asked, f"{path.relative_to(ROOT)} imports {package}: add it to requirements.in, run `make lock`"


def imported_packages(path: Path) -> set[str]:
    """The top-level names of all absolute imports of a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names
