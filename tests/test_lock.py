"""The .in files, their locks and the imports agree. Nothing here needs a network."""

import ast
import re
import shutil
import sys
from importlib.metadata import packages_distributions
from itertools import product
from pathlib import Path

import pytest
from packaging.markers import Marker

from bench.locks import LOCKS, PLATFORM, PYTHONS, LockError, applies, canonical_name, disagreements, pins, wanted
from bench.verify.surroundings import check_lock, check_locks

ROOT = Path(__file__).resolve().parent.parent
HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_gives_what_its_source_asks_for(lock: str) -> None:
    source = (ROOT / lock).with_suffix(".in").read_text()
    assert wanted(source)
    assert list(disagreements(source, (ROOT / lock).read_text())) == []


@pytest.mark.parametrize(
    ("source", "expected", "found"),
    [
        ("absent", "one version", "none"),
        ("numpy==3", "3", "2.4.6"),
        ("twice", "one version", "1.0 and 1.0"),
    ],
)
def test_a_disagreement_is_seen(source: str, expected: str, found: str) -> None:
    lock = f"numpy==2.4.6 {HASH}\ntwice==1.0 {HASH}\ntwice==1.0 {HASH}\n"
    assert list(disagreements("NumPy==2.4.6  # comment\n-c other.lock", lock)) == []
    name = source.partition("=")[0]
    assert list(disagreements(source, lock)) == [(f"{name}, Python {python}", expected, found) for python in PYTHONS]


@pytest.mark.parametrize("marker", ["python_full_version < '3.12'", "python_full_version < '3.12' and sys_platform == 'linux'"])
def test_a_python_without_a_version_is_seen(marker: str) -> None:
    found = disagreements("numpy", f"numpy==2.4.6 ; {marker} {HASH}\n")
    assert [place for place, _, _ in found] == ["numpy, Python 3.12", "numpy, Python 3.13"]


@pytest.mark.parametrize("lock", LOCKS)
def test_markers_mean_what_pip_takes_them_to_mean(lock: str) -> None:
    markers = {pin.marker for pin in pins((ROOT / lock).read_text()) if pin.marker}
    assert markers or lock == "requirements-cluster.lock"
    for marker, python in product(markers, PYTHONS):
        environment = PLATFORM | {"python_version": python, "python_full_version": f"{python}.0"}
        assert applies(marker, python) == Marker(marker).evaluate(environment), marker


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", f"numpy==2 {HASH[:-1]}", f"https://host/numpy.whl {HASH}", "-e ."])
def test_a_line_that_pins_nothing_is_refused(line: str) -> None:
    with pytest.raises(LockError, match="expected a pinned package, found"):
        pins(line)


@pytest.mark.parametrize(
    "marker",
    ["extra == 'nt'", "sys_platform", "sys_platform < 3", "sys_platform in 'linux'", "python_full_version < 'x'", "("],
)
def test_a_marker_that_is_not_understood_is_refused(marker: str) -> None:
    with pytest.raises(LockError, match="expected a marker on the Python or the platform, found"):
        applies(marker, "3.12")


def test_a_request_that_is_not_understood_is_refused() -> None:
    with pytest.raises(LockError, match="expected NAME or NAME==VERSION, found 'numpy>=2'"):
        wanted("numpy>=2")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_hashes(lock: str) -> None:
    for pin in pins((ROOT / lock).read_text()):
        assert pin.hashes, pin.name


@pytest.mark.parametrize("lock", LOCKS)
def test_no_line_names_a_host_a_path_or_an_index(lock: str) -> None:
    for line in (ROOT / lock).read_text().splitlines():
        assert not re.search(r"://|index|find-links|(^|[\s=])/", line), line
    assert (ROOT / lock).read_text().splitlines()[1] == "#    make lock"


def test_the_locks_agree_on_the_packages_in_both() -> None:
    main, *others = ({pin.name: pin.version for pin in pins((ROOT / lock).read_text())} for lock in LOCKS)
    for other in others:
        assert main.keys() & other.keys()
        assert {name: other[name] for name in main.keys() & other.keys()} == {
            name: main[name] for name in main.keys() & other.keys()
        }


def test_every_package_that_the_code_imports_is_asked_for_by_hand() -> None:
    sources = [(ROOT / name).read_text() for name in ("requirements.in", "requirements-cluster.in")]
    asked = {name for source in sources for name, _ in wanted(source)}
    distributions = packages_distributions()  # triton comes with torch, in the version that this torch needs
    for folder in ("bench", "models", "data"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for package in imported_packages(path) - sys.stdlib_module_names - {"bench", "models", "data", "triton"}:
                names = {canonical_name(name) for name in distributions.get(package, [package])}
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


# ---- what `bench verify` says of them -----------------------------------------------------------------------------------------

LOCK = f"numpy==2.4.6 {HASH}\n"


@pytest.mark.parametrize(
    ("source", "lock", "message"),
    [
        ("numpy\nscipy", LOCK, "scipy, Python 3.11: expected one version, found none; run `make lock`"),
        ("numpy==2.5.0", LOCK, "numpy, Python 3.12: expected 2.5.0, found 2.4.6; run `make lock`"),
        ("numpy", LOCK + LOCK, "numpy, Python 3.13: expected one version, found 2.4.6 and 2.4.6; run `make lock`"),
        (
            "numpy",
            LOCK.replace(" --", " ; python_full_version < '3.13' --"),
            "numpy, Python 3.13: expected one version, found none",
        ),
        ("numpy", "numpy==2.4.6", "numpy: expected the SHA-256 of its files, found none; run `make lock`"),
        ("numpy", LOCK[:-2], "text: expected a pinned package, found 'numpy==2.4.6 --hash=sha256:000"),
        ("numpy >= 2", LOCK, "text: expected NAME or NAME==VERSION, found 'numpy >= 2'; run `make lock`"),
    ],
)
def test_a_lock_that_does_not_fit_is_found(source: str, lock: str, message: str) -> None:
    assert list(check_lock("some.lock", "numpy", LOCK)) == []
    assert [line for line in map(str, check_lock("some.lock", source, lock)) if line.startswith(f"some.lock: {message}")]


def test_a_lock_that_is_not_there_is_found(tmp_path: Path) -> None:
    shutil.copy(ROOT / "requirements.in", tmp_path)
    assert check_locks(ROOT).findings == []
    assert "requirements.lock: torch, Python 3.11: expected 2.13.0, found none; run `make lock`" in map(
        str, check_locks(tmp_path).findings
    )


def test_another_python_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.verify.surroundings.PYTHONS", ("3.1",))
    assert str(check_locks(ROOT).findings[0]).startswith("note: this Python: version: expected one of 3.1, found 3.")
