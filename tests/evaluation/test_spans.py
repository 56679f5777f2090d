"""Answers as slices of the context, chosen over its windows; questions without an answer; metrics and predictions."""

import json
import types

import numpy as np
import pytest

from jaxlm.data.tasks.spans import SPANS
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.evaluation.calibration import read_calibration, write_calibration
from jaxlm.evaluation.spans import Spans, best_slices, candidates, submission
from jaxlm.evaluation.task_sets import write_predictions
from jaxlm.text.labelled import Row
from jaxlm.text.squad import Answer
from jaxlm.tokenizer.tokenizer import load_tokenizer

HARD = " Zoe\u0308  met\r\n🦙 Ana."
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "what", "zoe", "met", "ana", ".", "the", "cat", "sees"]
TASK = {"stride": 0, "answer_tokens": 30, "n_best": 5, "null_threshold": None, "segmentation": "auto"}


def task(**settings):
    return types.SimpleNamespace(**TASK | settings)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join([*WORDS, "dog", *"天气很好"]) + "\n", encoding="utf-8")
    return load_tokenizer(path)


@pytest.fixture
def make(tokenizer):
    """Returns examples of questions (context, answers)."""

    def make(*questions, longest=32):
        rows = [
            Row(f"q{n}", {"id": f"q{n}", "question": "who", "context": context, "answers": answers})
            for n, (context, answers) in enumerate(questions)
        ]
        return SPANS.encode(rows, (), TextEncoder(tokenizer, longest), task())

    return make


def outputs_for(examples, values=(), null=0.0):
    """Returns logits of 0 but for (segment, token, end, value), and `null` at the begin token."""
    logits = [np.zeros((len(tokens), 2), np.float32) for tokens in examples.tokens]
    for one in logits:
        one[1:] -= 5
        one[0] = null / 2
    for segment, token, end, value in values:
        logits[segment][token, end] = value
    return {"logits": logits}


def predict(evaluation, outputs, examples, **settings):
    return list(evaluation.predictions(outputs, examples, (), task(**settings)))


def test_an_answer_is_an_exact_slice_of_the_context_as_given(make):
    examples = make((HARD, None))
    tokens = examples.tokens[0]
    seen = set()
    for first in range(len(tokens)):
        for last in range(len(tokens)):
            [found] = predict(Spans(), outputs_for(examples, [(0, first, 0, 9), (0, last, 1, 9)]), examples)
            assert HARD[found["start"] : found["end"]] == found["text"]
            for other in found["n_best"]:
                assert HARD[other["start"] : other["end"]] == other["text"] != ""
            seen.add(found["text"])
    assert {"Zoe\u0308", "Zoe\u0308  met\r\n🦙 Ana.", "🦙 Ana", "."} <= seen
    assert all(text == text.strip() for text in seen)


def test_the_best_slices_are_those_of_an_exhaustive_search():
    random = np.random.default_rng(0)
    offsets = np.full((20, 2), -1, np.int32)
    offsets[4:18] = np.stack([3 * np.arange(14), 3 * np.arange(14) + 2], 1)
    offsets[9] = offsets[9, 0]  # a token that is only a space marker
    for longest in (1, 3, 100):
        logits = random.standard_normal((20, 2))
        wanted = sorted(
            (
                (logits[a, 0] + logits[b, 1], offsets[a, 0], offsets[b, 1])
                for a in range(4, 18) for b in range(a, 18)
                if a != 9 and b != 9 and sum(n != 9 for n in range(a, b + 1)) <= longest
            ),
            reverse=True,
        )  # fmt: skip
        found = sorted(best_slices(logits, offsets, longest, 4), reverse=True)
        np.testing.assert_allclose(np.array(found)[:4], np.array(wanted)[:4])


def test_answers_are_ranked_over_all_windows_and_each_slice_occurs_once(make):
    context = "the cat sees the dog " * 8
    examples = make((context, None), longest=16)
    assert len(examples.tokens) > 3
    outputs = outputs_for(examples, [(2, 5, 0, 3), (2, 6, 1, 3), (0, 0, 0, -7)])
    [found] = candidates(outputs, examples, task(n_best=20))
    places = [(one.start, one.end) for one in found.answers]
    assert len(set(places)) == len(places) == 20
    offsets = examples.details["offsets"][2]
    assert places[0] == (offsets[5, 0], offsets[6, 1])
    assert found.answers[0].score == 6
    assert found.null_score == -7  # the lowest over the windows
    assert [one.score for one in found.answers] == sorted((one.score for one in found.answers), reverse=True)


@pytest.mark.parametrize("context", ["", " \r\n", "the cat"])
def test_if_nothing_can_be_answered_the_answer_is_empty_and_has_a_score(make, context, tmp_path):
    examples = make((context, []), ("the dog", [Answer("dog", 4)]))
    outputs = outputs_for(examples, null=50)
    found = predict(Spans(), outputs, examples)
    assert [(one["text"], one["start"], one["end"], one["score"]) for one in found] == [("", 0, 0, 50.0)] * 2
    metrics = Spans().measure(outputs, examples, (), task())
    assert (metrics["exact"], metrics["f1"], metrics["unanswerable_accuracy"], metrics["n"]) == (0.5, 0.5, 1, 2)
    assert metrics["null_threshold"] == 0
    assert "null_threshold" in Spans().fit(outputs, examples, (), task())
    write_predictions(tmp_path / "predictions" / "dev.jsonl", found)
    lines = (tmp_path / "predictions" / "dev.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found


def test_a_set_whose_questions_all_have_answers_is_always_answered(make):
    examples = make(("the cat", [Answer("cat", 4)]))
    outputs = outputs_for(examples, [(0, 4, 0, 1), (0, 4, 1, 1)], null=50)
    assert predict(Spans(), outputs, examples)[0]["text"] == "cat"
    assert Spans().fit(outputs, examples, (), task()) == {}
    assert predict(Spans(), outputs, examples, null_threshold=40.0)[0]["text"] == ""
    metrics = Spans().measure(outputs, examples, (), task())
    assert (metrics["exact"], metrics["f1"], metrics["segmentation"]) == (1, 1, "words")
    assert "null_threshold" not in metrics
    assert "F1 100.00%, exact match 100.00% ± 0.00%, by words; " in Spans().describe("dev", metrics)
    assert "with only 1 questions" in Spans().remark("dev", metrics)


def test_the_threshold_is_fitted_on_one_set_and_applied_to_another(make, tmp_path):
    examples = make(("the cat", [Answer("cat", 4)]), ("the cat", []), ("the dog", [Answer("dog", 4)]))
    values = [(n, 4, end, 1) for n in range(3) for end in (0, 1)]
    outputs = outputs_for(examples, values)
    for number, null in enumerate((4.0, 9.0, 6.0)):  # all above the best answer, by 2, 7 and 4
        outputs["logits"][number][0] = null / 2
    assert [one["text"] for one in predict(Spans(), outputs, examples)] == ["", "", ""]
    values = Spans().fit(outputs, examples, (), task())
    assert values == {"null_threshold": pytest.approx(5.5), "n": 3}
    fitted = Spans().fitted(values)
    metrics = fitted.measure(outputs, examples, (), task())
    assert (metrics["f1"], metrics["answerable_f1"], metrics["n_unanswerable"]) == (1, 1, 1)
    assert metrics["null_threshold"] == pytest.approx(5.5)
    assert "null threshold 5.500; n = 3, 1 without an answer" in fitted.describe("dev", metrics)
    other = make(("the cat", None), ("the cat", None))
    given = {"logits": [outputs["logits"][1], outputs["logits"][2]]}
    assert [one["text"] for one in predict(fitted, given, other)] == ["", "cat"]
    assert Spans().fit(outputs, examples, (), task(null_threshold=1.0)) == {}
    write_calibration(tmp_path, 7, "selection", {})
    assert read_calibration(tmp_path, 7) == {}
    write_calibration(tmp_path, 7, "selection", values)
    assert read_calibration(tmp_path, 7)["null_threshold"] == values["null_threshold"]
    assert read_calibration(tmp_path, 8) == {}


def test_chinese_answers_are_scored_by_characters_and_the_result_says_so(make):
    context = "天气好 天气很好"
    examples = make((context, [Answer("天气很好", 4)]))
    outputs = outputs_for(examples, [(0, 3, 0, 9), (0, 5, 1, 9)])
    assert predict(Spans(), outputs, examples)[0]["text"] == "天气好"
    metrics = Spans().measure(outputs, examples, (), task())
    assert metrics["f1"] == pytest.approx(0.857, abs=1e-3)
    assert metrics["segmentation"] == "characters"
    assert Spans().measure(outputs, examples, (), task(segmentation="words"))["f1"] == 0


def test_the_loss_is_that_of_windows_with_a_label(make):
    examples = make(("the cat", [Answer("cat", 4)]), ("the dog", [Answer("dog", 1)]), ("the dog", None))
    assert examples.columns["weights"].tolist() == [1, 0, 0]
    outputs = outputs_for(examples)
    size = len(examples.tokens[0])
    metrics = Spans().measure(outputs, examples, (), task())
    assert metrics["loss"] == pytest.approx(np.log(1 + (size - 1) * np.exp(-5)) + 5, rel=1e-5)
    assert metrics["n"] == 2
    unlabelled = make(("the cat", None))
    metrics = Spans().measure(outputs_for(unlabelled), unlabelled, (), task())
    assert metrics["n"] == 0
    assert np.isnan(metrics["f1"])
    assert "n = 0" in Spans().describe("test", metrics)


def test_answers_have_at_most_as_many_tokens_as_wanted(make):
    examples = make(("the cat sees the dog", None))
    outputs = outputs_for(examples, [(0, 3, 0, 9), (0, 7, 1, 9), (0, 4, 1, 1)])
    assert predict(Spans(), outputs, examples)[0]["text"] == "the cat sees the dog"
    assert predict(Spans(), outputs, examples, answer_tokens=3)[0]["text"] == "the cat"


def test_a_submission_maps_ids_to_texts():
    found = [{"id": "a", "text": "x", "start": 0, "end": 1, "score": 1.0}, {"id": "b", "text": "", "start": 0}]
    assert submission(found) == {"a": "x", "b": ""}
