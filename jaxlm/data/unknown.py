"""How many tokens of a text are unknown to the vocabulary, and the warnings and errors about it.

On mostly unknown tokens, a model has excellent metrics, because only punctuation is left to predict.
"""

import functools
import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import Tokenizer

MOST_UNKNOWN = 0.01  # a larger share is reported with a warning
_log = logging.getLogger("jaxlm")


class Spelling(NamedTuple):
    """The numbers of unknown tokens and of known ones in a text; special tokens and spaces are neither."""

    unknown: int
    known: int
    words: int  # known tokens with a letter or a digit

    @property
    def unknown_share(self) -> float:
        """The unknown tokens' share of both; 0 if there are none."""
        return self.unknown / max(self.unknown + self.known, 1)

    def __add__(self, other: "Spelling") -> "Spelling":  # type: ignore[override]
        return Spelling(self.unknown + other.unknown, self.known + other.known, self.words + other.words)

    def __str__(self) -> str:
        return f"{self.unknown_share:.2%} of {self.unknown + self.known:,} tokens are unknown"


def spelling_of(counts: np.ndarray, tokenizer: Tokenizer) -> Spelling:
    """Returns the spelling of a text in which each token occurs as often as `counts`, integers [V], says."""
    known, words = _known_tokens(tokenizer)
    counts = counts[: len(known)]
    return Spelling(int(counts[tokenizer.unk_id]), int(counts[known].sum()), int(counts[words].sum()))


def spelling_of_ids(ids: np.ndarray, tokenizer: Tokenizer) -> Spelling:
    """Returns the spelling of a text with these token ids, int [n]."""
    known, words = _known_tokens(tokenizer)
    return Spelling(int((ids == tokenizer.unk_id).sum()), int(known[ids].sum()), int(words[ids].sum()))


@functools.lru_cache(maxsize=4)
def _known_tokens(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Returns which tokens spell visible text, and which of them have a letter or a digit: bool [V] each."""
    texts = [tokenizer.text_of(id) for id in range(tokenizer.vocab_size)]
    words = [any(character.isalnum() for character in text) for text in texts]
    return np.array([bool(text.strip()) for text in texts]), np.array(words)


def check_spelling(spellings: Mapping[str, Spelling], tokenizer: Tokenizer) -> None:
    """Logs a warning for each source of which more than 1% of the tokens are unknown.

    `spellings` are those of the sources by their names. Raises UserError for a source whose known tokens
    are only punctuation, because then nothing is left to predict or to tell texts apart.
    """
    name = tokenizer.token(tokenizer.unk_id)
    for source, spelling in spellings.items():
        if spelling.unknown and not spelling.words:
            raise UserError(
                f"{source}: the vocabulary has no token for the words of this text, only {name}; use a tokenizer and a"
                " model of its language, or train a new tokenizer on it"
            )
        if spelling.unknown_share > MOST_UNKNOWN:
            _log.warning(
                "%s: %.1f%% of %s tokens are %s, because the vocabulary has no token for their characters",
                source, 100 * spelling.unknown_share, f"{spelling.unknown + spelling.known:,}", name,
            )  # fmt: skip
