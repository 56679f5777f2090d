"""Turns sentences that are split into words into the pieces of each word, and into windows of the model's length."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.tokenizer.tokenizer import Tokenizer


def encode_words(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[np.ndarray]]:
    """Returns the tokens of each word of each sentence, int32 [n]; none for a word that the tokenizer drops.

    Each word is encoded by itself, with a space before it if the vocabulary has spaces in its tokens. The tokens are
    those of Transformers with is_split_into_words, and add_prefix_space where it exists, except that special tokens
    which are written in a word are text.
    """
    first = tokenizer.encode("a").ids[:1]
    before = "" if not len(first) or tokenizer.starts_word(int(first[0])) else " "
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence))
    encodings = tokenizer.encode_batch([before + word if word else "" for word in words])
    pieces = {word: encoding.ids for word, encoding in zip(words, encodings, strict=True)}
    return [[pieces[word] for word in sentence] for sentence in sentences]


class Windows(NamedTuple):
    """The overlapping parts of a sentence that fit into a model."""

    words: list[range]  # of each window
    chosen: np.ndarray  # int64 [words]: for each word the window in which it has most context


def windows(sizes: Sequence[int], room: int) -> Windows:
    """Returns the windows of a sentence whose words have `sizes` pieces, at most `room` each.

    A window has as many whole words as fit into `room` pieces, and begins at least half of that after the one before
    it. The context of a word in a window is the smaller number of pieces before and after its first piece there.
    """
    count = len(sizes)
    ends = np.cumsum(np.asarray(sizes, np.int64))
    begins = ends - sizes
    found: list[range] = []
    chosen, context = np.zeros(count, np.int64), np.full(count, -1)
    first = last = 0
    while last < count or not found:
        if found:  # the word that did not fit must fit now, and the last window is full
            half = begins[first] + (room + 1) // 2
            earliest = min(max(half, ends[last] - room), begins[last], ends[-1] - room)
            first = int(np.searchsorted(begins, earliest))
        last = int(np.searchsorted(ends, begins[first] + room, side="right")) if count else 0
        here = slice(first, last)
        own = np.minimum(begins[here] - begins[first : first + 1], ends[last - 1 : last] - begins[here])
        chosen[here] = np.where(own > context[here], len(found), chosen[here])
        context[here] = np.maximum(own, context[here])
        found.append(range(first, last))
    return Windows(found, chosen)
