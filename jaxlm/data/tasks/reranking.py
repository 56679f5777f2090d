"""Queries and passages, and whether a passage answers its query."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.data.examples import WORD_STARTS, Examples
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.labelled import Row, label_in, read_table, text_in
from jaxlm.typed import cut

RELEVANT = {"1": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "false": 0.0, "no": 0.0}


class Reranking:
    """Rows with a query and a passage, in the columns task.text, and in task.label whether the passage answers.

    An example is the pair, one segment. Equal queries belong together; they need not be neighbours in the file.
    """

    def read(self, path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
        task = config.task
        if len(task.text) != 2:
            raise UserError(
                f"task.text={','.join(task.text)}: train.objective=reranking needs two columns, such as query,passage"
            )
        columns = dict.fromkeys(task.text, "task.text") | ({task.label: "task.label"} if labelled else {})
        rows = read_table(path, setting, config.data, columns, task.header, task.bad_rows == "skip")
        for name in task.text:
            if not any(text_in(row, name).strip() for row in rows):
                raise UserError(f"{path}: all texts in {name} are empty; set task.text")
        return rows

    def identity(self, row: Row, task: Any) -> str:
        """Returns the query: its passages are all on one side."""
        return text_in(row, task.text[0])

    def labels(self, rows: Sequence[Row], task: Any) -> tuple[str, ...]:
        found = {_relevance(row, task) for row in rows} - {None}
        if len(found) == 1:
            raise UserError(
                f"{task.train}: every passage with a label in {task.label} has the same one; passages that answer and"
                " passages that do not are needed"
            )
        return ()

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        encoded = encoder([[text_in(row, name) for name in task.text] for row in rows], [row.place for row in rows])
        found = [_relevance(row, task) for row in rows]
        columns = {
            "labels": np.array([value or 0.0 for value in found], np.float32),
            "weights": np.array([value is not None for value in found], np.float32),
        }
        return Examples(
            rows, encoded.tokens, encoded.token_types, columns, truncated=encoded.truncated,
            details={WORD_STARTS: encoded.word_starts},
        )  # fmt: skip


def _relevance(row: Row, task: Any) -> float | None:
    """Returns 1 if the passage answers, 0 if not, and None if the label is blank. Raises UserError."""
    label = label_in(row, task.label)
    if label is None:
        return None
    value = RELEVANT.get(label.lower())
    if value is None:
        raise UserError(
            f"{row.place}: the label {cut(label)} in {task.label} is not one of {', '.join(RELEVANT)}; fix the row, or"
            " set task.label to the column that says whether the passage answers the query"
        )
    return value


RERANKING = Reranking()
