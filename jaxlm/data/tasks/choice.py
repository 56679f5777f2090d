"""Multiple choice: a context and several texts, one of which is right."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.data.examples import Examples
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.labelled import Row, label_in, read_table, text_in, without_bad_rows
from jaxlm.typed import cut


class Choice:
    """Rows with a context in the column task.text and the texts to choose from in the columns task.choices.

    With two columns in task.text, each choice continues the second of them, as in SWAG. task.label has the name of the
    column that is right, or its number from 0. An example is a pair of context and choice for each choice that is not
    blank; "role" is the number of the choice, "labels" that of the right one in all segments of an example.
    """

    def read(self, path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
        task = config.task
        _check(task)
        columns = dict.fromkeys(task.text, "task.text") | dict.fromkeys(task.choices, "task.choices")
        columns |= {task.label: "task.label"} if labelled else {}
        rows = read_table(path, setting, config.data, columns, task.header, task.bad_rows == "skip")

        def wrong(row: Row) -> str:
            there = [name for name in task.choices if text_in(row, name, "task.choices").strip()]
            if len(there) < 2:
                return f"fewer than two of {', '.join(task.choices)} have a text"
            right = _right(row, task)
            if right is not None and task.choices[right] not in there:
                return f"{task.choices[right]} is right, but empty"
            return ""

        return without_bad_rows(path, rows, wrong, task.bad_rows == "skip")

    def identity(self, row: Row, task: Any) -> str:
        return "\n".join(text_in(row, name) for name in (*task.text, *task.choices))

    def labels(self, rows: Sequence[Row], task: Any) -> tuple[str, ...]:
        return ()  # the head scores one choice at a time, however many there are

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        pairs, example, role = [], [], []
        for number, row in enumerate(rows):
            context, *start = (text_in(row, name) for name in task.text)
            for which, name in enumerate(task.choices):
                if (text := text_in(row, name, "task.choices")).strip():
                    pairs.append([context, " ".join([*start, text])])
                    example.append(number)
                    role.append(which)
        encoded = encoder(pairs, [rows[number].place for number in example])
        of = np.array(example, np.int64)
        right = [_right(row, task) for row in rows]
        columns = {
            "role": np.array(role, np.int32),
            "labels": np.array([number or 0 for number in right], np.int32)[of],
            "weights": np.array([number is not None for number in right], np.float32)[of],
        }
        truncated = len(set(of[encoded.shortened].tolist()))
        return Examples(rows, encoded.tokens, encoded.token_types, columns, example=of, truncated=truncated)


def _check(task: Any) -> None:
    if len(task.choices) < 2 or len(set(task.choices)) < len(task.choices):
        raise UserError(
            f"task.choices={','.join(task.choices)}: train.objective=choice needs two or more different columns with"
            " the texts to choose from"
        )
    if shared := {*task.choices} & {*task.text, task.label}:
        raise UserError(f"task.choices={','.join(task.choices)}: {min(shared)} is also in task.text or task.label")


def _right(row: Row, task: Any) -> int | None:
    """Returns the number of the right choice; None if the label is blank. Raises UserError."""
    label = label_in(row, task.label)
    if label is None:
        return None
    if label.isdecimal() and int(label) < len(task.choices):
        return int(label)
    if label in task.choices and not label.isdecimal():  # columns of a file without a header are numbers too
        return task.choices.index(label)
    raise UserError(
        f"{row.place}: the label {cut(label)} in {task.label} is neither a number from 0 to {len(task.choices) - 1} nor"
        f" one of {', '.join(task.choices)}; fix the row, or set task.label"
    )


CHOICE = Choice()
