"""Class-balanced subsets and splits."""

import numpy as np
import pytest

from bench.engine.subset import first_per_class, stratified_split

LABELS = np.repeat(np.arange(10, dtype=np.uint8), [12, 12, 12, 12, 12, 12, 12, 12, 12, 12])


def test_first_per_class_takes_the_first_of_each() -> None:
    chosen = first_per_class(LABELS, 23)
    assert np.bincount(LABELS[chosen]).tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert chosen[:4].tolist() == [0, 1, 2, 12]


def test_a_larger_subset_contains_a_smaller_one() -> None:
    assert set(first_per_class(LABELS, 20)) < set(first_per_class(LABELS, 40))


def test_everything_without_a_count() -> None:
    assert first_per_class(LABELS, None).tolist() == list(range(120))


def test_too_large_a_subset_is_refused() -> None:
    assert first_per_class(LABELS, 120).tolist() == list(range(120)), "all there are"
    with pytest.raises(ValueError, match="class 0 has 12 images, 13 are needed"):
        first_per_class(LABELS, 121)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3])
def test_split_is_stratified_disjoint_and_complete(fraction: float) -> None:
    train, validation = stratified_split(LABELS, fraction, seed=5)
    assert sorted([*train, *validation]) == list(range(120))
    assert len(validation) == round(120 * fraction)
    assert np.ptp(np.bincount(LABELS[validation], minlength=10)) <= 1


def test_split_depends_on_the_seed_alone() -> None:
    one, again, other = (stratified_split(LABELS, 0.1, seed=seed)[1].tolist() for seed in (1, 1, 2))
    assert one == again != other


def test_classes_that_give_one_more_are_drawn_too() -> None:
    few = np.repeat(np.arange(100, dtype=np.uint8), 3)
    picked = {tuple(few[stratified_split(few, 0.1, seed=seed)[1]].tolist()) for seed in range(4)}
    assert all(len(set(classes)) == 30 for classes in picked)
    assert len(picked) == 4
