"""Worker processes for the preparation of data: spawned, in order, and gone when their parent is."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from jaxlm.errors import UserError


def worker_count(settings: Any) -> int:
    """Returns data.workers, or the number of processors that this process may use where it is 0."""
    if settings.workers:
        return settings.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable, items: Iterable, workers: int, initializer: Callable | None = None, arguments: tuple = ()
) -> Generator:
    """Yields function(item) for each item, in order, a few of them ahead; one worker, or one item, needs no process.

    `initializer(*arguments)` is called once in each process. Processes are spawned, never forked: JAX may be loaded.
    """
    items = iter(items)
    first = list(itertools.islice(items, 2))
    items = itertools.chain(first, items)
    if workers == 1 or len(first) < 2:
        if initializer:
            initializer(*arguments)
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (initializer, arguments))
    pending: deque[Future] = deque()
    try:
        for item in items:
            pending.append(pool.submit(_call, function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, most likely for lack of memory; lower data.workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


_failed_start: Exception | None = None


def _start_worker(initializer: Callable | None, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers; they need not print tracebacks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        try:
            initializer(*arguments)
        except Exception as error:  # raised here it would only break the pool; the first item tells it
            global _failed_start
            _failed_start = error


def _call(function: Callable, item: Any) -> Any:
    if _failed_start:
        raise _failed_start
    return function(item)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)  # a killed parent cannot tell its workers, which would wait for work for ever
