"""Which rows a step consumes, and tf.data that gathers them ahead of the accelerator.

The batch of step s is a pure function of (stores, seed, s): any step is found in O(1), with no shuffle buffer and
nothing to skip through. Global row n is the number of rows consumed before step s, plus b. A phase that changes the row
length starts a new count of n (and of epochs) under another key; phases of the same length share one count, so a change
of batch size alone repeats no row.
"""

import atexit
import contextlib
import functools
import math
import os
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import Phase
from jaxlm.data.token_store import TokenStore
from jaxlm.errors import UserError

MAX_SLOTS = 1024
ROUNDS = 10  # with 6 and 8, pairs of rows of stores of a dozen rows were visibly uneven
MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
HALF_WORD = np.uint64(32)


def permute(index: np.ndarray, size: int, key: int | Sequence[int]) -> np.ndarray:
    """Returns where a keyed permutation of range(size) sends index [B]: int64 [B].

    A Feistel network over pairs (high, low) with `height` x `width` >= size, both near its root (Black and Rogaway
    2002, "Ciphers with arbitrary finite domains"); what lands beyond size walks on. Runs resume by it: its values never
    change. Sizes up to 2^62.
    """
    keys = _round_keys((key,) if isinstance(key, int) else tuple(key))
    width = math.isqrt(size - 1) + 1
    moduli = np.uint64(width), np.uint64(-(-size // width))
    result = _feistel(np.asarray(index).astype(np.uint64), moduli, keys)
    while (beyond := result >= np.uint64(size)).any():
        result[beyond] = _feistel(result[beyond], moduli, keys)
    return result.astype(np.int64)


def _feistel(x: np.ndarray, moduli: tuple[np.uint64, np.uint64], keys: np.ndarray) -> np.ndarray:
    high = x // moduli[0]
    halves = [x - high * moduli[0], high]
    for number, key in enumerate(keys):
        side = number % 2
        modulus = moduli[side]
        hashed = (halves[1 - side] + key) * MULTIPLIERS[0]
        hashed = ((hashed ^ (hashed >> HALF_WORD)) * MULTIPLIERS[1]) >> HALF_WORD
        moved = halves[side] + ((hashed * modulus) >> HALF_WORD)
        halves[side] = np.minimum(
            moved, moved - modulus
        )  # modulo: below the modulus the difference wraps to a large one
    return halves[1] * moduli[0] + halves[0]


@functools.lru_cache(maxsize=256)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix((state ^ np.uint64(int(part) % 2**64)) + GOLDEN)
    return _mix(state + GOLDEN * np.arange(1, ROUNDS + 1, dtype=np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    """The 64-bit finaliser of SplitMix (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))


class TrainRows:
    """Which rows of which store each step consumes, and the batches made of them.

    Without `weights` every row of every store comes once an epoch. With weights (one a store, any scale) a fixed
    pattern of up to 1,024 slots, evenly interleaved, says which store global row n is from, and every row of a store
    comes once in each of its own epochs. Raises UserError for stores of different tokenizers, a store without one whole
    row, and weights that are not positive or too small for a slot.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        weights: Sequence[float] | None,
        phases: Sequence[Phase],
        seed: int,
        prepend_begin: bool = False,
        begin_id: int = -1,
        pad_id: int = 0,
    ) -> None:
        self.stores, self.phases, self.seed = list(stores), list(phases), seed
        self.prepend_begin, self.begin_id, self.pad_id = prepend_begin, begin_id, pad_id
        _check_stores(self.stores)
        self.slots = _slots(self.stores, weights) if weights else np.zeros(1, np.int64)
        # before[k, j]: how many of the pattern's first j slots are of space k, a space being one store or, without
        # weights, all of them in a row.
        spaces = np.arange(int(self.slots.max()) + 1)[:, None]
        self.before = np.pad(np.cumsum(self.slots == spaces, axis=1), ((0, 0), (1, 0)))
        self.joined = not weights
        self.plans: list[_Plan] = []
        for number, phase in enumerate(self.phases):
            previous = self.plans[-1] if self.plans else None
            if previous is None:
                first_step, first_row, order, epochs = 0, 0, 0, 0.0
            else:
                before = self.phases[number - 1]
                if before.steps is None:
                    raise UserError(f"train.phases, entry {number} needs its steps; only the last goes on to the end")
                first_step = previous.first_step + before.steps
                first_row = previous.first_row + before.steps * before.batch_size
                order, epochs = previous.order, previous.epochs
                if before.sequence_length != phase.sequence_length:
                    epochs += first_row / int(previous.row_counts.sum())
                    first_row, order = 0, number
            row_counts = self._row_counts(phase.sequence_length)
            self.plans.append(_Plan(first_step, first_row, order, epochs, row_counts))

    def _row_counts(self, length: int) -> np.ndarray:
        counts = [store.row_count(length, self.prepend_begin) for store in self.stores]
        for store, count in zip(self.stores, counts, strict=True):
            if count == 0:
                fits = store.tokens + self.prepend_begin
                raise UserError(
                    f"{store.directory} holds {store.tokens} tokens, less than one row of {length}:"
                    f" set data.sequence_length to at most {fits}, or add text"
                )
        return np.asarray(counts, np.int64)

    def phase_of_step(self, step: int) -> int:
        """Returns the number of the phase that `step`, from 0, is in."""
        return max(number for number, plan in enumerate(self.plans) if plan.first_step <= step)

    def rows_of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the store and the row of each row of the global batch of `step`: int64 [B], int64 [B]."""
        number = self.phase_of_step(step)
        return self._locate(number, step, np.arange(self.phases[number].batch_size))

    def _locate(self, number: int, step: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the store and the row of the given places in the global batch."""
        plan = self.plans[number]
        n = plan.first_row + (step - plan.first_step) * self.phases[number].batch_size + place
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
        """Returns rows first to last (excluded) of the global batch of `step`, gathered as `TokenStore.rows` does."""
        number = self.phase_of_step(step)
        phase = self.phases[number]
        last = phase.batch_size if last is None else last
        if not 0 <= first <= last <= phase.batch_size:
            raise ValueError(f"rows {first} to {last} of a batch of {phase.batch_size}")
        source, row = self._locate(number, step, np.arange(first, last))
        settings = (phase.sequence_length, self.prepend_begin, self.begin_id, self.pad_id)
        if len(self.stores) == 1:
            return self.stores[0].rows(row, *settings)
        batch: dict[str, np.ndarray] = {}
        for store in np.unique(source):
            here = source == store
            for name, array in self.stores[store].rows(row[here], *settings).items():
                if name not in batch:
                    batch[name] = np.empty((last - first, *array.shape[1:]), array.dtype)
                batch[name][here] = array
        return batch

    def epoch_of_step(self, step: int) -> float:
        """Returns how many passes over all rows lie before `step`: rows consumed by rows there are."""
        number = self.phase_of_step(step)
        plan = self.plans[number]
        consumed = plan.first_row + (step - plan.first_step) * self.phases[number].batch_size
        return plan.epochs + consumed / int(plan.row_counts.sum())

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens in all whole rows of the last phase's length."""
        return int(self.plans[-1].row_counts.sum()) * self.phases[-1].sequence_length


class _Plan(NamedTuple):
    """Where a phase begins: its step, its first n, the key of its order, the epochs of earlier counts, rows a store."""

    first_step: int
    first_row: int
    order: int
    epochs: float
    row_counts: np.ndarray


def _check_stores(stores: Sequence[TokenStore]) -> None:
    if not stores:
        raise UserError("there is nothing to train on: set data.path")
    for store in stores:
        if store.tokenizer_fingerprint != stores[0].tokenizer_fingerprint or store.vocab_size != stores[0].vocab_size:
            raise UserError(
                f"{stores[0].directory} and {store.directory} were made with different tokenizers:"
                " prepare them again with one"
            )


def _slots(stores: Sequence[TokenStore], weights: Sequence[float]) -> np.ndarray:
    """Returns the pattern of stores, int64 [slots], each at even distances in it.

    The shortest pattern that meets the weights exactly, or one of 1,024 slots, rounded by the largest remainder.
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
            f"data.weights: {weights[store]} is less than one row in {MAX_SLOTS}: raise it, or leave the path out"
        )
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]


def train_batches(
    rows: TrainRows, start: int, stop: int, part: int | Sequence[int] = 0, parts: int = 1, prefetch: int = 4
) -> Generator[dict[str, np.ndarray]]:
    """Yields the batches of steps start to stop (excluded), prepared ahead by tf.data.

    Each batch is this process's share of the global one: the `part`-th, or several of them, of `parts` equal runs of
    rows. The arrays are read-only: tokens and segment_ids int32 [B, L], word_starts bool [B, L]. Raises UserError where
    `parts` does not divide a batch, and what gathering raises.
    """
    for phase in rows.phases:
        if phase.batch_size % parts:
            raise UserError(f"train.batch_size={phase.batch_size} does not divide over {parts} parts")
    batches = _train_batches(rows, start, stop, (part,) if isinstance(part, int) else tuple(part), parts, prefetch)
    _unfinished.add(batches)
    return batches


def _train_batches(
    rows: TrainRows, start: int, stop: int, held: tuple[int, ...], parts: int, prefetch: int
) -> Generator[dict[str, np.ndarray]]:
    tf = _tensorflow()
    for number, phase in enumerate(rows.phases):
        later = rows.plans[number + 1].first_step if number + 1 < len(rows.phases) else stop
        first_step, last_step = max(start, rows.plans[number].first_step), min(stop, later)
        if first_step >= last_step:
            continue
        runs = runs_of_parts(held, parts, phase.batch_size)
        yield from _gather_ahead(tf, rows, range(first_step, last_step), runs, phase, prefetch)


def runs_of_parts(held: Sequence[int], parts: int, batch_size: int) -> list[tuple[int, int]]:
    """Returns the runs (first row, row after the last) of a batch that the parts `held` of `parts` equal ones make."""
    size = batch_size // parts
    runs: list[tuple[int, int]] = []
    for part in sorted(held):
        joins = runs and runs[-1][1] == part * size
        first = runs.pop()[0] if joins else part * size
        runs.append((first, (part + 1) * size))
    return runs


def _gather_ahead(
    tf: Any, rows: TrainRows, steps: range, runs: list[tuple[int, int]], phase: Phase, prefetch: int
) -> Generator[dict[str, np.ndarray]]:
    errors: list[BaseException] = []

    def gather(step: Any) -> tuple[np.ndarray, ...]:
        try:
            pieces = [rows.batch(int(step), *run) for run in runs]
            return tuple(_joined([piece[name] for piece in pieces]) for name in names)
        except BaseException as error:
            errors.append(error)  # tf.data would hand on only its text
            raise

    names = ("tokens", "segment_ids", "word_starts")
    types = (tf.int32, tf.int32, tf.bool)
    shape = (sum(last - first for first, last in runs), phase.sequence_length)

    def load(step: Any) -> dict[str, Any]:
        arrays = tf.numpy_function(gather, [step], types)
        return {name: tf.ensure_shape(array, shape) for name, array in zip(names, arrays, strict=True)}

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    dataset = tf.data.Dataset.range(steps.start, steps.stop).map(load).prefetch(prefetch).with_options(options)
    iterator = dataset.as_numpy_iterator()
    try:
        while True:
            failure: BaseException
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                failure = errors[0] if errors else error.with_traceback(None)
            except BaseException as error:
                failure = error.with_traceback(None)
            else:
                yield batch
                continue
            raise failure  # here and without TensorFlow's frames, which would keep the iterator and its threads alive
    finally:
        del iterator, dataset


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


# A thread of tf.data that calls Python while the interpreter shuts down hangs the process.
_unfinished: weakref.WeakSet[Generator] = weakref.WeakSet()


def _close_unfinished() -> None:
    for batches in list(_unfinished):
        with contextlib.suppress(ValueError):  # it is running, in another thread
            batches.close()


@functools.cache
def _tensorflow() -> Any:
    """Returns TensorFlow, quiet unless told otherwise, and blind to GPUs, whose memory it would take from JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it announces itself whatever the level, and we use no kernel
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    atexit.register(_close_unfinished)  # after TensorFlow's own, hence before them at the end
    return tf


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
    """Yields the store's rows in order, every row once; the first `rows` of them where that is above 0.

    The remainder of the stream is a last, padded row, and the last batch is filled with rows of padding up to
    `batch_size`. `row_index` int32 [B] numbers the rows, -1 for those that only fill. Of each batch a process of
    several gets the parts `held` of `parts` equal runs.
    """
    places = _joined([np.arange(*run) for run in runs_of_parts(held, parts, batch_size)])
    whole = store.row_count(length, prepend_begin)
    count = whole + (whole * (length - prepend_begin) < store.tokens)
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


def measure_input_rate(rows: TrainRows, steps: int) -> float:
    """Returns how many tokens, padding included, `train_batches` prepares in a second, over `steps` steps."""
    batches = train_batches(rows, 0, steps + 1)
    next(batches)
    start = time.perf_counter()
    tokens = sum(batch["tokens"].size for batch in batches)
    return tokens / (time.perf_counter() - start)
