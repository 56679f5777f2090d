"""Questions whose answer is a span of a context, in windows of the context that the model can read."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.examples import Examples
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.errors import UserError
from jaxlm.text.labelled import Row
from jaxlm.text.squad import read_questions
from jaxlm.typed import cut

MOST_IDS = 3  # that a message names
_log = logging.getLogger("jaxlm")


@dataclasses.dataclass(frozen=True)
class Spans:
    """Rows as `read_questions` returns them.

    An example is a question; its segments are windows: the question, and a part of the context. Together they have
    every token of the context. The column "spans" has the first and the last token of the answer in the window, and
    twice 0, the begin token, where the window does not have the whole answer. `details["offsets"]` has the begin and
    the end of each token in the context, in characters, -1 for tokens that are not of the context.
    """

    def read(self, path: Path, setting: str, config: Any, labelled: bool) -> list[Row]:
        rows = read_questions(path, setting, config.data, labelled)
        check_answers(path, rows, config.task.misplaced)
        return rows

    def identity(self, row: Row, task: Any) -> str:
        """Returns the context, so that all questions about it are on one side of a split."""
        return row.values["context"]

    def labels(self, rows: Sequence[Row], task: Any) -> tuple[str, ...]:
        return ()

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        tokenizer = encoder.tokenizer
        questions = self._questions(rows, encoder)
        begin, end = np.array([tokenizer.begin_id]), np.array([tokenizer.end_id])
        contexts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        tokens, types, offsets, spans, weights, example = [], [], [], [], [], []
        for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
            context = row.values["context"]
            if context not in contexts:
                contexts[context] = tokenizer.encode_with_offsets(context)
            ids, places = contexts[context]
            answer = answer_tokens(row, places)
            before = np.concatenate([begin, question, np.repeat(end, encoder.separators)])
            room = encoder.longest - len(before) - 1
            for first in window_starts(len(ids), room, task.stride or room // 2):
                window = slice(first, first + room)
                tokens.append(np.concatenate([before, ids[window], end]).astype(np.int32))
                types.append((np.arange(len(tokens[-1])) >= len(before)).astype(np.int32))
                offsets.append(np.full((len(tokens[-1]), 2), -1, np.int32))
                offsets[-1][len(before) : -1] = places[window]
                inside = answer is not None and answer[0] >= first and answer[1] < min(first + room, len(ids))
                spans.append([token - first + len(before) for token in answer] if inside and answer else [0, 0])
                weights.append(answer is not None or row.values["answers"] == [])
                example.append(number)
        columns = {"spans": np.array(spans, np.int32), "weights": np.array(weights, np.float32)}
        return Examples(rows, tokens, types, columns, example=np.array(example), details={"offsets": offsets})

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
            what = f"questions are longer than {most} tokens, half of a window" + (
                f" ({cut(long[0])}{', ...' if len(long) > 1 else ''})"
            )
            if encoder.truncation == "refuse":
                raise UserError(
                    f"{len(long):,} {what}; shorten them, raise data.sequence_length, or set"
                    " task.truncation=longest_first"
                )
            _log.warning("%s of %s %s, and lose their end", f"{len(long):,}", f"{len(rows):,}", what)
        return [encoding.ids[:most] for encoding in encodings]


def check_answers(path: Path, rows: Sequence[Row], most: float) -> None:
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


def window_starts(tokens: int, room: int, stride: int) -> range:
    """Returns the first token of each window of `room` tokens over a context; the stride is at most `room`."""
    stride = min(max(stride, 1), room)
    return range(0, max(tokens - room, 0) + stride, stride)


SPANS = Spans()
