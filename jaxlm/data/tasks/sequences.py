"""Texts and pairs with one class, with several, or with a number."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.data.examples import WORD_STARTS, Examples
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.labelled import Row, label_in, read_table, text_in
from jaxlm.typed import cut, listed, shown

MANY_LABELS = 20  # with more, a column in which most examples have a label of their own is refused


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Rows with one text or two, in the columns task.text, and a label in the column task.label.

    `target` says what a label is: "class", "classes" (several, separated by task.separator) or "number". A blank label
    means that the row has none.
    """

    target: str

    def read(self, path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
        task = config.task
        columns = dict.fromkeys(task.text, "task.text") | ({task.label: "task.label"} if labelled else {})
        rows = read_table(path, setting, config.data, columns, task.header, task.bad_rows == "skip")
        if not any(text_in(row, name).strip() for row in rows for name in task.text):
            raise UserError(f"{path}: all texts in {', '.join(task.text)} are empty; set task.text")
        return rows

    def identity(self, row: Row, task: Any) -> str:
        return "\n".join(text_in(row, name) for name in task.text)

    def labels(self, rows: Sequence[Row], task: Any) -> tuple[str, ...]:
        if self.target == "number":
            return ()
        found = Counter(name for row in rows for name in self._names(row, task))
        labels = tuple(task.labels) or tuple(sorted(found, key=_by_number))
        if found and len(labels) < (2 if self.target == "class" else 1):
            raise UserError(
                f"{task.train} has only the label {labels[0]} in {task.label}; at least 2 labels are needed: set"
                " task.label to the column of the labels"
            )
        if len(found) > max(MANY_LABELS, found.total() / 2):
            raise UserError(
                f"{task.train} has {len(found):,} different labels in {task.label} for {found.total():,} examples, too "
                "few for each to learn from; set task.label to the column with the class, or"
                " train.objective=regression if the labels are numbers"
            )
        return labels

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        encoded = encoder([[text_in(row, name) for name in task.text] for row in rows], [row.place for row in rows])
        if self.target == "number":
            numbers = [number_in(row, task) for row in rows]
            values = np.array([0.0 if number is None else number for number in numbers], np.float32)
            weights = np.array([number is not None for number in numbers], np.float32)
        else:
            index = {name.lower(): number for number, name in enumerate(labels)}
            classes = [[self._class(name, row, index, labels, task) for name in self._names(row, task)] for row in rows]
            weights = np.array([bool(found) for found in classes], np.float32)
            if self.target == "class":
                values = np.array([found[0] if found else 0 for found in classes], np.int32)
                weights = weights * class_weights(task, labels, values[weights > 0])[values]
            else:
                values = np.zeros((len(rows), len(labels)), np.float32)
                for number, found in enumerate(classes):
                    values[number, found] = 1
                weights = np.array([row.values.get(task.label) is not None for row in rows], np.float32)
        columns = {"labels": values, "weights": weights.astype(np.float32)}
        return Examples(
            rows, encoded.tokens, encoded.token_types, columns, truncated=encoded.truncated,
            details={WORD_STARTS: encoded.word_starts},
        )  # fmt: skip

    def _names(self, row: Row, task: Any) -> list[str]:
        """Returns the names of a row's labels; none if the label is blank."""
        value = row.values.get(task.label)
        if self.target == "classes" and isinstance(value, list):
            if not all(isinstance(name, str) for name in value):
                raise UserError(f"{row.place}: {task.label}={shown(value)}: expected a list of texts")
            return [name.strip() for name in value]
        label = label_in(row, task.label)
        if self.target == "class" or label is None:
            return [] if label is None else [label]
        return [name.strip() for name in label.split(task.separator) if name.strip()]

    def _class(self, name: str, row: Row, index: dict[str, int], labels: Sequence[str], task: Any) -> int:
        """Returns the number of a class. Raises UserError if it is not one of the labels."""
        number = index.get(name.lower())
        if number is None:
            raise UserError(
                f"{row.place}: the label {cut(name)} in {task.label} is not one of {listed(labels)}; fix the row, or"
                " set task.label or task.labels"
            )
        return number


def class_weights(task: Any, labels: Sequence[str], classes: np.ndarray) -> np.ndarray:
    """Returns the weight of each class in the loss, float32 [C], as task.class_weights says.

    "balanced" gives each class the same total weight: n / (C * count). classes int [n] are those of the rows.
    """
    if task.class_weights == ("balanced",):
        counts = np.bincount(classes, minlength=len(labels))
        return (len(classes) / (len(labels) * np.maximum(counts, 1))).astype(np.float32)
    weights = np.ones(len(labels), np.float32)
    index = {name.lower(): number for number, name in enumerate(labels)}
    for entry in task.class_weights:
        name, _, value = entry.rpartition("=")
        if name.strip().lower() not in index:
            raise UserError(f"task.class_weights={entry}: {name} is not one of the labels {', '.join(labels)}")
        weights[index[name.strip().lower()]] = float(value)
    return weights


def number_in(row: Row, task: Any) -> float | None:
    """Returns the label of a row as a number; None if it is blank."""
    value = row.values.get(task.label)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise UserError(
            f"{row.place}: the label {cut(str(value))} in {task.label} is not a number; fix the row, or set"
            " train.objective=classification if the labels are names"
        )
    return number


def _by_number(label: str) -> tuple[float, str]:
    """Orders labels as numbers if they are, and as texts after them."""
    try:
        return float(label), label
    except ValueError:
        return math.inf, label


CLASSIFICATION, MULTI_LABEL, REGRESSION = Sequences("class"), Sequences("classes"), Sequences("number")
