import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxlm.errors import UserError
from jaxlm.study.analysis import compare_arms
from jaxlm.study.statistics import (
    holm,
    mean_interval,
    multi_bootstrap,
    paired_difference,
    power,
    seeds_needed,
)

NUMBERS = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=12)


def by_seed(values):
    return dict(enumerate(values))


@given(NUMBERS, st.floats(0.01, 10))
def test_paired_difference_is_scipys_paired_t_test(pairs, effect):
    arm, reference = (np.array(column) for column in zip(*pairs, strict=True))
    if np.std(arm - reference) < 1e-6 * (1 + np.abs(arm - reference).max()):
        return  # scipy warns of a loss of digits
    found = paired_difference(by_seed(arm), by_seed(reference), effect)
    expected = stats.ttest_rel(arm, reference)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    one_sided = max(
        stats.ttest_1samp(arm - reference, -effect, alternative="greater").pvalue,
        stats.ttest_1samp(arm - reference, effect, alternative="less").pvalue,
    )
    assert found.p_equivalent == pytest.approx(one_sided, rel=1e-6, abs=1e-12)


def test_paired_difference_uses_the_seeds_that_both_have():
    found = paired_difference({0: 1.0, 2: 5.0, 3: 4.0}, {2: 4.0, 3: 2.0, 9: 0.0}, 0.1)
    assert found.seeds == (2, 3)
    assert found.mean == 1.5


def test_seeds_that_do_not_overlap_are_refused():
    with pytest.raises(UserError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0}, 0.1)


def test_a_single_seed_has_no_interval_and_no_p_value():
    found = paired_difference({0: 1.0}, {0: 3.0}, 0.1)
    assert found.mean == -2
    assert all(math.isnan(value) for value in (found.low, found.high, found.p, found.p_equivalent))
    assert math.isnan(mean_interval([1.0]).low)


def test_equal_runs_are_equivalent_and_not_different():
    found = paired_difference(by_seed([1.0, 2.0, 3.0]), by_seed([1.0, 2.0, 3.0]), 0.1)
    assert (found.mean, found.low, found.high, found.p, found.p_equivalent) == (0, 0, 0, 1, 0)


def test_holm_as_worked_by_hand():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, never below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, math.nan, 0.9])[0] == 0.02  # NaN is no hypothesis
    assert math.isnan(holm([0.01, math.nan, 0.9])[1])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lies_between_the_p_value_and_bonferronis(p_values):
    corrected = holm(p_values)
    for p, own in zip(p_values, corrected, strict=True):
        assert p <= own <= min(1, p * len(p_values)) + 1e-15
    order = np.argsort(p_values, kind="stable")
    assert all(corrected[a] <= corrected[b] for a, b in itertools.pairwise(order))


@pytest.mark.parametrize(("size", "n"), [(0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_seeds_needed_are_those_of_tables_of_the_paired_t_test(size, n):
    assert seeds_needed(size, 1.0) == n
    assert power(size, 1.0, n) >= 0.8 > power(size, 1.0, n - 1)


def test_power_is_how_often_a_test_finds_the_effect():
    rng = np.random.RandomState(0)
    samples = rng.normal(0.7, 1.0, (20_000, 8))
    found = (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()
    assert power(0.7, 1.0, 8) == pytest.approx(found, abs=0.01)


@given(st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_more_seeds_never_lower_the_power(effect, deviation):
    values = [power(effect, deviation, n) for n in (2, 3, 5, 10, 30, 100, 1000, 10_000)]
    assert all(0 <= a <= b + 1e-9 and b <= 1 for a, b in itertools.pairwise(values))


def test_no_number_of_seeds_finds_nothing():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(0.1, math.nan) is None


def correctness():
    """Returns whether 5 + 5 runs are right on 40 examples, drawn as for the results below."""
    rng = np.random.RandomState(7)
    labels = rng.randint(0, 2, 40)
    rates = (0.7, 0.65, 0.72, 0.68, 0.7, 0.8, 0.78, 0.75, 0.77, 0.81)
    return np.array([np.where(rng.rand(40) < rate, labels, 1 - labels) == labels for rate in rates], float)


@pytest.mark.parametrize(
    ("paired", "first", "mean", "low", "high", "one_sided"),
    [
        (True, [[0.7, 0.76], [0.61, 0.845], [0.58, 0.71]], 0.0762, -0.065, 0.232625, 0.14333333333333334),
        (False, [[0.68, 0.775], [0.79, 0.765], [0.69, 0.7]], 0.07796666666666667, -0.055, 0.23, 0.16333333333333333),
    ],
)
def test_multi_bootstrap_is_that_of_googles_implementation(paired, first, mean, low, high, one_sided):
    """The numbers were printed by multibootstrap.py of google-research/language: 300 samples, RandomState(3)."""
    right = correctness()
    found = multi_bootstrap(right[:5], right[5:], paired=paired, samples=300, seed=3)
    assert found.samples[:3] == pytest.approx(np.array(first), abs=1e-12)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, low, high), abs=1e-12)
    assert found.p == pytest.approx(2 * one_sided, abs=2.1 / 300)  # whose sums round some zeros to less


def test_multi_bootstrap_refuses_scores_that_do_not_fit():
    with pytest.raises(UserError, match="one test set"):
        multi_bootstrap(np.zeros((3, 5)), np.zeros((3, 6)))
    with pytest.raises(UserError, match="cannot be paired"):
        multi_bootstrap(np.zeros((3, 5)), np.zeros((2, 5)))


def test_sweeps_of_noise_are_rarely_called_an_effect():
    """Of 400 sweeps of four arms that differ in nothing but noise, about one in twenty names an arm at 5%."""
    rng = random.Random(0)
    called = 0
    for _ in range(400):
        shared = [rng.gauss(0, 1) for _ in range(5)]
        values = {f"arm {a}": {s: shared[s] + rng.gauss(0, 0.3) for s in range(5)} for a in range(4)}
        results = compare_arms(values, 0.5)
        called += any(result.verdict in ("better", "worse", "slightly better", "slightly worse") for result in results)
    assert 5 <= called <= 33  # 20 expected; a binomial of 400 leaves these bounds once in thousands
