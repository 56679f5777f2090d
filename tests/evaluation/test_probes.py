"""Metrics of zero-shot probes from given scores."""

import numpy as np
import pytest

from jaxlm.evaluation.probes import (
    RESAMPLES,
    Predictions,
    blimp_metrics,
    cloze_metrics,
    crows_pairs_metrics,
    describe_blimp,
    describe_cloze,
    describe_crows_pairs,
    interval_of,
    preferences,
    resampled_means,
    shared_positions,
)


def test_a_tie_is_not_right():
    pairs = preferences([-3.0, -5.0, -4.0, -4.0], [-4.0, -4.0, -4.0, -4.0 - 5e-4])
    assert pairs.first.tolist() == [True, False, False, False]
    assert pairs.ties.tolist() == [False, False, True, True]
    metrics = blimp_metrics({"a": pairs})
    assert (metrics["accuracy"], metrics["n"], metrics["ties"]) == (0.25, 4, 2)


def test_intervals_are_those_of_resampled_pairs():
    from scipy.stats import binom

    values = np.arange(200) < 130
    bounds = interval_of(resampled_means(values))
    expected = binom.ppf([0.025, 0.975], 200, 0.65) / 200  # the distribution of a resampled share
    assert bounds == pytest.approx(expected, abs=0.006)
    assert bounds == interval_of(resampled_means(values))  # the seed is fixed
    assert len(resampled_means(values)) == RESAMPLES


def test_blimp_is_the_mean_of_its_paradigms():
    pairs = {"large": preferences([1.0] * 90 + [0.0] * 10, [0.5] * 100), "small": preferences([1.0, 0.0], [0.5, 0.5])}
    metrics = blimp_metrics(pairs)
    assert {name: one["accuracy"] for name, one in metrics["paradigms"].items()} == {"large": 0.9, "small": 0.5}
    assert metrics["accuracy"] == pytest.approx(0.7)
    assert metrics["n"] == 102
    low, high = metrics["interval"]
    assert low < 0.7 < high
    assert high - low < metrics["paradigms"]["small"]["interval"][1] - metrics["paradigms"]["small"]["interval"][0]
    *_, small, mean = describe_blimp(metrics).splitlines()
    assert small.split() == ["small", "50.0%", "0.0%", "to", "100.0%", "2", "0"]
    assert mean.split()[:5] == ["mean", "of", "the", "paradigms", "70.0%"]


def test_crows_pairs_counts_the_stereotypical_sentence_in_both_directions():
    pairs = preferences([-1.0, -2.0, -1.0, -2.0, -3.0], [-2.0, -1.0, -2.0, -1.0, -3.0])
    directions = ["stereo", "stereo", "antistereo", "stereo", "antistereo"]
    metrics = crows_pairs_metrics(pairs, directions, ["age", "age", "age", "gender", "gender"])
    assert (metrics["stereotype_share"], metrics["n"], metrics["ties"]) == (0.4, 5, 1)
    assert metrics["directions"]["stereo"]["stereotype_share"] == pytest.approx(1 / 3)
    assert metrics["directions"]["antistereo"]["stereotype_share"] == 0.5
    assert metrics["directions"]["antistereo"]["ties"] == 1
    assert metrics["bias_types"]["age"]["stereotype_share"] == pytest.approx(2 / 3)
    assert metrics["bias_types"]["gender"]["n"] == 2
    names = [line.split()[0] for line in describe_crows_pairs(metrics).splitlines()]
    assert names == ["pairs", "age", "gender", "antistereo", "stereo", "all"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("the poor are here", "the rich are here", ([0, 2, 3], [0, 2, 3])),
        ("Ann Lee is here", "he is here", ([2, 3], [1, 2])),
        ("a b", "a b", ([0, 1], [0, 1])),
        ("a", "b", ([], [])),
        ("a b c x", "x a b c", ([0, 1, 2], [1, 2, 3])),
    ],
)
def test_shared_tokens(first, second, expected):
    assert shared_positions(first.split(), second.split()) == expected


def test_cloze():
    files = {
        "one": Predictions(np.array([-1.0, -2.0]), np.array([1, 4])),
        "two": Predictions(np.array([-3.0, -6.0]), np.array([10, 5])),
    }
    metrics = cloze_metrics(files)
    assert metrics["accuracy"] == 0.25
    assert metrics["accuracy_top5"] == 0.75
    assert metrics["mrr"] == pytest.approx((1 + 1 / 4 + 1 / 10 + 1 / 5) / 4)
    assert (metrics["loss"], metrics["n"]) == (3.0, 4)
    assert metrics["files"]["one"]["accuracy"] == 0.5
    low, high = metrics["intervals"]["loss"]
    assert low < 3.0 < high
    names = [line.split()[0] for line in describe_cloze(metrics).splitlines()]
    assert names == ["file", "one", "two", "all"]
    assert len(describe_cloze(cloze_metrics({"one": files["one"]})).splitlines()) == 2
