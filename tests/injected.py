"""Runs `jaxlm ARGS...` with a fault inside this process, as the environment says; `tests/faults.py` sets it.

FAULT_FOLDER     what is counted: the operations that change files below this folder
FAULT_OPERATION  the process kills itself, as kill -9 does, right before the operation of this number (from 1)
FAULT_TRACE      a file that gets a line for each of them
FAULT_FILE_BYTES the size that no file may exceed, as on a full disk
FAULT_CLOCK      seconds by which the system's clock is wrong
FAULT_NAN_STEP   the parameters are NaN when the update of this number begins (from 0)
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> int:
    """Sets the faults up and runs the command."""
    if clock := float(os.environ.get("FAULT_CLOCK", 0)):
        _turn_clock(clock)
    if limit := os.environ.get("FAULT_FILE_BYTES"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if folder := os.environ.get("FAULT_FOLDER"):
        _count_operations(folder, int(os.environ.get("FAULT_OPERATION", 0)), os.environ.get("FAULT_TRACE"))
    if at := os.environ.get("FAULT_NAN_STEP"):
        from jaxlm import train

        train.compile_step = with_nan_params(train.compile_step, int(at))
    from jaxlm.cli import main as command

    return command(sys.argv[1:])


def with_nan_params(compile_step: Callable, at: int) -> Callable:
    """Returns a `jaxlm.train.compile_step` whose compiled steps get NaN as parameters at step `at`."""
    import jax
    import numpy as np

    def compile_faulty(*arguments: Any) -> Callable:
        compiled = compile_step(*arguments)

        def faulty(state: dict, batch: dict, step: np.int32, *rest: Any) -> Any:
            if step == at:
                params = jax.tree.map(lambda leaf: leaf * np.array(np.nan, leaf.dtype), state["params"])
                state = state | {"params": params}
            return compiled(state, batch, step, *rest)

        return faulty

    return compile_faulty


def _turn_clock(seconds: float) -> None:
    true, true_ns = time.time, time.time_ns
    time.time = lambda: true() + seconds
    time.time_ns = lambda: true_ns() + int(seconds * 1e9)


def _count_operations(folder: str, last: int, trace: str | None) -> None:
    count = 0
    file = open(trace, "a", buffering=1) if trace else None  # noqa: SIM115

    def look(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            changes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
            path = arguments[0] if changes else None
        if not changes or not isinstance(path, str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(folder + os.sep):
            return
        count += 1
        if file:
            file.write(f"{event} {path[len(folder) + 1 :]}\n")
        if count == last:
            os.write(2, f"killed before {event.removeprefix('os.')} {path[len(folder) + 1 :]}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


if __name__ == "__main__":
    sys.exit(main())
