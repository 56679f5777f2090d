"""The token store: a stream of token ids on disk, read as rows of any length without padding.

A store is a directory:

    index.json              format version, counts, fingerprints, and the size and CRC-32 of every other file
    tokens-00000.bin        token ids, uint16 for vocabularies below 65,536 entries, otherwise uint32
    word_starts-00000.bin   one bit per token, lowest bit first: whether a word begins at the token
    documents.bin           int64, the index in the stream of each document's first token
    counts.bin              int64 [V], the number of occurrences of each id

All numbers are little endian. An array that would exceed the shard size continues in further files (tokens-00001.bin,
documents-00001.bin). A store is written as NAME.partial-* and then renamed, so one under its final name is complete.
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
    """Returns the dtype and the items per file of each array. Raises UserError if `shard_bytes` is too small."""
    dtype = np.dtype("<u2" if vocab_size < 65_536 else "<u4")
    # With a multiple of eight tokens per shard, the word starts of each shard fill whole bytes.
    capacity = shard_bytes // dtype.itemsize // 8 * 8
    if capacity < 8:
        raise UserError(f"data.shard_bytes={shard_bytes} is too small: set it to at least {8 * dtype.itemsize}")
    numbers = np.dtype("<i8"), shard_bytes // 8
    return {
        "tokens": (dtype, capacity), "word_starts": (np.dtype("u1"), capacity // 8), "documents": numbers,
        "counts": numbers,
    }  # fmt: skip


def array_file(name: str, number: int) -> str:
    """Returns the name of file `number` (from 0) of an array."""
    return f"{name}.bin" if number == 0 and name in ("documents", "counts") else f"{name}-{number:05d}.bin"


def store_index(
    vocab_size: int, tokenizer_fingerprint: str, tokens: int, documents: int, text_bytes: int, shard_bytes: int,
    files: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:  # fmt: skip
    """Returns the content of index.json; `files` holds the name, bytes and crc32 of each array's files, in order."""
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
    """Writes a token store, document by document; `close()`, or leaving the `with` block, completes it.

    Leaving the block by an exception removes what was written. Raises UserError if the directory exists and is not
    empty, or if the data cannot be written.
    """

    def __init__(
        self, directory: str | os.PathLike, vocab_size: int, tokenizer_fingerprint: str, shard_bytes: int
    ) -> None:
        self.directory = Path(directory).absolute()
        self.vocab_size, self.tokenizer_fingerprint = vocab_size, tokenizer_fingerprint
        self.tokens = self.documents = self.text_bytes = 0
        self._shard_bytes, layout = shard_bytes, array_layout(vocab_size, shard_bytes)
        if self.directory.exists() and (not self.directory.is_dir() or any(self.directory.iterdir())):
            raise UserError(f"{self.directory} already exists: remove it, or choose another directory")
        self._partial = self.directory.with_name(f"{self.directory.name}.partial-{secrets.token_hex(4)}")
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot create the directory {self._partial}: {reason(error)}") from error
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
        """Appends a document: ids int [T] and word_starts bool [T], including its begin and end tokens.

        `text_bytes` is the size of its text in UTF-8. Raises UserError if an id is outside the vocabulary, and
        ValueError if the arrays do not have these shapes and types.
        """
        ids, word_starts = np.asarray(ids), np.asarray(word_starts)
        if ids.ndim != 1 or ids.size == 0 or ids.shape != word_starts.shape or ids.dtype.kind not in "iu":
            raise ValueError(
                f"ids {ids.dtype}{ids.shape} and word_starts {word_starts.shape}: expected int [T] and bool [T], T > 0"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            position = int(np.flatnonzero((ids < 0) | (ids >= self.vocab_size))[0])
            raise UserError(
                f"token id {ids[position]} at token {position} of document {self.documents} (counted from 0) is outside"
                f" the vocabulary of {self.vocab_size} entries: use the vocabulary size of the tokenizer"
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
        """Completes the store and returns it, opened; later calls return the same object.

        Raises UserError if no document was added, or if the data cannot be written.
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
            raise UserError(f"no documents for the token store {self.directory}: add at least one")
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
    """Writes one array to files of at most `capacity` items, and computes their checksums."""

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
            with contextlib.suppress(OSError):  # a full disk, which is already being reported
                file.close()


class TokenStore:
    """A memory-mapped token store; its rows are slices of the stream of tokens.

    `tokens`, `documents`, `text_bytes` and `vocab_size` are counts; `counts` int64 [V] is the number of occurrences of
    each id; `fingerprint` identifies the content, and `tokenizer_fingerprint` the tokenizer that produced it.
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
        self._cut: tuple[int, np.ndarray] | None = None

    @classmethod
    def open(cls, directory: str | os.PathLike, verify: bool = True) -> Self:
        """Returns the store in a directory. File sizes are always checked; checksums, at about 3 GB/s, if `verify`.

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
                    f"{path} of the token store has {size} bytes instead of {file['bytes']}:"
                    f" remove {directory} and prepare the data again"
                )
        if verify:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                sums = pool.map(lambda file: _checksum(directory / file["name"]), files)
                for file, crc in zip(files, sums, strict=True):
                    if crc != file["crc32"]:
                        raise UserError(
                            f"{directory / file['name']} of the token store is damaged (checksum mismatch):"
                            f" remove {directory} and prepare the data again"
                        )
        return cls(directory, index)

    def row_count(self, length: int, prepend_begin: bool = False) -> int:
        """Returns the number of whole rows of `length` tokens; the rest of the stream is one more, shorter row."""
        return self.tokens // _stride(length, prepend_begin)

    def document_row_count(self, length: int, prepend_begin: bool = False) -> int:
        """Returns the number of rows of `length` tokens that hold one document each, or a piece of one."""
        return int(self._pieces(_stride(length, prepend_begin))[-1])

    def _pieces(self, stride: int) -> np.ndarray:
        """Returns how many pieces of `stride` tokens the documents up to each one have, int64 [documents]."""
        if self._cut is None or self._cut[0] != stride:
            self._cut = stride, np.cumsum(-(-self.document_lengths() // stride))
        return self._cut[1]

    def document_lengths(self) -> np.ndarray:
        """Returns the number of tokens of each document, with its begin and end tokens, int64 [documents]."""
        return np.diff(np.concatenate(self._documents.parts), append=self.tokens)

    def document(self, number: int) -> np.ndarray:
        """Returns the tokens of a document, numbered from 0, with its begin and end tokens, int32 [T]."""
        first, last = (
            int(self._documents.take(np.array([n]))[0]) if n < self.documents else self.tokens
            for n in (number, number + 1)
        )
        return self._tokens.slices(np.array([first]), last - first)[0].astype(np.int32)

    def rows(
        self,
        indices: np.ndarray,
        length: int,
        prepend_begin: bool = False,
        begin_id: int = -1,
        pad_id: int = 0,
    ) -> dict[str, np.ndarray]:
        """Returns a batch of rows: tokens and segment_ids int32 [B, L], word_starts bool [B, L].

        `indices` int64 [B] are row numbers from 0 to `row_count`. Row i holds the tokens [i L, (i + 1) L) of the
        stream. Row `row_count` is the rest of the stream, if any, padded with `pad_id`, segment 0 and no word starts.
        The pieces of documents in a row are segments 1, 2, ...; the first token of a row always starts a word.

        With `prepend_begin`, row i holds the tokens [i (L - 1), (i + 1) (L - 1)) of the stream: after `begin_id` if the
        row begins inside a document; followed by one padding token if it begins with a document, which already has its
        begin token.

        Raises ValueError if an index is out of range, and UserError if a special token is outside the vocabulary.
        """
        stride = _stride(length, prepend_begin)
        starts = np.asarray(indices, np.int64) * stride
        if starts.size and (int(starts.min()) < 0 or int(starts.max()) >= self.tokens):
            rows = -(-self.tokens // stride)
            raise ValueError(f"row indices from {min(indices)} to {max(indices)} are out of range for {rows} rows")
        ends = np.minimum(starts + stride, self.tokens)
        return self._slices(starts, ends, length, prepend_begin, begin_id, pad_id)

    def document_rows(
        self,
        indices: np.ndarray,
        length: int,
        prepend_begin: bool = False,
        begin_id: int = -1,
        pad_id: int = 0,
    ) -> dict[str, np.ndarray]:
        """Returns rows that hold one document each, or a piece of one, and padding; arrays as of `rows`.

        `indices` int64 [B] are numbers from 0 to `document_row_count`, exclusive: those of the pieces of L tokens of
        the first document, then of the second, and so on. With `prepend_begin`, a piece has L - 1 tokens, and stands
        after `begin_id` unless it is the first of its document. Raises ValueError and UserError as `rows`.
        """
        stride, indices = _stride(length, prepend_begin), np.asarray(indices, np.int64)
        pieces = self._pieces(stride)
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= pieces[-1]):
            raise ValueError(
                f"row indices from {min(indices)} to {max(indices)} are out of range for {pieces[-1]} rows"
            )
        document = np.searchsorted(pieces, indices, "right")
        before = np.where(document > 0, pieces[document - 1], 0)
        begins = self._documents.take(document).astype(np.int64)
        following = np.minimum(document + 1, self.documents - 1)
        ends = np.where(document + 1 < self.documents, self._documents.take(following), self.tokens)
        starts = begins + (indices - before) * stride
        return self._slices(starts, np.minimum(starts + stride, ends), length, prepend_begin, begin_id, pad_id)

    def _slices(
        self, starts: np.ndarray, ends: np.ndarray, length: int, prepend_begin: bool, begin_id: int, pad_id: int
    ) -> dict[str, np.ndarray]:
        """Returns rows with the tokens from each start to its end, int64 [B], in the stream; see `rows`."""
        for name, token in (("padding", pad_id), ("begin", begin_id if prepend_begin else 0)):
            if not 0 <= token < self.vocab_size:
                raise UserError(
                    f"the id {token} of the {name} token is outside the vocabulary of {self.vocab_size} entries: use"
                    " the tokenizer of the token store"
                )
        if starts.size == 0:
            empty = np.zeros((0, length), np.int32)
            return {"tokens": empty, "segment_ids": empty, "word_starts": empty.astype(bool)}
        stride = length - prepend_begin
        segment_ids, shift = self._segments(starts, ends, length, prepend_begin)
        tokens = self._tokens.slices(starts, stride)
        if int(tokens.max()) >= self.vocab_size:
            raise UserError(f"{self.directory} contains token ids outside its vocabulary: prepare the data again")
        tokens = tokens.astype(np.int32)
        word_starts = self._word_start_rows(starts, stride)
        word_starts[:, 0] = True
        if prepend_begin:
            at_document = np.flatnonzero(shift == 0)
            tokens = _prepend(tokens, begin_id, at_document)
            word_starts = _prepend(word_starts, True, at_document)

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
        """Returns segment_ids [B, L], not yet 0 on padding, and the shift of each row by a begin token, 0 or 1, [B]."""
        started = self._documents_started(np.concatenate([starts, ends - 1]))
        first = started[: len(starts)] - 1
        pieces = started[len(starts) :] - first
        row = np.repeat(np.arange(len(starts)), pieces)
        number = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begins = self._documents.take(first[row] + number) - starts[row]
        shift = (begins[number == 0] != 0) * int(prepend_begin)
        offsets = row * length + np.where(number > 0, begins + shift[row], 0)
        sizes = np.diff(offsets, append=len(starts) * length)
        return np.repeat((number + 1).astype(np.int32), sizes).reshape(len(starts), length), shift

    def _documents_started(self, positions: np.ndarray) -> np.ndarray:
        """Returns the number of documents that begin at or before each position of the stream."""
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
    """One array in several memory-mapped files, which all have the same size except the last."""

    def __init__(self, maps: list[np.ndarray]) -> None:
        self.parts = [part.view(np.ndarray) for part in maps]  # indexing a memmap object is slower
        self.sizes = np.asarray([part.size for part in self.parts])
        self.capacity = int(self.sizes[0])
        self.size = int(self.sizes.sum())

    def take(self, index: np.ndarray) -> np.ndarray:
        """Returns the items at `index`, an integer array of any shape."""
        if len(self.parts) == 1:
            return self.parts[0][index]
        result = np.empty(index.shape, self.parts[0].dtype)
        part, offset = np.divmod(index, self.capacity)
        for number in np.unique(part):
            here = part == number
            result[here] = self.parts[number][offset[here]]
        return result

    def slices(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the `length` items from each start, [B, length]; the last item is repeated beyond the end."""
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
    """Returns all windows of an array [T] as a view [T - length + 1, length]; indexing it copies whole rows."""
    return np.ndarray((array.size - length + 1, length), array.dtype, array, strides=array.strides * 2)


def _prepend(content: np.ndarray, value: Any, unmoved: np.ndarray) -> np.ndarray:
    """Returns `value` and content [B, L - 1] as [B, L]; the rows `unmoved` end in a free slot instead."""
    result = np.empty((content.shape[0], content.shape[1] + 1), content.dtype)
    result[:, 0] = value
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
        raise UserError(f"{directory} is not a token store: {path} does not exist")
    remedy = f"remove {directory} and prepare the data again"
    index = read_json(path, remedy=remedy)
    version = index.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory} has format version {version}, but this jaxlm reads version {FORMAT_VERSION}: prepare the"
            " data again"
        )
    if index.get("fingerprint") != _fingerprint(index):
        raise UserError(f"{path} is damaged (checksum mismatch): {remedy}")
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
