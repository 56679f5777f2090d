"""Reads the text in a file: decompression, decoding, and the formats JSON Lines, CSV, TSV and Parquet.

Files are read in blocks, so memory stays bounded for files of any size, and for text files with lines of any length. A
record of any other format is held in memory as a whole.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
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

# Called with the location of a row ("FILE, line N"), its number of fields, and the header's.
OnBadRow = Callable[[str, int, int], None]


# Bytes and characters


def byte_blocks(file: File) -> Iterator[bytes]:
    """Yields the content of a file in blocks, decompressed. Raises UserError if it cannot be read or is truncated."""
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
        raise UserError(f"{file} is truncated or damaged ({error}); fetch or compress it again") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from error


def _zstandard_blocks(stream: BinaryIO) -> Iterator[bytes]:
    import zstandard

    # Small pieces of input bound the output of one call. zstandard's own stream reader would do so too, but it reports
    # no error for a truncated file.
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
    """Yields the decoded text of a file in blocks, with "\\n" for every line end and without a byte order mark.

    Raises UserError for an unknown encoding, and for bytes that cannot be decoded, with their line and position.
    """
    if not _is_text_encoding(encoding):
        raise UserError(
            f"data.encoding={encoding[:60]}: Python has no text encoding of this name; most files are in utf-8"
        )
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, line, begun = 0, 1, False
    for data in itertools.chain(byte_blocks(file), [b""]):
        state = decoder.getstate()
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeError as error:
            if not isinstance(error, UnicodeDecodeError):  # such as idna, whose errors have no position
                raise UserError(f"{file} is not valid {encoding} ({reason(error)}); set data.encoding") from error
            start = error.start - len(state[0])  # relative to this block: the decoder kept bytes of the previous one
            decoder.setstate(state)
            line += newlines.decode(decoder.decode(data[: max(0, start)]), final=True).count("\n")
            raise UserError(
                f"{file}, line {line}, byte {offset + start}: 0x{error.object[error.start]:02x} is not valid "
                f"{encoding}; set data.encoding to the encoding of the file, or repair the file"
            ) from error
        offset += len(data)
        text = newlines.decode(text, final=not data)
        if text and not begun:
            begun = True
            text = text.removeprefix("\ufeff")
        line += text.count("\n")
        if text:
            yield text


def _is_text_encoding(encoding: str) -> bool:
    """Returns whether Python can decode text with an encoding: not so with base64, zlib and undefined."""
    try:
        codecs.getincrementaldecoder(encoding)
        b"\0\0\0\0".decode(encoding)
    except UnicodeDecodeError:  # an encoding in which these bytes are no text
        return True
    except (LookupError, ValueError):
        return False
    return True


def lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a text that arrives in blocks, without their line ends."""
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
    """Returns the extension of a file name in lower case, such as ".jsonl", ignoring that of a compression."""
    name = file.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]


def format_of(file: File, settings: Any) -> str:
    """Returns data.format, or the format that the file name implies. Raises UserError if it implies none."""
    if settings.format != "auto":
        return settings.format
    if ending(file) not in ENDINGS:
        raise UserError(
            f"{file}: the file name has none of the known endings ({', '.join(ENDINGS)}, with or without .gz or .zst); "
            "set the format, for example --config.data.format=text (or jsonl, csv, tsv, parquet)"
        )
    return ENDINGS[ending(file)]


def record_texts(file: File, kind: str, settings: Any, on_bad_row: OnBadRow) -> Iterator[str]:
    """Yields the text of each record of a JSON Lines, CSV, TSV or Parquet file: its field `settings.field`.

    Calls `on_bad_row` for each row of a CSV or TSV file that has more or fewer fields than the header, and skips it.
    Raises UserError, with the line or row, if the file is not in its format or lacks the field.
    """
    if kind == "jsonl":
        return _jsonl(file, settings)
    if kind == "parquet":
        return _parquet(file, settings)
    return _table(file, kind, settings, on_bad_row)


def _jsonl(file: File, settings: Any) -> Iterator[str]:
    for place, record in json_records(file, settings.encoding, settings.field):
        yield text_of(record, settings.field, place)


def json_records(file: File, encoding: str, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place, as "FILE, line N", and the object of each line of a JSON Lines file; `field` is for messages.

    Raises UserError for a line that is not a JSON object.
    """
    for number, line in enumerate(lines(text_blocks(file, encoding)), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            record = json.loads(line, strict=False)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{place}: not valid JSON ({error}); each line of JSON Lines must hold one complete object"
            ) from error
        if not isinstance(record, dict):
            raise UserError(
                f'{place}: not a JSON object; each line of JSON Lines must hold one, such as {{"{field}": "..."}}'
            )
        yield place, record


def text_of(record: dict, name: str, place: str) -> str:
    """Returns the field `name` of a record, or "" if it is null. Raises UserError, which begins with `place`."""
    if name not in record:
        raise missing_field(name, record, place)
    value = record[name]
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{place}: the field {name} holds {type(value).__name__}, not text; set data.field to a field with text"
        )
    return value or ""


def missing_field(name: str, names: Iterable[str], place: str) -> UserError:
    """Returns the error for a field that is not among `names`."""
    shown = ", ".join(str(other)[:40] for other in itertools.islice(names, 30))
    return UserError(
        f"{place}: there is no field {name}; set data.field to the field that holds the text, one of: {shown}"
    )


def _table(file: File, kind: str, settings: Any, on_bad_row: OnBadRow) -> Iterator[str]:
    table = table_rows(file, kind, settings.encoding)
    _, header = next(table, (1, []))
    if settings.field not in header:
        raise missing_field(settings.field, header, f"{file}, line 1")
    column = header.index(settings.field)
    for line, row in table:
        if len(row) != len(header):
            on_bad_row(f"{file}, line {line}", len(row), len(header))
        else:
            yield row[column]


def table_rows(file: File, kind: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first line and the fields of each row that is not empty."""
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
            f"{file}, line {line}: not a valid CSV row ({error}); fix it, or set data.format=tsv if the file has tabs "
            "and no quoting"
        ) from error


def _parquet(file: File, settings: Any) -> Iterator[str]:
    for place, record in parquet_records(file, [settings.field]):
        yield text_of(record, settings.field, place)


def parquet_records(file: File, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place, as "FILE, row N", and the given columns of each row of a Parquet file; all if none are given.

    Raises UserError if the file is not in its format or lacks a column.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with contextlib.ExitStack() as stack:
        source: Any = str(file) if isinstance(file, Path) else stack.enter_context(open_file(file))
        if file.name.lower().endswith(COMPRESSIONS):  # a Parquet reader must seek, which compressed streams cannot
            source = stack.enter_context(tempfile.TemporaryFile())
            for block in byte_blocks(file):
                source.write(block)
        row = 0
        try:
            table = stack.enter_context(ParquetFile(source))
            names = table.schema_arrow.names if columns is None else list(columns)
            for name in names:
                if name not in table.schema_arrow.names:
                    raise missing_field(name, table.schema_arrow.names, str(file))
            for batch in table.iter_batches(batch_size=256, columns=names):
                arrays = [batch.column(name) for name in names]
                for number in range(batch.num_rows):
                    yield f"{file}, row {row}", {n: a[number].as_py() for n, a in zip(names, arrays, strict=True)}
                    row += 1
        except UnicodeDecodeError as error:
            of = f"the field {columns[0]}" if columns and len(columns) == 1 else "a text"
            raise UserError(f"{file}, row {row}: {of} is not valid UTF-8 ({error}); write the file again") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{file} is not a complete Parquet file ({reason(error)}); fetch it or write it again"
            ) from error
