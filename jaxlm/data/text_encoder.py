"""Turns texts and pairs of texts into the token sequences of a task, cut to the length of the model."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger("jaxlm")


def separators_of_pairs(position_offset: int) -> int:
    """Returns how many end tokens separate the texts of a pair: RoBERTa, whose positions have an offset, has two."""
    return 2 if position_offset else 1


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """Encodes texts for a model: begin, text, end, and for pairs the second text and another end.

    `longest` is the maximum number of tokens, begin and end included. `truncation` says which text of a longer example
    loses its end: "longest_first" takes tokens from the longer of the two, "first" and "second" from that one only, and
    "refuse" raises an error. With `separators` = 2, as in RoBERTa, two end tokens separate the texts of a pair.
    """

    tokenizer: Tokenizer
    longest: int
    truncation: str = "longest_first"
    separators: int = 1

    def __call__(self, texts: Sequence[Sequence[str]], places: Sequence[str]) -> "EncodedTexts":
        """Returns the sequences of (text,) or (text, text) each; `places` name them in messages. Raises UserError."""
        columns = [self.tokenizer.encode_batch(column) for column in zip(*texts, strict=True)]
        tokens, types, word_starts, shortened = [], [], [], []
        for parts, place in zip(zip(*columns, strict=True), places, strict=True):
            sizes = [len(part.ids) for part in parts]
            ends = [self.separators] * (len(parts) - 1) + [1]
            room = self.longest - 1 - sum(ends)
            cut = truncated_sizes(sizes, room, self.truncation)
            if cut is None:
                remedy = "shorten it, raise data.sequence_length, or set task.truncation=longest_first"
                raise UserError(
                    f"{place}: {sum(sizes) + 1 + sum(ends)} tokens, but at most {self.longest} fit; {remedy}"
                )
            shortened.append(cut != sizes)
            joined, kinds, starts = [np.array([self.tokenizer.begin_id])], [0], [False]
            for kind, (part, size, end) in enumerate(zip(parts, cut, ends, strict=True)):
                joined += [part.ids[:size], np.full(end, self.tokenizer.end_id)]
                kinds += [kind] * (size + end)
                starts += [True, *part.word_starts[1:size].tolist()][:size] + [False] * end
            tokens.append(np.concatenate(joined).astype(np.int32))
            types.append(np.array(kinds, np.int32))
            word_starts.append(np.array(starts, bool))
        return EncodedTexts(tokens, types, word_starts, np.array(shortened, bool))


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Token sequences in the order of their texts."""

    tokens: list[np.ndarray]  # int32 [n_i] each
    token_types: list[np.ndarray]  # int32 [n_i] each: 1 in the second text of a pair
    word_starts: list[np.ndarray]  # bool [n_i] each: where words begin; False at begin and end tokens
    shortened: np.ndarray  # bool [n]: which lost tokens

    @property
    def truncated(self) -> int:
        """How many lost tokens."""
        return int(self.shortened.sum())


def truncated_sizes(sizes: Sequence[int], room: int, policy: str) -> list[int] | None:
    """Returns the sizes cut to `room` tokens in all; None if the policy does not allow that."""
    sizes, excess = list(sizes), sum(sizes) - room
    if excess <= 0:
        return sizes
    if policy == "refuse":
        return None
    if len(sizes) == 1:
        return [room]
    if policy != "longest_first":
        number = 0 if policy == "first" else 1
        sizes[number] -= excess
        return sizes if sizes[number] > 0 else None
    # As in Transformers: the longest text loses tokens until it is as long as the next, then both in turn, and so on.
    left, count = room, len(sizes)
    for size in sorted(sizes):
        if size * count > left:
            break
        left, count = left - size, count - 1
    longest = sorted(range(len(sizes)), key=lambda number: (-sizes[number], -number))
    for order, number in enumerate(longest[:count]):
        sizes[number] = left // count + (order < left % count)
    return sizes
