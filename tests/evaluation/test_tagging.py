"""Metrics and predictions of tags: entities as seqeval counts them, and one tag for each word."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from jaxlm.data.examples import Examples
from jaxlm.evaluation.tagging import Tagging, predicted_tags, ratio_error, tagging_metrics
from jaxlm.text.labelled import Row

WANTED = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "I-PER", "O"], ["O"]]
ANSWERS = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-PER", "I-PER"], ["I-LOC"]]
LABELS = ("B-X", "I-X", "O")


def test_entities_are_counted_as_by_seqeval():
    default = tagging_metrics(WANTED, ANSWERS, "bio")
    # Right is PER at 0-1; predicted are that one, PER at 3, PER at 1-2 and LOC at 0.
    assert (default["precision"], default["recall"], default["f1"]) == pytest.approx((1 / 4, 1 / 3, 2 / 7))
    assert default["types"] == {
        "LOC": {"precision": 0, "recall": 0, "f1": 0, "n": 1},
        "PER": {"precision": pytest.approx(1 / 3), "recall": 0.5, "f1": pytest.approx(0.4), "n": 2},
    }
    assert default["macro_f1"] == pytest.approx(0.2)
    assert default["accuracy"] == pytest.approx(4 / 8)
    assert (default["n"], default["words"], default["entities"]) == (3, 8, 3)
    assert default["scheme"] == "BIO, seqeval's default mode"
    strict = tagging_metrics(WANTED, ANSWERS, "iob2")
    assert (strict["precision"], strict["recall"], strict["f1"]) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert strict["scheme"] == "IOB2, seqeval's strict mode"


@pytest.mark.parametrize(("scheme", "prefixes"), [("bio", "BI"), ("iob2", "BI"), ("iobes", "BIES")])
def test_metrics_are_those_of_seqeval(scheme, prefixes):
    pytest.importorskip("seqeval", reason="seqeval is not installed")
    from seqeval import metrics
    from seqeval.scheme import IOB2

    draw = random.Random(0)
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in "AB")]
    mode = {"mode": "strict", "scheme": IOB2} if scheme == "iob2" else {}
    for _ in range(30):
        sizes = [draw.randint(1, 9) for _ in range(20)]
        wanted, answers = ([draw.choices(tags, k=size) for size in sizes] for _ in range(2))
        found = tagging_metrics(wanted, answers, scheme)
        for name in ("precision", "recall", "f1"):
            score = getattr(metrics, f"{name}_score")
            assert found[name] == pytest.approx(score(wanted, answers, zero_division=0, **mode))
        assert found["macro_f1"] == pytest.approx(
            metrics.f1_score(wanted, answers, average="macro", zero_division=0, **mode)
        )
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(wanted, answers))
        report = metrics.classification_report(wanted, answers, output_dict=True, zero_division=0, **mode)
        for name, one in found["types"].items():
            assert [one["f1"], one["n"]] == pytest.approx([report[name]["f1-score"], report[name]["support"]])


def test_without_a_scheme_f1_is_the_accuracy_of_words():
    found = tagging_metrics([["NN", "DT"], ["NN"]], [["NN", "NN"], ["NN"]], "none")
    assert found["f1"] == found["accuracy"] == pytest.approx(2 / 3)
    assert found["types"]["DT"] == {"precision": 0, "recall": 0, "f1": 0, "n": 1}


def test_metrics_without_sentences_or_entities_are_defined():
    nothing = tagging_metrics([], [], "bio")
    assert (nothing["n"], nothing["entities"], nothing["types"]) == (0, 0, {})
    assert math.isnan(nothing["f1"])
    plain = tagging_metrics([["O", "O"]], [["O", "O"]], "bio")
    assert (plain["f1"], plain["precision"], plain["accuracy"], plain["f1_error"]) == (0, 0, 1, 0)


def test_the_error_of_a_ratio_is_that_of_the_bootstrap():
    random_ = np.random.default_rng(0)
    right, predicted = random_.integers(0, 3, 400), random_.integers(1, 4, 400)
    right = np.minimum(right, predicted)
    chosen = random_.integers(0, 400, (2000, 400))
    ratios = right[chosen].sum(1) / predicted[chosen].sum(1)
    assert ratio_error(right, predicted) == pytest.approx(ratios.std(), rel=0.1)
    assert ratio_error(np.array([1]), np.array([2])) == 0


def sentences(*, windows=False, tags=True):
    """Returns examples of a sentence of five words, the third without pieces, and one without tags."""
    words = ["a", "b", "", "c", "d"]
    rows = [
        Row("1", {"words": words, "tags": ["B-X", "I-X", "O", "b-x", "O"] if tags else None, "line": 1}),
        Row("2", {"words": ["e"], "tags": None, "line": 7}),
    ]
    numbers = [[0, 1, 0, 2, 0, 0], [0, 0, 4, 5, 0]] if windows else [[0, 1, 2, 4, 5, 0]]
    numbers.append([0, 1, 0])
    known = [np.array(one, np.int32) for one in numbers]
    weights = [(one > 0).astype(np.float32) * (tags and n + 1 < len(known)) for n, one in enumerate(known)]
    examples = Examples(
        rows, [one * 0 for one in known], [one * 0 for one in known], {},
        {"words": known, "weights": weights}, np.array([0] * (len(known) - 1) + [1]),
    )  # fmt: skip
    found = {1: 0, 2: 1, 4: 0, 5: 2}
    outputs = {
        "tags": [np.array([found.get(int(word), 1) for word in one]) for one in known],
        "losses": [np.where(one > 0, 0.5, 9.0) for one in known],
    }
    return outputs, examples


@pytest.mark.parametrize("windows", [False, True])
def test_every_word_has_one_tag_in_the_order_of_the_file(windows):
    outputs, examples = sentences(windows=windows)
    outputs["tags"][-1][1] = 2
    assert list(Tagging().predictions(outputs, examples, LABELS, None)) == [
        {"words": ["a", "b", "", "c", "d"], "tags": ["B-X", "I-X", "O", "B-X", "O"]},
        {"words": ["e"], "tags": ["O"]},
    ]  # fmt: skip
    metrics = Tagging().measure(outputs, examples, LABELS, SimpleNamespace(scheme="bio"))
    assert (metrics["f1"], metrics["accuracy"], metrics["n"], metrics["loss"]) == (1, 1, 1, 0.5)
    assert "dev: F1 100.00% ± 0.00%, precision 100.00%, recall 100.00% of 2 entities" in Tagging().describe(
        "dev", metrics
    )


def test_sentences_without_tags_are_predicted_but_not_measured():
    outputs, examples = sentences(tags=False)
    metrics = Tagging().measure(outputs, examples, LABELS, SimpleNamespace(scheme="bio"))
    assert metrics["n"] == 0
    assert math.isnan(metrics["loss"])
    assert len(list(Tagging().predictions(outputs, examples, LABELS, None))) == 2
    assert Tagging().describe("test", metrics) == "test: its sentences have no tags, so there are predictions only"


def test_a_word_without_pieces_has_the_first_tag_if_there_is_no_outside():
    outputs, examples = sentences()
    assert predicted_tags(outputs, examples, ("DT", "NN", "VB"))[0][2] == "DT"


def test_a_model_that_finds_nothing_is_remarked():
    found = tagging_metrics(WANTED, [["O"] * len(tags) for tags in WANTED], "bio")
    assert "no entity was found" in Tagging().remark("dev", found)
    assert Tagging().remark("dev", tagging_metrics(WANTED, ANSWERS, "bio")) == ""
