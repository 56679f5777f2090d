"""Files: reading with clear errors, atomic writing, and locks between processes.

A reader sees either the old content of a file or the new content, never a part of it: a writer fills a temporary file
beside the target, flushes it to disk, and renames it.

Nothing that belongs to the user is overwritten or removed: what is being written has a name that only jaxlm uses
(`beside`), and a directory is written into only if it is new, empty, or jaxlm's own (`foreign_entries`).
"""

import collections
import contextlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError

MAX_DEPTH = 100  # of values in JSON


def reason(error: BaseException) -> str:
    """Returns why an operation failed, in one line of at most 300 characters."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


def read_bytes(file: Path) -> bytes:
    """Returns the content of a file. Raises UserError if it cannot be read, or is no file but, for example, a pipe."""
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # reading a pipe would wait for its writer forever
            raise UserError(f"cannot read {file}: it is a pipe, a socket or a device")
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL character
        raise UserError(f"cannot read {file}: {reason(error)}") from error


def read_text(file: Path) -> str:
    """Returns the content of a UTF-8 file without its byte order mark. Raises UserError with the line and the byte."""
    content = read_bytes(file)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}, byte {error.start}: not UTF-8; convert the file") from error


def standard_input_lines() -> Iterator[str]:
    """Yields the lines of standard input, which is UTF-8, without their line ends. Raises UserError with the line."""
    stream = getattr(sys.stdin, "buffer", sys.stdin)  # in bytes: the locale's encoding may be another one
    if stream and stream.isatty():
        print("reading standard input; end with Ctrl-D on an empty line", file=sys.stderr)
    for number, line in enumerate(stream or (), 1):  # None if it is closed
        try:
            text = line if isinstance(line, str) else line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input, line {number}, byte {error.start}: not UTF-8; convert it") from error
        yield text.rstrip("\r\n")


def read_json(file: Path, kind: type = dict, remedy: str = "fetch it again") -> Any:
    """Returns the JSON object (kind=dict) or array (kind=list) in a file.

    Raises UserError if the file cannot be read, is not JSON in UTF-8 as `parse_json` expects it, or holds another kind
    of value; the sentence ends with `remedy`.
    """
    try:
        content = parse_json(read_bytes(file))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({reason(error)}): {remedy}") from error
    if not isinstance(content, kind):
        raise UserError(f"{file} does not hold a JSON {'object' if kind is dict else 'array'}: {remedy}")
    return content


def check_named(option: str, path: str) -> None:
    """Raises UserError if the path given by an option is empty, which pathlib takes for the current folder."""
    if not path.strip():
        raise UserError(f"{option}= is empty; name a path (. is the current folder)")


def local_path(option: str, path: str | Path) -> Path:
    """Returns the path given by an option, with ~ as the home directory: shells leave it in --option=~/path.

    Raises UserError if it is empty or not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"the {option.lstrip('-')} must be a path or a str, not {type(path).__name__}")
    check_named(option, os.fsdecode(path))
    return Path(os.fsdecode(path)).expanduser()


def beside(path: Path, role: str) -> Path:
    """Returns the place for what jaxlm is writing in order to complete `path`: a hidden name in the same folder.

    Only jaxlm uses such names, so whatever an interrupted command left there may be overwritten and removed.
    """
    return path.with_name(f".{path.name}.jaxlm-{role}")


def foreign_entries(directory: Path, is_own: Callable[[Path], bool]) -> list[str]:
    """Returns the names in a directory that jaxlm must not write into; none if it is new, empty or own."""
    names = sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []
    return names if names and not is_own(directory) else []


def parse_json(content: bytes | str) -> Any:
    """Returns the value of JSON, which is UTF-8 with or without a byte order mark.

    Raises ValueError if it is empty or not valid, and for what readers of JSON understand differently: a key that
    occurs twice, NaN and infinity, half of a surrogate pair, and values nested more than MAX_DEPTH deep.
    """
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    if not text.strip():
        raise ValueError("it is empty")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_not_finite)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error
    inside = [value]
    for _ in range(MAX_DEPTH):
        inside = [
            item for v in inside if isinstance(v, dict | list)
            for item in (v.values() if isinstance(v, dict) else v) if isinstance(item, dict | list)
        ]  # fmt: skip
    if inside:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if re.search(r"\\u[dD][89a-fA-F]", text):
        _require_characters(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return content


def _require_characters(value: Any) -> None:
    """Raises ValueError if a text in JSON has half of a surrogate pair, which no encoding can write."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(f"it contains {half}, half of a surrogate pair") from error


def _not_finite(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` when the body ends without an error.

    After an error, the temporary file is removed. Raises UserError if the file cannot be written.
    """
    temporary = beside(path, "tmp")
    try:
        temporary.unlink(missing_ok=True)  # a leftover may be a pipe, or a link to another file
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # otherwise a power cut may leave an empty file under the new name
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}; fix that and run the same command again") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically. Raises UserError if it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically, with the line ends of `text`. Raises UserError if it cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def sync_directory(directory: Path) -> None:
    """Flushes a directory's entries to disk, so that a rename inside it survives a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(path: Path, busy: str = "", waiting: str = "", remove: bool = False) -> Iterator[None]:
    """Holds a lock on the file `path` against other processes of this machine, until the body or the process ends.

    If another process holds it, raises UserError with the sentence `busy`; if `busy` is empty, prints the line
    `waiting`, if any, to standard error and waits. With `remove`, the lock file is removed at the end. Raises OSError
    if the file cannot be opened.
    """
    from filelock import FileLock, Timeout

    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        if busy:
            raise UserError(busy) from error
        if waiting:
            print(waiting, file=sys.stderr, flush=True)
        held.acquire()
    try:
        yield
    finally:
        if remove:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: a process that then locks the removed file notices and tries again
        held.release()
