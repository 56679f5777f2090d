"""Words that are one token: which token a word has after a given text, and which tokens are words at all."""

import functools
import re

import numpy as np

from jaxlm.tokenizer.tokenizer import Tokenizer


def tokens_of_word(tokenizer: Tokenizer, before: str, word: str) -> list[int]:
    """Returns the tokens of a word that follows the text `before`, in the variant that the tokenizer produces there.

    In many vocabularies a word has two, with and without a leading space. Only one token can stand for a mask.
    """
    stem = before.rstrip()
    before = before[len(stem) - len(re.split(r"\s", stem)[-1]) :]  # the last word is enough context
    ids, offsets = tokenizer.encode_with_offsets(before + word, find_special=True)
    inside = offsets[:, 1] > len(before)
    own = ids[inside].tolist()
    if own and offsets[inside, 0].min() < len(before):  # the tokenizer would merge it with the text before it
        spelled = "".join(tokenizer.text_of(int(id)) for id in tokenizer.encode(word).ids)
        continuations = _continuations(tokenizer)
        own = [continuations[spelled]] if spelled in continuations else own
    return own


@functools.lru_cache(maxsize=4)
def not_words(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Returns the ids that add no visible text: special tokens, spaces, and unused rows of the token table."""
    return np.array([id for id in range(vocab_size) if id >= tokenizer.vocab_size or not tokenizer.text_of(id).strip()])


@functools.lru_cache(maxsize=4)
def _continuations(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the ids of the tokens that continue a word, by their text."""
    return {tokenizer.text_of(id): id for id in range(tokenizer.vocab_size) if not tokenizer.starts_word(id)}
