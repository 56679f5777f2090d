"""From a path to documents: text, JSON Lines, CSV, TSV, Parquet, TFDS, and the docstrings of installed packages.

The documents of a path come in the order of its files, which are sorted by name, and of the text in each. Sources only
decode, clean line ends, drop control characters and what is empty, and cut what is too long; lower case, accents and
the like are the tokenizer's.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.text.files import File, file_version, list_files
from jaxlm.text.formats import ENDINGS, ending, format_of, no_field, record_texts, text_blocks, text_of
from jaxlm.text.pydocs import find_python_files, read_pydocs

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


def read_documents(
    path: str, settings: Any, tally: Tally, files: Sequence[File] | None = None, megabytes: float | None = None
) -> Iterator[str]:
    """Yields the documents of a file, a folder, a glob, `tfds:NAME[:SPLIT]` or `pydocs`, always in the same order.

    `settings` is the config's data section; `files` are some of the path's files, None for all of them. Reading ends
    before the document that brings the text to more than `megabytes`. Line ends inside a document are "\\n"; it neither
    begins nor ends with one. Raises UserError where a path is missing or empty, or a file is not what its format says.
    """
    for text in _cut(_parts(path, settings, tally, files), settings.max_document_characters, tally):
        text = text.strip("\n")
        if not text or text.isspace():
            tally.drop("empty documents")
            continue
        tally.documents += 1
        tally.bytes += len(text) if text.isascii() else len(text.encode())
        if megabytes and tally.bytes > megabytes * 1e6:
            return
        yield text


def source_fingerprint(path: str, settings: Any) -> str:
    """Returns a hash of the names, sizes and modification times of the path's files, which are not read."""
    if path == "pydocs":
        files: list[tuple[str, File]] = [*find_python_files()]
    elif path.startswith("tfds:"):
        builder, split = _tfds_builder(path)
        folder = Path(builder.data_path)
        files = [(f"{split}/{file.name}", file) for file in sorted(folder.iterdir()) if file.is_file()]
    else:
        files = [(file.name, file) for file in find_files(path, settings)]
    digest = hashlib.blake2b(digest_size=16)
    for name, file in files:
        digest.update(json.dumps([name, *file_version(file)]).encode())
    return digest.hexdigest()


def find_files(path: str, settings: Any) -> list[File]:
    """Returns the files that a file name, a folder or a glob stands for, sorted; raises UserError where there is none.

    Each may be a URL. Of a folder: all files below it with a known ending, hidden ones left out. Where data.format is
    set: those with an ending of that format, or all files where none has one.
    """
    kind, files = list_files(path)
    if kind == "folder":
        if settings.format == "auto":
            found = [file for file in files if ending(file) in ENDINGS]
        else:
            found = [file for file in files if ENDINGS.get(ending(file)) == settings.format] or files
        if not found:
            raise UserError(
                f"the folder {path} has no file to read among its {len(files)}; known endings are "
                f"{', '.join(ENDINGS)}, for others set data.format"
            )
        return found
    if kind == "glob" and not files:
        raise UserError(f"no file matches {path}; quote the pattern, and see that the folder is right")
    if not files:
        raise UserError(f"there is no file or folder {path}")
    return files


def _parts(path: str, settings: Any, tally: Tally, files: Sequence[File] | None) -> Iterator[str | None]:
    """Yields pieces of documents, and None where a document ends."""

    def drop_row(place: str, found: int, expected: int) -> None:
        tally.drop("rows with another number of fields", place=place)

    if path == "pydocs":
        yield from _whole(read_pydocs(settings, tally), tally)
    elif path.startswith("tfds:"):
        yield from _whole(_tfds(path, settings), tally)
    else:
        for file in find_files(path, settings) if files is None else files:
            kind = format_of(file, settings)
            if kind == "text":
                yield from _text(file, settings, tally)
            else:
                yield from _whole(record_texts(file, kind, settings, drop_row), tally)


def _whole(texts: Iterable[str], tally: Tally) -> Iterator[str | None]:
    for text in texts:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield drop_control_characters(text.removeprefix("\ufeff"), tally)
        yield None


def drop_control_characters(text: str, tally: Tally) -> str:
    """Returns the text without control characters, which are counted."""
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


# Text files


def _text(file: File, settings: Any, tally: Tally) -> Iterator[str | None]:
    blocks = (drop_control_characters(block, tally) for block in text_blocks(file, settings.encoding))
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
        raise no_field(settings.field, features, path)
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
        yield text_of({settings.field: text}, settings.field, f"{path}, example {number}")
