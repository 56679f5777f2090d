"""Runs `jaxlm ARGS...` with faults injected into this process; environment variables, set by `tests/sandbox.py`:

FAULT_FOLDER      directory below which operations that change files are counted
FAULT_OPERATION   number of the operation, from 1, immediately before which the process kills itself with SIGKILL
FAULT_TRACE       file to which one line per counted operation is written
FAULT_FILE_BYTES  maximum size of a file, to imitate a full disk
FAULT_CLOCK       error of the system clock in seconds
FAULT_NAN_STEP    step, from 0, at whose beginning all parameters become NaN
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> int:
    """Installs the faults and runs the command; returns its exit status."""
    if clock := float(os.environ.get("FAULT_CLOCK", 0)):
        _shift_clock(clock)
    if limit := os.environ.get("FAULT_FILE_BYTES"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if folder := os.environ.get("FAULT_FOLDER"):
        _count_operations(folder, int(os.environ.get("FAULT_OPERATION", 0)), os.environ.get("FAULT_TRACE"))
    if at := os.environ.get("FAULT_NAN_STEP"):
        from jaxlm import trainer

        trainer.compile_step = with_nan_params(trainer.compile_step, int(at))
    from jaxlm.cli import main as command

    return command(sys.argv[1:])


def with_nan_params(compile_step: Callable, at: int) -> Callable:
    """Wraps `jaxlm.trainer.compile_step`: the steps that it compiles replace all parameters by NaN at step `at`."""
    import jax
    import numpy as np

    def compile_with_nan(*arguments: Any) -> Callable:
        compiled = compile_step(*arguments)

        def step_with_nan(state: dict, batch: dict, step: np.int32, *rest: Any) -> Any:
            if step == at:
                params = jax.tree.map(lambda leaf: leaf * np.array(np.nan, leaf.dtype), state["params"])
                state = state | {"params": params}
            return compiled(state, batch, step, *rest)

        return step_with_nan

    return compile_with_nan


def _shift_clock(seconds: float) -> None:
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


def _count_operations(folder: str, last: int, trace: str | None) -> None:
    count = 0
    file = open(trace, "a", buffering=1) if trace else None  # noqa: SIM115

    def count_and_kill(event: str, arguments: tuple) -> None:
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

    sys.addaudithook(count_and_kill)


if __name__ == "__main__":
    sys.exit(main())
