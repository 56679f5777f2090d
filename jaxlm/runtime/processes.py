"""Worker processes for the preparation of data: results come in order, and workers end with their parent."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from jaxlm.errors import UserError


def worker_count(settings: Any) -> int:
    """Returns the setting data.workers; if it is 0, the number of processors available to this process."""
    if settings.workers:
        return settings.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable, items: Iterable, workers: int, initializer: Callable | None = None, arguments: tuple = ()
) -> Generator:
    """Yields function(item) for each item, in order, computed in `workers` processes that run a few items ahead.

    A single worker or a single item is computed in this process. `initializer(*arguments)` is called once in each
    process. Processes are spawned, since forking is unsafe once JAX is loaded, and do not know the functions of the
    program's main file. Raises UserError if a worker is killed.
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
            with _main_file_hidden():  # the first item starts the processes
                pending.append(pool.submit(_call, function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, probably because memory ran out; lower data.workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _main_file_hidden() -> Iterator[None]:
    """Keeps spawned processes from importing the program's main file, which they do not need.

    A program that calls `jaxlm.train` outside `if __name__ == "__main__"` would train in each worker.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


_failed_start: Exception | None = None


def _start_worker(initializer: Callable | None, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers; they must not print tracebacks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        try:
            initializer(*arguments)
        except Exception as error:  # raised here, it would break the pool without its message; the first item raises it
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
        os._exit(1)  # a killed parent cannot stop its workers, which would wait for work forever
