import math

import pytest

from jaxlm.study.analysis import answer, compare_arms, describe_arm, number, p_text, verdict_of
from jaxlm.study.statistics import Difference

STATEMENT = {"metric": "loss", "unit": "nats", "smallest_effect": 0.02}


def difference(mean=-0.1, p_equivalent=0.9, n=5):
    return Difference(tuple(range(n)), mean, mean - 0.05, mean + 0.05, 0.04, 0.01, p_equivalent)


@pytest.mark.parametrize(
    ("mean", "p", "p_equivalent", "better", "verdict"),
    [
        (-0.1, 0.01, 0.9, "lower", "better"),
        (-0.1, 0.01, 0.9, "higher", "worse"),
        (0.1, 0.01, 0.9, "lower", "worse"),
        (-0.01, 0.01, 0.01, "lower", "slightly better"),
        (0.01, 0.01, 0.01, "lower", "slightly worse"),
        (0.001, 0.6, 0.01, "lower", "equivalent"),
        (0.001, 0.6, 0.6, "lower", "open"),
    ],
)
def test_verdicts(mean, p, p_equivalent, better, verdict):
    assert verdict_of(difference(mean, p_equivalent), p, better) == verdict


def test_a_single_run_is_marked_as_one():
    results = compare_arms({"a": {0: 1.0}, "b": {0: 0.5}}, 0.02)
    assert results[1].verdict == "single"
    assert "one seed, which has no error bar and shows nothing" in describe_arm(results[1], STATEMENT)


def test_an_arm_without_a_shared_seed_is_not_compared():
    results = compare_arms({"a": {0: 1.0}, "b": {1: 0.5}, "c": {}}, 0.02)
    assert [result.verdict for result in results] == ["", "none", "none"]
    assert describe_arm(results[2], STATEMENT) == "c: no seed is done in both this arm and the reference."
    assert answer(results, STATEMENT) == "There is nothing to compare yet."


def test_the_answer_names_the_best_arm_with_its_interval():
    reference = {s: 4 + 0.1 * s for s in range(5)}
    values = {
        "15%": reference,
        "30%": {s: v - 0.1 - 0.001 * (s % 2) for s, v in reference.items()},
        "40%": {s: v - 0.2 - 0.001 * (s % 2) for s, v in reference.items()},
        "90%": {s: v + 0.2 - 0.001 * (s % 2) for s, v in reference.items()},
    }
    text = answer(compare_arms(values, 0.02), STATEMENT)
    assert text.startswith("40% lowers the loss by 0.200 nats (95% interval -0.201 to -0.200, 5 seeds, p < 0.001)")
    assert text.endswith(": better.")


def test_the_answer_when_nothing_helps():
    reference = {s: 4 + 0.1 * s for s in range(5)}
    worse = {s: v + 0.3 + 0.001 * (s % 2) for s, v in reference.items()}
    same = {s: v + 0.001 * (s % 3) for s, v in reference.items()}
    noisy = {s: v + 0.3 * (-1) ** s for s, v in reference.items()}
    assert answer(compare_arms({"a": reference, "b": worse, "c": worse}, 0.02), STATEMENT) == (
        "No arm is better than a; worse: b, c."
    )
    assert answer(compare_arms({"a": reference, "b": same, "c": same}, 0.02), STATEMENT) == (
        "No arm makes a difference that matters: all are within ±0.02 nats of a."
    )
    assert "not settled" in answer(compare_arms({"a": reference, "b": noisy, "c": noisy}, 0.02), STATEMENT)
    needed = compare_arms({"a": reference, "b": noisy}, 0.02)[1]
    assert needed.verdict == "open"
    assert f"about {needed.seeds_needed:,} seeds would tell" in describe_arm(needed, STATEMENT)


def test_numbers_have_the_decimals_of_the_smallest_effect():
    assert number(4.12345, 0.02) == "4.123"
    assert number(4.12345, 0.5) == "4.12"
    assert number(87.512, 5) == "87.5"
    assert number(0.1, 0.02, signed=True) == "+0.100"
    assert number(math.nan, 0.02) == "–"
    assert p_text(0.0004) == "p < 0.001"
    assert p_text(0.0123) == "p = 0.012"
    assert p_text(0.345) == "p = 0.34"
