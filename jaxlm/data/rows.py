"""The rows of step s: where the batches of training come from.

The batch of step s is a pure function of (stores, seed, s). Any step is found in O(1): there is no shuffle buffer, and
resuming skips through nothing. Row b of step s has the global number n, the rows consumed before step s plus b. A phase
with another row length starts a new count of n, and so of epochs, under another key; phases of equal length share one
count, so that a change of batch size alone repeats no row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxlm.config import Phase
from jaxlm.data.permutation import permute
from jaxlm.data.token_store import TokenStore
from jaxlm.errors import UserError

MAX_SLOTS = 1024


class RowSource(Protocol):
    """Where the rows of training come from: corpora or labelled examples; a pure function of (settings, seed, step)."""

    columns: Mapping[str, Any]  # the dtype of each array of a batch

    def batch_rows(self, step: int) -> int:
        """Returns how many rows the global batch of `step` has."""
        ...

    def batch(self, step: int, first: int = 0, last: int | None = None) -> dict[str, np.ndarray]:
        """Returns rows `first` to `last` (exclusive) of the global batch of `step`, arrays [last - first, ...]."""
        ...

    def steps_for(self, epochs: float | None, tokens: float | None) -> int:
        """Returns how many updates a run of so many epochs, or so many tokens, has."""
        ...

    def describe(self) -> str:
        """Returns the size of an epoch in words."""
        ...


class TrainRows(RowSource):
    """The rows of training from token stores.

    Without `weights`, every row of every store appears once per epoch. With weights (one per store, any scale), a fixed
    pattern of up to 1,024 evenly interleaved slots decides which store global row n comes from, and every row of a
    store appears once in each of its own epochs. `packing` is that of data.packing. Raises UserError for stores of
    different tokenizers, a store without a whole row, and weights that are not positive or too small for a slot.
    """

    columns: Mapping[str, Any] = {"tokens": np.int32, "segment_ids": np.int32, "word_starts": np.bool_}

    def __init__(
        self,
        stores: Sequence[TokenStore],
        weights: Sequence[float] | None,
        phases: Sequence[Phase],
        seed: int,
        prepend_begin: bool = False,
        begin_id: int = -1,
        pad_id: int = 0,
        packing: str = "documents",
    ) -> None:
        self.packing = packing
        self.stores, self.phases, self.seed = list(stores), list(phases), seed
        self.prepend_begin, self.begin_id, self.pad_id = prepend_begin, begin_id, pad_id
        _check_stores(self.stores)
        self.slots = _slots(self.stores, weights) if weights else np.zeros(1, np.int64)
        # before[k, j]: how many of the pattern's first j slots belong to space k. A space is one store or, without
        # weights, all stores one after another.
        spaces = np.arange(int(self.slots.max()) + 1)[:, None]
        self.before = np.pad(np.cumsum(self.slots == spaces, axis=1), ((0, 0), (1, 0)))
        self.joined = not weights
        self.plans: list[_Plan] = []
        for number, phase in enumerate(self.phases):
            previous = self.plans[-1] if self.plans else None
            if previous is None:
                first_step, first_row, order = 0, 0, 0
            else:
                before = self.phases[number - 1]
                if before.steps is None:
                    raise UserError(
                        f"train.phases, entry {number} needs a number of steps; only the last phase may lack one"
                    )
                first_step = previous.first_step + before.steps
                first_row = previous.first_row + before.steps * before.batch_size
                order = previous.order
                if before.sequence_length != phase.sequence_length:
                    first_row, order = 0, number
            row_counts = self._row_counts(phase.sequence_length)
            self.plans.append(_Plan(first_step, first_row, order, row_counts))

    def _row_counts(self, length: int) -> np.ndarray:
        if self.packing == "none":
            return np.array([store.document_row_count(length, self.prepend_begin) for store in self.stores], np.int64)
        counts = [store.row_count(length, self.prepend_begin) for store in self.stores]
        for store, count in zip(self.stores, counts, strict=True):
            if count == 0:
                fits = store.tokens + self.prepend_begin
                raise UserError(
                    f"{store.directory} holds {store.tokens} tokens, fewer than one row of {length}:"
                    f" set data.sequence_length to at most {fits}, or add text"
                )
        return np.asarray(counts, np.int64)

    def batch_rows(self, step: int) -> int:
        return self.phases[self.phase_of_step(step)].batch_size

    def steps_for(self, epochs: float | None, tokens: float | None) -> int:
        wanted = tokens if tokens is not None else (epochs or 0) * self.tokens_per_epoch
        earlier = [(phase.steps or 0, phase.sequence_length * phase.batch_size) for phase in self.phases[:-1]]
        wanted -= sum(steps * size for steps, size in earlier)
        last = self.phases[-1]
        rest = math.ceil(wanted / (last.sequence_length * last.batch_size))
        return max(sum(steps for steps, _ in earlier) + rest, 1)

    def describe(self) -> str:
        return f"{self.tokens_per_epoch:,} tokens per epoch"

    def phase_of_step(self, step: int) -> int:
        """Returns the number of the phase that contains `step`; both count from 0."""
        return max(number for number, plan in enumerate(self.plans) if plan.first_step <= step)

    def rows_of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the store and the row of each row of the global batch of `step`: int64 [B], int64 [B]."""
        number = self.phase_of_step(step)
        return self._locate(number, step, np.arange(self.phases[number].batch_size))

    def _locate(self, number: int, step: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the store and the row of each of the given indices in the global batch."""
        plan = self.plans[number]
        n = plan.first_row + (step - plan.first_step) * self.phases[number].batch_size + index
        sizes = plan.row_counts.sum(keepdims=True) if self.joined else plan.row_counts
        cycle, slot = np.divmod(n, len(self.slots))
        space = self.slots[slot]
        within = cycle * self.before[space, -1] + self.before[space, slot]
        epoch = within // sizes[space]
        row = within - epoch * sizes[space]
        order = epoch * len(sizes) + space
        for number_ in set(order.tolist()):
            here = order == number_
            key = (self.seed, plan.order, number_ % len(sizes), number_ // len(sizes))
            row[here] = permute(row[here], int(sizes[key[2]]), key)
        if not self.joined:
            return space, row
        ends = np.cumsum(plan.row_counts)
        source = np.searchsorted(ends, row, "right")
        return source, row - (ends - plan.row_counts)[source]

    def batch(self, step: int, first: int = 0, last: int | None = None) -> dict[str, np.ndarray]:
        """Returns rows `first` to `last` (exclusive) of the global batch of `step`; arrays as of `TokenStore.rows`."""
        number = self.phase_of_step(step)
        phase = self.phases[number]
        last = phase.batch_size if last is None else last
        if not 0 <= first <= last <= phase.batch_size:
            raise ValueError(f"rows {first} to {last} of a batch of {phase.batch_size}")
        source, row = self._locate(number, step, np.arange(first, last))
        settings = (phase.sequence_length, self.prepend_begin, self.begin_id, self.pad_id)
        if len(self.stores) == 1:
            return self._rows(0, row, settings)
        batch: dict[str, np.ndarray] = {}
        for store in np.unique(source):
            here = source == store
            for name, array in self._rows(store, row[here], settings).items():
                if name not in batch:
                    batch[name] = np.empty((last - first, *array.shape[1:]), array.dtype)
                batch[name][here] = array
        return batch

    def _rows(self, store: int, row: np.ndarray, settings: tuple) -> dict[str, np.ndarray]:
        """Returns rows of a store, filled as `packing` says."""
        if self.packing == "none":
            return self.stores[store].document_rows(row, *settings)
        rows = self.stores[store].rows(row, *settings)
        if self.packing == "across":
            rows["segment_ids"] = np.minimum(rows["segment_ids"], 1)  # one segment, which every token attends to
        return rows

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens in all whole rows of the last phase's length, with padding."""
        return int(self.plans[-1].row_counts.sum()) * self.phases[-1].sequence_length


class _Plan(NamedTuple):
    """Where a phase begins: its first step, its first n, the key of its order, and the rows of each store."""

    first_step: int
    first_row: int
    order: int
    row_counts: np.ndarray


def _check_stores(stores: Sequence[TokenStore]) -> None:
    if not stores:
        raise UserError("there are no data to train on: set data.path")
    for store in stores:
        if store.tokenizer_fingerprint != stores[0].tokenizer_fingerprint or store.vocab_size != stores[0].vocab_size:
            raise UserError(
                f"{stores[0].directory} and {store.directory} were made with different tokenizers:"
                " prepare them again with one tokenizer"
            )


def _slots(stores: Sequence[TokenStore], weights: Sequence[float]) -> np.ndarray:
    """Returns the pattern of stores, int64 [slots], in which each store is evenly spaced.

    It is the shortest pattern that meets the weights exactly, or one of 1,024 slots, rounded by largest remainder.
    """
    if len(weights) != len(stores):
        raise UserError(f"data.weights has {len(weights)} entries for {len(stores)} paths: give one for each path")
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise UserError(f"data.weights={','.join(map(str, weights))}: every weight must be above 0")
    shares = shares / shares.sum()
    exact = (size for size in range(1, MAX_SLOTS) if np.abs(shares * size - np.round(shares * size)).max() < 1e-9)
    size = next(exact, MAX_SLOTS)
    counts = np.floor(shares * size + 1e-9).astype(np.int64)
    remainders = shares * size - counts
    counts[np.argsort(-remainders, kind="stable")[: size - int(counts.sum())]] += 1
    if (counts == 0).any():
        store = int(np.flatnonzero(counts == 0)[0])
        raise UserError(
            f"data.weights: {weights[store]} is less than one row in {MAX_SLOTS}: raise it, or remove the path"
        )
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]


def runs_of_parts(held: Sequence[int], parts: int, batch_size: int) -> list[tuple[int, int]]:
    """Returns the runs of rows, as (first, last + 1), that the parts `held` of `parts` equal parts of a batch form.

    Raises UserError if `parts` does not divide the batch.
    """
    if batch_size % parts:
        raise UserError(f"a batch of {batch_size} rows cannot be divided into {parts} equal parts")
    size = batch_size // parts
    runs: list[tuple[int, int]] = []
    for part in sorted(held):
        joins = runs and runs[-1][1] == part * size
        first = runs.pop()[0] if joins else part * size
        runs.append((first, (part + 1) * size))
    return runs


def joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def held_out_count(store: TokenStore, length: int, prepend_begin: bool = False) -> int:
    """Returns the number of rows that hold a store's tokens, with the last, padded one."""
    whole = store.row_count(length, prepend_begin)
    return whole + (whole * (length - prepend_begin) < store.tokens)


def held_out_batches(
    store: TokenStore,
    length: int,
    batch_size: int,
    rows: int = 0,
    prepend_begin: bool = False,
    begin_id: int = -1,
    pad_id: int = 0,
    held: Sequence[int] = (0,),
    parts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of a store in order, each once; only the first `rows` of them if that is above 0.

    The remainder of the stream is a last, padded row, and the last batch is filled up to `batch_size` with rows of
    padding. `row_index` int32 [B] numbers the rows, with -1 for rows of padding. A process gets the parts `held` of
    `parts` equal runs of each batch.
    """
    places = joined([np.arange(*run) for run in runs_of_parts(held, parts, batch_size)])
    count = held_out_count(store, length, prepend_begin)
    count = min(count, rows) if rows else count
    for first in range(0, count, batch_size):
        index = first + places[first + places < count]
        batch = store.rows(index, length, prepend_begin, begin_id, pad_id)
        fill = len(places) - len(index)
        if fill:
            values = {"tokens": pad_id, "segment_ids": 0, "word_starts": False}
            batch = {
                name: np.pad(array, ((0, fill), (0, 0)), constant_values=values[name]) for name, array in batch.items()
            }
        yield batch | {"row_index": np.pad(index, (0, fill), constant_values=-1).astype(np.int32)}


class Piece(NamedTuple):
    """A document, or a piece of one that is longer than a row."""

    document: int  # its number in the store, from 0
    number: int  # of the piece in its document, from 0
    tokens: np.ndarray  # int32 [T], from a begin token on


def document_pieces(store: TokenStore, length: int, begin_id: int, documents: int = 0) -> Iterator[Piece]:
    """Yields the documents of a store in order; only the first `documents` of them if that is above 0.

    A document of at most `length` tokens is whole. A longer one is cut into pieces of that length, and those after the
    first begin with `begin_id` in addition, as a text does at inference.
    """
    for document in range(min(documents or store.documents, store.documents)):
        tokens = store.document(document)
        yield Piece(document, 0, tokens[:length])
        for number, first in enumerate(range(length, len(tokens), length - 1), 1):
            rest = tokens[first : first + length - 1]
            yield Piece(document, number, np.concatenate([[begin_id], rest]).astype(np.int32))
