"""From the bytes of a file to its text and its records: compressions, encodings, JSON Lines, CSV, TSV, Parquet.

Everything is read in blocks, so memory stays bounded whatever the size of a file, and of a line in a text file. A
record of the other formats is read whole.
"""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm.errors import UserError
from jaxlm.storage import reason
from jaxlm.text.files import File, open_file

ENDINGS = {
    ".txt": "text", ".text": "text", ".md": "text", ".rst": "text", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
COMPRESSIONS = (".gz", ".zst")
BLOCK_BYTES = 2**20


def byte_blocks(file: File) -> Iterator[bytes]:
    """Yields the bytes of a file, decompressed. Raises UserError where it cannot be read or is cut short."""
    try:
        with open_file(file) as stream:
            if file.name.lower().endswith(".zst"):
                yield from _zstandard_blocks(stream)
            elif file.name.lower().endswith(".gz"):
                with gzip.GzipFile(fileobj=stream) as unzipped:
                    while block := unzipped.read(BLOCK_BYTES):
                        yield block
            else:
                while block := stream.read(BLOCK_BYTES):
                    yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file} is cut short or damaged ({error}); fetch or compress it again") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from error


def _zstandard_blocks(stream: BinaryIO) -> Iterator[bytes]:
    import zstandard

    # Small pieces bound what one call can give. zstandard's own stream reader would too, but takes a file that is cut
    # short for a whole one.
    frame = None
    try:
        while data := stream.read(1024):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if block := frame.decompress(data):
                    yield block
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise EOFError(error) from error
    if frame:
        raise EOFError("it ends inside a zstd frame")


def text_blocks(file: File, encoding: str) -> Iterator[str]:
    """Yields the decoded file with "\\n" for every line end and without a byte order mark. Raises UserError."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as error:
        raise UserError(
            f"data.encoding={encoding}: Python has no such text encoding; utf-8 is the usual one"
        ) from error
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, line, begun = 0, 1, False
    for data in itertools.chain(byte_blocks(file), [b""]):
        state = decoder.getstate()
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            start = error.start - len(state[0])  # in this block; the decoder held the last bytes of the one before
            decoder.setstate(state)
            line += newlines.decode(decoder.decode(data[: max(0, start)]), final=True).count("\n")
            raise UserError(
                f"{file}, line {line}, byte {offset + start}: 0x{error.object[error.start]:02x} is no {encoding}; "
                "set data.encoding to what the file is in, or mend it"
            ) from error
        offset += len(data)
        text = newlines.decode(text, final=not data)
        if text and not begun:
            begun = True
            text = text.removeprefix("\ufeff")
        line += text.count("\n")
        if text:
            yield text


def lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a text that comes in blocks, without their ends."""
    held: list[str] = []
    for block in blocks:
        first, *others = block.split("\n")
        held.append(first)
        for line in others:
            yield "".join(held)
            held = [line]
    if any(held):
        yield "".join(held)


# Formats


def ending(file: File) -> str:
    """Returns the ending of a file's name in lower case, without that of a compression."""
    name = file.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]


def format_of(file: File, settings: Any) -> str:
    """Returns data.format, or what the file's name tells; raises UserError where it tells nothing."""
    if settings.format != "auto":
        return settings.format
    if ending(file) not in ENDINGS:
        raise UserError(
            f"{file}: the ending of its name tells no format ({', '.join(ENDINGS)}, with .gz or .zst); set it, as in "
            "--config.data.format=text (or jsonl, csv, tsv, parquet)"
        )
    return ENDINGS[ending(file)]


RowProblem = Callable[[str, int, int], None]  # (place of the row, its fields, fields of the header)


def record_texts(file: File, kind: str, settings: Any, on_bad_row: RowProblem) -> Iterator[str]:
    """Yields the text of each record of a JSON Lines, CSV, TSV or Parquet file.

    `on_bad_row` is called for each row of CSV and TSV whose number of fields is not the header's.
    """
    if kind == "jsonl":
        return _jsonl(file, settings)
    if kind == "parquet":
        return _parquet(file, settings)
    return _table(file, kind, settings, on_bad_row)


def _jsonl(file: File, settings: Any) -> Iterator[str]:
    """Yields the text of each object of a JSON Lines file. Raises UserError that names the line."""
    for number, line in enumerate(lines(text_blocks(file, settings.encoding)), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            record = json.loads(line, strict=False)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{place}: no valid JSON ({error}); JSON Lines has one whole object on each line"
            ) from error
        if not isinstance(record, dict):
            raise UserError(f'{place}: JSON Lines has an object on each line, such as {{"{settings.field}": "..."}}')
        yield text_of(record, settings.field, place)


def text_of(record: dict, name: str, place: str) -> str:
    """Returns the field `name` of a record, "" where it is null; `place` is for errors."""
    if name not in record:
        raise no_field(name, record, place)
    value = record[name]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: the field {name} holds {type(value).__name__}, not text; name another by data.field")
    return value or ""


def no_field(name: str, names: Iterable[str], place: str) -> UserError:
    """Returns the error that there is no such field among `names`."""
    shown = ", ".join(str(other)[:40] for other in itertools.islice(names, 30))
    return UserError(
        f"{place}: there is no field {name}; the fields are {shown}: name the one with the text by data.field"
    )


def _rows(file: File, kind: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of its first line, fields) for each row that is not empty."""
    found = lines(text_blocks(file, encoding))
    if kind == "tsv":
        yield from ((number, line.split("\t")) for number, line in enumerate(found, 1) if line)
        return
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line + "\n" for line in found), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{file}, line {line}: no valid CSV row ({error}); a file without quoting is data.format=tsv"
        ) from error


def _table(file: File, kind: str, settings: Any, on_bad_row: RowProblem) -> Iterator[str]:
    table = _rows(file, kind, settings.encoding)
    _, header = next(table, (1, []))
    if settings.field not in header:
        raise no_field(settings.field, header, f"{file}, line 1")
    column = header.index(settings.field)
    for line, row in table:
        if len(row) != len(header):
            on_bad_row(f"{file}, line {line}", len(row), len(header))
        else:
            yield row[column]


def _parquet(file: File, settings: Any) -> Iterator[str]:
    """Yields the text of each row of a Parquet file. Raises UserError that names the row."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with contextlib.ExitStack() as stack:
        source: Any = str(file) if isinstance(file, Path) else stack.enter_context(open_file(file))
        if file.name.lower().endswith(COMPRESSIONS):  # Parquet is read from its end
            source = stack.enter_context(tempfile.TemporaryFile())
            for block in byte_blocks(file):
                source.write(block)
        row = 0
        try:
            table = stack.enter_context(ParquetFile(source))
            if settings.field not in table.schema_arrow.names:
                raise no_field(settings.field, table.schema_arrow.names, str(file))
            for batch in table.iter_batches(batch_size=256, columns=[settings.field]):
                for value in batch.column(0):
                    yield text_of({settings.field: value.as_py()}, settings.field, f"{file}, row {row}")
                    row += 1
        except UnicodeDecodeError as error:
            raise UserError(f"{file}, row {row}: the field {settings.field} is no valid UTF-8 ({error})") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file} is no whole Parquet file ({' '.join(str(error).split())})") from error
