"""Evaluation of the tags of words: entities by their scheme, as seqeval counts them, and words."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.examples import Examples
from jaxlm.data.tag_schemes import DESCRIPTIONS, OUTSIDE, entities
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.task_evaluation import Metric, Outputs
from jaxlm.objectives.objective import Params
from jaxlm.objectives.predictions import cross_entropy


@dataclasses.dataclass(frozen=True)
class Tagging:
    """One tag for each word. F1 is that of entities, micro-averaged; an entity is right if its words and type are."""

    of_tokens: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "f1": Metric(True), "precision": Metric(True), "recall": Metric(True), "macro_f1": Metric(True),
        "accuracy": Metric(True), "loss": Metric(False),
    }  # fmt: skip

    def outputs(self, objective: Any, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        logits = objective.outputs(params, batch)
        labels = batch["labels"]
        losses, _ = cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        return {"tags": logits.argmax(-1).astype(jnp.int32), "losses": losses.reshape(labels.shape)}

    def measure(self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any) -> Metrics:
        answers = predicted_tags(outputs, examples, labels)
        spelled = {name.lower(): name for name in labels} | {name: name for name in labels}
        pairs = [
            ([spelled.get(tag, spelled[tag.lower()]) for tag in row.values["tags"]], answer)
            for row, answer in zip(examples.rows, answers, strict=True)
            if row.values["tags"] is not None
        ]
        losses = [
            loss[weights > 0]
            for loss, weights in zip(outputs["losses"], examples.token_columns["weights"], strict=True)
        ]
        metrics = tagging_metrics([wanted for wanted, _ in pairs], [answer for _, answer in pairs], task.scheme)
        known = np.concatenate([np.zeros(0), *losses]).astype(np.float64)
        return metrics | {"loss": float(known.mean()) if len(known) else 0.0 if metrics["n"] else math.nan}

    def predictions(
        self, outputs: Outputs, examples: Examples, labels: tuple[str, ...], task: Any
    ) -> Iterator[dict[str, Any]]:
        answers = predicted_tags(outputs, examples, labels)
        for row, tags in zip(examples.rows, answers, strict=True):
            yield {"words": row.values["words"], "tags": tags}

    def describe(self, name: str, metrics: Metrics) -> str:
        if not metrics["n"]:
            return f"{name}: its sentences have no tags, so there are predictions only"
        return (
            f"{name}: F1 {metrics['f1']:.2%} ± {metrics['f1_error']:.2%}, precision {metrics['precision']:.2%}, recall"
            f" {metrics['recall']:.2%} of {metrics['entities']:,} entities; {metrics['scheme']}; right words"
            f" {metrics['accuracy']:.2%}, {metrics['loss']:.3f} nats per word; n = {metrics['n']:,} sentences"
        )

    def remark(self, name: str, metrics: Metrics) -> str:
        if metrics["entities"] and not metrics["f1"]:
            return f"{name}: no entity was found; train longer, or try another optimizer.learning_rate"
        return ""


def predicted_tags(outputs: Outputs, examples: Examples, labels: tuple[str, ...]) -> list[list[str]]:
    """Returns a tag for each word of each example; words without pieces have O, or the first tag if there is no O."""
    blank = OUTSIDE if OUTSIDE in labels else labels[0]
    found = [[blank] * len(row.values["words"]) for row in examples.rows]
    for number, tags in enumerate(found):
        for segment in range(examples.first[number], examples.first[number + 1]):
            words = examples.token_columns["words"][segment]
            at = np.flatnonzero(words)
            for word, label in zip(words[at].tolist(), outputs["tags"][segment][at].tolist(), strict=True):
                tags[word - 1] = labels[label]
    return found


class Counts(NamedTuple):
    """Numbers of entities: predicted correctly, predicted, and in the reference."""

    correct: int
    predicted: int
    wanted: int

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.correct / max(self.predicted + self.wanted, 1)


def tagging_metrics(wanted: Sequence[Sequence[str]], answers: Sequence[Sequence[str]], scheme: str) -> Metrics:
    """Returns the metrics of the tags of sentences; all but numbers of things are NaN if there are no sentences.

    precision, recall and f1 are those of all entities, macro_f1 is the mean over types, and types has each of them.
    f1_error is the standard error of f1 over sentences, by linearization. accuracy is that of words.
    """
    by_type: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    by_sentence = np.zeros((len(wanted), 3), np.int64)
    for number, (tags, answer) in enumerate(zip(wanted, answers, strict=True)):
        true, given = set(entities(tags, scheme)), set(entities(answer, scheme))
        for column, found in enumerate((true & given, given, true)):
            by_sentence[number, column] = len(found)
            for entity in found:
                by_type[entity.type][column] += 1
    counts = Counts(*by_sentence.sum(0).tolist())
    types = {name: Counts(*numbers) for name, numbers in sorted(by_type.items())}
    words = sum(len(tags) for tags in wanted)
    right = sum(a == b for tags, answer in zip(wanted, answers, strict=True) for a, b in zip(tags, answer, strict=True))
    metrics: Metrics = {
        "f1": counts.f1,
        "f1_error": ratio_error(2 * by_sentence[:, 0], by_sentence[:, 1] + by_sentence[:, 2]),
        "precision": counts.precision,
        "recall": counts.recall,
        "macro_f1": sum(one.f1 for one in types.values()) / max(len(types), 1),
        "accuracy": right / max(words, 1),
    }
    if not wanted:
        metrics = dict.fromkeys(metrics, math.nan)
    return metrics | {
        "n": len(wanted), "words": words, "entities": counts.wanted, "scheme": DESCRIPTIONS[scheme],
        "types": {
            name: {"precision": one.precision, "recall": one.recall, "f1": one.f1, "n": one.wanted}
            for name, one in types.items()
        },
    }  # fmt: skip


def ratio_error(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Returns the standard error of sum(numerators) / sum(denominators) of independent pairs [n]; 0 if n < 2."""
    count, total = len(numerators), denominators.sum()
    if count < 2 or not total:
        return 0.0
    residuals = numerators - numerators.sum() / total * denominators
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / total)
