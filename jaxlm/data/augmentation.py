"""Augmentation: training texts that are changed anew in each epoch, by deleting, swapping or replacing words.

Deletion and swaps follow EDA (arXiv 1901.11196); words are replaced by the predictions of a masked language model
(arXiv 1805.06201). What is changed depends on the seed, the epoch and the number of the example alone. Whole words are
changed, with all their tokens: a text never becomes longer, and it is not tokenized again.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import Phase
from jaxlm.data.example_rows import SIMULATED_STEPS, ExampleRows
from jaxlm.data.examples import WORD_STARTS, Examples
from jaxlm.data.permutation import uniforms
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.typed import counted

WAYS = ("delete", "swap", "replace")
OBJECTIVES = ("classification", "multi_label", "regression", "reranking")
COUNTED_EXAMPLES = 10_000  # of the first epoch, for the line that says what is changed
_DONE = {"delete": "deleted", "swap": "swapped", "replace": "replaced"}


def ways_of(task: Any) -> tuple[str, ...]:
    """Returns the ways in which section `task` has training texts changed, of WAYS."""
    return tuple(way for way in WAYS if task[f"{way}_words"])


def check_augmentation(config: Any) -> None:
    """Raises UserError if texts are to be changed for an objective whose labels would no longer fit them."""
    ways = ways_of(config.task)
    if ways and config.train.objective not in OBJECTIVES:
        raise UserError(
            f"task.{ways[0]}_words={config.task[f'{ways[0]}_words']:g} applies to train.objective="
            f"{', '.join(OBJECTIVES)}, not {config.train.objective}; remove it"
        )


def words_of(examples: Examples, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Returns the number of the word of each token, int32 [n_i] of each segment: from 0, and -1 outside of words.

    Special tokens, punctuation and symbols belong to no word: a word contains a letter or a digit.
    """
    texts = [tokenizer.text_of(id) for id in range(tokenizer.vocab_size)]
    # Pieces of a character in a byte-level vocabulary show as U+FFFD.
    lettered = np.array([any(letter.isalnum() or letter == "\ufffd" for letter in text) for text in texts])
    special = np.zeros(len(texts), bool)
    special[list(tokenizer.special_ids)] = True
    found = []
    for tokens, starts in zip(examples.tokens, examples.details[WORD_STARTS], strict=True):
        outside = special[tokens]
        outside[tokens == tokenizer.unk_id] = False
        runs = np.cumsum(starts | outside)
        is_word = np.zeros(len(tokens) + 1, bool)
        is_word[runs[(lettered[tokens] | (tokens == tokenizer.unk_id)) & ~outside]] = True
        found.append(np.where(is_word, np.cumsum(is_word) - 1, -1)[runs].astype(np.int32))
    return found


class Changed(NamedTuple):
    """A changed segment; `positions` are those that its tokens have, or replaced tokens had, in the original."""

    tokens: np.ndarray  # int32 [n]
    positions: np.ndarray  # int64 [n]
    words: int  # that were deleted, swapped or replaced


@dataclasses.dataclass(frozen=True, eq=False)
class Augmentation:
    """How the segments of training examples are changed.

    A fraction `share` of them is changed in an epoch, each in one of the ways that are on. `deleted` is the probability
    of a word, `swapped` the number of swaps relative to that of words. `replacements` are int32 [copies, words] of each
    segment: the token that takes the place of a word, or -1; an epoch draws one of the copies.
    """

    examples: Examples
    words: Sequence[np.ndarray]  # as `words_of` returns them
    share: float
    deleted: float = 0.0
    swapped: float = 0.0
    replacements: Sequence[np.ndarray] = ()

    @functools.cached_property
    def ways(self) -> list[str]:
        on = {"delete": self.deleted, "swap": self.swapped, "replace": len(self.replacements)}
        return [way for way in WAYS if on[way]]

    def way(self, segment: int, key: tuple[int, int]) -> str:
        """Returns the way in which a segment is changed; "" if it stays as it is. The key is the seed and the epoch."""
        changed, which = uniforms(2, (*key, segment, 0))
        return self.ways[int(which * len(self.ways))] if changed < self.share else ""

    def change(self, segment: int, way: str, key: tuple[int, int]) -> Changed:
        """Returns a segment, changed in one of the ways."""
        tokens, words = self.examples.tokens[segment], self.words[segment]
        count = int(words.max(initial=-1)) + 1
        if not count:
            return Changed(tokens, np.arange(len(tokens)), 0)
        texts = np.zeros(count, np.int32)
        texts[words[words >= 0]] = self.examples.token_types[segment][words >= 0]
        draw = functools.partial(uniforms, key=(*key, segment, 1))
        if way == "replace":
            copies = self.replacements[segment]
            return replaced(tokens, words, copies[int(draw(1)[0] * len(copies))])
        if way == "delete":
            gone = deleted_words(texts, draw(count), self.deleted)
            positions = np.flatnonzero(~np.append(gone, False)[words])
            return Changed(tokens[positions], positions, int(gone.sum()))
        order, swaps = swapped_words(texts, draw, self.swapped)
        positions = reordered(words, order)
        return Changed(tokens[positions], positions, 2 * swaps)

    def changed_examples(self, segments: Sequence[int], keys: Sequence[tuple[int, int]]) -> Examples:
        """Returns the examples of these segments, changed; each has its own key."""
        tokens, types = [], []
        for segment, key in zip(segments, keys, strict=True):
            found, kinds = self.examples.tokens[segment], self.examples.token_types[segment]
            if way := self.way(segment, key):
                found, positions, _ = self.change(segment, way, key)
                kinds = kinds[positions]
            tokens.append(found)
            types.append(kinds)
        columns = {name: array[list(segments)] for name, array in self.examples.columns.items()}
        return Examples([self.examples.rows[segment] for segment in segments], tokens, types, columns)

    def describe(self, seed: int) -> str:
        """Returns what is changed in the first epoch, counted."""
        size = min(len(self.examples), COUNTED_EXAMPLES)
        texts, words = Counter[str](), Counter[str]()
        for segment in range(size):
            if (way := self.way(segment, (seed, 0))) and (count := self.change(segment, way, (seed, 0)).words):
                texts[way] += 1
                words[way] += count
        among = f"{'the first ' if size < len(self.examples) else ''}{size:,}"
        parts = [f"{counted(words[way], 'word', 'words')} {_DONE[way]} in {texts[way]:,}" for way in self.ways]
        return f"{texts.total():,} of {among} examples are changed in the first epoch: {', '.join(parts)}"


def deleted_words(texts: np.ndarray, numbers: np.ndarray, probability: float) -> np.ndarray:
    """Returns which words are deleted, bool [words]: those whose random number is below the probability.

    `texts` says which text of a pair a word belongs to. Each text keeps at least one word.
    """
    gone = numbers < probability
    for text in np.unique(texts):
        own = np.flatnonzero(texts == text)
        if gone[own].all():
            gone[own[numbers[own].argmax()]] = False
    return gone


def swapped_words(texts: np.ndarray, draw: Callable[[int], np.ndarray], share: float) -> tuple[np.ndarray, int]:
    """Returns the word that comes to the place of each, int64 [words], and the number of swaps.

    Each text of n >= 2 words has share * n swaps of two different words, rounded, but at least one.
    """
    order, swaps = np.arange(len(texts)), 0
    for text in np.unique(texts):
        own = np.flatnonzero(texts == text)
        count = max(1, round(share * len(own))) if len(own) > 1 else 0
        numbers = draw(2 * (swaps + count)).reshape(-1, 2)[swaps:]
        for first, further in zip(
            (numbers[:, 0] * len(own)).astype(int), 1 + (numbers[:, 1] * (len(own) - 1)).astype(int), strict=True
        ):
            pair = own[[first, (first + further) % len(own)]]
            order[pair] = order[pair[::-1]]
        swaps += count
    return order, swaps


def reordered(words: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns the positions of tokens, int64 [n], with word order[i] where word i was; other tokens stay in place."""
    places = [np.flatnonzero(words == word) for word in range(len(order))]
    result: list[int] = []
    for position, word in enumerate(words.tolist()):
        if word < 0:
            result.append(position)
        elif position == places[word][0]:
            result += places[order[word]].tolist()
    return np.array(result)


def replaced(tokens: np.ndarray, words: np.ndarray, replacements: np.ndarray) -> Changed:
    """Returns a segment with tokens in place of whole words: replacements int32 [words], -1 where a word stays."""
    new = np.append(replacements, -1)[words]
    first = np.append(True, words[1:] != words[:-1])
    positions = np.flatnonzero((new < 0) | first)
    return Changed(np.where(new < 0, tokens, new)[positions], positions, int((replacements >= 0).sum()))


class AugmentedRows(ExampleRows):
    """The rows of training with texts that are changed anew in each epoch; order and number of examples stay."""

    def __init__(
        self, examples: Examples, phases: Sequence[Phase], seed: int, pad_id: int, multiple: int,
        augmentation: Augmentation,
    ) -> None:  # fmt: skip
        self.augmentation = augmentation
        self._changed = functools.lru_cache(SIMULATED_STEPS)(self._changed_examples)
        super().__init__(examples, phases, seed, pad_id, multiple)

    def segments_of_step(self, step: int) -> tuple[Examples, Sequence[int]]:
        found = self._changed(step)
        return found, range(len(found))

    def _changed_examples(self, step: int) -> Examples:
        keys = [(self.seed, epoch) for epoch in self.epochs_of_step(step).tolist()]
        return self.augmentation.changed_examples(self.examples_of_step(step).tolist(), keys)

    def describe(self) -> str:
        return f"{super().describe()}; {self.augmentation.describe(self.seed)}"
