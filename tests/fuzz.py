"""Damaged and nonsensical input for the verbs, drawn from numbers so that each case can be repeated.

A case takes one file of a working set-up, damages it, and runs a verb in this process. The verb must succeed or print
one sentence; an unexpected exception or a run without an end is a fault.
"""

import contextlib
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm import cli

SECONDS = 60  # after which a verb counts as hanging

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 10**30, 1e30, -0.5, 1e-12, "", "1e-12", "x" * 5000, "a\0b", "\ud800", "gelu",
    [], [1], ["a"], [[]], {}, {"a": 1}, {"content": 3}, [None], [{"type": 3}],
]  # fmt: skip


class Outcome(NamedTuple):
    """How a verb ended: "accepted", "refused", "unexpected" or "hang", and what it printed."""

    kind: str
    text: str


def run_verb(argv: list[str], standard_input: str = "") -> Outcome:
    """Runs `jaxlm ARGV...` in this process."""
    output, errors = io.StringIO(), io.StringIO()

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    original, cli.sys.stdin = cli.sys.stdin, io.StringIO(standard_input)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = cli.main(["--debug", *argv])
    except TimeoutError:
        return Outcome("hang", "")
    except BaseException as error:
        return Outcome("unexpected", f"{type(error).__name__}: {str(error)[:300]}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        cli.sys.stdin = original
    return Outcome("refused" if status else "accepted", errors.getvalue() if status else output.getvalue())


# Damage to a file


def damage_json(content: bytes, where: int, what: int) -> bytes:
    """Returns JSON in which one value, chosen by `where`, is replaced by another, removed or repeated."""
    whole = json.loads(content)
    places = list(_places(whole))
    if not places:
        return content
    container, key = places[where % len(places)]
    what %= len(VALUES) + 2
    if what < len(VALUES):
        container[key] = VALUES[what]
    elif what == len(VALUES):
        del container[key]
    else:
        text = json.dumps(container[key])
        container[key] = "REPLACED"
        return json.dumps(whole).replace('"REPLACED"', f'{text}, "repeated": NaN', 1).encode()
    return json.dumps(whole).encode()


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) of the values in JSON; of long containers, the first and the last few."""
    if not isinstance(value, dict | list) or depth > 6:
        return
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys if len(keys) <= 40 else keys[:4] + keys[-4:]:
        yield value, key
        yield from _places(value[key], depth + 1)


def cut(content: bytes, where: int, what: int) -> bytes:
    return content[: where % (len(content) + 1)]


def flip(content: bytes, where: int, what: int) -> bytes:
    """Returns the content with one bit flipped; half of the bits are among the first 200 bytes."""
    if not content:
        return b"x"
    position = (where // 2) % (min(200, len(content)) if where % 2 else len(content))
    return content[:position] + bytes([content[position] ^ (1 << what % 8)]) + content[position + 1 :]


_WHOLE: list[Callable[[bytes], bytes]] = [
    lambda content: b"",
    lambda content: b"\0" * 64,
    lambda content: b"[" * 100_000,
    lambda content: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    lambda content: b"\xef\xbb\xbf" + content,
    lambda content: content.replace(b"\n", b"\r"),
    lambda content: content.decode("utf-8", "replace").encode("utf-16"),
    lambda content: b"\xff\xfe" + content,
    lambda content: b"null",
    lambda content: b"[]",
    lambda content: b"{}",
    lambda content: b"[1, 2]",
    lambda content: b'"text"',
    lambda content: content + content,
    lambda content: b"1" * 5000,
    lambda content: content[::-1],
]


def replace_all(content: bytes, where: int, what: int) -> bytes:
    return _WHOLE[where % len(_WHOLE)](content)


def damage_lines(content: bytes, where: int, what: int) -> bytes:
    """Returns JSON Lines in which one line is damaged like JSON."""
    lines = content.splitlines(keepends=True)
    number = where % len(lines)
    lines[number] = damage_json(lines[number], where // len(lines), what) + b"\n"
    return b"".join(lines)


DAMAGE: dict[str, Callable[[bytes, int, int], bytes]] = {
    "value": damage_json, "line": damage_lines, "cut": cut, "flip": flip, "whole": replace_all,
}  # fmt: skip


def kinds_for(name: str) -> list[str]:
    """Returns the kinds of damage that suit a file; "place" puts something else in place of the file."""
    special = ["value"] * 4 if name.endswith(".json") else ["line"] * 2 if name.endswith(".jsonl") else []
    return [*special, "cut", "flip", "whole", "place"]


@contextlib.contextmanager
def damaged(file: Path, kind: str, where: int, what: int) -> Iterator[None]:
    """Damages a file inside the body, and restores it afterwards."""
    content = file.read_bytes()
    try:
        if kind == "place":
            _put_in_place(file, where)
        else:
            file.write_bytes(DAMAGE[kind](content, where, what))
        yield
    finally:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
        file.write_bytes(content)


def _put_in_place(file: Path, where: int) -> None:
    file.unlink()
    choice = where % 5
    if choice == 0:
        file.mkdir()
    elif choice == 1:
        os.mkfifo(file)
    elif choice == 2:
        file.symlink_to(file.name)
    elif choice == 3:
        file.symlink_to("/dev/full" if Path("/dev/full").exists() else os.devnull)
    # else: the file is missing


# Arguments

NUMBERS = ("0", "-1", "1", "nan", "inf", "1e9", "1e30", "1" * 400, "", "x", "1.5", "true", "[]", "\u0663")
TEXTS = ("", "a" * 5000, "a\0b", "\udcff", "base64", "zlib", "undefined", "../..", "/dev/null", "-", "\u202e", "{}")
