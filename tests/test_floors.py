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
        "bench.machine",
        "bench.words",
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
    ["bench.runs"],
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


def loaded_by(imported: list[str]) -> set[str]:
    """The modules that a new process has after these imports."""
    program = f"import sys, {', '.join(imported)}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("package", ["data", "models"])
def test_usable_alone(package: str) -> None:
    its_own = [name for name, path in modules() if name.partition(".")[0] == package and path.name != "__main__.py"]
    assert len(its_own) > 10
    loaded = loaded_by([name for name in its_own if "triton" not in name and name != "models.fused"])  # Linux alone has Triton
    assert {name.partition(".")[0] for name in loaded} & {"bench", "data", "models"} == {package}


def test_what_only_reads_or_refuses_waits_for_nothing_large() -> None:
    """torch takes two to five seconds to import and matplotlib one, which is most of what these commands would take."""
    loaded = loaded_by([f"bench.{name}" for name in ("cli", "cluster", "report.listing", "report.show", "report.write", "runs")])
    assert not loaded & {"torch", "torchvision", "matplotlib", "fvcore", "tensorboard"}
