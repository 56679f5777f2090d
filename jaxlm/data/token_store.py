"""The token store: a flat stream of token ids on disk, cut into rows of any length without padding.

A store is a directory:

    index.json              format version, counts, fingerprints, and the size and CRC-32 of every other file
    tokens-00000.bin        ids, uint16 below 65,536 entries, else uint32
    word_starts-00000.bin   one bit a token, lowest bit first: does a word begin here
    documents.bin           int64, where in the stream each document begins
    counts.bin              int64 [V], how often each id occurs

All numbers are little endian. Each array goes on in a next file (tokens-00001.bin, documents-00001.bin) where one would
be larger than the shard size. A directory under its final name is whole: it is written as NAME.partial-* and renamed.
"""

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from jaxlm.errors import UserError
from jaxlm.storage import read_json, reason, sync_directory, write_text

FORMAT_VERSION = 1
TOKENS_PER_WRITE = 2**18


def array_layout(vocab_size: int, shard_bytes: int) -> dict[str, tuple[np.dtype, int]]:
    """Returns the type of each array, and how many items of it there are in a file. Raises UserError."""
    dtype = np.dtype("<u2" if vocab_size < 65_536 else "<u4")
    # A multiple of eight tokens a shard keeps every shard's bit plane at a whole number of bytes.
    capacity = shard_bytes // dtype.itemsize // 8 * 8
    if capacity < 8:
        raise UserError(f"data.shard_bytes={shard_bytes}: at least {8 * dtype.itemsize} bytes are needed")
    numbers = np.dtype("<i8"), shard_bytes // 8
    return {
        "tokens": (dtype, capacity), "word_starts": (np.dtype("u1"), capacity // 8), "documents": numbers,
        "counts": numbers,
    }  # fmt: skip


def array_file(name: str, number: int) -> str:
    """Returns the name of file `number` of an array."""
    return f"{name}.bin" if number == 0 and name in ("documents", "counts") else f"{name}-{number:05d}.bin"


def store_index(
    vocab_size: int, tokenizer_fingerprint: str, tokens: int, documents: int, text_bytes: int, shard_bytes: int,
    files: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:  # fmt: skip
    """Returns the content of index.json; `files` has name, bytes and crc32 of the files of each array, in order."""
    index: dict[str, Any] = {
        "format_version": FORMAT_VERSION, "vocab_size": vocab_size, "tokenizer_fingerprint": tokenizer_fingerprint,
        "tokens": tokens, "documents": documents, "text_bytes": text_bytes,
        "arrays": {
            name: {"dtype": dtype.str, "files": files[name]}
            for name, (dtype, _) in array_layout(vocab_size, shard_bytes).items()
        },
    }  # fmt: skip
    return index | {"fingerprint": _fingerprint(index)}


class StoreWriter:
    """Writes a token store, document by document; `close()`, or leaving the `with` block, puts it in its place.

    Leaving the block by an exception removes what was written. Raises UserError where a store or other files are
    already there, and where the disk does not take the data.
    """

    def __init__(
        self, directory: str | os.PathLike, vocab_size: int, tokenizer_fingerprint: str, shard_bytes: int
    ) -> None:
        self.directory = Path(directory).absolute()
        self.vocab_size, self.tokenizer_fingerprint = vocab_size, tokenizer_fingerprint
        self.tokens = self.documents = self.text_bytes = 0
        self._shard_bytes, layout = shard_bytes, array_layout(vocab_size, shard_bytes)
        if self.directory.exists() and (not self.directory.is_dir() or any(self.directory.iterdir())):
            raise UserError(f"{self.directory} exists already: remove it, or name another directory")
        self._partial = self.directory.with_name(f"{self.directory.name}.partial-{secrets.token_hex(4)}")
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot make the directory {self._partial}: {reason(error)}") from error
        self._store: TokenStore | None = None
        self._counts = np.zeros(vocab_size, np.int64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending_tokens = 0
        self._pending_starts: list[int] = []
        self._arrays = {name: _ArrayWriter(self._partial, name, *how) for name, how in layout.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._store is None:
            self._remove()

    def add(self, ids: np.ndarray, word_starts: np.ndarray, text_bytes: int) -> None:
        """Appends one document: ids [T] and word_starts bool [T], begin and end tokens included; bytes of its text.

        Raises UserError where an id is outside the vocabulary, and ValueError for shapes that do not fit.
        """
        ids, word_starts = np.asarray(ids), np.asarray(word_starts)
        if ids.ndim != 1 or ids.size == 0 or ids.shape != word_starts.shape or ids.dtype.kind not in "iu":
            raise ValueError(
                f"ids {ids.dtype}{ids.shape} and word_starts {word_starts.shape}: two [T] arrays are meant"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            place = int(np.flatnonzero((ids < 0) | (ids >= self.vocab_size))[0])
            raise UserError(
                f"token id {ids[place]} at token {place} of document {self.documents} (counted from 0) is outside the"
                f" vocabulary of {self.vocab_size} entries: the vocabulary size is not this tokenizer's"
            )
        self._pending_starts.append(self.tokens)
        self._pending.append((ids.astype(self._arrays["tokens"].dtype), word_starts.astype(bool)))
        self._pending_tokens += ids.size
        self.tokens += ids.size
        self.documents += 1
        self.text_bytes += text_bytes
        if self._pending_tokens >= TOKENS_PER_WRITE:
            self._write_pending(last=False)

    def _write_pending(self, last: bool) -> None:
        ids = np.concatenate([ids for ids, _ in self._pending])
        word_starts = np.concatenate([starts for _, starts in self._pending])
        whole = ids.size if last else ids.size // 8 * 8
        self._pending = [(ids[whole:], word_starts[whole:])]
        self._pending_tokens = ids.size - whole
        self._arrays["tokens"].write(ids[:whole])
        self._arrays["word_starts"].write(np.packbits(word_starts[:whole], bitorder="little"))
        self._arrays["documents"].write(np.asarray(self._pending_starts, "<i8"))
        self._pending_starts = []
        self._counts += np.bincount(ids[:whole], minlength=self.vocab_size)

    def close(self) -> "TokenStore":
        """Writes what is left, renames the directory into its place and opens it; a second call only returns it.

        Raises UserError where no document was added.
        """
        if self._store is None:
            try:
                self._finish()
            except BaseException:
                self._remove()
                raise
            self._store = TokenStore.open(self.directory, verify=False)
        return self._store

    def _finish(self) -> None:
        if not self.documents:
            raise UserError(f"no document was found for {self.directory}: an empty token store is of no use")
        self._write_pending(last=True)
        self._arrays["counts"].write(self._counts)
        index = store_index(
            self.vocab_size, self.tokenizer_fingerprint, self.tokens, self.documents, self.text_bytes,
            self._shard_bytes, {name: array.finish() for name, array in self._arrays.items()},
        )  # fmt: skip
        write_text(self._partial / "index.json", json.dumps(index, indent=1))
        try:
            sync_directory(self._partial)
            self._partial.rename(self.directory)
            sync_directory(self.directory.parent)
        except OSError as error:
            raise UserError(f"cannot write {self.directory}: {reason(error)}") from error

    def _remove(self) -> None:
        for array in self._arrays.values():
            array.abandon()
        shutil.rmtree(self._partial, ignore_errors=True)


class _ArrayWriter:
    """Writes one array into files of at most `capacity` items, with a running checksum."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype, capacity: int) -> None:
        self.directory, self.name, self.dtype = directory, name, dtype
        self.file_bytes = capacity * dtype.itemsize
        self.files: list[dict[str, Any]] = []
        self.file: BinaryIO | None = None

    def write(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array, self.dtype).view("u1").data
        try:
            while data:
                if self.file is None or self.files[-1]["bytes"] == self.file_bytes:
                    self._next_file()
                assert self.file is not None
                entry = self.files[-1]
                piece = data[: self.file_bytes - entry["bytes"]]
                self.file.write(piece)
                entry["bytes"] += len(piece)
                entry["crc32"] = zlib.crc32(piece, entry["crc32"])
                data = data[len(piece) :]
        except OSError as error:
            raise UserError(f"cannot write {self.directory}: {reason(error)}") from error

    def _next_file(self) -> None:
        self._sync()
        number = len(self.files)
        name = array_file(self.name, number)
        self.file = open(self.directory / name, "xb")  # noqa: SIM115
        self.files.append({"name": name, "bytes": 0, "crc32": 0})

    def _sync(self) -> None:
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None

    def finish(self) -> list[dict[str, Any]]:
        try:
            self._sync()
        except OSError as error:
            raise UserError(f"cannot write {self.directory}: {reason(error)}") from error
        return self.files

    def abandon(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            with contextlib.suppress(OSError):  # of a full disk, which is already being reported
                file.close()


class TokenStore:
    """A memory-mapped token store; its rows are slices of the stream.

    `tokens`, `documents`, `text_bytes` and `vocab_size` are counts; `counts` int64 [V] says how often each id occurs;
    `fingerprint` names the content, and `tokenizer_fingerprint` the tokenizer that made it.
    """

    def __init__(self, directory: Path, index: dict[str, Any]) -> None:
        self.directory = directory
        self.tokens: int = index["tokens"]
        self.documents: int = index["documents"]
        self.text_bytes: int = index["text_bytes"]
        self.vocab_size: int = index["vocab_size"]
        self.tokenizer_fingerprint: str = index["tokenizer_fingerprint"]
        self.fingerprint: str = index["fingerprint"]
        columns = {
            name: _Column([np.memmap(directory / file["name"], array["dtype"], "r") for file in array["files"]])
            for name, array in index["arrays"].items()
        }
        self._tokens, self._word_starts = columns["tokens"], columns["word_starts"]
        self._documents = columns["documents"]
        self.counts = np.concatenate(columns["counts"].parts)

    @classmethod
    def open(cls, directory: str | os.PathLike, verify: bool = True) -> Self:
        """Opens a store; sizes are always checked, checksums (about a second for 3 GB) when `verify`.

        Raises UserError that names the damaged, missing or truncated file.
        """
        directory = Path(directory)
        index = _read_index(directory)
        files = [file for array in index["arrays"].values() for file in array["files"]]
        for file in files:
            path = directory / file["name"]
            if not path.is_file():
                raise UserError(f"{path} of the token store is missing: remove {directory} and prepare the data again")
            size = path.stat().st_size
            if size != file["bytes"]:
                raise UserError(
                    f"{path} of the token store is {size} bytes long and should be {file['bytes']}:"
                    f" remove {directory} and prepare the data again"
                )
        if verify:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                sums = pool.map(lambda file: _checksum(directory / file["name"]), files)
                for file, crc in zip(files, sums, strict=True):
                    if crc != file["crc32"]:
                        raise UserError(
                            f"{directory / file['name']} of the token store is damaged (its checksum differs):"
                            f" remove {directory} and prepare the data again"
                        )
        return cls(directory, index)

    def row_count(self, length: int, prepend_begin: bool = False) -> int:
        """Returns how many whole rows of `length` tokens there are; what is left over is the row after the last."""
        return self.tokens // _stride(length, prepend_begin)

    def rows(
        self,
        indices: np.ndarray,
        length: int,
        prepend_begin: bool = False,
        begin_id: int = -1,
        pad_id: int = 0,
    ) -> dict[str, np.ndarray]:
        """Returns rows as a batch: tokens and segment_ids int32 [B, L], word_starts bool [B, L].

        indices int64 [B], from 0 to `row_count`; that last one is the remainder of the stream (refused where there is
        none), padded with `pad_id`, segment 0 and no word starts. Row i is the stream's tokens [i L, (i + 1) L). The
        pieces of documents in a row are segments 1, 2, ...; a row's first token of text begins a word.

        With `prepend_begin`, row i is made of [i (L - 1), (i + 1) (L - 1)): behind `begin_id` where that begins inside
        a document; before one slot of padding where it begins with a document, which has its begin token already.

        Raises ValueError for an index out of range, UserError for special tokens outside the vocabulary.
        """
        stride = _stride(length, prepend_begin)
        for name, token in (("padding", pad_id), ("begin", begin_id if prepend_begin else 0)):
            if not 0 <= token < self.vocab_size:
                raise UserError(f"the id of the {name} token is {token}, outside the {self.vocab_size} entries")
        starts = np.asarray(indices, np.int64) * stride
        if starts.size == 0:
            nothing = np.zeros((0, length), np.int32)
            return {"tokens": nothing, "segment_ids": nothing, "word_starts": nothing.astype(bool)}
        ends = np.minimum(starts + stride, self.tokens)
        if int(starts.min()) < 0 or int(starts.max()) >= self.tokens:
            raise ValueError(f"row indices from {min(indices)} to {max(indices)} of {-(-self.tokens // stride)} rows")

        segment_ids, shift = self._segments(starts, ends, length, prepend_begin)
        tokens = self._tokens.slices(starts, stride)
        if int(tokens.max()) >= self.vocab_size:
            raise UserError(f"{self.directory} holds token ids outside its vocabulary: prepare the data again")
        tokens = tokens.astype(np.int32)
        word_starts = self._word_start_rows(starts, stride)
        word_starts[:, 0] = True
        if prepend_begin:
            at_document = np.flatnonzero(shift == 0)
            tokens = _behind(tokens, begin_id, at_document)
            word_starts = _behind(word_starts, True, at_document)

        used = ends - starts + shift
        short = np.flatnonzero(used < length)
        if short.size:
            padding = np.zeros((len(starts), length), bool)
            padding[short] = np.arange(length) >= used[short, None]
            tokens[padding], segment_ids[padding], word_starts[padding] = pad_id, 0, False
        return {"tokens": tokens, "segment_ids": segment_ids, "word_starts": word_starts}

    def _segments(
        self, starts: np.ndarray, ends: np.ndarray, length: int, prepend_begin: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns segment_ids [B, L], not yet zero on padding, and by how much each row moves for a begin token [B]."""
        begun = self._documents_until(np.concatenate([starts, ends - 1]))
        first = begun[: len(starts)] - 1
        pieces = begun[len(starts) :] - first
        row = np.repeat(np.arange(len(starts)), pieces)
        number = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begins = self._documents.take(first[row] + number) - starts[row]
        shift = (begins[number == 0] != 0) * int(prepend_begin)
        place = row * length + np.where(number > 0, begins + shift[row], 0)
        sizes = np.diff(place, append=len(starts) * length)
        return np.repeat((number + 1).astype(np.int32), sizes).reshape(len(starts), length), shift

    def _documents_until(self, positions: np.ndarray) -> np.ndarray:
        """Returns how many documents begin at or before each position of the stream."""
        parts = self._documents.parts
        if len(parts) == 1:
            return np.searchsorted(parts[0], positions, "right")
        part = np.searchsorted([part[0] for part in parts], positions, "right") - 1
        result = part * self._documents.capacity
        for number in np.unique(part):
            here = part == number
            result[here] += np.searchsorted(parts[number], positions[here], "right")
        return result

    def _word_start_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        packed = self._word_starts.slices(starts >> 3, (length + 14) // 8)
        bits = np.unpackbits(packed, bitorder="little")
        firsts = np.arange(len(starts)) * packed.shape[1] * 8 + (starts & 7)
        return _windows(bits, length)[firsts].view(bool)


class _Column:
    """One array that lies in several memory-mapped files, all but the last of the same size."""

    def __init__(self, maps: list[np.ndarray]) -> None:
        self.parts = [part.view(np.ndarray) for part in maps]  # indexing a memmap object costs more
        self.sizes = np.asarray([part.size for part in self.parts])
        self.capacity = int(self.sizes[0])
        self.size = int(self.sizes.sum())

    def take(self, index: np.ndarray) -> np.ndarray:
        """Returns the items at an index of any shape."""
        if len(self.parts) == 1:
            return self.parts[0][index]
        result = np.empty(index.shape, self.parts[0].dtype)
        part, offset = np.divmod(index, self.capacity)
        for number in np.unique(part):
            here = part == number
            result[here] = self.parts[number][offset[here]]
        return result

    def slices(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the `length` items from each start, [B, length]; beyond the end the last item is repeated."""
        part = starts // self.capacity
        offset = starts - part * self.capacity
        within = offset + length <= self.sizes[part]
        if within.all() and (part == part[0]).all():
            return _windows(self.parts[part[0]], length)[offset]
        result = np.empty((len(starts), length), self.parts[0].dtype)
        order = np.argsort(np.where(within, part, -1), kind="stable")
        across = np.flatnonzero(~within)
        order, ordered = order[len(across) :], part[order[len(across) :]]
        bounds = np.flatnonzero(np.diff(ordered, prepend=-1, append=-1)).tolist()
        for first, last in itertools.pairwise(bounds):
            rows = order[first:last]
            result[rows] = _windows(self.parts[ordered[first]], length)[offset[rows]]
        if across.size:
            result[across] = self.take(np.minimum(starts[across, None] + np.arange(length), self.size - 1))
        return result


def _windows(array: np.ndarray, length: int) -> np.ndarray:
    """Returns a view [T - length + 1, length] of [T]; indexing it copies whole rows."""
    return np.ndarray((array.size - length + 1, length), array.dtype, array, strides=array.strides * 2)


def _behind(content: np.ndarray, front: Any, unmoved: np.ndarray) -> np.ndarray:
    """Returns content [B, L - 1] behind `front` as [B, L], but the rows `unmoved` stay in front of a free slot."""
    result = np.empty((content.shape[0], content.shape[1] + 1), content.dtype)
    result[:, 0] = front
    result[:, 1:] = content
    result[unmoved, :-1] = content[unmoved]
    return result


def _stride(length: int, prepend_begin: bool) -> int:
    if length < 1 + prepend_begin:
        raise UserError(f"data.sequence_length={length}: at least {1 + prepend_begin} tokens are needed in a row")
    return length - prepend_begin


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / "index.json"
    if not path.is_file():
        raise UserError(f"{directory} holds no token store: there is no {path}")
    remedy = f"remove {directory} and prepare the data again"
    index = read_json(path, remedy=remedy)
    version = index.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory} is a token store of format {version}, and this is jaxlm for format {FORMAT_VERSION}:"
            " prepare the data again"
        )
    if index.get("fingerprint") != _fingerprint(index):
        raise UserError(f"{path} is damaged (its checksum differs): {remedy}")
    return index


def _fingerprint(index: dict[str, Any]) -> str:
    content = {key: value for key, value in index.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> int:
    crc = 0
    buffer = bytearray(2**20)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            crc = zlib.crc32(view[:size], crc)
    return crc
