"""What objectives and evaluators must know about a run's data."""

from typing import NamedTuple

import numpy as np

from jaxlm.tokenizer.tokenizer import Tokenizer


class DataFacts(NamedTuple):
    """The vocabulary, its special tokens, how often its tokens occur in training, and the classes."""

    mask_id: int
    pad_id: int
    special_ids: tuple[int, ...]  # with the ids below `vocab_size` that have no token
    counts: np.ndarray | None = None  # int64 [V]; None if they are not known
    labels: tuple[str, ...] = ()  # in the order of the classifier's outputs
    vocab_size: int | None = None  # of the tokenizer: the token table may have more rows; None: as many
    label_tokens: tuple[tuple[int, ...], ...] = ()  # of the words that fill a template, for each class; () without one


# The facts of a synthetic batch: `bench` and `plan` read no data.
SYNTHETIC_FACTS = DataFacts(
    mask_id=4, pad_id=0, special_ids=(0, 1, 2, 3, 4), labels=("0", "1"), label_tokens=((5,), (6,))
)


def facts_of(
    tokenizer: Tokenizer, counts: np.ndarray | None, labels: tuple[str, ...] = (),
    label_tokens: tuple[tuple[int, ...], ...] = (),
) -> DataFacts:  # fmt: skip
    """Returns the facts of data that this tokenizer made."""
    without_token = [id for id in range(tokenizer.vocab_size) if not tokenizer.token(id)]
    special_ids = tuple(sorted({*tokenizer.special_ids, *without_token}))
    return DataFacts(
        tokenizer.mask_id, tokenizer.pad_id, special_ids, counts, labels, tokenizer.vocab_size, label_tokens
    )
