"""Texts that belong together, or are similar to a degree: what an embedding model learns from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.data.examples import Examples
from jaxlm.data.tasks.sequences import number_in
from jaxlm.data.text_encoder import EncodedTexts, TextEncoder
from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.labelled import Row, read_table, text_in, without_bad_rows
from jaxlm.typed import shown

ANCHOR, POSITIVE = 0, 1  # roles; the hard negatives have the numbers after them


class Retrieval:
    """Rows with two texts, in the columns task.text, and any number of hard negatives, in the columns task.negatives.

    An example is a segment for each text: the anchor (such as a query), the positive (such as a passage that answers
    it), and the hard negatives that are not blank. The column "role" numbers the columns of the file in that order;
    "text" is equal for segments of a set whose texts the model cannot tell apart, prompts aside. With the losses that
    compare similarities, "labels" is the similarity in task.label, and "weights" is 0 where it is blank.
    """

    def read(self, path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
        task = config.task
        _check(task)
        columns = dict.fromkeys(task.text, "task.text")
        if _scored(task):
            columns |= {task.label: "task.label"} if labelled else {}
        elif setting == "task.train":
            columns |= dict.fromkeys(task.negatives, "task.negatives")
        rows = read_table(path, setting, config.data, columns, task.header, task.bad_rows == "skip")
        if _scored(task):
            return rows

        def wrong(row: Row) -> str:
            return next((f"{name} is empty" for name in task.text if not text_in(row, name).strip()), "")

        return without_bad_rows(path, rows, wrong, task.bad_rows == "skip")

    def identity(self, row: Row, task: Any) -> str:
        """Returns the anchor: the rows of a query are all on one side."""
        return text_in(row, task.text[0])

    def labels(self, rows: Sequence[Row], task: Any) -> tuple[str, ...]:
        return ()

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        example, role, texts = [], [], []
        for number, row in enumerate(rows):
            for which, name in enumerate((*task.text, *task.negatives)):
                setting = "task.text" if which <= POSITIVE else "task.negatives"
                text = text_in(row, name, setting) if name in row.values else ""
                if text.strip() or which <= POSITIVE:
                    example.append(number)
                    role.append(which)
                    texts.append(text)
        prompts = [task.document_prompt if which else task.query_prompt for which in role]
        places = [rows[number].place for number in example]
        encoded = _encoded(encoder, [prompt + text for prompt, text in zip(prompts, texts, strict=True)], places)
        bare = _encoded(encoder, texts, places) if any(prompts) else encoded
        numbers: dict[bytes, int] = {}
        columns = {
            "role": np.array(role, np.int32),
            "text": np.array([numbers.setdefault(ids.tobytes(), len(numbers)) for ids in bare.tokens], np.int32),
        }
        if _scored(task):
            columns |= _similarities(rows, np.array(example), task)
        return Examples(
            rows, encoded.tokens, encoded.token_types, columns, example=np.array(example, np.int64),
            truncated=len(set(np.array(example)[encoded.shortened].tolist())),
        )  # fmt: skip


def _scored(task: Any) -> bool:
    """Returns whether rows say how similar two texts are."""
    return task.loss != "contrastive"


def _check(task: Any) -> None:
    if len(task.text) != 2:
        raise UserError(
            f"task.text={','.join(task.text)}: train.objective=embedding needs two columns, such as anchor,positive;"
            " name the columns of hard negatives in task.negatives"
        )
    if _scored(task) and task.negatives:
        raise UserError(f"task.negatives does not apply to task.loss={task.loss}; remove it")
    if len({*task.text, *task.negatives}) < len(task.text) + len(task.negatives):
        raise UserError(f"task.negatives={','.join(task.negatives)}: must be other columns than task.text, each once")
    if task.score_range and (len(task.score_range) != 2 or not task.score_range[0] < task.score_range[1]):
        shown_range = ",".join(f"{value:g}" for value in task.score_range)
        raise UserError(f"task.score_range={shown_range}: expected the lowest and the highest value, such as 1,5")


def _encoded(encoder: TextEncoder, texts: Sequence[str], places: Sequence[str]) -> EncodedTexts:
    return encoder([[text] for text in texts], places)


def _similarities(rows: Sequence[Row], example: np.ndarray, task: Any) -> dict[str, np.ndarray]:
    """Returns the columns "labels" and "weights" of the segments of each row, on the scale of the cosine."""
    numbers = [number_in(row, task) for row in rows]
    low, high = task.score_range or (-1.0, 1.0)
    if task.loss == "cosine_mse" or task.score_range:
        for row, number in zip(rows, numbers, strict=True):
            if number is not None and not low <= number <= high:
                raise UserError(
                    f"{row.place}: the label {shown(number)} in {task.label} is not between {low:g} and {high:g}; set"
                    " task.score_range to the lowest and the highest value, such as 1,5"
                )
    weights = np.array([number is not None for number in numbers])
    values = np.array([low if number is None else number for number in numbers])
    if task.score_range:
        values = (values - low) / (high - low)
    values = np.where(weights, values, 0)
    return {"labels": values.astype(np.float32)[example], "weights": weights.astype(np.float32)[example]}


EMBEDDING = Retrieval()
