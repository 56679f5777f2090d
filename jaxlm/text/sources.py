"""Reads the documents of a path: files of text or records, TensorFlow Datasets, docstrings of installed packages.

Documents come in the order of the files, which are sorted by name, and in the order of the text within each. Reading
only decodes, unifies line ends, drops control characters and empty documents, and splits documents that are too long;
lower case, accents and other normalization belong to the tokenizer.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxlm.errors import UserError
from jaxlm.text.files import File, file_version, list_files
from jaxlm.text.filters import Tally, drop_control_characters
from jaxlm.text.formats import ENDINGS, ending, format_of, record_texts, text_blocks
from jaxlm.text.pydocs import find_python_files, read_pydocs
from jaxlm.text.splitting import join_documents, split_documents
from jaxlm.text.tfds import read_tfds, tfds_files


def read_documents(
    path: str, settings: Any, tally: Tally, files: Sequence[File] | None = None, megabytes: float | None = None
) -> Iterator[str]:
    """Yields the documents of a path, always in the same order.

    Lines in a document end with "\\n"; a document neither begins nor ends with one, and is not empty.

    Args:
        path: A file, folder, glob or URL, `tfds:NAME[:SPLIT]`, or `pydocs`.
        settings: The `data` section of a config.
        tally: Updated with what is read and what is dropped.
        files: A subset of the path's files to read; None for all.
        megabytes: Reading stops before the document that would bring the text to more than this.

    Raises:
        UserError: If the path does not exist or has no files, or a file is not in its format.
    """
    pieces = _document_pieces(path, settings, tally, files)
    for text in join_documents(pieces, settings.max_document_characters, tally):
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
    """Returns a hash of the names, sizes and modification times of a path's files, which are not read."""
    files: Sequence[tuple[str, File]]
    if path == "pydocs":
        files = find_python_files()
    elif path.startswith("tfds:"):
        files = tfds_files(path)
    else:
        files = [(file.name, file) for file in find_files(path, settings)]
    digest = hashlib.blake2b(digest_size=16)
    for name, file in files:
        digest.update(json.dumps([name, *file_version(file)]).encode())
    return digest.hexdigest()


def find_files(path: str, settings: Any, endings: Mapping[str, str] = ENDINGS) -> list[File]:
    """Returns the files of a path (a file, folder, glob or URL), sorted by name.

    From a folder, these are all files below it with a known ending, except hidden ones; `endings` are the known ones
    with their formats. If data.format is set, they are those with an ending of that format, or all files if none has
    such an ending.

    Raises UserError if there is no file.
    """
    kind, files = list_files(path)
    if kind == "folder":
        if settings.format == "auto":
            found = [file for file in files if ending(file) in endings]
        else:
            found = [file for file in files if endings.get(ending(file)) == settings.format] or files
        if not files:
            raise UserError(f"the folder {path} has no files (hidden files are not read); check the path")
        if not found:
            raise UserError(
                f"none of the {len(files)} files in the folder {path} has a known ending ({', '.join(endings)}); "
                "set data.format if they hold text"
            )
        return found
    if kind == "glob" and not files:
        raise UserError(f"no file matches {path}; check the folder, and quote the pattern in a shell")
    if not files:
        if os.path.exists(path):
            raise UserError(f"{path} is a pipe or a device, which cannot be read twice; write its content to a file")
        raise UserError(f"there is no file or folder {path}; check the path")
    return files


def _document_pieces(path: str, settings: Any, tally: Tally, files: Sequence[File] | None) -> Iterator[str | None]:
    """Yields pieces of documents, and None at the end of each document."""

    def drop_row(place: str, fields: int, expected: int) -> None:
        tally.drop("rows with another number of fields", place=place)

    if path == "pydocs":
        yield from _one_piece_each(read_pydocs(settings, tally), tally)
    elif path.startswith("tfds:"):
        yield from _one_piece_each(read_tfds(path, settings), tally)
    else:
        for file in find_files(path, settings) if files is None else files:
            kind = format_of(file, settings)
            if kind == "text":
                blocks = (drop_control_characters(block, tally) for block in text_blocks(file, settings.encoding))
                yield from split_documents(blocks, settings.document)
            else:
                yield from _one_piece_each(record_texts(file, kind, settings, drop_row), tally)


def _one_piece_each(texts: Iterable[str], tally: Tally) -> Iterator[str | None]:
    for text in texts:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield drop_control_characters(text.removeprefix("\ufeff"), tally)
        yield None
