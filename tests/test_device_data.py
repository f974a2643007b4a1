"""The batched pipeline against torchvision's transforms, image by image."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from bench.engine.device_data import DeviceSplit, draw_epoch

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def images(count: int, side: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def split(count: int = 7, side: int = 32, channels: int = 3, padding: int = 4) -> DeviceSplit:
    mean, std = (MEAN, STD) if channels == 3 else (MEAN[:1], STD[:1])
    labels = np.arange(count, dtype=np.uint8)
    return DeviceSplit(images(count, side, channels), labels, padding=padding, mean=mean, std=std, device=CPU)


def test_augmented_batches_are_torchvisions_crop_flip_and_normalise() -> None:
    draws = draw_epoch(7, seed=1, epoch=2, padding=4, flip=True, blocks=3, device=CPU)
    assert draws.flip.any() and not draws.flip.all()
    raw = torch.from_numpy(images(7, 32, 3)).permute(0, 3, 1, 2)
    seen = 0
    for located in split().located(draws)[:6].split(3):
        batch, labels = split().augmented(located)
        assert batch.shape == (3, 3, 32, 32) and batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
        for image, label in zip(batch, labels, strict=True):
            assert label == draws.order[seen]
            expected = reference.crop(reference.pad(raw[label], [4]), int(draws.top[seen]), int(draws.left[seen]), 32, 32)
            expected = reference.horizontal_flip(expected) if draws.flip[seen] else expected
            expected = reference.normalize(reference.to_dtype(expected, torch.float32, scale=True), list(MEAN), list(STD))
            torch.testing.assert_close(image, expected, rtol=1e-6, atol=1e-6)
            seen += 1
    assert seen == 6


def test_evaluation_batches_hold_every_image_once_unchanged() -> None:
    batches = list(split().batches(3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    raw = torch.from_numpy(images(7, 32, 3)).permute(0, 3, 1, 2)
    expected = reference.normalize(reference.to_dtype(raw, torch.float32, scale=True), list(MEAN), list(STD))
    torch.testing.assert_close(torch.cat([batch for batch, _ in batches]), expected, rtol=1e-6, atol=1e-6)


def test_grey_images_are_resized_and_replicated() -> None:
    ((batch, _),) = split(count=3, side=28, channels=1, padding=0).batches(3)
    raw = torch.from_numpy(images(3, 28, 1)).permute(0, 3, 1, 2)
    expected = reference.to_dtype(reference.resize(raw, [32, 32], antialias=False), torch.float32, scale=True)
    expected = reference.normalize(expected.expand(-1, 3, -1, -1), [MEAN[0]] * 3, [STD[0]] * 3)
    assert batch.shape == (3, 3, 32, 32)
    # the reference interpolates in integers and may round half a level the other way
    torch.testing.assert_close(batch, expected, rtol=0, atol=1.01 / 255 / STD[0])


def test_grey_images_take_three_channels_of_statistics() -> None:
    grey = DeviceSplit(images(2, 32, 1), np.zeros(2, np.uint8), padding=0, mean=MEAN, std=STD, device=CPU)
    ((batch, _),) = grey.batches(2)
    pixel = images(2, 32, 1)[0, 5, 6, 0] / 255
    assert batch[0, :, 5, 6].tolist() == pytest.approx([(pixel - m) / s for m, s in zip(MEAN, STD, strict=True)], abs=1e-5)


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(torch.seed() % 1000)  # whatever the global generator does
        return draw_epoch(50, seed=seed, epoch=epoch, padding=4, flip=True, blocks=3, device=CPU).order.tolist()

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}) == 4


def test_draws_are_uniform_over_crops_and_flips() -> None:
    draws = draw_epoch(20_000, seed=0, epoch=1, padding=4, flip=True, blocks=3, device=CPU)
    for corner in (draws.top, draws.left):
        counts = torch.bincount(corner, minlength=9)
        assert len(counts) == 9 and (counts - 20_000 / 9).abs().max() < 5 * (20_000 / 9) ** 0.5
    assert abs(draws.flip.float().mean().item() - 0.5) < 0.02
    assert not draw_epoch(100, seed=0, epoch=1, padding=0, flip=False, blocks=3, device=CPU).flip.any()
