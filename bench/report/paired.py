"""Two rows compared over the seeds that both have: how large the difference is, how sure, and what could have been seen at all.

Seed k gives every row the same split, the same order of images and, where shapes and torch's version agree, the same initial
weights. So the rows are compared seed by seed, and what a seed does to both of them cancels.
"""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats  # type: ignore[import-untyped,unused-ignore]

LEVEL = 0.05  # two-sided
POWER = 0.8
_ROUNDING = 9  # digits: differences of decimal accuracies that are equal shall be equal as binary numbers too


@dataclass(frozen=True)
class Paired:
    """A mean difference over ``n`` seeds, in the unit of the differences. With one seed all but the mean is None.

    Attributes:
        n: the number of seeds.
        mean: the mean difference.
        deviation: the sample standard deviation of the differences.
        low, high: the ends of the 95 % interval, from Student's t with n - 1 degrees of freedom.
        p: the paired t-test's two-sided p-value of no difference.
        sign_flip_p: the same from flipping the signs of the differences, which assumes symmetry only. It cannot go below
            2 / 2^n: 0.5 with two seeds, 0.25 with three.
        detectable: how far from the value that is tested, 0 or the bound of a claim, a true difference has to lie so that n seeds
            with this deviation show it in 80 % of repetitions (two-sided, 5 %).

    All of it is about other seeds, on the same test images and from the same pretrained backbone. Differences that are all equal
    come from coarse accuracies, and give no deviation to test with: interval, ``p`` and ``detectable`` are None.
    """

    n: int
    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    sign_flip_p: float | None = None
    detectable: float | None = None

    def p_against(self, bound: float) -> float | None:
        """The two-sided p-value of a true difference of ``bound``; None where there is nothing to test with."""
        if self.p is None or self.deviation is None:
            return None
        t = (self.mean - bound) / (self.deviation / math.sqrt(self.n))
        return float(2 * stats.t.sf(abs(t), self.n - 1))


def compare(differences: Sequence[float]) -> Paired:
    """Compare two rows, given their differences, one for each seed.

    Raises:
        ValueError: there is no difference.
    """
    if not differences:
        raise ValueError("expected at least one difference, found none")
    values, n = [round(value, _ROUNDING) for value in differences], len(differences)
    mean = statistics.fmean(values)
    if n == 1:
        return Paired(n=1, mean=mean)
    if len(set(values)) == 1:
        return Paired(n, values[0], 0.0, sign_flip_p=sign_flip_p(values))
    deviation = statistics.stdev(values)
    error = deviation / math.sqrt(n)
    half = _critical(n) * error
    return Paired(
        n,
        mean,
        deviation,
        low=mean - half,
        high=mean + half,
        p=float(2 * stats.t.sf(abs(mean) / error, n - 1)),
        sign_flip_p=sign_flip_p(values),
        detectable=_detectable_noncentrality(n) * error,
    )


def sign_flip_p(differences: Sequence[float]) -> float:
    """The two-sided p-value of the sign-flip permutation test: exact up to 13 seeds, from 9,999 fixed draws beyond."""
    test = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=9_999, rng=0)
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false one among them stays below the level (Holm, 1979).

    The k-th smallest of m is multiplied by m - k + 1; none gets smaller than one before it, none larger than 1.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@functools.cache
def _critical(n: int) -> float:
    """The two-sided critical value of t with n - 1 degrees of freedom."""
    return float(stats.t.isf(LEVEL / 2, n - 1))


@functools.cache
def _detectable_noncentrality(n: int) -> float:
    """The true mean, in standard errors, at which the t-test with n - 1 degrees of freedom has the power.

    The far tail of the test is left out: where the near one holds 80 %, it holds less than 0.0001.
    """
    return float(optimize.brentq(lambda shift: stats.nct.sf(_critical(n), n - 1, shift) - POWER, 0.0, 20.0))
