"""Reads one text per record of a file, in order: text files (a line is a record), JSON Lines, CSV, TSV, Parquet.

`sources.py`, which reads for training, drops empty documents and rows with the wrong number of fields. Here nothing is
dropped, and the text of an empty record is "", so that results can be matched with their records.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxlm.errors import UserError
from jaxlm.text.files import File
from jaxlm.text.filters import Tally, drop_control_characters
from jaxlm.text.formats import format_of, lines, record_texts, text_blocks
from jaxlm.text.sources import find_files

FORMATS = ("text", "jsonl", "csv", "tsv", "parquet")


class RecordSettings(NamedTuple):
    """How to read files of records: the settings of a config's `data` section that apply to them."""

    format: str = "auto"  # one of FORMATS, or "auto" for the format that the file name implies
    field: str = "text"  # the field or column that holds the text; not used for text files
    encoding: str = "utf-8"


def read_records(path: str, settings: RecordSettings, tally: Tally) -> Iterator[str]:
    """Yields the text of each record of a file, folder or glob, without control characters.

    Counts records and dropped control characters in `tally`. Raises UserError, with the line, if a file is not in its
    format.
    """
    with _options_in_errors():
        for file in find_files(path, settings):
            for text in _texts(file, settings):
                tally.documents += 1
                yield drop_control_characters(text, tally)


def check_options(path: str, settings: RecordSettings) -> None:
    """Raises UserError if there is no file, if the format of one is unknown, or for an option without effect.

    The field has no effect on text files, the encoding none on Parquet files.
    """
    with _options_in_errors():
        kinds = {format_of(file, settings) for file in find_files(path, settings)}
    defaults = RecordSettings()
    for option, kind in (("field", "text"), ("encoding", "parquet")):
        value = getattr(settings, option)
        if value != getattr(defaults, option) and kinds == {kind}:
            raise UserError(f"--{option}={value} has no effect on {kind} files, as {path} is: remove it")


@contextlib.contextmanager
def _options_in_errors() -> Iterator[None]:
    """Makes errors name the options that commands which read records have in place of settings."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"(--config\.)?\bdata\.(format|field|encoding)\b", r"--\2", str(error))) from error


def _texts(file: File, settings: RecordSettings) -> Iterator[str]:
    kind = format_of(file, settings)
    if kind == "text":
        return lines(text_blocks(file, settings.encoding))
    return record_texts(file, kind, settings, _reject_row)


def _reject_row(place: str, fields: int, expected: int) -> None:
    raise UserError(f"{place}: the row has {fields} fields, but the header has {expected}; fix the row")
