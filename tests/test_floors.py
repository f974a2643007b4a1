"""Imports only point down, and models and data can be used alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# from the ground up; a module may import its own floor and those below
FLOORS = [
    ["data"],
    ["models"],
    ["bench", "bench.errors"],
    [
        "bench.experiment",
        "bench.environment",
        "bench.stopping",
        "bench.limits",
        "bench.memory",
        "bench.schema",
        "bench.locks",
        "bench.leases",
        "bench.task",
    ],
    ["bench.ledger", "bench.catalog", "bench.profiles", "bench.shards", "bench.provenance"],
    ["bench.settings"],
    ["bench.engine"],
    ["bench.measure"],
    ["bench.report"],
    ["bench.progress", "bench.doctor", "bench.verify"],
    ["bench.workers"],
    ["bench.grid"],
    ["bench.throughput", "bench.cluster", "bench.serving"],
    ["bench.planning"],
    ["bench.cli"],
    ["bench.__main__"],
]


def floor_of(module: str) -> int:
    """The floor of the longest listed name that the module lies under."""
    fitting = [
        (len(name), level)
        for level, names in enumerate(FLOORS)
        for name in names
        if module == name or (name != "bench" and module.startswith(f"{name}."))
    ]
    assert fitting, f"{module} stands on no floor: give it one"
    return max(fitting)[1]


def modules() -> list[tuple[str, Path]]:
    found = []
    for folder in ("bench", "models", "data"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in names if name.partition(".")[0] in ("bench", "models", "data")}


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down(module: str, path: Path) -> None:
    above = {name for name in imported(path) if floor_of(name) > floor_of(module)}
    assert not above, f"{module} imports from above: {sorted(above)}"


def test_data_and_models_know_nothing_of_the_rest() -> None:
    for module, path in modules():
        package = module.partition(".")[0]
        if package != "bench":
            assert all(name.partition(".")[0] == package for name in imported(path)), module


@pytest.mark.parametrize("package", ["data", "models"])
def test_usable_alone(package: str) -> None:
    others = {"bench", "data", "models"} - {package}
    program = f"import {package}, sys; print([m for m in sys.modules if m.split('.')[0] in {others}])"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
