"""Which images a run trains on, validates on and is tested on, and by which statistics they are normalised."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models import ConvNeXt_Tiny_Weights
from torchvision.transforms.v2 import functional as reference

from bench.catalog import find
from bench.engine.device_data import DeviceSplit
from bench.engine.train import Splits, put_on_device
from bench.experiment import Run
from bench.profiles import smoke
from data import Dataset, load

CPU = torch.device("cpu")
DATA = load("synthetic_cifar100")


def splits_of(name: str, *, seed: int = 0, weights: str = "none") -> Splits:
    experiment = replace(smoke(find(name)), weights=weights)
    return put_on_device(Run(experiment=experiment, profile="smoke", seed=seed), DATA, CPU)


def raw(split: DeviceSplit) -> list[bytes]:
    """Each image as it is stored, without its border."""
    inside = split.images[:, split.padding : split.padding + 32, split.padding : split.padding + 32]
    return [image.numpy().tobytes() for image in inside]


def statistics(dataset: Dataset, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if weights == "none":
        return dataset.mean, dataset.std
    preset = ConvNeXt_Tiny_Weights.IMAGENET1K_V1.transforms()  # what torchvision trained them with
    return tuple(preset.mean), tuple(preset.std)


@pytest.mark.parametrize("weights", ["none", "imagenet1k"])
def test_pixels_are_normalised_as_those_that_the_weights_were_trained_on(weights: str) -> None:
    mean, std = statistics(DATA, weights)
    for split in (splits_of("cifar100/baseline", weights=weights).test, splits_of("cifar100/baseline", weights=weights).train):
        stored: Tensor = split.images[:3, split.padding : split.padding + 32, split.padding : split.padding + 32].permute(
            0, 3, 1, 2
        )
        expected = reference.normalize(reference.to_dtype(stored, torch.float32, scale=True), list(mean), list(std))
        torch.testing.assert_close(next(split.batches(3))[0], expected, rtol=0, atol=1e-5)


def test_validation_images_are_training_images_that_are_not_trained_on() -> None:
    whole, divided = splits_of("cifar100/matched_convnext"), splits_of("cifar100/scratch_dual")
    assert whole.validation is None and divided.validation is not None
    assert sorted(raw(divided.train) + raw(divided.validation)) == sorted(raw(whole.train))
    assert raw(divided.test) == raw(whole.test)
    assert (divided.train.padding, divided.validation.padding, divided.test.padding) == (4, 0, 0), "training alone is cropped"


def test_a_seed_draws_the_validation_images_and_nothing_else() -> None:
    one, again, other = (splits_of("cifar100/scratch_dual", seed=seed) for seed in (1, 1, 2))
    assert one.validation and again.validation and other.validation
    assert raw(one.validation) == raw(again.validation) != raw(other.validation)
    assert raw(one.test) == raw(other.test)
    assert raw(splits_of("cifar100/baseline", seed=1).train) == raw(splits_of("cifar100/baseline", seed=2).train)
