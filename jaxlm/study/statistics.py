"""Statistics of a study: paired differences, corrected p-values, equivalence, power, and the Multi-Bootstrap.

The runs of two arms with the same seed share the order of the data and, as far as the arms allow, the initial weights,
so their difference varies less than each of them. Everything about seeds rests on those differences and on Student's t
distribution: n seeds have only C(2n-1, n) distinct resamples, too few for a bootstrap below about ten.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from jaxlm.errors import UserError

LEVEL = 0.05  # of a test, after correction
MAX_SEEDS = 10_000  # beyond which `seeds_needed` gives up


class Interval(NamedTuple):
    """An estimate with its confidence interval; without a spread, the interval is NaN to NaN."""

    n: int
    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean difference of an arm from the reference at equal seeds.

    `deviation` is the standard deviation of the differences. `p` is that of Student's t test of no difference, and
    `p_equivalent` that of two one-sided tests of a difference of at least the smallest effect that matters; all of them
    are NaN for a single seed.
    """

    seeds: tuple[int, ...]
    mean: float
    low: float
    high: float
    deviation: float
    p: float
    p_equivalent: float

    @property
    def n(self) -> int:
        return len(self.seeds)


def mean_interval(values: Sequence[float], confidence: float = 1 - LEVEL) -> Interval:
    """Returns the mean of independent values with Student's t interval."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(n, mean, math.nan, math.nan)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return Interval(n, mean, float(mean - half), float(mean + half))


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], smallest_effect: float, confidence: float = 1 - LEVEL
) -> Difference:
    """Returns the difference of the values by seed, over the seeds that both have.

    The interval is Student's t interval of the mean difference. Raises UserError if they share no seed.
    """
    seeds = tuple(sorted(arm.keys() & reference.keys()))
    if not seeds:
        raise UserError("the two arms have no seed in common")
    differences = np.array([arm[seed] - reference[seed] for seed in seeds])
    _, mean, low, high = mean_interval(differences.tolist(), confidence)
    if len(seeds) < 2:
        return Difference(seeds, mean, low, high, math.nan, math.nan, math.nan)
    deviation = float(np.std(differences, ddof=1))
    error, freedom = deviation / math.sqrt(len(seeds)), len(seeds) - 1
    if error == 0:  # all differences are equal, as for an arm that changes nothing
        return Difference(seeds, mean, low, high, 0.0, float(mean == 0), float(abs(mean) >= smallest_effect))
    p = 2 * stats.t.sf(abs(mean) / error, freedom)
    nearest = smallest_effect - abs(mean)  # the larger p-value of the two tests is that of the nearer bound
    return Difference(seeds, mean, low, high, deviation, float(p), float(stats.t.sf(nearest / error, freedom)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values after Holm's correction for their number (Scand. J. Statist. 6, 1979); NaN is not counted.

    A set of hypotheses of which none is false is then rejected in part with a probability of at most the level.
    """
    corrected = [math.nan] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


def power(effect: float, deviation: float, n: int, level: float = LEVEL) -> float:
    """Returns the probability that a paired t test with n seeds finds a true difference of `effect`.

    `deviation` is the standard deviation of the differences.
    """
    if n < 2:
        return 0.0
    if deviation == 0:
        return float(effect != 0)
    # The square of Student's t has an F distribution, whose noncentral form scipy computes in all of its range.
    critical = stats.f.ppf(1 - level, 1, n - 1)
    return float(stats.ncf.sf(critical, 1, n - 1, min(n * (effect / deviation) ** 2, 1e4)))


def seeds_needed(effect: float, deviation: float, wanted: float = 0.8, level: float = LEVEL) -> int | None:
    """Returns how many seeds find a true difference of `effect` with the wanted probability; None if over MAX_SEEDS."""
    if math.isnan(deviation) or effect == 0 or power(effect, deviation, MAX_SEEDS, level) < wanted:
        return None
    low, high = 1, MAX_SEEDS  # power(low) < wanted <= power(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, deviation, middle, level) >= wanted else (middle, high)
    return high


class Bootstrap(NamedTuple):
    """The difference of an arm from the reference over seeds and examples; `p` is two-sided."""

    mean: float
    low: float
    high: float
    p: float
    samples: np.ndarray  # float64 [samples, 2]: the scores of the reference and the arm


def multi_bootstrap(
    reference: ArrayLike, arm: ArrayLike, *, paired: bool = True, samples: int = 1000,
    seed: int | np.random.RandomState = 0, confidence: float = 1 - LEVEL,
) -> Bootstrap:  # fmt: skip
    """Returns the Multi-Bootstrap of two arms (arXiv 2106.16163) from scores of single examples, [seeds, examples].

    Each sample draws seeds and examples with replacement, the same examples for all runs, and with `paired` the same
    seeds for both arms; the score of a run is the mean over its examples. Row s of both arrays must be of the same seed
    if they are paired. Raises UserError if the shapes do not fit.
    """
    first, second = np.asarray(reference, np.float64), np.asarray(arm, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"scores of shapes {first.shape} and {second.shape}: expected [seeds, examples] of one test set"
        )
    if paired and len(first) != len(second):
        raise UserError(f"{len(first)} and {len(second)} seeds cannot be paired")
    rng = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
    examples, scores = first.shape[1], np.empty((samples, 2))
    for index in range(samples):
        seeds = rng.randint(0, len(first), len(first))
        others = seeds if paired else rng.randint(0, len(second), len(second))
        counts = np.bincount(rng.randint(0, examples, examples), minlength=examples)
        scores[index] = (first @ counts)[seeds].mean() / examples, (second @ counts)[others].mean() / examples
    differences = scores[:, 1] - scores[:, 0]
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    nothing = 1e-12  # sums in another order
    side = min((differences <= nothing).mean(), (differences >= -nothing).mean())
    p = min(1.0, 2 * max(side, 1 / samples))  # no p-value is below what this number of samples can tell
    return Bootstrap(float(differences.mean()), float(low), float(high), float(p), scores)
