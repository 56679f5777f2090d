"""The data of a run on labelled files: the examples to train on, and the sets that select and report."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import Phase
from jaxlm.data.augmentation import Augmentation, AugmentedRows
from jaxlm.data.example_rows import ExampleRows
from jaxlm.data.examples import Examples
from jaxlm.data.facts import DataFacts, facts_of
from jaxlm.data.rows import RowSource
from jaxlm.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData:
    """The examples of a run: those to train on, those that select the best checkpoint, and those to report on."""

    directory: Path
    fingerprint: str
    tokenizer: Tokenizer
    train: Examples
    sets: Mapping[str, Examples]  # by name: evaluation and test sets, and the part of the training set that selects
    selects: str  # the set that selects the best checkpoint; "" if none does
    labels: tuple[str, ...]  # names of the outputs; () if the kind has none
    pad_id: int
    label_tokens: tuple[tuple[int, ...], ...] = ()  # of the words of each label, if examples are templates
    augmentation: Augmentation | None = None

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """How often each token occurs in the training examples, int64 [V]."""
        return np.bincount(np.concatenate(self.train.tokens), minlength=self.tokenizer.vocab_size).astype(np.int64)

    @property
    def facts(self) -> DataFacts:
        return facts_of(self.tokenizer, self.counts, self.labels, self.label_tokens)

    def rows(self, config: Any, phases: Sequence[Phase], seed: int, multiple: int) -> RowSource:
        """Returns the rows of training; the number of rows in a batch is a multiple of `multiple`."""
        if self.augmentation:
            return AugmentedRows(self.train, phases, seed, self.pad_id, multiple, self.augmentation)
        return ExampleRows(self.train, phases, seed, self.pad_id, multiple)
