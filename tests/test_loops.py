"""The loops that are compared: each trains, on all images."""

import subprocess
import sys
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import data
from bench import machine
from bench.catalog import find
from bench.engine.device_data import DeviceSplit
from bench.engine.execution import Execution
from bench.measure import loops
from tests.conftest import CPU, small_network


@pytest.mark.parametrize("flags", [loops.Flags(workers=0), loops.Flags(bf16=True, channels_last=True, fused=True, workers=1)])
def test_the_conventional_loop_learns(flags: loops.Flags) -> None:
    """It is no straw man: in 200 steps on 20 images it gets most of them right, crops and flips and all."""
    dataset = data.load("tiny_fashion_mnist")
    images = np.pad(dataset.train.images[:200:10], ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(3, axis=3)
    loop = loops.Conventional(
        small_network(), images, dataset.train.labels[:200:10], batch_size=20, device=CPU, flags=flags, learning_rate=1e-2
    )
    loop(1)
    first = loop.loss
    loop(199)
    assert loop.accuracy > 0.5 and loop.loss < 0.7 * first


class Watched:
    """Networks that note which images they are given: image k is of the one colour 6k, and no crop moves the middle away."""

    def __init__(self) -> None:
        self.networks: list[nn.Module] = []
        self.batches: list[list[int]] = []
        self.channels_last: list[bool] = []  # of the batches
        self.images = np.arange(40, dtype=np.uint8)[:, None, None, None] * 6 * np.ones((1, 32, 32, 3), np.uint8)
        self.labels = np.arange(40, dtype=np.uint8) % 10

    def build(self, model: Any = None, *, classes: int = 10, seed: int = 0, initial: Any = None) -> nn.Module:
        network = small_network(classes)
        network.register_forward_pre_hook(self._note)
        network.features[0].register_forward_pre_hook(self._note_layout)  # type: ignore[operator, union-attr]
        self.networks.append(network)
        return network

    def _note_layout(self, stem: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self.channels_last.append(given[0].is_contiguous(memory_format=torch.channels_last))

    def _note(self, network: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        middle = given[0].detach().float()[:, 0, 16, 16] * loops.STD[0] + loops.MEAN[0]
        self.batches.append((middle * 255 / 6).round().int().tolist())


@pytest.mark.parametrize("name", ["ours", "eager", "conventional"])
def test_every_loop_trains_on_every_image_once_an_epoch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(loops.networks, "build", watched.build)
    split = DeviceSplit(watched.images, watched.labels, padding=4, mean=loops.MEAN, std=loops.STD, device=CPU)
    flags = loops.Flags(workers=0)
    do = {
        "ours": lambda: loops.ours(find("cifar100/baseline"), split, Execution(), batch_size=10, classes=10, device=CPU),
        "eager": lambda: loops.eager_on_device(watched.build(), split, batch_size=10, device=CPU, flags=flags),
        "conventional": lambda: loops.Conventional(
            watched.build(), watched.images, watched.labels, batch_size=10, device=CPU, flags=flags
        ),
    }[name]()
    before = {name: value.clone() for name, value in watched.networks[0].state_dict().items()}
    do(3)
    do(5)  # over the end of an epoch
    first, second = (list(chain(*watched.batches[start : start + 4])) for start in (0, 4))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second or name == "eager", "another order; the eager loop repeats its one epoch"
    assert any(not torch.equal(value, before[name]) for name, value in watched.networks[0].state_dict().items())


@pytest.mark.parametrize(("without", "exact"), [({"channels_last": False}, False), ({"fused": False}, False), ({}, True)])
def test_ours_without_a_lever_trains_alike(without: dict[str, bool], exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(loops.networks, "build", watched.build)
    split = DeviceSplit(watched.images, watched.labels, padding=4, mean=loops.MEAN, std=loops.STD, device=CPU)
    in_fp32 = replace(find("cifar100/baseline"), recipe=replace(find("cifar100/baseline").recipe, precision="fp32"))
    for left_out in ({}, without):
        loops.ours(in_fp32, split, Execution(), batch_size=10, classes=10, device=CPU, **left_out)(3)
    one, other = (network.state_dict() for network in watched.networks)
    assert watched.batches[:3] == watched.batches[3:], "the same images"
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-4)
    layouts = [network.features[2][1].weight.is_contiguous(memory_format=torch.channels_last) for network in watched.networks]  # type: ignore[index, union-attr]
    assert layouts == [True, without.get("channels_last", True)]
    assert watched.channels_last == 3 * [True] + 3 * [without.get("channels_last", True)]


def test_the_bare_step_trains_and_inference_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(loops.networks, "build", watched.build)
    before = {name: value.clone() for name, value in small_network().state_dict().items()}
    loops.bare_step(find("cifar100/baseline"), Execution(), batch_size=10, classes=10, device=CPU)(2)
    loops.inference(find("cifar100/baseline"), Execution(), batch_size=10, classes=10, device=CPU)(1)
    trained, used = (network.state_dict() for network in watched.networks)
    assert any(not torch.equal(value, before[name]) for name, value in trained.items())
    assert all(torch.equal(value, before[name]) for name, value in used.items())


def test_modes_of_the_process_are_put_back() -> None:
    """Outside of deterministic mode the library is as it comes: with TF32 in convolutions."""
    comes = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.backends.cudnn.conv.fp32_precision)"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    machine.make_deterministic()
    convolutions = torch.backends.cudnn.conv
    for on, precision in ((False, comes), (True, "ieee")):
        with loops.deterministic(on):
            assert torch.are_deterministic_algorithms_enabled() == on and torch.backends.cudnn.benchmark != on
            assert convolutions.fp32_precision == precision
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert convolutions.fp32_precision == "ieee"
