"""Exact match and F1 by the rules of SQuAD's official script, Chinese by characters, and the null threshold."""

import collections
import itertools
import random
import re
import string

import numpy as np
import pytest

from jaxlm.evaluation.answer_metrics import best_threshold, characters, score, segmentation_for, words


@pytest.mark.parametrize(
    ("text", "correct", "exact", "f1"),
    [
        ("the Denver Broncos!", ["Denver  broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 0, 2 / 3),
        ("a cat sat", ["the cat", "a dog sat"], 0, 2 / 3),
        ("cat", ["dog"], 0, 0),
        ("", ["dog"], 0, 0),
        ("", [], 1, 1),
        ("dog", [], 0, 0),
        ("the", [], 1, 1),
        ("dog", ["the", "dog"], 1, 1),  # a correct answer without words does not count
        ("", ["the"], 1, 1),
        ("", ["the", "dog"], 0, 0),
        ("the the cat cat", ["cat"], 0, 2 / 3),
        ("U.S.A.", ["usa"], 1, 1),
        ("\u201ccat\u201d", ["cat"], 0, 0),  # only ASCII punctuation is removed
    ],
)
def test_words(text, correct, exact, f1):
    assert score(text, correct, "words") == pytest.approx((exact, f1))


def test_words_are_those_of_the_official_rules():
    def official(text):
        text = "".join(one for one in text.lower() if one not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def official_f1(correct, text):
        gold, given = official(correct).split(), official(text).split()
        if not gold or not given:
            return int(gold == given)
        same = sum((collections.Counter(gold) & collections.Counter(given)).values())
        precision, recall = same / len(given), same / len(gold)
        return 2 * precision * recall / (precision + recall) if same else 0

    draw = random.Random(0)
    parts = [
        "the",
        "a",
        "An",
        "cat",
        "Cat's",
        "dog",
        ",",
        "(x)",
        "é",
        "e\u0301",
        "天",
        "  ",
        "\u00a0",
        "\r\n",
        "1.5",
        "-",
    ]
    for _ in range(500):
        text, correct = ("".join(draw.choices(parts + [" "] * 9, k=6)) for _ in range(2))
        assert " ".join(words(text)) == official(text)
        if official(correct):
            found = score(text, [correct], "words")
            assert found == pytest.approx((float(official(text) == official(correct)), official_f1(correct, text)))


@pytest.mark.parametrize(
    ("text", "correct", "exact", "f1"),
    [
        ("天气好", "天气很好", 0, 6 / 7),
        ("《天气》很好。", "天气很好", 1, 1),
        ("天气 很好", "天气很好", 1, 1),
        ("光荣和ω-force", "光荣和ω-force开发", 0, 8 / 10),
        ("2010年", "2010年5月", 0, 2 * 2 / (2 + 4)),
        ("カタカナ", "カタカナ", 1, 1),
        ("", "天", 0, 0),
    ],
)
def test_characters(text, correct, exact, f1):
    assert score(text, [correct], "characters") == pytest.approx((exact, f1))


def test_the_segmentation_follows_the_script_of_most_answers():
    assert segmentation_for(["天气很好", "NBA", "1990"]) == "characters"
    assert segmentation_for(["the weather in 北京", "good"]) == "words"
    assert segmentation_for(["한국어 대답"]) == "words"
    assert segmentation_for(["ภาษาไทย"]) == "characters"
    assert segmentation_for([]) == segmentation_for(["1990", ""]) == "words"
    assert characters("กำ ab") == ["กำ", "ab"] or characters("กำ ab") == ["ก", "ำ", "ab"]


def brute_force(margins, answered, unanswered):
    values = sorted(set(margins))
    edges = [values[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(values)), values[-1] + 1]
    return max(sum(np.where(np.array(margins) > edge, unanswered, answered)) for edge in edges)


def test_the_threshold_has_the_highest_score_of_all():
    random = np.random.default_rng(0)
    for _ in range(50):
        n = random.integers(1, 12)
        margins = random.integers(-3, 4, n).astype(float).tolist()
        answered, unanswered = random.random(n), random.integers(0, 2, n).astype(float)
        threshold = best_threshold(margins, answered, unanswered)
        total = np.where(np.array(margins) > threshold, unanswered, answered).sum()
        assert total == pytest.approx(brute_force(margins, answered, unanswered))
    assert best_threshold([1.0, 2.0], [0, 0], [1, 1]) == 0  # below all: nothing is answered
    assert best_threshold([1.0, 2.0], [1, 1], [0, 0]) == 3  # above all
