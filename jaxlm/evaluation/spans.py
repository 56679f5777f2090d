"""Answers to questions: slices of the context, chosen over all its windows, and how well they agree with the file's."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax import Array

from jaxlm.data.examples import Examples
from jaxlm.evaluation.answer_metrics import best_threshold, score, segmentation_for
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.sequences import FEW_EXAMPLES, log_softmax
from jaxlm.evaluation.task_evaluation import Metric, Outputs
from jaxlm.objectives.objective import Params
from jaxlm.text.labelled import Row

NO_ANSWER = -1e9  # the score of the best answer where there is no candidate


class Candidate(NamedTuple):
    """A possible answer: a slice of the context."""

    score: float  # the logit of its first token plus that of its last
    start: int  # in characters of the context
    end: int


class Candidates(NamedTuple):
    """What a question may be answered with: the best slices of its context, best first, or nothing."""

    answers: list[Candidate]
    null_score: float  # that of no answer: the lowest over the windows, whose begin token has it

    @property
    def margin(self) -> float:
        """The null score minus the score of the best answer."""
        return self.null_score - (self.answers[0].score if self.answers else NO_ANSWER)


@dataclasses.dataclass(frozen=True)
class Spans:
    """Exact match and F1 as in SQuAD; the loss is that of the windows with a label, in nats.

    A question is left unanswered if its margin is above a threshold: task.null_threshold, or else `threshold`, which
    `fit` takes from the selecting set. Without either, it is 0 for sets with questions that have no answer; in others
    every question is answered if its context has any token.
    """

    threshold: float | None = None

    of_tokens: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {"f1": Metric(True), "exact": Metric(True), "loss": Metric(False)}

    def outputs(self, objective: Any, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"logits": objective.outputs(params, batch)}

    def fit(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> dict[str, Any]:
        """Returns the null_threshold of the highest F1, if some questions have no answer; otherwise {}."""
        labelled = [number for number, row in enumerate(examples.rows) if row.values["answers"] is not None]
        if task.null_threshold is not None or not any(_unanswerable(examples.rows[number]) for number in labelled):
            return {}
        found, segmentation = candidates(outputs, examples, task), _segmentation(examples, task)
        margins, answered, unanswered = [], [], []
        for number in labelled:
            row = examples.rows[number]
            margins.append(found[number].margin)
            best = _text(row, found[number].answers[0]) if found[number].answers else ""
            answered.append(score(best, _correct(row), segmentation).f1)
            unanswered.append(score("", _correct(row), segmentation).f1)
        return {"null_threshold": best_threshold(margins, answered, unanswered), "n": len(labelled)}

    def fitted(self, values: Mapping[str, Any]) -> "Spans":
        return dataclasses.replace(self, threshold=values.get("null_threshold"))

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        known = [row for row in examples.rows if row.values["answers"] is not None]
        segmentation, threshold = _segmentation(examples, task), self._threshold(examples, task)
        metrics: Metrics = {"exact": math.nan, "f1": math.nan, "exact_error": math.nan, "loss": math.nan}
        metrics |= {"segmentation": segmentation, "n": len(known)}
        if not known:
            return metrics
        scores = np.array([
            score(prediction["text"], _correct(row), segmentation)
            for row, prediction in zip(examples.rows, self._predictions(outputs, examples, task), strict=True)
            if row.values["answers"] is not None
        ])  # fmt: skip
        exact, f1 = scores.mean(0).tolist()
        metrics |= {"exact": exact, "f1": f1, "exact_error": math.sqrt(exact * (1 - exact) / len(known))}
        metrics["loss"] = _loss(outputs, examples)
        without = np.array([_unanswerable(row) for row in known])
        if threshold is not None:
            metrics["null_threshold"] = threshold
        if without.any():
            metrics |= {"n_unanswerable": int(without.sum()), "unanswerable_accuracy": float(scores[without, 0].mean())}
        if 0 < without.sum() < len(known):
            metrics |= dict(zip(("answerable_exact", "answerable_f1"), scores[~without].mean(0).tolist(), strict=True))
        return metrics

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        yield from self._predictions(outputs, examples, task)

    def _predictions(self, outputs: Outputs, examples: Examples, task: Any) -> Iterator[dict[str, Any]]:
        """Yields the answer to each question: the slice start:end of its context, "" at 0 if it is left unanswered."""
        threshold = self._threshold(examples, task)
        for row, found in zip(examples.rows, candidates(outputs, examples, task), strict=True):
            null = Candidate(found.null_score, 0, 0)
            unanswered = not found.answers or (threshold is not None and found.margin > threshold)
            best = null if unanswered else found.answers[0]
            yield {
                "id": row.values["id"], **_shown(row, best), "null_score": found.null_score,
                "n_best": [_shown(row, one) for one in found.answers],
            }  # fmt: skip

    def _threshold(self, examples: Examples, task: Any) -> float | None:
        for threshold in (task.null_threshold, self.threshold):
            if threshold is not None:
                return threshold
        return 0.0 if any(map(_unanswerable, examples.rows)) else None

    def describe(self, name: str, metrics: Metrics) -> str:
        error = f" ± {metrics['exact_error']:.2%}" if metrics["n"] else ""
        of = f", {metrics['n_unanswerable']:,} without an answer" if "n_unanswerable" in metrics else ""
        threshold = f"; null threshold {metrics['null_threshold']:.3f}" if "null_threshold" in metrics else ""
        return (
            f"{name}: F1 {metrics['f1']:.2%}, exact match {metrics['exact']:.2%}{error}, by"
            f" {metrics['segmentation']}; {metrics['loss']:.3f} nats per window{threshold}; n = {metrics['n']:,}{of}"
        )

    def remark(self, name: str, metrics: Metrics) -> str:
        if 0 < metrics["n"] < FEW_EXAMPLES:
            interval = 1.96 * metrics["exact_error"]
            return (
                f"{name}: with only {metrics['n']:,} questions, the 95% interval of the exact match is"
                f" ±{100 * interval:.1f} points"
            )
        return ""


def candidates(outputs: Outputs, examples: Examples, task: Any) -> list[Candidates]:
    """Returns what each question may be answered with: the best task.n_best slices over all windows."""
    found = []
    for number in range(len(examples)):
        null_score, best = math.inf, dict[tuple[int, int], float]()
        for segment in examples.segments_of([number]):
            logits = outputs["logits"][segment].astype(np.float64)
            null_score = min(null_score, float(logits[0].sum()))
            offsets = examples.details["offsets"][segment]
            for value, start, end in best_slices(logits, offsets, task.answer_tokens, task.n_best):
                best[start, end] = max(value, best.get((start, end), -math.inf))
        ordered = sorted((Candidate(value, *place) for place, value in best.items()), key=lambda one: -one.score)
        found.append(Candidates(ordered[: task.n_best], null_score))
    return found


def best_slices(logits: np.ndarray, offsets: np.ndarray, longest: int, count: int) -> list[Candidate]:
    """Returns the `count` best slices of at most `longest` tokens in a window, in no order; fewer if there are fewer.

    logits are float64 [n, 2], offsets int32 [n, 2], -1 for tokens that are not of the context.
    """
    visible = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 1] > offsets[:, 0]))
    if not len(visible):
        return []
    begins, ends = offsets[visible].T
    width = min(longest, len(visible))
    last = np.concatenate([logits[visible, 1], np.full(width - 1, -np.inf)])
    sums = (logits[visible, 0, None] + np.lib.stride_tricks.sliding_window_view(last, width)).ravel()
    # Tokens that share a character give the same slice, so twice as many are enough for most tokenizers.
    chosen = np.argpartition(-sums, min(2 * count, len(sums)) - 1)[: 2 * count]
    return [
        Candidate(float(sums[one]), int(begins[one // width]), int(ends[one // width + one % width]))
        for one in chosen.tolist()
        if sums[one] > -np.inf
    ]


def submission(predictions: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns predictions in the format that SQuAD's official scripts read: {id: text}."""
    return {prediction["id"]: prediction["text"] for prediction in predictions}


def null_odds(predictions: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the margin of no answer for each id, which SQuAD 2.0's script reads with --na-prob-file."""
    return {
        prediction["id"]: prediction["null_score"]
        - (prediction["n_best"][0]["score"] if prediction["n_best"] else NO_ANSWER)
        for prediction in predictions
    }


def _loss(outputs: Outputs, examples: Examples) -> float:
    """Returns the mean loss of the windows with a label, in nats."""
    known = np.flatnonzero(examples.columns["weights"])
    losses = [
        -np.diag(log_softmax(outputs["logits"][one].astype(np.float64).T)[:, examples.columns["spans"][one]]).mean()
        for one in known.tolist()
    ]
    return float(np.mean(losses)) if losses else math.nan


def _segmentation(examples: Examples, task: Any) -> str:
    if task.segmentation != "auto":
        return task.segmentation
    return segmentation_for([text for row in examples.rows for text in _correct(row)])


def _correct(row: Row) -> list[str]:
    return [answer.text for answer in row.values["answers"] or ()]


def _unanswerable(row: Row) -> bool:
    return row.values["answers"] == []


def _text(row: Row, candidate: Candidate) -> str:
    return row.values["context"][candidate.start : candidate.end]


def _shown(row: Row, candidate: Candidate) -> dict[str, Any]:
    return {
        "text": _text(row, candidate), "start": candidate.start, "end": candidate.end, "score": candidate.score
    }  # fmt: skip
