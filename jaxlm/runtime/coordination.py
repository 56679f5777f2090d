"""JAX's coordination service in a process of its own, and the key-value store that it offers.

JAX starts the service in the first process of a run, and its clients abort their process with a stack trace as soon as
they lose the service. If the first process fails, no other process could report why. A service in its own process
outlives the first process until the others have ended in order (peers.py).

JAX has no public name for the key-value store or for the function that starts the service, so this file uses private
names of jax and jaxlib: `jax._src.distributed.global_state` and `jax._src.lib._jax`. It is the only file that does, and
was checked with jax and jaxlib 0.10.2. If a private name is missing, `initialize` warns, calls
jax.distributed.initialize with JAX's own service, and `client` returns None: training still works, but JAX aborts the
processes with a stack trace when one of them fails. A run of one process uses nothing from this file.
"""

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jaxlm.errors import UserError

JOIN_SECONDS = 300.0  # allowed between the starts of the first and the last process of a run
PORT_SECONDS = JOIN_SECONDS - 60.0  # the wait for a port on which the service of an earlier run may still listen
GRACE_SECONDS = 2.0  # for a process to find out by itself why another one ended
CLIENT_METHODS = (
    "key_value_set", "key_value_try_get", "key_value_dir_get", "blocking_key_value_get", "wait_at_barrier",
)  # fmt: skip
DONE, EXPLAINED = "done", "explained"  # what the first process writes to the service process before it ends

log = logging.getLogger("jaxlm")


def poll_seconds(heartbeat: float) -> float:
    """Returns the interval at which each process reads the key-value store, in seconds."""
    return min(heartbeat / 5, 5.0)


def client() -> Any | None:
    """Returns JAX's client of the key-value store, or None before `initialize` or if this JAX has no such client."""
    private = _private_names()
    return private[0].client if private else None


def initialize(arguments: dict[str, Any], heartbeat: float) -> None:
    """Calls jax.distributed.initialize(**arguments) with the coordination service in a process of its own.

    heartbeat is the number of seconds after which a silent process counts as dead. Logs a warning if this JAX only
    allows its own service. Raises UserError if the port cannot be opened, and whatever JAX raises.
    """
    timeouts: dict[str, Any] = {"initialization_timeout": int(10 * JOIN_SECONDS), "shutdown_timeout_seconds": 60}
    private = _private_names()
    if private is None:
        jax.distributed.initialize(**arguments, **timeouts, heartbeat_timeout_seconds=max(1, int(heartbeat)))
        if jax.process_count() > 1:
            _warn_of_own_service("when one process fails, JAX aborts the others with a stack trace")
        return
    state, jaxlib = private
    start = jaxlib.get_distributed_runtime_service
    jaxlib.get_distributed_runtime_service = lambda address, processes, **_: ServiceProcess(
        address, processes, heartbeat
    )
    try:
        jax.distributed.initialize(**arguments, **timeouts, heartbeat_timeout_seconds=_abort_seconds(heartbeat))
    finally:
        jaxlib.get_distributed_runtime_service = start
    if state.service is not None and not isinstance(state.service, ServiceProcess):
        _warn_of_own_service("when the first process fails, JAX aborts the others with a stack trace")


def announce_end() -> None:
    """Tells the service that this process ends and that the reason is in the key-value store."""
    private = _private_names()
    if private and isinstance(private[0].service, ServiceProcess):
        private[0].service.announce_end()


def _private_names() -> tuple[Any, Any] | None:
    """Returns JAX's distributed state and the jaxlib module that starts the service; None if a name is missing."""
    try:
        from jax._src.distributed import global_state
        from jax._src.lib import _jax

        names = (global_state.client, global_state.service, _jax.get_distributed_runtime_service)
        methods = [getattr(_jax.DistributedRuntimeClient, method) for method in CLIENT_METHODS]
    except (ImportError, AttributeError):
        return None
    return (global_state, _jax) if names and methods else None


def _warn_of_own_service(consequence: str) -> None:
    log.warning(
        "JAX %s lacks private functions that jaxlm uses to coordinate processes, so JAX's own service is used: %s",
        jax.__version__, consequence,
    )  # fmt: skip


def _abort_seconds(heartbeat: float) -> int:
    """Returns the seconds of silence after which JAX itself aborts all processes, in case the peer monitor hangs too.

    At least an hour, because JAX counts the time for which a machine is suspended as silence.
    """
    return max(3600, int(10 * heartbeat))


class ServiceProcess:
    """A process that runs JAX's coordination service, used by JAX in place of its DistributedRuntimeService."""

    def __init__(self, address: str, processes: int, heartbeat: float) -> None:
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxlm.runtime.coordination", address, str(processes), str(heartbeat)],
            env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout
        if self.process.stdout.readline() != "ready\n":
            raise UserError(f"cannot listen on {address}: the port is in use; set another one in mesh.coordinator")

    def announce_end(self) -> None:
        """Lets the service end soon after this process."""
        assert self.process.stdin
        try:
            self.process.stdin.write(EXPLAINED)
            self.process.stdin.flush()
        except OSError:  # the service was killed
            return

    def shutdown(self) -> None:
        """Ends the service. JAX calls it when all processes have disconnected."""
        self.process.communicate(DONE)


def serve(address: str, processes: int, heartbeat: float) -> None:
    """Runs the service until standard input is closed and the other processes have had time to end."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # they ask the run to stop, which still needs the service to save
    port, end = int(address.rpartition(":")[2]), time.monotonic() + PORT_SECONDS
    while not port_is_free(port):
        if time.monotonic() > end:
            return
        time.sleep(0.2)
    private = _private_names()
    assert private, "the process that started this one has the private names"
    service = private[1].get_distributed_runtime_service(
        address, processes, heartbeat_timeout=_abort_seconds(heartbeat), shutdown_timeout=60
    )
    print("ready", flush=True)
    time.sleep(linger_seconds(sys.stdin.read(), processes, heartbeat))
    del service
    os._exit(0)


def linger_seconds(message: str, processes: int, heartbeat: float) -> float:
    """Returns how long the service outlives the first process, which ended after writing `message`, in seconds.

    The bound is fixed because no public API tells whether clients are still connected. A first process that was killed
    is noticed only after its heartbeat has stopped for `heartbeat` seconds, or half as much again after a suspension.
    """
    if message == DONE or processes == 1:
        return 0.0
    reading = 3 * poll_seconds(heartbeat) + 2 * GRACE_SECONDS
    return reading if message == EXPLAINED else reading + 1.5 * heartbeat


def port_is_free(port: int) -> bool:
    """Returns whether no socket of this machine listens on a TCP port.

    gRPC shares ports (SO_REUSEPORT): a second service would start without an error, and clients could reach either.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not make a port busy
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
