"""Files of records to texts, one for each record and in order: text, JSON Lines, CSV, TSV, Parquet.

Training drops what is empty and joins what belongs together (`sources.py`); here record i gives text i, "" where it is
empty, so that what is computed of the texts can be put beside the records.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.formats import format_of, lines, record_texts, text_blocks
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
    try:
        for file in find_files(path, settings):
            for text in _texts(file, settings):
                tally.documents += 1
                yield drop_control_characters(text, tally)
    except UserError as error:  # which speaks of the settings of a run
        raise UserError(re.sub(r"(--config\.)?\bdata\.(format|field|encoding)\b", r"--\2", str(error))) from error


def _texts(file: File, settings: RecordSettings) -> Iterator[str]:
    kind = format_of(file, settings)
    if kind == "text":
        return lines(text_blocks(file, settings.encoding))
    return record_texts(file, kind, settings, _refuse_row)


def _refuse_row(place: str, found: int, expected: int) -> None:
    raise UserError(
        f"{place}: {found} fields, where the header has {expected}; mend the line, as every record must give a text"
    )
