"""Reads the rows of labelled files: TSV, CSV, JSON Lines and Parquet, and TFDS.

A row keeps its place in its file, so that every error names it, and predictions can be written in the same order.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.formats import format_of, json_records, parquet_records, table_rows
from jaxlm.text.tfds import tfds_records
from jaxlm.typed import counted, listed, shown

FORMATS = ("tsv", "csv", "jsonl", "parquet")
MOST_LINES = 5  # that a message names
_log = logging.getLogger("jaxlm")


class Row(NamedTuple):
    """One row of a labelled file."""

    place: str  # "FILE, line N", for messages
    values: Mapping[str, Any]  # by the name of the column, or its number from 0 if the file has no header


def read_table(
    path: File, setting: str, settings: Any, columns: Mapping[str, str], header: bool, skip_bad_rows: bool
) -> list[Row]:
    """Returns the rows of a table.

    `setting` names where the path comes from; `settings` has `format` and `encoding`, as section `data` of a config;
    `columns` are those that must be there, with the setting that names each. Quoting is off in TSV. Raises UserError
    for what is no file, another format, a missing column, and, unless `skip_bad_rows`, rows that have another number of
    columns than the header.
    """
    if is_tfds(path):
        return [Row(place, _checked(values, columns, place)) for place, values in tfds_records(str(path))]
    check_file(path, setting)
    kind = format_of(path, settings)
    if kind not in FORMATS:
        raise UserError(
            f"{path} has the format {kind}, but examples are read from {', '.join(FORMATS)}; set data.format to one of "
            "these if the file has it, or convert the file"
        )
    if kind in ("tsv", "csv"):
        rows = list(_table(path, kind, settings.encoding, columns, header, skip_bad_rows))
    else:
        found = (
            parquet_records(path) if kind == "parquet" else json_records(path, settings.encoding, next(iter(columns)))
        )
        rows = [Row(place, _checked(values, columns, place)) for place, values in found]
    if not rows:
        raise UserError(f"{path} contains no rows; set {setting} to the file with the examples")
    return rows


def is_tfds(path: str | File) -> bool:
    """Returns whether a path is tfds:NAME[/CONFIG][:VERSION][:SPLIT], a prepared data set of TensorFlow Datasets."""
    return str(path).startswith("tfds:")


def check_file(path: File, setting: str) -> None:
    """Raises UserError unless a path is that of a file; `setting` names where the path comes from.

    A file in an object store has been found there, so it is not looked for again.
    """
    if isinstance(path, Path) and not os.path.isfile(path):
        wrong = "is a folder, a pipe or a device" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {wrong}: set {setting} to the file with the examples")


def _checked(values: Mapping[str, Any], columns: Mapping[str, str], place: str) -> Mapping[str, Any]:
    """Returns the values of a row. Raises UserError if it lacks a column."""
    for name, setting in columns.items():
        if name not in values:
            raise UserError(f"{place}: there is no column {name}; the columns are {listed(values)}: set {setting}")
    return values


def _table(
    path: File, kind: str, encoding: str, columns: Mapping[str, str], header: bool, skip_bad_rows: bool
) -> Iterator[Row]:
    names: list[str] = []
    bad: list[int] = []
    for number, row in table_rows(path, kind, encoding):
        if not names:
            names = row if header else [str(column) for column in range(len(row))]
            for name in columns:
                if names.count(name) > 1:
                    raise UserError(f"{path}, line {number}: two columns have the name {name}; rename one of them")
            _checked(dict.fromkeys(names), columns, f"{path}, line {number}")
            if header:
                continue
        if len(row) != len(names):
            bad.append(number)
        else:
            yield Row(f"{path}, line {number}", dict(zip(names, row, strict=True)))
    if bad:
        text = (
            f"{path}: {counted(len(bad), 'row does', 'rows do')} not have"
            f" {counted(len(names), 'column', 'columns')} ({lines_of(bad)})"
        )
        if not skip_bad_rows:
            raise UserError(f"{text}; fix the file, or set task.bad_rows=skip")
        _log.warning("%s: skipped", text)


def lines_of(numbers: Sequence[int]) -> str:
    """Returns the numbers of lines for a message, such as "line 3" and "lines 3, 4": the first MOST_LINES."""
    more = ", ..." if len(numbers) > MOST_LINES else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:MOST_LINES]))}{more}"


def text_in(row: Row, name: str, setting: str = "task.text") -> str:
    """Returns the text in a column of a row; "" if it is null. Raises UserError if it holds something else.

    `setting` names the column.
    """
    value = "" if row.values[name] is None else row.values[name]
    if not isinstance(value, str):
        raise UserError(f"{row.place}: {name}={shown(value)}: expected text; set {setting} to a column with text")
    return value


def without_bad_rows(path: File, rows: Sequence[Row], wrong: Callable[[Row], str], skip_bad_rows: bool) -> list[Row]:
    """Returns the valid rows: those for which `wrong`, which describes the error in a row, returns "".

    With `skip_bad_rows`, the others are left out, and a warning counts them. Raises UserError for the first invalid row
    otherwise, and if no row is valid.
    """
    reasons = [wrong(row) for row in rows]
    bad = [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
    if bad and not skip_bad_rows:
        row, reason = bad[0]
        more = f" ({len(bad):,} rows have such an error)" if len(bad) > 1 else ""
        raise UserError(f"{row.place}: {reason}{more}; fix the file, or set task.bad_rows=skip")
    if len(bad) == len(rows):
        raise UserError(f"{path}: no row can be used; the first is {bad[0][0].place}: {bad[0][1]}")
    if bad:
        skipped = counted(len(bad), "row is", "rows are")
        _log.warning("%s skipped; the first is %s: %s", skipped, bad[0][0].place, bad[0][1])
    return [row for row, reason in zip(rows, reasons, strict=True) if not reason]


def label_in(row: Row, name: str) -> str | None:
    """Returns the label in a column of a row, without spaces around it; None if it is missing, null or empty.

    Whole numbers, true and false are labels as JSON spells them. Raises UserError for another value.
    """
    value = "" if row.values.get(name) is None else row.values[name]
    if not isinstance(value, str | int):
        raise UserError(
            f"{row.place}: {name}={shown(value)}: expected text, a whole number, true or false; fix the label, or set "
            "task.label to the column with the label"
        )
    label = value if isinstance(value, str) else json.dumps(value)
    if any("\ud800" <= character <= "\udfff" for character in label):
        raise UserError(f"{row.place}: {name}={label!a} contains half of a surrogate pair; fix the label")
    return label.strip() or None
