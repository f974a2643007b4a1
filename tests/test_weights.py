"""WEIGHTS= with a file that does not do: one clear line, status 2, no record."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bench import cli, errors, grid
from bench.profiles import PROFILES, smoke
from models.weights import load_backbone
from tests.conftest import small_network

State = dict[str, Tensor]
SCALE = "features.1.0.layer_scale"
GOOD: State = {name: value.contiguous() for name, value in small_network(classes=20).state_dict().items()}


@pytest.fixture(autouse=True)
def small_and_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke budget from pretrained weights, on a network of a thousandth of the size."""

    def build(run: Any, classes: int, initial: State, device: Any) -> nn.Module:
        network = small_network(classes)
        load_backbone(network, initial)
        return network

    monkeypatch.setattr(grid, "build_network", build)
    monkeypatch.setitem(PROFILES, "smoke", lambda experiment: replace(smoke(experiment), weights=experiment.weights))


def run(path: Path) -> int:
    results = str(path.parent / "results")
    experiment = ["run", "fashion_mnist/baseline", "--profile", "smoke", "--device", "cpu"]
    return cli.main([*experiment, "--results", results, "--weights", str(path)])


BAD: dict[str, tuple[State, str]] = {
    "another shape": (GOOD | {SCALE: torch.ones(9, 1, 1)}, "expected shape (8, 1, 1), found (9, 1, 1); made for another network?"),
    "a scalar": (GOOD | {SCALE: torch.tensor(1.0)}, "expected shape (8, 1, 1), found ()"),
    "integers": (GOOD | {SCALE: GOOD[SCALE].int()}, f"{SCALE}: expected float32, float16 or bfloat16, found torch.int32"),
    "complex": (GOOD | {SCALE: GOOD[SCALE].cfloat()}, f"{SCALE}: expected float32, float16 or bfloat16, found torch.complex64"),
    "float64": (GOOD | {SCALE: GOOD[SCALE].double()}, f"{SCALE}: expected float32, float16 or bfloat16, found torch.float64"),
    "NaN": (GOOD | {SCALE: GOOD[SCALE] * float("nan")}, f"expected finite numbers, found NaN or infinity in {SCALE}"),
    "infinity": (GOOD | {SCALE: GOOD[SCALE] / 0}, f"expected finite numbers, found NaN or infinity in {SCALE}"),
    "one too many": (GOOD | {"more": torch.ones(1)}, "found 1 tensors that this network lacks, first more"),
    "one too few": ({name: value for name, value in GOOD.items() if name != SCALE}, f"1 missing, first {SCALE}"),
    "another network": ({"layer1.weight": torch.ones(3)}, "missing, first classifier.0.bias"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("fault", BAD)
def test_bad_tensors(fault: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, message = BAD[fault]
    path = tmp_path / f"weights{suffix}"
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert run(path) == errors.EXIT_USER
    assert_one_line(capsys.readouterr().err, message)
    assert not list(tmp_path.rglob("*.json")), "no record"


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "expected a file, found none"),
    "a folder": (lambda path: path.mkdir(), "expected a file, found none"),
    "an empty file": (lambda path: path.write_bytes(b""), "cannot be read as either"),
    "a page": (lambda path: path.write_bytes(b"<html>404</html>"), "cannot be read as either"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(print, 2)), "cannot be read as either"),
    "half of it": (lambda path: (torch.save(GOOD, path), path.write_bytes(path.read_bytes()[:9000])), "cannot be read as either"),
    "a list": (lambda path: torch.save([GOOD], path), "expected a flat dict of tensors (a state dict)"),
    "a checkpoint": (lambda path: torch.save({"model": GOOD}, path), "expected a flat dict of tensors (a state dict)"),
}


@pytest.mark.parametrize("fault", FILES)
def test_bad_files(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = FILES[fault]
    path = tmp_path / "weights.pth"
    make(path)
    assert run(path) == errors.EXIT_USER
    assert_one_line(capsys.readouterr().err, message)
    assert not list(tmp_path.rglob("*.json")), "no record"


def assert_one_line(error: str, message: str) -> None:
    assert message in error
    assert error.startswith("error: ") and error.removesuffix("\n").isprintable()


def test_good_weights_are_used(tmp_path: Path) -> None:
    """So that the other tests fail for the reason that they give."""
    path = tmp_path / "weights.pth"
    torch.save(GOOD, path)
    assert run(path) == 0


@pytest.mark.parametrize("name", ["x" * 300, "weights\udcff"], ids=["too long", "no Unicode"])
def test_names_that_no_record_can_hold(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"{name}.pth"
    if len(name) < 255:
        torch.save(GOOD, path)
    assert run(path) == errors.EXIT_USER
    assert_one_line(capsys.readouterr().err, "WEIGHTS=")
