"""The processes of a run: how they find each other, wait for the first one, and agree at each step.

`joined` surrounds a run. peers.py ends all processes together when one of them fails.
"""

import contextlib
import itertools
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import UserError
from jaxlm.runtime import coordination
from jaxlm.runtime.peers import PeerMonitor, end_process, is_peer_failure

VALUE_KEY = "jaxlm/value/"
_value_numbers = itertools.count()


@contextlib.contextmanager
def joined(settings: Any) -> Iterator[None]:
    """Joins the other processes of the run, as section `mesh` or the environment names them, while the body runs.

    Enter it before JAX is used. With several processes, no exception leaves it: each process prints one sentence and
    ends with exit status 1. Raises UserError if the processes cannot be joined.
    """
    arguments = _initialize_arguments(settings)
    # config.json describes the experiment, and where a process runs is no part of it.
    settings.update(coordinator="auto", processes=0, process_id=-1)
    if arguments is None:
        yield
        return
    _join(arguments, settings.heartbeat_seconds)
    if jax.process_count() == 1:
        yield
        return
    client = coordination.client()
    monitor = PeerMonitor(client, settings.heartbeat_seconds) if client else None
    if monitor:
        monitor.start()
    leave = monitor.leave if monitor else end_process
    try:
        yield
        if monitor:
            monitor.finish()
        else:
            jax.distributed.shutdown()
    except BaseException as error:
        if not isinstance(error, UserError | KeyboardInterrupt):
            if monitor and is_peer_failure(error):  # the monitor will report which process is gone
                monitor.wait_for_end()
            traceback.print_exc()
        leave(_sentence(error))


def _sentence(error: BaseException) -> str:
    """Returns the sentence with which a process ends after an error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"process {jax.process_index()} failed with {type(error).__name__}; see the output of that process"


def from_first(value: Callable[[], Any]) -> Any:
    """Returns value() of the first process, a JSON value, on every process; the others wait while that one lives.

    Every process of a run must call it, in the same order. If value() raises, the others raise a UserError.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return value()
    answer, failure = "", None
    if jax.process_index() == 0:
        try:
            answer = json.dumps({"value": value()})
        except BaseException as error:  # it reaches the others first, which would wait for an answer
            answer, failure = json.dumps({"error": _sentence(error)}), error
    content = json.loads(_send(answer))
    if failure:
        raise failure
    if "error" in content:
        raise UserError(content["error"])
    return content["value"]


def _send(text: str) -> str:
    """Returns the first process's text on every process."""
    client = coordination.client()
    if client is None:
        return _broadcast(text)
    key = f"{VALUE_KEY}{next(_value_numbers)}"
    if jax.process_index() == 0:
        client.key_value_set(key, text)
        return text
    while True:
        try:
            return client.blocking_key_value_get(key, 1000)  # short, so that signals are handled
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _broadcast(text: str) -> str:
    """Returns the first process's text, sent through the devices."""
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    content = multihost_utils.broadcast_one_to_all(np.resize(content, size))
    return np.asarray(content).tobytes().decode()


class Votes:
    """What the processes agree on at every step: the first process's clock, and whether any process must stop.

    Votes are one more argument of the compiled step, and their maximum is one more result. All processes therefore
    read the same values at the same step, and no process waits for another between steps.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.several = jax.process_count() > 1
        self._shape = (mesh.size, 2)
        self._split, self._replicated = (
            NamedSharding(mesh, spec) for spec in (PartitionSpec(mesh.axis_names), PartitionSpec())
        )

    def cast(self, elapsed: float, stop: bool) -> tuple[Array, ...]:
        """Returns this process's votes as additional arguments of a step.

        elapsed is in seconds, and only the first process's counts. The result is one array, float32 [devices, 2], or
        empty for a run of one process.
        """
        if not self.several:
            return ()
        vote = np.array([[elapsed if jax.process_index() == 0 else -np.inf, stop]], np.float32)
        return (jax.make_array_from_callback(self._shape, self._split, lambda index: vote),)

    def counted(self, step: Callable) -> Callable:
        """Returns (*inputs, *votes) -> (state, (metrics, agreed)), given step: (*inputs) -> (state, metrics).

        agreed is float32 [2], the elapsed seconds and whether to stop (1.0), or None for a run of one process.
        """

        def step_with_votes(*inputs_and_votes: Any) -> tuple[Any, tuple[Any, Array | None]]:
            if not self.several:
                state, metrics = step(*inputs_and_votes)
                return state, (metrics, None)
            *inputs, votes = inputs_and_votes
            state, metrics = step(*inputs)
            return state, (metrics, jax.lax.with_sharding_constraint(votes.max(0), self._replicated))

        step_with_votes.__name__ = step.__name__  # the name of the compiled program
        return step_with_votes


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Yields a list of the SIGTERM, SIGINT and SIGHUP received so far.

    A second SIGTERM or SIGINT has its usual effect. All SIGHUPs count as one, since a closed terminal may send several;
    under nohup, SIGHUP stays ignored.
    """
    received: list[str] = []
    usual: dict[Any, Any] = {}

    def receive(number: int, frame: Any) -> None:
        received.append(signal.Signals(number).name)
        if number != signal.SIGHUP:
            signal.signal(number, usual[number])

    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    for name in (signal.SIGTERM, signal.SIGINT, *(() if under_nohup else (signal.SIGHUP,))):
        usual[name] = signal.signal(name, receive)
    try:
        yield received
    finally:
        for name, handler in usual.items():
            signal.signal(name, handler)


def _initialize_arguments(settings: Any) -> dict[str, Any] | None:
    """Returns the arguments of jax.distributed.initialize, or None for a run of one process. Raises UserError."""
    coordinator, processes, process_id = settings.coordinator, settings.processes, settings.process_id
    if processes == 0 and process_id == -1 and coordinator in ("auto", "detect"):
        return {} if coordinator == "detect" or _in_cluster() else None
    if processes == 1 and process_id in (-1, 0):
        return None
    if ":" not in coordinator or processes < 1 or not 0 <= process_id < processes:
        raise UserError(
            f"mesh.coordinator={coordinator}, mesh.processes={processes} and mesh.process_id={process_id}: set all "
            "three, to HOST:PORT of the first process, the number of processes, and the number of this one from 0"
        )
    return {
        "coordinator_address": coordinator, "num_processes": processes, "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }  # fmt: skip


def _in_cluster() -> bool:
    """Returns whether the environment describes several processes in a form that JAX detects."""
    size = lambda name: int(os.environ[name]) if os.environ.get(name, "").isdecimal() else 1  # noqa: E731
    slurm = size("SLURM_NTASKS") > 1 and {"SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= os.environ.keys()
    tpu = any("," in os.environ.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    return slurm or tpu or size("OMPI_COMM_WORLD_SIZE") > 1 or size("MEGASCALE_NUM_SLICES") > 1


def _join(arguments: dict[str, Any], heartbeat: float) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it handles SIGTERM, which the training loop must see
    address = arguments.get("coordinator_address", "the coordinator named by the environment")
    failed = f"this process could not join the others at {address}"
    sentence = f"{failed} within {coordination.JOIN_SECONDS:g} s; check that all were started and can reach each other"
    timer = threading.Timer(coordination.JOIN_SECONDS, end_process, [sentence])  # JAX would abort with a stack trace
    timer.daemon = True
    timer.start()
    try:
        coordination.initialize(arguments, heartbeat)
    except (RuntimeError, ValueError) as error:  # including JaxRuntimeError
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{failed}: {reason}") from error
    finally:
        timer.cancel()
