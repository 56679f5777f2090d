"""Reads the rows of labelled files: TSV, CSV, JSON Lines and Parquet, and TFDS.

A row keeps its place in its file, so that every error names it, and predictions can be written in the same order.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.text.formats import COMPRESSIONS, ending, json_records, parquet_records, table_rows

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
MOST_LINES = 5  # that a message names
_log = logging.getLogger("jaxlm")


class Row(NamedTuple):
    """One row of a labelled file."""

    place: str  # "FILE, line N", for messages
    values: Mapping[str, Any]  # by the name of the column, or its number from 0 if the file has no header


def read_table(path: Path, setting: str, header: bool, columns: Sequence[str], skip_bad_rows: bool) -> list[Row]:
    """Returns the rows of a table.

    `setting` names where the path comes from, and `columns` are those that must be there. Quoting is off in TSV. Raises
    UserError for a missing file, an unknown format, a missing column, and, unless `skip_bad_rows`, rows that have
    another number of columns than the header.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: set {setting} to the file with the examples")
    kind = FORMATS.get(ending(path))
    if kind is None:
        ends = ", ".join(FORMATS)
        raise UserError(f"{path}: rows are read from files that end in {ends}, with or without {', '.join(COMPRESSIONS)}")
    rows = list(_table(path, kind, header, skip_bad_rows) if kind in ("tsv", "csv") else _records(path, kind, columns))
    if not rows:
        raise UserError(f"{path} contains no rows; set {setting} to the file with the examples")
    for name in columns:
        if name not in rows[0].values:
            names = ", ".join(str(column)[:40] for column in rows[0].values)
            raise UserError(f"{path}: there is no column {name}; the columns are {names}: set task.text and task.label")
    return rows


def _records(path: Path, kind: str, columns: Sequence[str]) -> Iterator[Row]:
    found = parquet_records(path) if kind == "parquet" else json_records(path, "utf-8", columns[0])
    for place, values in found:
        for name in columns:
            if name not in values:
                names = ", ".join(str(column)[:40] for column in values)
                raise UserError(f"{place}: there is no column {name}; the columns are {names}: set task.text and task.label")
        yield Row(place, values)


def _table(path: Path, kind: str, header: bool, skip_bad_rows: bool) -> Iterator[Row]:
    table = table_rows(path, kind, "utf-8")
    names: list[str] = []
    if header:
        _, names = next(table, (1, []))
    bad: list[int] = []
    for number, row in table:
        names = names or [str(column) for column in range(len(row))]
        if len(row) != len(names):
            bad.append(number)
        else:
            yield Row(f"{path}, line {number}", dict(zip(names, row, strict=True)))
    if bad:
        lines = ", ".join(map(str, bad[:MOST_LINES])) + (", ..." if len(bad) > MOST_LINES else "")
        text = f"{path}: {len(bad):,} rows do not have {len(names)} columns (line {lines})"
        if not skip_bad_rows:
            raise UserError(f"{text}; fix them, or set task.bad_rows=skip")
        _log.warning("%s and are skipped", text)


def text_in(row: Row, name: str) -> str:
    """Returns the text in a column of a row; "" if it is null. Raises UserError if it holds something else."""
    value = row.values[name]
    if value is None:
        return ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{row.place}: the column {name} contains {type(value).__name__}, not text; set task.text")
