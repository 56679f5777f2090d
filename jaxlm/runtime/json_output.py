"""The answer of a verb with --json: one JSON object on standard output, and everything else on standard error."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TextIO

from jaxlm.errors import UserError

_answers: ContextVar[TextIO | None] = ContextVar("answers", default=None)  # the real standard output


def wants_json(argv: Sequence[str]) -> bool:
    """Returns whether a command line contains --json, or an abbreviation of it that argparse accepts."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return any(len(option) > 2 and "--json".startswith(option) for option in options)


@contextlib.contextmanager
def only_json() -> Iterator[None]:
    """Sends standard output to standard error, except for `print_json` and `print_json_list`.

    This includes what C++ libraries and worker processes write. Raises UserError if standard output is closed.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed, so --json has nowhere to write to: redirect it to a file")
    with contextlib.ExitStack() as cleanup:
        answers = sys.stdout
        if _is_process_output(sys.stdout):
            sys.stdout.flush()
            saved = os.dup(1)
            answers = open(saved, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115
            cleanup.callback(_restore_output, answers)
            os.dup2(2, 1)
        cleanup.enter_context(contextlib.redirect_stdout(sys.stderr))
        cleanup.callback(_answers.reset, _answers.set(answers))
        yield


def _is_process_output(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (AttributeError, OSError, ValueError):  # replaced by a notebook or a test, or closed
        return False


def _restore_output(answers: TextIO) -> None:
    os.dup2(answers.fileno(), 1)
    with contextlib.suppress(OSError):  # what could not be written was reported when it was flushed
        answers.close()


def print_json(content: Any, indent: int | None = None) -> None:
    """Prints an object as JSON to standard output; numbers that are not finite are null."""
    _write(_encoded(content, indent) + "\n")


def print_json_list(name: str, items: Iterable[Any]) -> None:
    """Prints the object {name: [...]} to standard output, each item on its own line as soon as there is one."""
    separator = f"{{{json.dumps(name)}: [\n"
    for item in items:
        _write(separator + _encoded(item))
        separator = ",\n"
    _write("\n]}\n" if separator == ",\n" else separator + "]}\n")


def as_json(value: Any) -> Any:
    """Returns a value that JSON can express: Python's numbers and lists for NumPy's and JAX's, None for NaN and inf."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return as_json(value.tolist())


def _encoded(content: Any, indent: int | None = None) -> str:
    return json.dumps(as_json(content), allow_nan=False, ensure_ascii=not _writes_unicode(), indent=indent)


def _writes_unicode() -> bool:
    encoding = getattr(_stream(), "encoding", None) or ""
    return encoding.lower().replace("-", "") == "utf8"


def _stream() -> TextIO:
    return _answers.get() or sys.stdout


def _write(text: str) -> None:
    stream = _stream()
    stream.write(text.encode("utf-8", "backslashreplace").decode() if _writes_unicode() else text)
    stream.flush()
