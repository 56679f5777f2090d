"""Runs `jaxlm train` in processes of its own, several at a time, and follows how far each has come."""

import contextlib
import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.storage import lock, parse_json


class Job(NamedTuple):
    """A run to make: the config that describes it, and its work directory."""

    name: str
    config: Path
    workdir: Path


def command_of(job: Job) -> list[str]:
    """Returns the command that makes a run, or resumes it."""
    return ["jaxlm", "train", f"--config={job.config}", f"--workdir={job.workdir}"]


class Processes:
    """Runs jobs in at most `workers` processes at a time, as a context manager.

    With several workers on CPUs, each process gets an equal share of the cores; the GPUs in CUDA_VISIBLE_DEVICES are
    divided likewise. When the body ends with an error or a signal, the processes get SIGTERM, on which they save a
    checkpoint, and are waited for. On Linux they also get it when this process is killed.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._slots: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        for slot in _slots(workers):
            self._slots.put(slot)
        self._children: set[subprocess.Popen] = set()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._stopping.set()
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        self._pool.shutdown(cancel_futures=True)

    def submit(self, job: Job) -> "Future[str | None]":
        """Begins a job as soon as a process is free; its result is the sentence with which it failed, or None."""
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> str | None:
        if self._stopping.is_set():
            return None
        slot = self._slots.get()
        try:
            return self._run_in(slot, job)
        finally:
            self._slots.put(slot)

    def _run_in(self, slot: dict[str, Any], job: Job) -> str | None:
        _wait_for_other_process(job)
        cores = slot["cores"]

        def prepare() -> None:  # in the child, before it becomes jaxlm
            if cores:
                os.sched_setaffinity(0, cores)
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: get SIGTERM when the sweep is killed

        arguments = [sys.executable, "-m", "jaxlm.cli", *command_of(job)[1:]]
        job.workdir.parent.mkdir(parents=True, exist_ok=True)
        child = subprocess.Popen(
            arguments, env=os.environ | slot["environment"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, start_new_session=True, preexec_fn=prepare, text=True, errors="replace",
        )  # fmt: skip
        self._children.add(child)
        try:
            if self._stopping.is_set():
                child.send_signal(signal.SIGTERM)
            _, errors = child.communicate()
        finally:
            self._children.discard(child)
        if child.returncode == 0 or self._stopping.is_set():
            return None
        return _sentence(errors, child.returncode)


def _slots(workers: int) -> list[dict[str, Any]]:
    """Returns the cores and environment variables of each worker."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    slots = []
    for worker in range(workers):
        share = cores[worker::workers] if 1 < workers <= len(cores) else []
        own = gpus[worker::workers] if 1 < workers <= len(gpus) else []
        slots.append({"cores": share, "environment": {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}})
    return slots


def _wait_for_other_process(job: Job) -> None:
    """Waits for a process that still works in the directory, such as one whose sweep was killed."""
    if (job.workdir / "lock").exists():
        with lock(job.workdir / "lock", waiting=f"{job.name}: waiting for the process that still runs it"):
            pass


def _sentence(errors: str, status: int) -> str:
    """Returns the sentence of jaxlm in what a process wrote to standard error, or how it ended."""
    own = re.findall(r"^jaxlm: (.+)$", errors, re.MULTILINE)
    if own:
        return own[-1]
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    lines = errors.strip().splitlines()
    return f"the process ended with status {status}" + (f": {lines[-1]}" if lines else "")


def finished(futures: dict["Future[Any]", Any], look: Callable[[], None], every: float = 1.0) -> Iterator[Any]:
    """Yields the keys and results of futures as they end, and calls `look` about every second meanwhile."""
    waiting = list(futures)
    while waiting:
        done, _ = wait(waiting, timeout=every, return_when=FIRST_COMPLETED)
        look()
        for future in [one for one in waiting if one in done]:  # those that ended together, in their order
            yield futures[future], future.result()
        waiting = [one for one in waiting if one not in done]


def progress_of(workdir: Path) -> float:
    """Returns the fraction of a run that is done, from the last line of its log; 0 if nothing is known."""
    try:
        with open(workdir / "metrics.jsonl", "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().splitlines()
    except OSError:
        return 0.0
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            event = parse_json(line)
            if isinstance(event, dict) and isinstance(event.get("progress"), int | float):
                return min(1.0, float(event["progress"]))
    return 0.0


def check_workers(workers: int) -> None:
    if workers < 1:
        raise UserError(f"--workers={workers}: must be at least 1")
