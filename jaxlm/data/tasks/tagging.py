"""Sentences in which every word has a tag, such as named entities or parts of speech."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.data.examples import Examples
from jaxlm.data.tag_schemes import completed, misplaced
from jaxlm.data.tasks.sequences import class_weights
from jaxlm.data.text_encoder import TextEncoder
from jaxlm.data.word_encoder import encode_words, windows
from jaxlm.errors import UserError
from jaxlm.text.conll import place_of_word, read_sentences
from jaxlm.text.files import File
from jaxlm.text.labelled import Row
from jaxlm.typed import cut, listed


@dataclasses.dataclass(frozen=True)
class Tagging:
    """Words with tags. An example is a sentence; its segments are the windows of a sentence longer than the model.

    The token columns are "words", the number of a word from 1 at its first piece in the window that decides its tag and
    0 elsewhere, and there "labels" and "weights".
    """

    def read(self, path: File, setting: str, config: Any, labelled: bool) -> list[Row]:
        rows = read_sentences(path, setting, config, labelled)
        scheme = config.task.scheme
        for row in rows:
            if row.values["tags"] is not None and (found := misplaced(row.values["tags"], scheme)):
                number, fault = found
                raise UserError(
                    f"{place_of_word(row, number)}: the tag {cut(row.values['tags'][number])!r} {fault}; fix it, set"
                    " task.tags to the column of the tags, or set task.scheme"
                )
        return rows

    def identity(self, row: Row, task: Any) -> str:
        return " ".join(row.values["words"])

    def labels(self, rows: Sequence[Row], task: Any) -> tuple[str, ...]:
        found = dict.fromkeys(tag for row in rows for tag in row.values["tags"] or ())
        labels = tuple(task.labels) or completed(found, task.scheme)
        spelled: dict[str, str] = {}
        for name in labels:
            other = spelled.setdefault(name.lower(), name)
            if other != name:
                raise UserError(
                    f"{task.train} has the tags {other} and {name}, which differ only in case; spell them alike"
                )
        if len(labels) < 2:
            raise UserError(
                f"{task.train} has only the tag {labels[0] if labels else ''}; at least 2 are needed: set task.tags to"
                " the column of the tags"
            )
        return labels

    def encode(self, rows: Sequence[Row], labels: Sequence[str], encoder: TextEncoder, task: Any) -> Examples:
        room = encoder.longest - 2  # without begin and end
        if room < 1:
            raise UserError(f"data.sequence_length={encoder.longest}: no word fits between begin and end; set it to 32")
        index = {name.lower(): number for number, name in enumerate(labels)}
        index |= {name: number for number, name in enumerate(labels)}
        pieces = encode_words([row.values["words"] for row in rows], encoder.tokenizer)
        classes = [_classes(row, labels, index) for row in rows]
        known = [found for found in classes if found is not None]
        weight_of = class_weights(task, labels, np.concatenate(known) if known else np.zeros(0, np.int32))
        tokens: list[np.ndarray] = []
        columns: dict[str, list[np.ndarray]] = {"words": [], "labels": [], "weights": []}
        example, truncated = [], 0
        for number, (row, whole, found) in enumerate(zip(rows, pieces, classes, strict=True)):
            words = [part[:room] for part in whole]
            longer = next((n for n, part in enumerate(whole) if len(part) > room), None)
            if longer is not None and task.truncation == "refuse":
                raise UserError(
                    f"{place_of_word(row, longer)}: a word of {len(whole[longer]):,} tokens, but at most {room} fit;"
                    " shorten it, raise data.sequence_length, or set task.truncation=longest_first"
                )
            truncated += longer is not None
            parts = windows([len(part) for part in words], room)
            for window, span in enumerate(parts.words):
                joined = [np.array([encoder.tokenizer.begin_id]), *words[span.start : span.stop]]
                tokens.append(np.concatenate([*joined, [encoder.tokenizer.end_id]]).astype(np.int32))
                starts = np.cumsum([len(part) for part in joined])[:-1]
                here = np.array([n for n in span if len(words[n]) and parts.chosen[n] == window], np.int32)
                at = starts[here - span.start] if len(here) else here
                columns["words"].append(_filled(len(tokens[-1]), at, here + 1, np.int32))
                values = np.zeros(len(here), np.int32) if found is None else found[here]
                columns["labels"].append(_filled(len(tokens[-1]), at, values, np.int32))
                weights = np.zeros(len(here)) if found is None else weight_of[values]
                columns["weights"].append(_filled(len(tokens[-1]), at, weights, np.float32))
                example.append(number)
        types = [np.zeros(len(part), np.int32) for part in tokens]
        return Examples(rows, tokens, types, {}, columns, np.array(example, np.int64), truncated)


def _filled(size: int, at: np.ndarray, values: np.ndarray, dtype: Any) -> np.ndarray:
    """Returns an array of zeros [size] with `values` at the positions `at`."""
    result = np.zeros(size, dtype)
    result[at] = values
    return result


def _classes(row: Row, labels: Sequence[str], index: dict[str, int]) -> np.ndarray | None:
    """Returns the number of each word's tag, int32 [words]; None if they are not known. Raises UserError."""
    tags = row.values["tags"]
    if tags is None:
        return None
    for number, tag in enumerate(tags):
        if tag not in index and tag.lower() not in index:
            raise UserError(
                f"{place_of_word(row, number)}: the tag {cut(tag)} is not one of {listed(labels)}; fix it, or set"
                " task.tags or task.labels"
            )
    return np.array([index[tag if tag in index else tag.lower()] for tag in tags], np.int32)


TAGGING = Tagging()
