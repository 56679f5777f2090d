"""Batches prepared ahead of the accelerator by tf.data."""

import atexit
import contextlib
import functools
import time
import weakref
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from jaxlm.data.rows import RowSource, joined, runs_of_parts
from jaxlm.text.tensorflow_import import import_tensorflow


def train_batches(
    rows: RowSource, start: int, stop: int, part: int | Sequence[int] = 0, parts: int = 1, prefetch: int = 4
) -> Generator[dict[str, np.ndarray]]:
    """Yields the batches of steps `start` to `stop` (exclusive), prepared ahead by tf.data.

    Each batch is this process's share of the global one: part number `part`, or several of them, of `parts` equal runs
    of rows. The arrays are read-only, with the names and dtypes of `rows.columns`. Raises UserError if `parts` does not
    divide a batch, and whatever gathering raises.
    """
    parts_here = (part,) if isinstance(part, int) else tuple(part)
    if start < stop:
        runs_of_parts(parts_here, parts, rows.batch_rows(start))  # raises before any thread starts
    batches = _gather_ahead(rows, range(start, stop), parts_here, parts, prefetch)
    _unfinished.add(batches)
    return batches


def _gather_ahead(
    rows: RowSource, steps: range, parts_here: tuple[int, ...], parts: int, prefetch: int
) -> Generator[dict[str, np.ndarray]]:
    tf = _tensorflow()
    names, errors = tuple(rows.columns), list[BaseException]()

    def gather(step: Any) -> tuple[np.ndarray, ...]:
        try:
            runs = runs_of_parts(parts_here, parts, rows.batch_rows(int(step)))
            pieces = [rows.batch(int(step), *run) for run in runs]
            return tuple(joined([piece[name] for piece in pieces]) for name in names)
        except BaseException as error:
            errors.append(error)  # tf.data would pass on only its text
            raise

    types = [tf.as_dtype(rows.columns[name]) for name in names]

    def load(step: Any) -> dict[str, Any]:
        return dict(zip(names, tf.numpy_function(gather, [step], types), strict=True))

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
            raise failure  # here, without TensorFlow's frames, which would keep the iterator and its threads alive
    finally:
        del iterator, dataset


# A thread of tf.data that calls Python while the interpreter shuts down hangs the process.
_unfinished: weakref.WeakSet[Generator] = weakref.WeakSet()


def _close_unfinished() -> None:
    for batches in list(_unfinished):
        with contextlib.suppress(ValueError):  # it is running, in another thread
            batches.close()


@functools.cache
def _tensorflow() -> Any:
    """Returns TensorFlow, whose threads end before the interpreter does."""
    tf = import_tensorflow()
    atexit.register(_close_unfinished)  # registered after TensorFlow's own, so it runs before them
    return tf


def measure_input_rate(rows: RowSource, steps: int) -> float:
    """Returns how many tokens, padding included, `train_batches` prepares in a second, over `steps` steps."""
    batches = train_batches(rows, 0, steps + 1)
    next(batches)
    start = time.perf_counter()
    tokens = sum(batch["tokens"].size for batch in batches)
    return tokens / (time.perf_counter() - start)
