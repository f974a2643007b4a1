"""What the Makefile runs: with `make -n`, or for real with programs that only write down how they were called."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from bench import environment
from bench.catalog import EXPERIMENTS
from bench.cluster import VARIABLES
from bench.settings import DEFAULTS

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = " ".join(re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)).split()
USER_VARIABLES = tuple(DEFAULTS)
FAMILIES = re.findall(r"^([a-z-]+):.*\n\t\$\(call FAMILY,", MAKEFILE, re.MULTILINE)
LOCKED_INSTALL = "--require-hashes -r requirements.lock -r requirements-dev.lock"

# Writes a line with its arguments and the suite's variables, then ends with the status that the test chose.
PROGRAM = f"""#!{sys.executable}
import json, os, sys
names = {(*USER_VARIABLES, "FROM")!r}
with open({{log!r}}, "a") as log:
    given = {{{{name: os.environ[name] for name in names if name in os.environ}}}}
    log.write(json.dumps({{{{"arguments": sys.argv[1:], "variables": given}}}}) + "\\n")
sys.exit({{statuses!r}}.get(" ".join(sys.argv[1:4]), 0))
"""


class Program:
    """A program that writes down its calls in place of doing anything."""

    def __init__(self, path: Path, statuses: dict[str, int] | None = None) -> None:
        self.log = path.with_name(f"{path.name}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PROGRAM.format(log=str(self.log), statuses=statuses or {}))
        path.chmod(0o755)

    def calls(self) -> list[dict[str, dict[str, str]]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def commands(self) -> list[str]:
        return [" ".join(call["arguments"]) for call in self.calls()]


def make(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user with an empty environment would: not as part of the make that runs these tests."""
    variables.setdefault("PATH", os.environ["PATH"])
    command = [shutil.which("make") or "make", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def plan(*arguments: str, **variables: str) -> str:
    """What `make -n` prints."""
    result = make("-n", *arguments, **variables)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.fixture
def python(tmp_path: Path) -> Program:
    return Program(tmp_path / "venv/bin/python")


def make_with(program: Program, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make in an active environment whose Python is the given program."""
    return make(*arguments, VIRTUAL_ENV=str(program.log.parent.parent), **variables)


# --- help -------------------------------------------------------------------------------------------------------------


def test_the_targets_that_were_promised_are_there() -> None:
    promised = "help venv lock data smoke test check list run report doctor image shell container all clean"
    assert set(promised.split()) <= set(TARGETS)


def test_help_explains_every_target() -> None:
    lines = make("help").stdout.splitlines()
    assert make().stdout.splitlines() == lines
    for name in TARGETS:
        assert [line for line in lines if re.match(rf"  {name} +\S.{{10,}}", line)], name


@pytest.mark.parametrize("name", USER_VARIABLES)
def test_help_gives_the_default_that_python_has(name: str) -> None:
    line = re.search(rf"^  {name} +[^(]*\((.*?)\)", make("help").stdout, re.MULTILINE)
    assert line and line[1] == DEFAULTS[name]


def test_every_target_with_a_help_line_is_phony() -> None:
    documented = re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE)
    assert sorted(documented) == sorted(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_planned(target: str) -> None:
    assert plan(target, "ONLY=cifar100/baseline", "TARGET=smoke").strip()


# --- the environment --------------------------------------------------------------------------------------------------


def test_an_active_environment_is_used_as_it_is() -> None:
    assert plan("list", VIRTUAL_ENV="/opt/venv") == "/opt/venv/bin/python -m bench list\n"
    assert "pip" not in plan("test", "check", "smoke", VIRTUAL_ENV="/opt/venv")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that `make venv` reads, and a PATH folder without any Python."""
    folder = tmp_path / "clone"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    for lock in ("requirements.lock", "requirements-dev.lock"):
        (folder / lock).write_text("")
    for tool in ("sh", "echo", "rm", "touch", "find"):
        (folder / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    return folder


def install_python(clone: Path, name: str, *, version: tuple[int, int], pip_status: int = 0) -> None:
    """A Python of some version that only evaluates make's questions, makes environments of itself, and "installs"."""
    script = f"""#!{sys.executable}
import os, shutil, sys
if sys.argv[1] == "-c":
    sys.version_info = {version!r}
    exec(sys.argv[2])
elif sys.argv[1:4] == ["-m", "venv", "--clear"]:
    os.makedirs(sys.argv[4] + "/bin", exist_ok=True)
    shutil.copy({str(clone / "bin" / name)!r}, sys.argv[4] + "/bin/python")
elif sys.argv[1:3] == ["-m", "pip"]:
    assert {LOCKED_INSTALL!r} in " ".join(sys.argv)
    open({str(clone / "installed")!r}, "a").write("once\\n")
    sys.exit({pip_status})
"""
    (clone / "bin" / name).write_text(script)
    (clone / "bin" / name).chmod(0o755)


def installations(clone: Path) -> int:
    return (clone / "installed").read_text().count("once")


def test_the_environment_is_made_once_for_each_lock(clone: Path) -> None:
    path = str(clone / "bin")
    install_python(clone, "python3", version=(3, 14))
    install_python(clone, "python3.12", version=(3, 12))
    for _ in range(2):
        result = make("venv", folder=clone, PATH=path)
        assert result.returncode == 0, result.stderr
        assert installations(clone) == 1
    assert "python3.12" in (clone / ".venv/bin/python").read_text()
    os.utime(clone / "requirements-dev.lock", (2e9, 2e9))
    make("venv", folder=clone, PATH=path)
    assert installations(clone) == 2


def test_the_own_environment_is_kept_up_to_date_when_it_is_active(clone: Path) -> None:
    install_python(clone, "python3", version=(3, 11))
    make("venv", folder=clone, PATH=str(clone / "bin"), VIRTUAL_ENV=str(clone / ".venv"))
    assert installations(clone) == 1


def test_an_interrupted_installation_is_taken_up_again(clone: Path) -> None:
    install_python(clone, "python3", version=(3, 11), pip_status=1)
    assert make("venv", folder=clone, PATH=str(clone / "bin")).returncode == 2
    assert not (clone / ".venv/.complete").exists()
    install_python(clone, "python3", version=(3, 11))
    (clone / ".venv/bin/python").unlink()
    assert make("venv", folder=clone, PATH=str(clone / "bin")).returncode == 0
    assert (clone / ".venv/.complete").exists()
    assert installations(clone) == 2


def test_no_python_of_a_supported_version_is_one_clear_line(clone: Path) -> None:
    install_python(clone, "python3", version=(3, 10))
    result = make("test", folder=clone, PATH=str(clone / "bin"))
    assert result.returncode == 2
    ours = [line for line in result.stderr.splitlines() if "***" not in line]
    assert len(ours) == 1
    assert ours[0].startswith("make venv: expected Python 3.11 to 3.13 with its venv module, found none")
    assert not (clone / ".venv").exists()


def test_lock_writes_the_locks_and_upgrades_on_request() -> None:
    compiled = [line for line in plan("lock", VIRTUAL_ENV="/opt/venv").splitlines() if "pip compile" in line]
    assert [line.rpartition(" ")[2] for line in compiled] == [
        "requirements.lock",
        "requirements-dev.lock",
        "requirements-cluster.lock",
    ]
    for line in compiled:
        assert "--universal --generate-hashes --python-version 3.11" in line
        assert "--upgrade" not in line
    assert plan("lock", UPGRADE="1").count("--upgrade") == 3
    assert "--upgrade" not in plan("lock", UPGRADE="0")


# --- python -m bench and python -m data -------------------------------------------------------------------------------


def test_variables_reach_python_as_they_were_given(python: Program) -> None:
    make_with(python, "list")
    make_with(python, "list", "PROFILE=mini", "SEEDS=0,1", ONLY="fashion/* x", RESULTS="a b")
    assert [call["variables"] for call in python.calls()] == [
        {},
        {"PROFILE": "mini", "SEEDS": "0,1", "ONLY": "fashion/* x", "RESULTS": "a b"},
    ]


def test_family_targets_cover_the_catalog(python: Program) -> None:
    names = {experiment.name for experiment in EXPERIMENTS}
    covered = set()
    for target in FAMILIES:
        assert make_with(python, target).returncode == 0
        patterns = python.calls()[-1]["variables"]["ONLY"].split()
        matching = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        assert matching, target
        covered |= matching
    assert covered == names
    assert set(python.commands()) == {"-m bench grid"}


@pytest.mark.parametrize("target", ["list", "report", "cost", "doctor"])
def test_targets_that_are_one_command(python: Program, target: str) -> None:
    assert make_with(python, target).returncode == 0
    assert python.commands() == [f"-m bench {target}"]


def test_data_takes_archives_from_folders(python: Program) -> None:
    make_with(python, "data")
    make_with(python, "data", "FROM=one two")
    make_with(python, "data", "WEIGHTS=mine.pth")
    assert python.commands() == ["-m data", "-m data --from one --from two", "-m data --no-weights"]


@pytest.mark.parametrize(
    ("target", "variable", "message"),
    [
        ("figures", "IMAGES=None", "IMAGES: expected one of none, found 'None'"),
        ("all", "IMAGES=no", "IMAGES: expected one of none, found 'no'"),
        ("bench-throughput", "QUICK=no", "QUICK: expected one of 0 1, found 'no'"),
        ("lock", "UPGRADE=yes", "UPGRADE: expected one of 0 1, found 'yes'"),
        ("tensorboard", "PORT=abc", "make tensorboard: expected a number as PORT, found 'abc'"),
    ],
)
def test_a_variable_of_make_alone_is_checked(python: Program, target: str, variable: str, message: str) -> None:
    result = make_with(python, target, variable, "PROFILE=smoke")
    assert result.returncode == 2 and python.calls() == []
    assert message in result.stderr.splitlines()[0]


def test_quotes_in_a_variable_are_pythons(python: Program) -> None:
    assert make_with(python, "run", "ONLY=a\"b'c").returncode == 0
    assert python.calls()[-1]["variables"]["ONLY"] == "a\"b'c"


def test_run_needs_only(python: Program) -> None:
    result = make_with(python, "run")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0].startswith("make run: expected ONLY")
    assert python.calls() == []
    assert make_with(python, "run", "ONLY=cifar100/baseline").returncode == 0
    assert python.commands() == ["-m bench grid"]


def test_all_is_data_then_grid_then_figures_then_the_report_that_shows_them(python: Program) -> None:
    assert make_with(python, "all", PROFILE="mini").returncode == 0
    assert python.commands() == ["-m data", "-m bench grid", "-m bench figures", "-m bench report"]


def test_the_smoke_profile_needs_no_data(python: Program) -> None:
    make_with(python, "all", "PROFILE=smoke")
    assert python.commands() == ["-m bench grid", "-m bench figures", "-m bench report"]


@pytest.mark.parametrize("target", ["all", "smoke"])
@pytest.mark.parametrize(
    ("statuses", "reported"),
    [({"-m bench grid": 1}, True), ({"-m bench grid": 2}, False), ({"-m bench report": 1}, True)],
)
def test_a_failure_is_makes_failure_and_failed_runs_are_reported(
    tmp_path: Path, target: str, statuses: dict[str, int], reported: bool
) -> None:
    python = Program(tmp_path / "venv/bin/python", statuses)
    assert make_with(python, target, RESULTS=str(tmp_path / "results")).returncode == 2
    assert ("-m bench report" in python.commands()) == reported


def test_figures_that_cannot_be_drawn_leave_the_report(tmp_path: Path) -> None:
    python = Program(tmp_path / "venv/bin/python", {"-m bench figures": 2})
    assert make_with(python, "all").returncode == 2
    assert python.commands()[-1] == "-m bench report"


def test_data_that_cannot_be_had_stops_all(tmp_path: Path) -> None:
    python = Program(tmp_path / "venv/bin/python", {"-m data": 1})
    assert make_with(python, "all").returncode == 2
    assert python.commands() == ["-m data"]


def test_smoke_starts_afresh_in_a_folder_of_its_own(python: Program, tmp_path: Path) -> None:
    results = tmp_path / "the results"
    (results / "smoke/records").mkdir(parents=True)
    (results / "records").mkdir()
    result = make_with(python, "smoke", "PROFILE=paper", RESULTS=str(results))
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in results.iterdir()) == ["records"]
    assert python.commands() == ["-m bench grid", "-m bench report"]
    its = {"PROFILE": "smoke", "RESULTS": f"{results}/smoke", "JOBS": "auto"}
    assert [call["variables"] for call in python.calls()] == [its] * 2
    assert make_with(python, "smoke", JOBS="3").returncode == 0 and python.calls()[-1]["variables"]["JOBS"] == "3"
    assert "results/smoke" in plan("smoke")


def test_a_home_folder_is_the_same_to_make_and_python() -> None:
    """Within quotes a shell leaves it as it is, and Python expands it."""
    assert 'rm -rf -- "/home/me/x y/smoke"' in plan("smoke", RESULTS="~/x y", HOME="/home/me")
    container = plan("container", "TARGET=data", RESULTS="~/x", DATASETS="~/y", HOME="/home/me")
    assert '--volume "/home/me/y:/datasets" --volume "/home/me/x:/results"' in container


# Stands for a grid that leaves a checkpoint when it is asked to stop.
STOPPED = f"""#!{sys.executable}
import pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from bench import stopping
stopping.install()
log = pathlib.Path({{log!r}})
with stopping.heeding():
    log.write_text("at work")
    while not stopping.wanted():
        time.sleep(0.02)
    time.sleep(0.5)
    log.write_text("checkpoint")
    stopping.leave()
"""


@pytest.mark.parametrize("target", ["all", "smoke", "run"])
@pytest.mark.parametrize(("sent", "to_all"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)])
def test_a_grid_is_asked_to_stop_and_waited_for(tmp_path: Path, target: str, sent: signal.Signals, to_all: bool) -> None:
    """Its checkpoint is what the next command goes on from. SIGTERM may come to make alone, Ctrl-C comes to the whole terminal."""
    log, python = tmp_path / "log", tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STOPPED.format(log=str(log)))
    python.chmod(0o755)
    command = [shutil.which("make") or "make", target, "PROFILE=smoke", "ONLY=cifar100/baseline"]
    environ = {"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(tmp_path / "venv"), "RESULTS": str(tmp_path / "results")}
    with subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        (os.killpg if to_all else os.kill)(process.pid, sent)
        process.communicate(timeout=20)
    assert (process.returncode != 0, log.read_text()) == (True, "checkpoint")


def test_clean_leaves_data_and_ledger(clone: Path) -> None:
    kept = ["results/records/a.json", "datasets/a.npz", "bench/a.py", "RESULTS.md"]
    removed = [".venv/bin/python", ".mypy_cache/a", ".ruff_cache/a", "results/smoke/a", "bench/b/__pycache__/a.pyc"]
    for folder in ("models", "data", "tests"):
        (clone / folder).mkdir()
    for name in kept + removed:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("")
    result = make("clean", folder=clone, PATH=str(clone / "bin"))
    assert result.returncode == 0, result.stderr
    assert [name for name in kept + removed if (clone / name).exists()] == kept


def test_a_commit_is_dirty_by_the_same_list_in_make_and_python() -> None:
    sources = re.search(r"^SOURCES = (.*)", MAKEFILE, re.MULTILINE)
    assert sources
    assert tuple(sources[1].split()) == environment._SOURCES


# --- continuous integration --------------------------------------------------------------------------------------------


def test_continuous_integration_runs_the_documented_commands() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert re.findall(r"^step (.*)", script.read_text(), re.MULTILINE) == [
        "make venv",
        "make check",
        "make smoke",
        "make test",
    ]
    assert "make test-cluster" in script.read_text()
    (unset,) = re.findall(r"^unset (.*)", script.read_text(), re.MULTILINE)
    assert {*DEFAULTS, *VARIABLES, "TESTS", "FUZZ", "IMAGES", "QUICK", "UPGRADE", "FROM"} <= set(unset.split())
