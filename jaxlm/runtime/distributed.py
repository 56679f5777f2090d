"""The processes of a run: how they find each other, wait for the first, agree at a step, and end together.

`joined` stands around a run. JAX alone would abort every process with a stack trace when one dies: its coordination
service lives in the first process, and its clients end themselves where they lose it. Here the service has a process of
its own, and a thread in each process of the run, the watch, sees that the next one in the ring still lives. Whoever
ends leaves a sentence, which the others say before they end too.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as _private  # its key-value store has no public name
from jax._src.lib import _jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import UserError

JOIN_SECONDS = 300.0  # that the processes of a run may start apart
LINGER_SECONDS = 120.0  # that the coordination service outlives the first process, while others still ask it
GRACE_SECONDS = 2.0  # for a process to find by itself what another has ended with
ENDED, BEAT, VALUE = "jaxlm/ended/", "jaxlm/beat/", "jaxlm/value/"
_values = itertools.count()


@contextlib.contextmanager
def joined(settings: Any) -> Iterator[None]:
    """Joins the other processes of the run that section `mesh` or the environment tells of, for the time of the body.

    To be entered before JAX is used. Where there are several, no error leaves it: each process says one sentence and
    ends with exit status 1. Raises UserError where they cannot be joined.
    """
    given = _given(settings)
    # Where a process runs is no part of the experiment that config.json keeps.
    settings.update(coordinator="auto", processes=0, process_id=-1)
    if given is None:
        yield
        return
    _join(given, settings.heartbeat_seconds)
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(settings.heartbeat_seconds)
    watch.start()
    try:
        yield
        watch.finish()
    except UserError as error:
        watch.leave(str(error))
    except KeyboardInterrupt:
        watch.leave("interrupted")
    except BaseException as error:
        if _came_from_peers(error):  # the watch will tell which one of them is gone
            watch.wait_for_verdict()
        traceback.print_exc()
        watch.leave(f"process {jax.process_index()} failed with {type(error).__name__}; its own output tells more")


def _came_from_peers(error: BaseException | None) -> bool:
    """Returns whether an error, or its cause, is what JAX raises where the processes compute with one that has died."""
    status = r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or re.match(status, str(error)):  # some are ValueErrors
            return True
        error = error.__cause__
    return False


def from_first(value: Callable[[], Any]) -> Any:
    """Returns value(), plain JSON, of the first process on every process; the others wait as long as that one lives.

    Every process of a run must call it, in the same order.
    """
    client = _private.global_state.client
    if client is None or jax.process_count() == 1:
        return value()
    key = f"{VALUE}{next(_values)}"
    if jax.process_index() == 0:
        result = value()
        client.key_value_set(key, json.dumps(result))
        return result
    while True:
        try:
            return json.loads(client.blocking_key_value_get(key, 1000))  # short, so that signals are heard
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


class Votes:
    """What the processes tell each other with every step: the first one's clock, and whether one has to stop.

    They travel as an argument of the compiled step and come back with its results, so that all processes read the same
    at the same step and none waits for it.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.several = jax.process_count() > 1
        self._shape, self._place = (mesh.size, 2), NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._whole = NamedSharding(mesh, PartitionSpec())

    def cast(self, elapsed: float, stop: bool) -> tuple:
        """Returns this process's votes, as further arguments of a step: float32 [devices, 2], or none where alone."""
        if not self.several:
            return ()
        mine = np.array([[elapsed if jax.process_index() == 0 else -np.inf, stop]], np.float32)
        return (jax.make_array_from_callback(self._shape, self._place, lambda index: mine),)

    def counted(self, step: Callable) -> Callable:
        """Returns (*inputs, *votes) -> (state, (metrics, agreed)) of a step (*inputs) -> (state, metrics).

        `agreed` is float32 [2], or None for a run of one process.
        """

        def step_and_votes(state: Any, batch: Any, number: Any, done: Any, knobs: Any, *votes: Any) -> tuple:
            state, metrics = step(state, batch, number, done, knobs)
            agreed = jax.lax.with_sharding_constraint(votes[0].max(0), self._whole) if votes else None
            return state, (metrics, agreed)

        step_and_votes.__name__ = step.__name__  # that of the compiled program
        return step_and_votes


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Gathers SIGTERM and SIGINT in a list that the training loop looks at; a second one has its usual effect."""
    received: list[str] = []
    usual: dict[Any, Any] = {}

    def receive(number: int, frame: Any) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, usual[number])

    for name in (signal.SIGTERM, signal.SIGINT):
        usual[name] = signal.signal(name, receive)
    try:
        yield received
    finally:
        for name, handler in usual.items():
            signal.signal(name, handler)


# Finding and joining


def _given(settings: Any) -> dict[str, Any] | None:
    """Returns the arguments of jax.distributed.initialize, or None for a run of one process. Raises UserError."""
    coordinator, processes, process_id = settings.coordinator, settings.processes, settings.process_id
    if processes == 0 and process_id == -1 and coordinator in ("auto", "detect"):
        return {} if coordinator == "detect" or _in_cluster() else None
    if processes == 1 and process_id in (-1, 0):
        return None
    if ":" not in coordinator or processes < 1 or not 0 <= process_id < processes:
        raise UserError(
            f"mesh.coordinator={coordinator}, mesh.processes={processes} and mesh.process_id={process_id}: all three "
            "are needed, as HOST:PORT of the first process, how many there are, and which of them this is, from 0"
        )
    return {
        "coordinator_address": coordinator, "num_processes": processes, "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }  # fmt: skip


def _in_cluster() -> bool:
    """Returns whether the environment tells of several processes, in a form that JAX reads by itself."""
    size = lambda name: int(os.environ[name]) if os.environ.get(name, "").isdecimal() else 1  # noqa: E731
    slurm = size("SLURM_NTASKS") > 1 and {"SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= os.environ.keys()
    tpu = any("," in os.environ.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    return slurm or tpu or size("OMPI_COMM_WORLD_SIZE") > 1 or size("MEGASCALE_NUM_SLICES") > 1


def _join(given: dict[str, Any], heartbeat: float) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, which the training loop answers
    start = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = lambda address, processes, **_: _Service(address, processes, heartbeat)
    where = given.get("coordinator_address", "the coordinator that the environment names")
    apart = f"this process could not join the others at {where} within {JOIN_SECONDS:g} s; see that all were started, "
    late = threading.Timer(JOIN_SECONDS, _end, [apart + "and that nothing keeps them apart"])  # JAX would abort
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=int(10 * JOIN_SECONDS),
            heartbeat_timeout_seconds=_last_resort(heartbeat),
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError among them
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"this process could not join the others at {where}: {reason}") from error
    finally:
        late.cancel()
        _jax.get_distributed_runtime_service = start


def _last_resort(heartbeat: float) -> int:
    """Returns the seconds after which JAX itself aborts all processes, where even the watch hangs.

    Long, as it also takes machines that were suspended for dead ones.
    """
    return max(3600, int(10 * heartbeat))


# Ending together


class _Watch(threading.Thread):
    """Says every few seconds that this process lives, and looks whether the next one in the ring does."""

    def __init__(self, heartbeat: float) -> None:
        super().__init__(daemon=True)
        self.heartbeat, self.interval = heartbeat, min(heartbeat / 5, 5.0)
        self.index, self.count = jax.process_index(), jax.process_count()
        self.client: Any = _private.global_state.client
        self.leaving = threading.Event()

    def run(self) -> None:
        following, beat = (self.index + 1) % self.count, ""
        changed = answered = awake = time.monotonic()
        for number in itertools.count():
            pause, awake = time.monotonic() - awake - self.interval, time.monotonic()
            if pause > self.interval + GRACE_SECONDS:  # this process was suspended, and the others may have been too
                changed, answered = (max(t + pause, awake - self.heartbeat / 2) for t in (changed, answered))
            ended, now = [], beat
            try:
                self.client.key_value_set(f"{BEAT}{self.index}", str(number), True)
                ended = [_told_of(*entry) for entry in self.client.key_value_dir_get(ENDED)]
                now = self._beat_of(following)
                answered = time.monotonic()
            except jax.errors.JaxRuntimeError:
                changed = max(changed, answered)  # nothing was heard of anybody, which tells nothing of that one
                if time.monotonic() - answered > self.heartbeat:
                    ended = ["the coordinator, on the machine of the first process, no longer answers"]
            if ended:
                self.leaving.wait(GRACE_SECONDS)
            elif now != beat:
                beat, changed = now, time.monotonic()
            elif answered - changed > self.heartbeat:
                ended = [
                    f"process {following} was not heard of for {self.heartbeat:g} s: it was killed, or hangs, or its "
                    "machine is down; the same command goes on from the last checkpoint"
                ]
            if self.leaving.is_set():
                return
            if ended:
                self._publish(following, ended[0])
                _end(ended[0])
            if self.leaving.wait(self.interval):
                return

    def _beat_of(self, index: int) -> str:
        try:
            return self.client.key_value_try_get(f"{BEAT}{index}")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):  # it has not begun
                return ""
            raise

    def wait_for_verdict(self) -> None:
        """Waits as long as it takes to miss a process and to hear of it, in which time the watch ends this one."""
        for _ in range(int((self.heartbeat + 2 * GRACE_SECONDS) / self.interval) + 4):
            time.sleep(self.interval)  # in steps, as the machine may be suspended meanwhile

    def finish(self) -> None:
        """Waits until all processes are done, and parts from them."""
        self.client.wait_at_barrier("jaxlm/done", 10**7)
        self.leaving.set()
        self.join()
        jax.distributed.shutdown()

    def leave(self, sentence: str) -> NoReturn:
        """Ends this process and so the run; what all of them end with is said by the first alone."""
        self.leaving.set()
        self._publish(self.index, sentence)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if self.index and self.client.blocking_key_value_get(f"{ENDED}0", 2000) == sentence:
                _end("")
        _end(sentence)

    def _publish(self, index: int, sentence: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another has said it, or there is nobody to tell
            self.client.key_value_set(f"{ENDED}{index}", sentence)


def _told_of(key: str, sentence: str) -> str:
    return sentence if sentence.startswith("process ") else f"process {key.rpartition('/')[2]}: {sentence}"


def _end(sentence: str) -> NoReturn:
    """Ends the process now: an orderly exit would wait for processes that are no more."""
    sys.stdout.flush()
    if sentence:
        print(f"jaxlm: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


class _Service:
    """JAX's coordination service in a process of its own, which outlives the first process until nobody needs it."""

    def __init__(self, address: str, processes: int, heartbeat: float) -> None:
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxlm.runtime.distributed", address, str(processes), str(heartbeat)],
            env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout
        if self.process.stdout.readline() != "ready\n":
            raise UserError(f"the port of {address} cannot be opened; name another in mesh.coordinator")

    def shutdown(self) -> None:
        self.process.communicate("done")


def _serve(address: str, processes: int, heartbeat: float) -> None:
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)  # meant for the run, which may need a while to stop
    port = int(address.rpartition(":")[2])
    # Another server could open the same port, and would be asked in its place: that of a run that has just ended goes.
    if not _until(lambda: not _connections(port, LISTEN), LINGER_SECONDS):
        return
    service = _jax.get_distributed_runtime_service(
        address, processes, heartbeat_timeout=_last_resort(heartbeat), shutdown_timeout=60
    )
    print("ready", flush=True)
    if not sys.stdin.read():  # the first process was killed: the others still have to hear of it
        time.sleep(GRACE_SECONDS)
        _until(lambda: _connections(port, ESTABLISHED) == 0, LINGER_SECONDS)
    del service
    os._exit(0)


ESTABLISHED, LISTEN = "01", "0A"  # as Linux's tables of sockets write them


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    """Returns whether it held within so many seconds."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.2)
    return held


def _connections(port: int, state: str) -> int | None:
    """Returns how many sockets of this machine have the local port and the state; None where it is not Linux."""
    count = None
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            count = (count or 0) + sum(row[1].endswith(f":{port:04X}") and row[3] == state for row in rows)
    return count


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
