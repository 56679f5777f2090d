"""Files of records to texts, one for each record and in order: text, JSON Lines, CSV, TSV, Parquet.

Training drops what is empty and joins what belongs together (`sources.py`); here record i gives text i, "" where it is
empty, so that what is computed of the texts can be put beside the records.
"""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.formats import format_of, jsonl, lines, no_field, parquet, rows, text_blocks
from jaxlm.text.sources import Tally, drop_control_characters, find_files

FORMATS = ("text", "jsonl", "csv", "tsv", "parquet")


class RecordSettings(NamedTuple):
    """How files are read."""

    format: str = "auto"  # by the ending of the name, or one of FORMATS
    field: str = "text"  # of JSON Lines, Parquet, and the header line of CSV and TSV
    encoding: str = "utf-8"


def read_records(path: str, settings: RecordSettings, tally: Tally) -> Iterator[str]:
    """Yields the text of each record of a file, folder or glob.

    A line of a text file is a record, an empty line too. Control characters are dropped and counted in `tally`. Raises
    UserError, naming the line, where a file is not what its format says.
    """
    data = SimpleNamespace(**settings._asdict())
    try:
        for file in find_files(path, data):
            for text in _texts(file, data, tally):
                tally.documents += 1
                yield drop_control_characters(text, tally)
    except UserError as error:  # which speaks of the settings of a run
        raise UserError(re.sub(r"(--config\.)?\bdata\.(format|field|encoding)\b", r"--\2", str(error))) from error


def _texts(file: File, data: SimpleNamespace, tally: Tally) -> Iterator[str]:
    kind = format_of(file, data)
    if kind == "text":
        return lines(text_blocks(file, data.encoding))
    if kind == "jsonl":
        return jsonl(file, data)
    if kind == "parquet":
        return parquet(file, data)
    return _cells(file, kind, data)


def _cells(file: File, kind: str, data: SimpleNamespace) -> Iterator[str]:
    table = rows(file, kind, data.encoding)
    _, header = next(table, (1, []))
    if data.field not in header:
        raise no_field(data.field, header, f"{file}, line 1")
    column = header.index(data.field)
    for line, row in table:
        if len(row) != len(header):
            raise UserError(
                f"{file}, line {line}: {len(row)} fields, where the header has {len(header)}; mend the line, as every"
                " record must give a text"
            )
        yield row[column]
