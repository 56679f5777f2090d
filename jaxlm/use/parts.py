"""An output file, and the parts of it that a stopped command has completed, in a hidden folder beside it."""

import json
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.storage import local_path, parse_json, read_json, write_text
from jaxlm.text.files import File

RECORD = "parts.jsonl"  # a line for each part


def output_path(name: str, endings: Collection[str]) -> Path:
    """Returns the path that --output names. Raises UserError for another ending, and a folder that does not exist."""
    output = local_path("--output", name)
    if output.suffix not in endings:
        raise UserError(f"--output={output}: the name must end in {', '.join(endings)}, which sets the format")
    if output.is_dir() or not output.parent.is_dir():
        problem = "it is a folder" if output.is_dir() else f"the folder {output.parent} does not exist"
        raise UserError(f"--output={output}: {problem}; set a file in an existing folder")
    return output


def check_not_read(output: Path, path: str, files: Iterable[File]) -> None:
    """Raises UserError if an existing output is one of the files of --input=`path`, under whatever name."""
    for file in files if output.exists() else ():
        if isinstance(file, Path) and output.samefile(file):
            named = "the input" if str(file) == path else f"{file}, one of the files of --input={path}"
            raise UserError(f"--output={output} is {named}; set another file")


def check_replaceable(output: Path, directory: Path, is_own: Callable[[Path], bool], content: str) -> None:
    """Raises UserError if an existing output is a file of a model's directory, or not one that `is_own` recognises.

    `content` says what such a file contains.
    """
    if output.exists() and output.resolve().is_relative_to(directory.resolve()):
        raise UserError(f"--output={output} is a file of the model's directory; set another file")
    if output.exists() and not (output.is_file() and (output.stat().st_size == 0 or is_own(output))):
        raise UserError(f"--output={output} exists and does not contain {content}; set another file")


def check_identity(folder: Path, identity: dict[str, Any], has_parts: bool) -> None:
    """Raises UserError if existing parts have another identity; writes the identity if there are no parts yet."""
    file = folder / "settings.json"
    if not has_parts:
        write_text(file, json.dumps(identity, indent=1) + "\n")
        return
    found = read_json(file, remedy=f"remove {folder} to start again")
    if found != identity:
        other = ", ".join(name for name in identity if found.get(name) != identity[name])
        raise UserError(
            f"{folder} contains parts of an interrupted run with different settings: {other}; remove it to start again,"
            " or set another --output"
        )


def finished_parts(folder: Path, is_whole: Callable[[int, dict[str, int]], bool]) -> list[dict[str, int]]:
    """Returns the records of the complete parts, from the first to the last before a missing or damaged one.

    `is_whole` is called with the number of a part and its record.
    """
    found: list[dict[str, int]] = []
    record = folder / RECORD
    for line in record.read_bytes().splitlines() if record.is_file() else ():
        try:
            part = parse_json(line)
            whole = is_whole(len(found), part)
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            break
        found.append(part)
    write_text(record, "".join(json.dumps(part) + "\n" for part in found))
    return found


def append_part(folder: Path, part: dict[str, int]) -> None:
    """Adds the record of a part that has been written."""
    with open(folder / RECORD, "a") as file:
        file.write(json.dumps(part) + "\n")


def show_rate(what: str, count: int, rate: float, total: int = 0) -> None:
    """Shows progress on a terminal; `total` is 0 if it is not known."""
    if sys.stderr.isatty():
        of = f" of {total:,}" if total else ""
        print(f"\r{count:,}{of} {what}, {rate:,.0f} {what}/s \x1b[K", end="", file=sys.stderr, flush=True)


def clear_line() -> None:
    """Removes what `show_rate` has shown."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
