"""What a command prints after an error that jaxlm does not explain: one sentence, and the traceback in a file."""

import platform
import shlex
import tempfile
import traceback
from collections.abc import Sequence

from jaxlm.storage import reason
from jaxlm.version import __version__


def explain(error: BaseException, argv: Sequence[str]) -> str:
    """Returns a sentence on an unexpected error of `jaxlm ARGV...`, after saving its traceback for a bug report."""
    from jaxlm.runtime.hardware import out_of_memory  # imports JAX, which the start of the program must not wait for

    report = _save_report(error, argv)
    kept = f"the traceback is in {report}" if report else "run the command again with --debug to see the traceback"
    if out_of_memory(error):
        return f"memory ran out ({reason(error)}): lower the batch size or the sequence length; {kept}"
    return (
        f"unexpected {type(error).__name__}: {reason(error)}. Check the input that the command names; if it is correct,"
        f" this is a bug in jaxlm, and a report should include the traceback: {kept}"
    )


def _save_report(error: BaseException, argv: Sequence[str]) -> str | None:
    """Writes the command and the traceback to a temporary file that only the user can read; returns its path.

    Returns None if it cannot be written.
    """
    lines = [
        f"jaxlm {__version__}, Python {platform.python_version()} on {platform.platform()}\n",
        f"command: jaxlm {shlex.join(argv)}\n\n",
        *traceback.format_exception(error),  # includes the traceback of a worker process as a cause
    ]
    try:
        handle, path = tempfile.mkstemp(prefix="jaxlm-error-", suffix=".txt")  # mode 0600
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError:
        return None
    return path
