"""The command line: what a mistake looks like, and where a choice comes from."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cli, errors
from bench.catalog import EXPERIMENTS
from bench.environment import ROOT, code_state, seed_for
from bench.errors import UserError
from bench.experiment import Weights
from bench.ledger import SECTIONS, Ledger
from bench.machine import choose_device, describe, instructions, prepared
from bench.runs import initial_weights
from bench.settings import DEFAULTS
from tests.records import record_of, run_of


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid", "--profile", "huge"], "PROFILE: expected one of paper, mini, smoke, found 'huge'"),
        (
            ["grid", "--seeds", "a"],
            "SEEDS: expected whole numbers from 0 of at most 18 digits, as in SEEDS='0 1 2' or SEEDS=0-2, found 'a'",
        ),
        (["grid", "--seeds", "-1"], "SEEDS: expected whole numbers from 0"),
        (["grid", "--jobs", "0"], "JOBS: expected auto or a whole number from 1 of at most 6 digits, found '0'"),
        (["grid", "--jobs", "9" * 5000], f"from 1 of at most 6 digits, found '{'9' * 80}'\n"),
        (["grid", "--seeds", "0-" + "9" * 5000], "SEEDS: expected whole numbers from 0 of at most 18 digits"),
        (["grid", "--only", "nothing/*"], "ONLY='nothing/*' matches no experiment"),
        (["grid", "--profile", "smoke", "--device", "tpu"], "DEVICE: expected auto, cpu, cuda or cuda:N, found 'tpu'"),
        (["grid", "--weights", "no-such.pth"], "WEIGHTS=no-such.pth: expected a file, found none"),
        (["list", "--results", "~nosuchuser/x"], "~nosuchuser/x: expected the home folder of a user, found none"),
        (["grid", "--weights", "~nosuchuser/x"], "~nosuchuser/x: expected the home folder of a user, found none"),
        (["run", "cifar100/typo"], "experiment 'cifar100/typo' is not in the catalog"),
        (["run", "../../etc/passwd"], "is not in the catalog"),
        (["run", "cifar100/baseline", "--seed", "x"], "expected whole numbers from 0"),
        (["run", "cifar100/scratch_convnext", "--profile", "mini"], "make data"),
        (["grid", "--profile", "smoke", "--dry-run"], "--dry-run: expected --launcher slurm, whose tasks it shows"),
        (["list", "--seeds", "0 5-3"], "SEEDS: expected ranges from a lower to a higher number, as in SEEDS=0-2, found '0 5-3'"),
        (["report", "--results", ""], "RESULTS: expected a folder, found an empty name; leave it out for 'results'"),
        (["list", "--datasets", ""], "DATASETS: expected a folder, found an empty name; leave it out for 'datasets'"),
        (["report", "--results", "nowhere"], "RESULTS=nowhere: expected a folder, found none"),
        (["figures", "--results", "nowhere"], "RESULTS=nowhere: expected a folder, found none"),
        (
            ["list", "--results", str(ROOT / "README.md")],
            "README.md: expected a folder, found a file; choose another with RESULTS=",
        ),
        (["plan", "--gpu-seconds-per-epoch", "1e300"], "expected a number above 0 and below 1,000,000,000, found '1e300'"),
        (["show", "cifar100/baseline", "--seed", "0 1"], "--seed, else SEEDS: expected one whole number, found 2"),
        (["run", "cifar100/baseline", "--profile", "smoke", "--results", "/proc/none"], "choose another folder with RESULTS="),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == errors.EXIT_USER
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frob"], "invalid choice: 'frob'"),
        (["run"], "the following arguments are required: NAME"),
        (["run", "cifar100/baseline", "--only", "x"], "unrecognized arguments: --only x"),
        (["plan"], "one of the arguments --throughput --gpu-seconds-per-epoch is required"),
    ],
)
def test_a_mistake_in_the_words_is_one_line_too(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert left.value.code == errors.EXIT_USER and error.count("\n") == 1
    assert error.startswith("error: ") and message in error and "--help` says what there is" in error


def test_commands_of_one_run_take_the_seed_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDS", "3")
    for words in (["run", "a"], ["show", "a"], ["compare", "a", "b"]):
        assert cli.parser().parse_args(words).seed == "3"
        assert cli.parser().parse_args([*words, "--seed", "5"]).seed == "5"


def test_missing_weights_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.grid._dataset", lambda name, root: None)
    assert cli.main(["grid", "--only", "cifar100/baseline", "--datasets", str(tmp_path)]) == errors.EXIT_USER
    error = capsys.readouterr().err
    assert "convnext_tiny-983f1562.pth: expected under" in error
    assert "`make data`" in error and "WEIGHTS=FILE" in error and "ONLY=" in error


def test_damaged_weights_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights" / "convnext_tiny-983f1562.pth"
    path.parent.mkdir()
    path.write_bytes(b"something else")
    monkeypatch.setattr("bench.grid._dataset", lambda name, root: None)
    monkeypatch.setattr("bench.grid.weights_path", lambda root: path)
    assert cli.main(["grid", "--only", "cifar100/baseline", "--datasets", str(tmp_path)]) == errors.EXIT_USER
    assert "expected SHA-256 983f1562536e84ff" in capsys.readouterr().err


def test_cuda_never_falls_back(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["grid", "--profile", "smoke", "--device", "cuda"]) == errors.EXIT_USER
    assert "torch sees no GPU here; run `make doctor`" in capsys.readouterr().err


def test_auto_says_what_it_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["grid", "--profile", "smoke", "--only", "cifar100/baseline_F0", "--results", str(tmp_path)])
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("profile smoke: 1 runs, 1 due, on ") and first.endswith("(DEVICE=auto)")


def test_flag_before_environment_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def profile(*flags: str) -> str:
        return str(cli.parser().parse_args(["list", *flags]).profile)

    assert profile() == DEFAULTS["PROFILE"] == "paper"
    monkeypatch.setenv("PROFILE", "mini")
    assert profile() == "mini"
    assert profile("--profile", "smoke") == "smoke"
    monkeypatch.setenv("PROFILE", "")
    assert profile() == "paper", "an empty variable counts as unset"


def test_every_choice_is_a_flag_and_a_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["grid", "--help"])
    text = capsys.readouterr().out
    for name in DEFAULTS:
        monkeypatch.setenv(name, f"value of {name}")
        assert getattr(cli.parser().parse_args(["grid"]), name.lower()) == f"value of {name}"
        assert f"--{name.lower().replace('_', '-')}" in text and f"${name}" in text


def test_list_names_every_experiment_with_its_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [experiment.name for experiment in EXPERIMENTS]
    expected = ["cifar100/baseline", "77.24", "best_test", "cifar100", "convnext_tiny, default stem", "imagenet1k", "full", "20"]
    assert re.split(r"  +", lines[2]) == [*expected, "all", "0: not run"]


def test_list_says_what_was_run_from_other_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, ledger = Weights("mine.pth", "0" * 64), Ledger(tmp_path)
    one, two = run_of("cifar100/baseline", profile="paper"), run_of("cifar100/C_se", profile="paper")
    one = replace(one, weights=mine)
    recipe = replace(two.experiment.recipe, epochs=7)
    two = replace(two, experiment=replace(two.experiment, recipe=recipe), weights=initial_weights(two.experiment, None))
    for run in (one, two):
        record = record_of(run, (1, 2))
        ledger.write(run, {name: record[name] for name in SECTIONS})
    assert cli.main(["list", "--results", str(tmp_path), "--only", "cifar100/baseline cifar100/C_se cifar100/stem_baseline"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    states = {line.split()[0]: re.split(r"  +", line)[-1] for line in lines}
    assert states == {
        "cifar100/baseline": "0: not run (done from other weights)",
        "cifar100/C_se": "0: not run (done as configured otherwise)",
        "cifar100/stem_baseline": "0: not run",
    }
    assert "essentially the same" in lines[-1], "the study's words, where it gives no number"


def test_cost_prints_what_each_kind_of_attention_adds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost", "--only", "cifar100/C_eca cifar100/A_dual cifar100/B_heads4"]) == 0
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[2][:6] == [
        "cifar100/A_dual",
        "convnext_tiny, default stem",
        "mhsa, 4 heads at P2 and P3",
        "100",
        "28,637,766",
        "740,738",
    ]
    assert lines[2][-2:] == ["95.82", "P2 4x4 = 16 tokens, P3 2x2 = 4 tokens"]
    assert lines[3][0] == "cifar100/C_eca" and lines[3][5] == "6", "B_heads4 has the network of A_dual"
    assert len(lines) == 4


# ---- the machine and the code ----------------------------------------------------------------------------------------------


# ---- where the output goes ----------------------------------------------------------------------------------------------


def writing(stdout: Any, *arguments: str, **environ: str) -> tuple[int, str]:
    """Exit status and errors of a command."""
    command = [sys.executable, "-m", "bench", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, env=os.environ | environ)
    if process.stdout:
        process.stdout.close()
    return process.wait(), process.communicate()[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_an_output_that_is_full_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        assert writing(full, "list") == (errors.EXIT_USER, "error: standard output: cannot be written (No space left on device)\n")


def test_a_reader_who_leaves_hears_nothing() -> None:
    assert writing(subprocess.PIPE, "list") == (128 + signal.SIGPIPE, "")


def test_a_terminal_need_not_know_every_character(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("w") as file:
        assert writing(file, "show", "cifar100/baseline", PYTHONIOENCODING="ascii") == (0, "")
    assert output.read_text().isascii() and "cifar100/baseline" in output.read_text()


def test_seeds_differ_by_key_and_fit_every_generator() -> None:
    seeds = [seed_for(seed, epoch, use) for seed in range(3) for epoch in range(3) for use in ("order", "crop")]
    assert len(set(seeds)) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(0, 1, "order") == 7_869_624_158_837_258_281, "every record depends on it"


def test_device_numbers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [prepared(name) for name in ("auto", "cpu", "cuda:1")] == [torch.device(name) for name in ("cuda", "cpu", "cuda:1")]
    assert current == [torch.device("cuda:1")], "graphs and Triton go by the current device"
    with pytest.raises(UserError, match=r"this machine has 2 GPU\(s\), numbered from 0"):
        choose_device("cuda:2")
    for wrong in ("cuda:x", "cuda:-1", "cpu:0", "CUDA", "", "cuda:" + "9" * 5000):
        with pytest.raises(UserError, match="DEVICE: expected"):
            choose_device(wrong)


@pytest.mark.parametrize(
    ("flags", "found"), [("fpu avx2", "AVX2"), ("avx512f amx_bf16 avx512_bf16 avx512_bf16x", "AVX2 amx_bf16 avx512_bf16")]
)
def test_processors_of_one_name_differ_in_their_instructions(flags: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(Path, "read_text", lambda self: f"model name : EPYC\nflags : {flags}\n")
    assert instructions(torch.device("cpu")) == found
    assert instructions(torch.device("cuda")) is None


def test_description_names_no_host_user_or_path() -> None:
    description = describe(torch.device("cpu"))
    assert description["torch"] == torch.__version__ and description["deterministic"] is True
    assert not any("/" in str(value) for value in description.values())
    assert description["instructions"]


def test_commit_is_taken_from_the_environment_where_git_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for given, commit, dirty in [("abc", "abc", False), ("abc-dirty", "abc", True), ("", None, None)]:
        monkeypatch.setenv("BENCH_COMMIT", given)
        state = code_state()
        assert (state["commit"], state["dirty"]) == (commit, dirty)


def test_hash_of_the_sources_changes_with_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bench", "models", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "requirements.lock").touch()
    source = tmp_path / "bench" / "a.py"
    monkeypatch.setattr("bench.environment.ROOT", tmp_path)
    source.write_text("a = 1\n")
    before = code_state()["sources_sha256"]
    assert code_state()["sources_sha256"] == before
    source.write_text("a = 2\n")
    assert code_state()["sources_sha256"] != before
