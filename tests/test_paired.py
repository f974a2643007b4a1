"""Paired comparisons: the textbook's numbers, the promised error rates, and sense at the edges."""

import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from bench.report.paired import LEVEL, POWER, Paired, compare, holm, sign_flip_p


def normal(repetitions: int, seeds: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, 0.4, size=(repetitions, seeds))


def test_by_hand() -> None:
    paired = compare([1.0, 2.0, 3.0])  # standard error 1 / sqrt(3), t = 2 sqrt(3), the critical value of t is 4.3027
    assert (paired.n, paired.mean, paired.deviation) == (3, 2.0, 1.0)
    assert (paired.low, paired.high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert paired.p == pytest.approx(0.0742, abs=1e-4)
    assert paired.sign_flip_p == 0.25


def test_equals_scipys_paired_t_test() -> None:
    first, second = normal(2, 6)
    test = stats.ttest_rel(first, second)
    paired = compare(list(first - second))
    interval = test.confidence_interval()
    assert paired.p == pytest.approx(test.pvalue)
    assert (paired.low, paired.high) == pytest.approx((interval.low, interval.high))
    assert paired.p_against(0.5) == pytest.approx(stats.ttest_1samp(first - second, 0.5).pvalue)


def test_sign_flips_are_all_counted() -> None:
    differences = [0.7, -0.2, 0.9, 0.4]
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in itertools.product((1, -1), repeat=4)]
    assert sign_flip_p(differences) == pytest.approx(statistics.fmean(abs(s) >= sum(differences) - 1e-9 for s in sums))


@pytest.mark.parametrize(("n", "least"), [(2, 0.5), (3, 0.25), (6, 2 / 64)])
def test_few_seeds_cannot_have_a_small_sign_flip_p(n: int, least: float) -> None:
    assert sign_flip_p([10.0 + i for i in range(n)]) == pytest.approx(least)


def test_under_the_null_one_in_twenty_is_called_significant() -> None:
    p_values = [compare(list(differences)).p for differences in normal(2000, 3)]
    share = statistics.fmean(p is not None and p < LEVEL for p in p_values)
    assert share == pytest.approx(LEVEL, abs=0.015), "three standard errors of 2000 draws"


def test_intervals_cover_the_truth_19_times_in_20() -> None:
    compared = [compare(list(differences)) for differences in normal(2000, 4, mean=1.0)]
    share = statistics.fmean(p.low is not None and p.high is not None and p.low < 1.0 < p.high for p in compared)
    assert share == pytest.approx(1 - LEVEL, abs=0.015)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_a_detectable_difference_is_found_in_four_of_five_repetitions(n: int) -> None:
    spread = compare([0.0, 1.0] * (n // 2) + [0.5] * (n % 2))
    assert spread.detectable is not None and spread.deviation is not None
    truth = spread.detectable / spread.deviation * 0.4  # in units of the deviation that `normal` has
    found = stats.ttest_1samp(normal(20_000, n, mean=truth), 0.0, axis=1).pvalue < LEVEL
    assert found.mean() == pytest.approx(POWER, abs=0.01)


def test_one_seed_has_a_mean_and_nothing_else() -> None:
    assert compare([0.25]) == Paired(n=1, mean=0.25)
    assert compare([0.25]).p_against(1.0) is None


def test_ties_are_no_certainty() -> None:
    """Two networks may be right on equally many of 4,000 images with two seeds by chance."""
    assert compare([0.0, 0.0, 0.0]) == Paired(3, 0.0, 0.0, sign_flip_p=1.0)
    assert compare([0.0, 0.0]).p_against(0.3) is None


def test_equal_differences_test_nothing() -> None:
    paired = compare([36.225 - 36.2, 36.025 - 36.0, 36.15 - 36.125])  # 0.025 three times, but not as binary numbers
    assert (paired.mean, paired.deviation, paired.p, paired.low, paired.detectable) == (0.025, 0.0, None, None, None)


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="at least one"):
        compare([])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_alarm_among_six() -> None:
    p_values = stats.ttest_1samp(normal(12_000, 3), 0.0, axis=1).pvalue.reshape(2000, 6)
    uncorrected = statistics.fmean(bool(row.min() < LEVEL) for row in p_values)
    corrected = statistics.fmean(min(holm(list(row))) < LEVEL for row in p_values)
    assert uncorrected == pytest.approx(1 - (1 - LEVEL) ** 6, abs=0.03)
    assert corrected == pytest.approx(LEVEL, abs=0.015)
