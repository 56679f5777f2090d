"""The cache of compiled programs on disk: where it is, how large it may become, and entries that a kill truncated.

Everything here runs before JAX is imported.
"""

import contextlib
import logging
import os
import re
import warnings
from pathlib import Path

from jaxlm.errors import UserError

DIRECTORY, MAX_SIZE = "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"  # JAX's environment variables
PROGRAM_NAME = re.compile(r".+-[0-9a-f]{64}-cache")  # of a compiled program; JAX chooses it
MAX_BYTES = 4 * 2**30  # of our own directory, if MAX_SIZE does not set another bound


def set_up_program_cache() -> None:
    """Makes JAX cache compiled programs, by default in ~/.cache/jaxlm/compiled, and bounds the size of the cache.

    JAX's own bound is not used: it fails on every entry that was written without it, since it expects a file with the
    time of the last use beside each. Raises UserError if the bound is not a number.
    """
    own = DIRECTORY not in os.environ
    if own:
        with contextlib.suppress(OSError, RuntimeError):  # no home directory, or not writable: no cache
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm" / "compiled"
            cache.mkdir(parents=True, exist_ok=True)
            if os.access(cache, os.W_OK):
                os.environ[DIRECTORY] = str(cache)
    bound = _bound(MAX_BYTES if own else -1)  # other programs may use a directory that the user has set
    if directory := os.environ.get(DIRECTORY):
        replace_damaged_programs(Path(directory))
        if bound >= 0:
            remove_oldest_programs(Path(directory), bound)


def _bound(default: int) -> int:
    """Returns the largest size in bytes, -1 for none; takes MAX_SIZE out of the environment, unless it is JAX's 0."""
    text = os.environ.get(MAX_SIZE, "").strip()
    if text == "0":  # JAX then caches nothing, and what is there is kept
        return -1
    os.environ.pop(MAX_SIZE, None)
    if not re.fullmatch(r"-1|\d+|", text):
        raise UserError(f"{MAX_SIZE}={text}: expected a number of bytes, or -1 for no bound")
    return int(text) if text else default


def remove_oldest_programs(cache: Path, max_bytes: int) -> None:
    """Removes the programs that were used least recently, until the others take up at most `max_bytes`.

    Another process may add, use or remove programs meanwhile: JAX compiles a program again that has disappeared.
    """
    found = []
    for entry in cache.glob("*-cache"):
        if not PROGRAM_NAME.fullmatch(entry.name):
            continue  # the user may have set a directory with other files
        with contextlib.suppress(OSError):
            status = entry.stat()
            # Many file systems record only the first use of a day, and some none: then the time of writing counts.
            found.append((max(status.st_atime_ns, status.st_mtime_ns), status.st_size, entry))
    total = sum(size for _, size, _ in found)
    for _, size, entry in sorted(found):
        if total <= max_bytes:
            break
        with contextlib.suppress(OSError):
            entry.unlink(missing_ok=True)  # another process may have removed it, which frees the same bytes
            total -= size


def replace_damaged_programs(cache: Path) -> None:
    """Makes JAX compile a cached program again if a kill truncated its file.

    JAX would warn about the file in every run and never replace it; we remove it when the warning is shown.
    """
    original = warnings.showwarning
    if original.__module__ == __name__:
        return

    def show(message: Warning | str, *where: object, **more: object) -> None:
        found = re.match(r"Error reading persistent compilation cache entry for '(\w+)'", str(message))
        if not found:
            return original(message, *where, **more)  # type: ignore[arg-type]
        for entry in cache.glob(f"{found[1]}-*-cache"):
            entry.unlink(missing_ok=True)
        log = logging.getLogger("jaxlm")
        log.warning("the compiled program %s in %s is damaged and is compiled again", found[1], cache)

    warnings.showwarning = show
