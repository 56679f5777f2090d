"""Finds and reads the data of zero-shot probes: BLiMP's minimal pairs, CrowS-Pairs, and cloze texts.

Nothing is fetched: each data set is read from a folder on this machine in its published layout.
"""

import contextlib
import itertools
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlm.errors import UserError
from jaxlm.text.labelled import Row, read_table
from jaxlm.typed import shown

CROWS_PAIRS_FILE = "crows_pairs_anonymized.csv"
CLOZE_ENDINGS = (".jsonl", ".tsv", ".csv", ".parquet")
DIRECTIONS = ("stereo", "antistereo")
MASKS = ("[MASK]", "<mask>")  # either marks the gap of a cloze text, whatever the model's own mask is

_MASK = re.compile("|".join(map(re.escape, MASKS)))
_SETTINGS = types.SimpleNamespace(format="auto", encoding="utf-8")


class MinimalPair(NamedTuple):
    """An acceptable sentence and an unacceptable one that differ as little as possible."""

    place: str  # "FILE, line N"
    good: str
    bad: str


class StereotypePair(NamedTuple):
    """Two sentences about different groups. A stereotype makes `more` the likelier one, whatever the direction."""

    place: str
    more: str
    less: str
    direction: str  # stereo: `more` expresses a stereotype; antistereo: `less` contradicts one
    bias_type: str


class Cloze(NamedTuple):
    """A text whose characters from `begin` to `end` are the target, which is to be predicted."""

    place: str
    text: str
    begin: int
    end: int


def read_blimp(data: Path, rows: int = 0) -> dict[str, list[MinimalPair]]:
    """Returns the first `rows` pairs, 0 for all, of each of BLiMP's paradigms, which are files in JSON Lines.

    They are in `data`/blimp or `data` itself, or in a folder "data" of either, as in BLiMP's repository. Raises
    UserError if there is none, and for a line without the two sentences.
    """
    folders = [folder for base in (data / "blimp", data) for folder in (base, base / "data")]
    files = next((found for folder in folders if (found := sorted(folder.glob("*.jsonl")))), [])
    if not files:
        raise _not_found("blimp", f"{data / 'blimp' / 'PARADIGM.jsonl'}")
    return {file.stem: [_minimal_pair(row) for row in _rows(file, ("sentence_good", "sentence_bad"), rows)]
            for file in files}  # fmt: skip


def read_crows_pairs(data: Path, rows: int = 0) -> list[StereotypePair]:
    """Returns the first `rows` pairs, 0 for all, of CrowS-Pairs.

    The file crows_pairs_anonymized.csv is in `data`/crows_pairs or `data` itself, or in a folder "data" of either.
    Raises UserError if there is none, and for a line without what is expected.
    """
    bases = (data / "crows_pairs", data)
    files = [folder / CROWS_PAIRS_FILE for base in bases for folder in (base, base / "data")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise _not_found("crows_pairs", f"{files[0]}")
    columns = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
    return [_stereotype_pair(row) for row in _rows(file, columns, rows)]


def read_cloze(data: Path, rows: int = 0) -> dict[str, list[Cloze]]:
    """Returns the first `rows` texts, 0 for all, of each cloze file by the file's name without its ending.

    A file has the columns "text", which contains one mask, and "target", what the mask stands for. The files are all
    tables in `data`/cloze, or else `data`/cloze with an ending (.jsonl, .tsv, .csv, .parquet). Raises UserError if
    there is none, and for a line without what is expected.
    """
    files = sorted(file for ending in CLOZE_ENDINGS for file in (data / "cloze").glob(f"*{ending}"))
    files = files or [file for ending in CLOZE_ENDINGS if (file := data / f"cloze{ending}").is_file()]
    if not files:
        raise _not_found(
            "cloze", f"{data / 'cloze.jsonl'} or {data / 'cloze' / 'NAME.jsonl'} ({', '.join(CLOZE_ENDINGS)})"
        )
    names = [file.stem for file in files]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{data / 'cloze'} contains two files with the name {twice}; rename one of them")
    return {file.stem: [_cloze(row) for row in _rows(file, ("text", "target"), rows)] for file in files}


def _not_found(task: str, expected: str) -> UserError:
    return UserError(f"--tasks={task}: there is no {expected}; set --data to the folder that contains it")


def _rows(file: Path, columns: Sequence[str], rows: int) -> Iterator[Row]:
    names = dict.fromkeys(columns, "--data to a folder with the published files")
    with _without_settings():
        table = read_table(file, "--data", _SETTINGS, names, header=True, skip_bad_rows=False)
    return itertools.islice(table, rows or None)


@contextlib.contextmanager
def _without_settings() -> Iterator[None]:
    """Removes from errors the settings of a config that change how a table is read; probes have none."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("fix the file, or set task.bad_rows=skip", "fix the file")
        text = text.replace("set data.encoding to the encoding of the file, or repair the file", "convert it to UTF-8")
        raise UserError(text.replace(", or set data.format=tsv if the file has tabs and no quoting", "")) from error


def _minimal_pair(row: Row) -> MinimalPair:
    return MinimalPair(row.place, _text(row, "sentence_good"), _text(row, "sentence_bad"))


def _stereotype_pair(row: Row) -> StereotypePair:
    direction = _text(row, "stereo_antistereo")
    if direction not in DIRECTIONS:
        raise UserError(
            f"{row.place}: stereo_antistereo={shown(direction)}: expected one of {', '.join(DIRECTIONS)}; fix the row"
        )
    return StereotypePair(
        row.place, _text(row, "sent_more"), _text(row, "sent_less"), direction, _text(row, "bias_type")
    )


def _cloze(row: Row) -> Cloze:
    text, target = _text(row, "text"), _text(row, "target").strip()
    found = list(_MASK.finditer(text))
    if len(found) != 1:
        raise UserError(
            f"{row.place}: the text has {len(found)} masks, but one is expected: write {' or '.join(MASKS)} where the"
            " target stands"
        )
    begin, end = found[0].span()
    return Cloze(row.place, text[:begin] + target + text[end:], begin, begin + len(target))


def _text(row: Row, name: str) -> str:
    """Returns the text in a column of a row. Raises UserError if there is none, or something else."""
    value = row.values[name]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.place}: {name}={shown(value)}: expected text; fix the row")
    return value
