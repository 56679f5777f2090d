"""The program `jaxlm`: a table of verbs, each a module's main, imported when it is called."""

import contextlib
import errno
import importlib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.runtime.memory import restart_with_kept_memory
from jaxlm.version import __version__

VERBS = {
    "train": ("jaxlm.train", "train a masked language model, or go on where it stopped"),
    "prepare": ("jaxlm.data.prepare", "turn text into a token store, without training"),
    "config": ("jaxlm.use.show_config", "print every setting, its value and what it means"),
    "fill-mask": ("jaxlm.use.fill_mask", "fill in the blanks of a text"),
    "embed": ("jaxlm.use.embed_file", "the vector of each text of a file"),
    "score": ("jaxlm.use.score", "how probable sentences are, for ranking them"),
    "evaluate": ("jaxlm.use.evaluate", "the held-out loss of a model on any text"),
    "export": ("jaxlm.use.export", "write a model as a directory that Transformers loads"),
    "bench": ("jaxlm.performance.bench", "tokens per second, share of peak, memory, input rate"),
    "plan": ("jaxlm.performance.plan", "memory, collectives and hours on devices that nobody has yet"),
}


# What the machine refuses, whatever we do: its disk, its rights, its limits.
MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
                  errno.EMFILE, errno.ENFILE}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs `jaxlm VERB ...`; returns the exit status, 0 or 1."""
    program = argv is None  # the process is ours, not a test's or a notebook's
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: jaxlm VERB [--help] ...\n\nmasked language models in JAX\n")
        print("\n".join(f"  {verb:<10} {what}" for verb, (_, what) in VERBS.items()))
        print("\nexample: jaxlm train --config=configs/mini.py --workdir=runs/mini")
        print("\ncompiled steps are kept for later runs in ~/.cache/jaxlm/compiled, which may be removed at any time;")
        print("JAX_COMPILATION_CACHE_DIR names another directory, JAX_ENABLE_COMPILATION_CACHE=false keeps none")
        return 0
    if argv[0] == "--version":
        print(f"jaxlm {__version__}")
        return 0
    try:
        if argv[0] not in VERBS:
            raise UserError(f"there is no verb {argv[0]}; they are {', '.join(VERBS)}")
        if program:
            restart_with_kept_memory()
        _set_environment()
        with _termination():
            return importlib.import_module(VERBS[argv[0]][0]).main(argv[1:])
    except UserError as error:
        print(f"jaxlm: {error}", file=sys.stderr)
    except KeyboardInterrupt as error:
        print(f"jaxlm: {error.args[0] if error.args else 'interrupted'}", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        print(f"jaxlm: {error.filename or 'output'}: {error.strerror}; mend that and run it again", file=sys.stderr)
    except SystemExit as error:  # argparse: 2 for a wrong call is 1 here, as for every other mistake
        return 1 if error.code else 0
    return 1


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """Lets SIGTERM end a command as Ctrl-C does, with what it was writing cleared away and a sentence."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt("stopped by SIGTERM")

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _set_environment() -> None:
    """Settings that libraries read when they are imported; what the user has set stays."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError, RuntimeError):  # no home, or none that can be written: compile each time
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm" / "compiled"
            cache.mkdir(parents=True, exist_ok=True)
            if os.access(cache, os.W_OK):
                os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)
    if compiled := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        _mend_compiled(Path(compiled))


def _mend_compiled(cache: Path) -> None:
    """Lets a compiled program that a kill has cut short be written anew: JAX would read it in vain for ever."""
    usual = warnings.showwarning
    if usual.__module__ == __name__:
        return

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        found = re.match(r"Error reading persistent compilation cache entry for '(\w+)'", str(message))
        if not found:
            return usual(message, *where, **more)
        for entry in cache.glob(f"{found[1]}-*-cache"):
            entry.unlink(missing_ok=True)
        logging.getLogger("jaxlm").warning("the compiled %s in %s is damaged, and is made anew", found[1], cache)

    warnings.showwarning = show


if __name__ == "__main__":
    sys.exit(main())
