"""From a path to documents: text, JSON Lines, CSV, TSV, Parquet, TFDS, and the docstrings of installed packages.

Everything is read in blocks, so memory stays bounded whatever the size of a file, and of a line in a text file. A
record of the other formats is read whole. Sources only decode, clean line ends, drop control characters and what is
empty, and cut what is too long; lower case, accents and the like are the tokenizer's.
"""

import codecs
import contextlib
import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm.data.pydocs import find_python_files, read_pydocs
from jaxlm.errors import UserError

ENDINGS = {
    ".txt": "text", ".text": "text", ".md": "text", ".rst": "text", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
COMPRESSIONS = (".gz", ".zst")
BLOCK_BYTES = 2**20
BLANK_CHARACTERS = 2**20  # white space before a line of a paragraph, at most
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # category Cc; lone surrogates


@dataclass
class Tally:
    """What came out of one path (`bytes` in UTF-8), and what was dropped: how many by reason, and the first places."""

    documents: int = 0
    bytes: int = 0
    cut: int = 0  # documents that were longer than data.max_document_characters
    dropped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1, place: str = "") -> None:
        """Counts what is dropped for `reason`, and remembers the first three places."""
        self.dropped[reason] += count
        if place and len(self.places.setdefault(reason, [])) < 3:
            self.places[reason].append(place)


def read_documents(path: str, settings: Any, tally: Tally) -> Iterator[str]:
    """Yields the documents of a file, a folder, a glob, `tfds:NAME[:SPLIT]` or `pydocs`, always in the same order.

    `settings` is the config's data section. Line ends inside a document are "\\n"; it neither begins nor ends with one.
    Raises UserError where a path is missing or empty, or where a file is not what its format says.
    """
    for text in _cut(_parts(path, settings, tally), settings.max_document_characters, tally):
        text = text.strip("\n")
        if not text or text.isspace():
            tally.drop("empty documents")
            continue
        tally.documents += 1
        tally.bytes += len(text) if text.isascii() else len(text.encode())
        yield text


def source_fingerprint(path: str, settings: Any) -> str:
    """Returns a hash of the names, sizes and modification times of the path's files, which are not read."""
    if path == "pydocs":
        files = find_python_files()
    elif path.startswith("tfds:"):
        builder, split = _tfds_builder(path)
        folder = Path(builder.data_path)
        files = [(f"{split}/{file.name}", file) for file in sorted(folder.iterdir()) if file.is_file()]
    else:
        files = [(file.name, file) for file in find_files(path, settings)]
    digest = hashlib.blake2b(digest_size=16)
    for name, file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
        digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


def find_files(path: str, settings: Any) -> list[Path]:
    """Returns the files that a file name, a folder or a glob stands for, sorted; raises UserError where there is none.

    Of a folder: all files below it with a known ending, hidden ones left out. Where data.format is set: those with an
    ending of that format, or all files where none has one.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        files = _files_below(root)
        if settings.format == "auto":
            found = [file for file in files if _ending(file) in ENDINGS]
        else:
            found = [file for file in files if ENDINGS.get(_ending(file)) == settings.format] or files
        if not found:
            raise UserError(
                f"the folder {path} has no file to read among its {len(files)}; known endings are "
                f"{', '.join(ENDINGS)}, for others set data.format"
            )
        return found
    if glob.has_magic(path):
        found = [Path(name) for name in sorted(glob.glob(str(root), recursive=True)) if os.path.isfile(name)]
        if not found:
            raise UserError(f"no file matches {path}; quote the pattern, and see that the folder is right")
        return found
    raise UserError(f"there is no file or folder {path}")


def _files_below(root: Path) -> list[Path]:
    found, entered = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in entered else [name for name in folders if not name.startswith(".")]
        if real not in entered:
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        entered.add(real)
    return sorted((file for file in found if file.is_file()), key=lambda file: file.relative_to(root).as_posix())


def _ending(file: Path) -> str:
    name = file.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]


def _format_of(file: Path, settings: Any) -> str:
    if settings.format != "auto":
        return settings.format
    if _ending(file) not in ENDINGS:
        raise UserError(
            f"{file}: the ending of its name tells no format ({', '.join(ENDINGS)}, with .gz or .zst); set it, as in "
            "--config.data.format=text (or jsonl, csv, tsv, parquet)"
        )
    return ENDINGS[_ending(file)]


def _parts(path: str, settings: Any, tally: Tally) -> Iterator[str | None]:
    """Yields pieces of documents, and None where a document ends."""
    if path == "pydocs":
        yield from _whole(read_pydocs(settings, tally), tally)
    elif path.startswith("tfds:"):
        yield from _whole(_tfds(path, settings), tally)
    else:
        for file in find_files(path, settings):
            kind = _format_of(file, settings)
            if kind == "text":
                yield from _text(file, settings, tally)
            elif kind == "jsonl":
                yield from _whole(_jsonl(file, settings), tally)
            elif kind == "parquet":
                yield from _whole(_parquet(file, settings), tally)
            else:
                yield from _whole(_table(file, kind, settings, tally), tally)


def _whole(texts: Iterable[str], tally: Tally) -> Iterator[str | None]:
    for text in texts:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield _drop_control_characters(text.removeprefix("\ufeff"), tally)
        yield None


def _drop_control_characters(text: str, tally: Tally) -> str:
    text, count = CONTROL_CHARACTERS.subn("", text)
    if count:
        tally.drop("control characters", count)
    return text


def _cut(parts: Iterable[str | None], limit: int, tally: Tally) -> Iterator[str]:
    """Joins parts to documents, and cuts those that are longer than `limit` characters into several."""
    held: list[str] = []
    length, was_cut = 0, False
    for part in parts:
        if part is None:
            yield "".join(held)
            held, length, was_cut = [], 0, False
            continue
        held.append(part)
        length += len(part)
        if length > limit:
            tally.cut += not was_cut
            was_cut = True
            *whole, rest = cut_text("".join(held), limit)
            yield from whole
            held, length = [rest], len(rest)


def cut_text(text: str, limit: int) -> list[str]:
    """Returns the text in pieces of at most `limit` characters, cut behind white space where a piece ends near some."""
    pieces, start = [], 0
    while len(text) - start > limit:
        end = _cut_point(text, start, limit)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _cut_point(text: str, start: int, limit: int) -> int:
    end = start + limit
    if text[end].isspace():
        return end
    for i in range(end - 1, max(start, end - max(limit // 10, 100)) - 1, -1):
        if text[i].isspace():
            return i + 1
    return end


# Bytes and lines


def _byte_blocks(file: Path) -> Iterator[bytes]:
    try:
        with open(file, "rb") as stream:
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
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error


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


def _text_blocks(file: Path, encoding: str) -> Iterator[str]:
    """Yields the decoded file with "\\n" for every line end and without a byte order mark. Raises UserError."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as error:
        raise UserError(
            f"data.encoding={encoding}: Python has no such text encoding; utf-8 is the usual one"
        ) from error
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, line, begun = 0, 1, False
    for data in itertools.chain(_byte_blocks(file), [b""]):
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


def _lines(blocks: Iterable[str]) -> Iterator[str]:
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


def _text(file: Path, settings: Any, tally: Tally) -> Iterator[str | None]:
    blocks = (_drop_control_characters(block, tally) for block in _text_blocks(file, settings.encoding))
    if settings.document == "line":
        yield from _by_line(blocks)
    elif settings.document == "paragraph":
        yield from _by_paragraph(blocks)
    else:
        yield from blocks
        yield None


def _by_line(blocks: Iterable[str]) -> Iterator[str | None]:
    inside = False
    for block in blocks:
        for number, piece in enumerate(block.split("\n")):
            if number:
                yield None
                inside = False
            if piece:
                yield piece
                inside = True
    if inside:
        yield None


def _by_paragraph(blocks: Iterable[str]) -> Iterator[str | None]:
    held, blank, inside = "", True, False  # white space not yet given; is this line blank so far; is a paragraph open
    for block in blocks:
        for number, piece in enumerate(block.split("\n")):
            if number:
                if blank and inside:
                    yield None
                held, inside, blank = "" if blank else "\n", inside and not blank, True
            if blank and (not piece or piece.isspace()):
                held = (held + piece)[-BLANK_CHARACTERS:]
            elif piece:
                yield held + piece
                held, inside, blank = "", True, False
    if inside:
        yield None


def _jsonl(file: Path, settings: Any) -> Iterator[str]:
    for number, line in enumerate(_lines(_text_blocks(file, settings.encoding)), 1):
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
        yield _text_of(record, settings.field, place)


def _text_of(record: dict, name: str, place: str) -> str:
    if name not in record:
        raise _no_field(name, record, place)
    value = record[name]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: the field {name} holds {type(value).__name__}, not text; name another by data.field")
    return value or ""


def _no_field(name: str, names: Iterable[str], place: str) -> UserError:
    shown = ", ".join(str(other)[:40] for other in itertools.islice(names, 30))
    return UserError(
        f"{place}: there is no field {name}; the fields are {shown}: name the one with the text by data.field"
    )


def _table(file: Path, kind: str, settings: Any, tally: Tally) -> Iterator[str]:
    rows = _rows(file, kind, settings.encoding)
    _, header = next(rows, (1, []))
    if settings.field not in header:
        raise _no_field(settings.field, header, f"{file}, line 1")
    column = header.index(settings.field)
    for line, row in rows:
        if len(row) != len(header):
            tally.drop("rows with another number of fields", place=f"{file}, line {line}")
        else:
            yield row[column]


def _rows(file: Path, kind: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of its first line, fields) for each row that is not empty."""
    lines = _lines(_text_blocks(file, encoding))
    if kind == "tsv":
        yield from ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line)
        return
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line + "\n" for line in lines), strict=True)
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


def _parquet(file: Path, settings: Any) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        source: Any = str(file)
        if file.name.lower().endswith(COMPRESSIONS):  # Parquet is read from its end
            source = stack.enter_context(tempfile.TemporaryFile())
            for block in _byte_blocks(file):
                source.write(block)
        row = 0
        try:
            table = stack.enter_context(parquet.ParquetFile(source))
            if settings.field not in table.schema_arrow.names:
                raise _no_field(settings.field, table.schema_arrow.names, str(file))
            for batch in table.iter_batches(batch_size=256, columns=[settings.field]):
                for value in batch.column(0):
                    yield _text_of({settings.field: value.as_py()}, settings.field, f"{file}, row {row}")
                    row += 1
        except UnicodeDecodeError as error:
            raise UserError(f"{file}, row {row}: the field {settings.field} is no valid UTF-8 ({error})") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file} is no whole Parquet file ({' '.join(str(error).split())})") from error


def _tfds_builder(path: str) -> tuple[Any, str]:
    """Returns the builder of `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`, whose data are there, and the split."""
    match = re.fullmatch(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", path)
    if not match:
        raise UserError(f"{path}: tfds:NAME[/CONFIG][:SPLIT] is meant, such as tfds:imdb_reviews:train")
    name, split = match[1], match[2] or "train"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError, AttributeError) as error:
        root = tfds.core.constants.DATA_DIR
        raise UserError(f"{path}: TFDS knows no data set {name}, and there is none at {root}/{name}") from error
    if not builder.is_prepared():
        raise UserError(
            f"{path}: the data are not at {builder.data_path}, and nothing is downloaded here; prepare them with "
            f"`tfds build {name}`, or set TFDS_DATA_DIR to where they are"
        )
    return builder, split


def _tfds(path: str, settings: Any) -> Iterator[str]:
    builder, split = _tfds_builder(path)
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")
    features = list(builder.info.features)
    if settings.field not in features:
        raise _no_field(settings.field, features, path)
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    try:
        dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: there is no split {split}; the splits are {', '.join(builder.info.splits)}"
        ) from error
    dataset = dataset.map(lambda example: example[settings.field])
    for number, value in enumerate(tfds.as_numpy(dataset)):
        try:
            text = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, example {number}: the field {settings.field} is no valid UTF-8") from error
        yield _text_of({settings.field: text}, settings.field, f"{path}, example {number}")
