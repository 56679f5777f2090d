"""Questions whose answer is a span of a context, in windows of the context that the model can read."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.examples import Examples
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.errors import UserError
from jaxlm.settings import SETTINGS
from jaxlm.text.files import File
from jaxlm.text.labelled import Row
from jaxlm.text.squad import COLUMNS, read_questions
from jaxlm.typed import counted, cut

MOST_IDS = 3  # that a message names
MOST_LONG = 0.01  # a larger share of answers that are too long to be predicted is reported with a warning
_log = logging.getLogger("jaxlm")


class Window(NamedTuple):
    """A question with a part of its context."""

    tokens: np.ndarray  # int32 [n]
    token_types: np.ndarray  # int32 [n]: 1 from the first token of the context
    offsets: np.ndarray  # int32 [n, 2], as in `Spans`
    span: tuple[int, int]  # likewise


@dataclasses.dataclass(frozen=True)
class Spans:
    """Rows as `read_questions` returns them.

    An example is a question; its segments are windows: the question, and a part of the context. Together they have
    every token of the context. The column "spans" has the first and the last token of the answer in the window, and
    twice 0, the begin token, where the window does not have the whole answer. `details["offsets"]` has the begin and
    the end of each token in the context, in characters, -1 for tokens that are not of the context.
    """

    def read(self, path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
        task = config.task
        columns = COLUMNS if task.text == SETTINGS["task"]["text"].default else task.text
        if len(columns) != 2:
            raise UserError(
                f"task.text={','.join(columns)}: train.objective=span needs two columns, such as {','.join(COLUMNS)}"
            )
        rows = read_questions(path, setting, config.data, labelled, columns, task.header)
        if labelled:
            check_answers(path, rows, task.misplaced)
        return rows

    def identity(self, row: Row, task: Any) -> str:
        """Returns the context, so that all questions about it are on one side of a split."""
        return row.values["context"]

    def labels(self, rows: Sequence[Row], task: Any) -> tuple[str, ...]:
        return ()

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        questions = self._questions(rows, encoder)
        texts = [row.values["context"] for row in rows]
        contexts = {text: encoder.tokenizer.encode_with_offsets(text) for text in dict.fromkeys(texts)}
        answers = [answer_tokens(row, contexts[text][1]) for row, text in zip(rows, texts, strict=True)]
        warn_of_long_answers(rows, answers, task.answer_tokens)
        windows: list[Window] = []
        weights, example = [], []
        for number, (row, question, answer) in enumerate(zip(rows, questions, answers, strict=True)):
            found = windows_over(question, *contexts[texts[number]], answer, encoder, task.stride)
            windows += found
            weights += [answer is not None or row.values["answers"] == []] * len(found)
            example += [number] * len(found)
        return Examples(
            rows, [window.tokens for window in windows], [window.token_types for window in windows],
            {
                "spans": np.array([window.span for window in windows], np.int32),
                "weights": np.array(weights, np.float32),
            },
            example=np.array(example), details={"offsets": [window.offsets for window in windows]},
        )  # fmt: skip

    def _questions(self, rows: Sequence[Row], encoder: TextEncoder) -> list[np.ndarray]:
        """Returns the tokens of each question, which are at most half of a window. Raises UserError."""
        most = (encoder.longest - encoder.separators - 2) // 2
        if most < 1:
            raise UserError(
                f"data.sequence_length={encoder.longest} has no room for a question and a context; set it to at least"
                f" {encoder.separators + 4}, usually 384"
            )
        encodings = encoder.tokenizer.encode_batch([row.values["question"] for row in rows])
        long = [row.place for row, encoding in zip(rows, encodings, strict=True) if len(encoding.ids) > most]
        if long:
            what = f"longer than {most} tokens, half of a window" + (
                f" ({cut(long[0])}{', ...' if len(long) > 1 else ''})"
            )
            if encoder.truncation == "refuse":
                raise UserError(
                    f"{counted(len(long), 'question is', 'questions are')} {what}; shorten them, raise"
                    " data.sequence_length, or set task.truncation=longest_first"
                )
            _log.warning("%s of %s questions are %s, and lose their end", f"{len(long):,}", f"{len(rows):,}", what)
        return [encoding.ids[:most] for encoding in encodings]


def check_answers(path: File, rows: Sequence[Row], most: float) -> None:
    """Warns of answers that are not in their context where the file says; above a share of `most`, raises UserError."""
    wrong, count = [], 0
    for row in rows:
        for answer in row.values["answers"] or ():
            count += 1
            if not answer.is_in(row.values["context"]):
                wrong.append(row.values["id"])
    if not wrong:
        return
    ids = list(dict.fromkeys(wrong))
    named = ", ".join(map(cut, ids[:MOST_IDS])) + (", ..." if len(ids) > MOST_IDS else "")
    text = f"{path}: {len(wrong):,} of {count:,} answers are not at their answer_start in the context (id {named})"
    if len(wrong) > most * count:
        raise UserError(
            f"{text}, more than task.misplaced={most:g} of them; fix the offsets, which count Unicode characters from"
            " 0, or raise task.misplaced"
        )
    _log.warning("%s; they are not learned from", text)


def answer_tokens(row: Row, offsets: np.ndarray) -> tuple[int, int] | None:
    """Returns the first and the last token of the first answer that is in its context where the file says.

    `offsets` are those of the context's tokens, int32 [n, 2]. Returns None if there is no such answer.
    """
    for answer in row.values["answers"] or ():
        if answer.is_in(row.values["context"]):
            end = answer.start + len(answer.text)
            inside = np.flatnonzero((offsets[:, 1] > answer.start) & (offsets[:, 0] < end))
            if len(inside):
                return int(inside[0]), int(inside[-1])
    return None


def warn_of_long_answers(rows: Sequence[Row], answers: Sequence[tuple[int, int] | None], most: int) -> None:
    """Logs how many answers have more than `most` tokens, if they are more than a small share."""
    long = [row.place for row, one in zip(rows, answers, strict=True) if one and one[1] - one[0] >= most]
    if len(long) > MOST_LONG * len(rows):
        _log.warning(
            "%s of %s answers (the first of %s) have more than task.answer_tokens=%d tokens and cannot be predicted;"
            " raise it", f"{len(long):,}", f"{len(rows):,}", long[0], most,
        )  # fmt: skip


def windows_over(
    question: np.ndarray, ids: np.ndarray, offsets: np.ndarray, answer: tuple[int, int] | None, encoder: TextEncoder,
    stride: int,
) -> list[Window]:  # fmt: skip
    """Returns the windows of a question over a context with these tokens; `stride` is task.stride."""
    begin, end = np.array([encoder.tokenizer.begin_id]), np.array([encoder.tokenizer.end_id])
    before = np.concatenate([begin, question, np.repeat(end, encoder.separators)])
    room = encoder.longest - len(before) - 1
    windows = []
    for first in window_starts(len(ids), room, stride or room // 2):
        last = min(first + room, len(ids))
        tokens = np.concatenate([before, ids[first:last], end]).astype(np.int32)
        types = (np.arange(len(tokens)) >= len(before)).astype(np.int32)
        places = np.full((len(tokens), 2), -1, np.int32)
        places[len(before) : -1] = offsets[first:last]
        inside = answer is not None and first <= answer[0] and answer[1] < last
        shift = len(before) - first
        windows.append(
            Window(tokens, types, places, (answer[0] + shift, answer[1] + shift) if inside and answer else (0, 0))
        )
    return windows


def window_starts(tokens: int, room: int, stride: int) -> range:
    """Returns the first token of each window of `room` tokens over a context; the stride is at most `room`."""
    stride = min(max(stride, 1), room)
    return range(0, max(tokens - room, 0) + stride, stride)


SPANS = Spans()
