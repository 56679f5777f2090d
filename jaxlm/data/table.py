"""The data that each objective trains on: token stores of a corpus, or labelled examples."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxlm.config import Phase
from jaxlm.data.facts import DataFacts, facts_of
from jaxlm.data.prepare import prepare, spellings_of
from jaxlm.data.prepared import Prepared, open_prepared
from jaxlm.data.rows import RowSource, TrainRows
from jaxlm.data.tasks.table import KINDS, check_task, read_task
from jaxlm.data.token_store import TokenStore
from jaxlm.data.unknown import check_spelling
from jaxlm.runtime import sharding
from jaxlm.tokenizer.tokenizer import Tokenizer


class Data(Protocol):
    """What a run trains on and is evaluated on."""

    @property
    def directory(self) -> Path:
        """Where the data are stored."""
        ...

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the content: runs with the same one train on the same data."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def facts(self) -> DataFacts: ...

    def rows(self, config: Any, phases: Sequence[Phase], seed: int, multiple: int) -> RowSource:
        """Returns the rows of training; `multiple` must divide the rows of every batch."""
        ...


class DataKind(NamedTuple):
    """How the data of an objective are made and found again."""

    prepare: Callable[[Any], Data]  # from the config; slow where there is much text
    reopen: Callable[[Path, Any], Data | None]  # from its directory, made before; None if it must be prepared
    check: Callable[[Any, Any, Sequence[Phase]], None]  # config, mesh, phases: before anything is read


@dataclasses.dataclass(frozen=True, eq=False)
class CorpusData:
    """The token stores of section `data`: those to train on, and the held-out sets by name."""

    directory: Path
    fingerprint: str
    tokenizer: Tokenizer
    train: list[TokenStore]
    held_out: dict[str, TokenStore]
    counts: np.ndarray  # int64 [V]: how often each token occurs in the text that counts_of names
    counts_of: str = "training text"

    @property
    def facts(self) -> DataFacts:
        return facts_of(self.tokenizer, self.counts)

    def rows(self, config: Any, phases: Sequence[Phase], seed: int, multiple: int) -> RowSource:
        return TrainRows(
            self.train, list(config.data.weights) or None, phases, seed, prepend_begin=config.data.prepend_begin,
            begin_id=self.tokenizer.begin_id, pad_id=self.tokenizer.pad_id, packing=config.data.packing,
        )  # fmt: skip


def corpus_data(prepared: Prepared) -> CorpusData:
    """Returns a prepared directory as the data of a run."""
    counts = np.sum([store.counts for store in prepared.train], axis=0)
    return CorpusData(
        prepared.directory, prepared.fingerprint, prepared.tokenizer, prepared.train, prepared.held_out, counts
    )


def _reopen(directory: Path, config: Any) -> CorpusData:
    prepared = open_prepared(directory)
    check_spelling(spellings_of(prepared, config), prepared.tokenizer)
    return corpus_data(prepared)


def _check_corpus(config: Any, mesh: Any, phases: Sequence[Phase]) -> None:
    for phase in phases:
        sharding.check_batch(mesh, phase.batch_size, phase.accumulate)
    sharding.check_batch(mesh, config.evaluation.batch_size or config.train.batch_size, 1, "evaluation.batch_size")


_CORPUS = DataKind(
    lambda config: corpus_data(prepare(config)),
    lambda directory, config: _reopen(directory, config) if directory.is_dir() else None,
    _check_corpus,
)


_TASK = DataKind(
    read_task, lambda directory, config: read_task(config), lambda config, mesh, phases: check_task(config)
)

DATA: dict[str, DataKind] = {"masked": _CORPUS, "causal": _CORPUS, **dict.fromkeys(KINDS, _TASK)}
