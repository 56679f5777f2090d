"""Monitoring the other processes of a run, so that all of them end together and say why.

Each process writes a heartbeat to the key-value store and watches the heartbeat of the next process in a ring. A
process that ends early, or that finds its neighbour dead, first writes one sentence to the store; the others read it
within seconds, print it, and end with exit status 1.
"""

import contextlib
import itertools
import os
import re
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from jaxlm.runtime import coordination
from jaxlm.runtime.coordination import GRACE_SECONDS

END_KEY, HEARTBEAT_KEY = "jaxlm/end/", "jaxlm/heartbeat/"


class PeerMonitor(threading.Thread):
    """A thread that sends this process's heartbeat and ends the process when another one has ended or is silent."""

    def __init__(self, client: Any, heartbeat: float) -> None:
        """client is JAX's key-value client; heartbeat is the seconds after which a silent process counts as dead."""
        super().__init__(daemon=True)
        self.client, self.heartbeat, self.interval = client, heartbeat, coordination.poll_seconds(heartbeat)
        self.index, self.count = jax.process_index(), jax.process_count()
        self.leaving = threading.Event()

    def run(self) -> None:
        neighbour, beat = (self.index + 1) % self.count, ""
        changed = answered = awake = time.monotonic()  # of the neighbour's beat; of the service; of this thread
        for number in itertools.count():
            pause, awake = time.monotonic() - awake - self.interval, time.monotonic()
            if pause > self.interval + GRACE_SECONDS:  # this process was suspended, and the others may have been too
                changed, answered = (max(t + pause, awake - self.heartbeat / 2) for t in (changed, answered))
            reasons, latest = [], beat
            try:
                self.client.key_value_set(f"{HEARTBEAT_KEY}{self.index}", str(number), True)
                reasons = [_with_process(*entry) for entry in self.client.key_value_dir_get(END_KEY)]
                latest = self._read_heartbeat(neighbour)
                answered = time.monotonic()
            except jax.errors.JaxRuntimeError:
                changed = max(changed, answered)  # without an answer, the neighbour's silence means nothing
                if time.monotonic() - answered > self.heartbeat:
                    reasons = ["the coordination service on the machine of the first process does not respond"]
            if reasons:
                self.leaving.wait(GRACE_SECONDS)
            elif latest != beat:
                beat, changed = latest, time.monotonic()
            elif answered - changed > self.heartbeat:
                reasons = [
                    f"process {neighbour} has not responded for {self.heartbeat:g} s: it was killed, it hangs, or its "
                    "machine is down; run the same command again to resume from the last checkpoint"
                ]
            if self.leaving.is_set():
                return
            if reasons:
                self._publish(neighbour, reasons[0])
                end_process(reasons[0])
            if self.leaving.wait(self.interval):
                return

    def _read_heartbeat(self, index: int) -> str:
        try:
            return self.client.key_value_try_get(f"{HEARTBEAT_KEY}{index}")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):  # it has not started
                return ""
            raise

    def wait_for_end(self) -> None:
        """Waits as long as it can take to notice a dead process, in which time the monitor ends this process."""
        for _ in range(int((self.heartbeat + 2 * GRACE_SECONDS) / self.interval) + 4):
            time.sleep(self.interval)  # in parts, because the machine may be suspended meanwhile

    def finish(self) -> None:
        """Waits until every process has come this far, then disconnects."""
        self.client.wait_at_barrier("jaxlm/done", 10**7)
        self.leaving.set()
        self.join()
        jax.distributed.shutdown()

    def leave(self, sentence: str) -> NoReturn:
        """Ends this process with a sentence, and thereby the run; a sentence common to all is printed only once."""
        self.leaving.set()
        self._publish(self.index, sentence)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if self.index and self.client.blocking_key_value_get(f"{END_KEY}0", 2000) == sentence:
                end_process("")
        end_process(sentence)

    def _publish(self, index: int, sentence: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # already published, or the service is gone
            self.client.key_value_set(f"{END_KEY}{index}", sentence)


def is_peer_failure(error: BaseException | None) -> bool:
    """Returns whether an error, or a cause of it, is what JAX raises when a process it computes with has died."""
    status = r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or re.match(status, str(error)):  # some are ValueErrors
            return True
        error = error.__cause__
    return False


def end_process(sentence: str) -> NoReturn:
    """Prints a sentence and ends the process at once: an orderly exit would wait for processes that are gone."""
    coordination.announce_end()
    sys.stdout.flush()
    if sentence:
        print(f"jaxlm: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


def _with_process(key: str, sentence: str) -> str:
    """Returns a published sentence, prefixed by the process that published it unless it begins with one."""
    return sentence if sentence.startswith("process ") else f"process {key.rpartition('/')[2]}: {sentence}"
