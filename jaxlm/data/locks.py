"""Locks on folders that are being made, and what killed processes leave of them."""

import contextlib
import fcntl
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lets one process at a time prepare `target`."""
    path = target.with_name(f".{target.name}.lock")
    file = _lock(path, wait=False)
    if file is None:
        print(f"waiting for another process that prepares {target}", file=sys.stderr)
        file = _lock(path, wait=True)
    assert file is not None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _lock(path: Path, wait: bool) -> io.TextIOWrapper | None:
    while True:
        file = open(path, "a")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file  # else its last owner removed it: the lock is on a file that nobody else will see
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have left in the cache."""
    for partial in folder.glob(".*.partial"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.partial", partial.name):
            path = partial.with_suffix(".lock")
            file = _lock(path, wait=False)
            if file:
                shutil.rmtree(partial, ignore_errors=True)
                path.unlink(missing_ok=True)
                file.close()
