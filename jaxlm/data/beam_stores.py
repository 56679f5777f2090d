"""Preparation by Apache Beam, second half: from chunks of documents to the files of token stores.

Also contains what all pipelines share: chunks, and running a pipeline.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from ml_collections import ConfigDict

from jaxlm.data.corpus import encode_documents
from jaxlm.data.token_store import array_file, array_layout, store_index
from jaxlm.errors import UserError
from jaxlm.text.files import File, Folder, file_in, read_file, write_file
from jaxlm.text.remote import RemoteFile
from jaxlm.text.sources import find_files
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer


class Chunk(NamedTuple):
    """Consecutive documents of one store; sorted chunks are in the order of the text."""

    source: int  # index of the path: the held-out sets first, then data.path
    store: str
    number: int  # index of the file in the path
    block: int  # index of the chunk in the file
    documents: int
    bytes: int

    @property
    def name(self) -> str:
        return f"{self.store.replace('/', '-')}/{self.source}-{self.number}-{self.block}"


class WrittenStore(NamedTuple):
    """The counts and the fingerprint of a token store that was written."""

    documents: int
    text_bytes: int
    tokens: int
    fingerprint: str


def run_pipeline(options: Sequence[str], work: Folder, name: str, steps: Any) -> list[Any]:
    """Runs a pipeline and returns its results; `steps(pipeline)` returns a collection of JSON texts.

    Raises UserError if the pipeline fails or its results cannot be read.
    """
    with_defaults = PipelineOptions(list(options) or ["--runner=DirectRunner"])
    file = file_in(work, f"{name}.json")
    try:
        with beam.Pipeline(options=with_defaults) as pipeline:
            lines = steps(pipeline)
            lines | "Gather" >> beam.combiners.ToList() | "Keep" >> beam.Map(_write_lines, str(file))
    except Exception as error:  # each runner has exception types of its own; their text contains a worker's UserError
        lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
        relevant = [line for line in lines if "UserError: " in line] or lines
        reason = relevant[-1].rpartition("UserError: ")[2].partition(" [while running ")[0]
        raise UserError(f"the Beam pipeline to {name} the text failed: {reason}") from error
    content = read_file(file)
    if content is None:
        raise UserError(f"{file} was not written: give Beam's workers and this machine the same shared directories")
    return [json.loads(line) for line in content.decode().splitlines()]


def _write_lines(lines: list[str], file: str) -> None:
    write_file(as_file(file), ["".join(line + "\n" for line in lines).encode()])


def as_file(name: str) -> File:
    """Returns the file of a path or URL, which is passed between workers as text."""
    return RemoteFile(name) if "://" in name else Path(name)


def read_chunk(work: Folder, chunk: Chunk) -> list[tuple[str, str]]:
    """Returns (text, key) of each document of a chunk; the key is a hash in hexadecimal digits."""
    import zstandard

    content = read_file(as_file(f"{work}/documents/{chunk.name}"))
    if content is None:
        raise UserError(f"{work}/documents/{chunk.name} is missing: prepare the data again")
    # Not `splitlines`, which also splits at characters that JSON does not escape, such as U+2028.
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(content).decode().split("\n")[:-1]
    return [tuple(json.loads(line)) for line in lines]


# Tokenize and write


class _Tokenize(beam.DoFn):
    """A chunk -> a file with its tokens, its word starts and the starts of its documents, and a report with counts."""

    def __init__(self, folder: Folder, work: Folder, words: str) -> None:
        self.folder, self.work, self.words = str(folder), str(work), words

    def setup(self) -> None:
        with tempfile.TemporaryDirectory() as local:
            for file in find_files(f"{self.folder}/tokenizer", SimpleNamespace(format="text")):
                (Path(local) / file.name).write_bytes(read_file(file) or b"")
            self.tokenizer = load_tokenizer(local, self.words)

    def process(self, chunk: tuple) -> Iterator[str]:
        source = Chunk(*chunk)
        texts = [text for text, _ in read_chunk(self.work, source)]
        ids, word_starts, ends, sizes = encode_documents(self.tokenizer, texts)
        starts = np.array([0, *ends[:-1]], np.int64)
        _save_arrays(f"{self.work}/tokens/{source.name}", ids, np.packbits(word_starts), starts)
        yield json.dumps([*source, len(ids), sum(sizes)])


def _save_arrays(name: str, *arrays: np.ndarray) -> None:
    content = io.BytesIO()
    for array in arrays:
        np.save(content, array, allow_pickle=False)
    write_file(as_file(name), [content.getvalue()])


def _load_arrays(name: str, count: int) -> list[np.ndarray]:
    content = read_file(as_file(name))
    if content is None:
        raise UserError(f"{name} is missing: prepare the data again")
    stream = io.BytesIO(content)
    return [np.load(stream, allow_pickle=False) for _ in range(count)]


def tokenize(
    config: ConfigDict, chunks: list[Chunk], folder: Folder, work: Folder, options: Sequence[str]
) -> dict[Chunk, int]:
    """Writes the tokens of each chunk to `work` and returns their number."""

    def steps(pipeline: Any) -> Any:
        spread = pipeline | beam.Create([tuple(chunk) for chunk in chunks]) | beam.Reshuffle()
        return spread | "Tokenize" >> beam.ParDo(_Tokenize(folder, work, config.tokenizer.words))

    results = run_pipeline(options, work, "tokenize", steps)
    return {Chunk(*result[:-2]): result[-2] for result in results}


class _WriteFile(beam.DoFn):
    """(store, array, file number, parts of chunks) -> a file of a token store, and a report with its size and checksum.

    A part is (chunk, begin, end, tokens of the store before the chunk). Begin and end count tokens in the arrays
    `tokens` and `word_starts`, and documents in the array `documents`.
    """

    def __init__(self, folder: Folder, work: Folder, vocab_size: int, shard_bytes: int) -> None:
        self.folder, self.work = str(folder), str(work)
        self.vocab_size, self.layout = vocab_size, array_layout(vocab_size, shard_bytes)

    def process(self, task: tuple[str, str, int, list[tuple[str, int, int, int]]]) -> Iterator[str]:
        store, array, number, parts = task
        counts = np.zeros(self.vocab_size if array == "tokens" else 0, np.int64)
        name = array_file(array, number)
        size, crc = write_file(
            as_file(f"{self.folder}/{store}/{name}"), (part.tobytes() for part in self._parts(array, parts, counts))
        )
        if array == "tokens":
            _save_arrays(f"{self.work}/counts/{store}/{number}", counts)
        yield json.dumps([store, array, number, {"name": name, "bytes": size, "crc32": crc}])

    def _parts(self, array: str, parts: list[tuple[str, int, int, int]], counts: np.ndarray) -> Iterator[np.ndarray]:
        dtype, pending = self.layout[array][0], np.zeros(0, np.uint8)
        for name, begin, end, before in parts:
            ids, packed, starts = _load_arrays(f"{self.work}/tokens/{name}", 3)
            if array == "documents":
                yield (starts[begin:end] + before).astype(dtype)
            elif array == "tokens":
                counts += np.bincount(ids[begin:end], minlength=len(counts))
                yield ids[begin:end].astype(dtype)
            else:  # a byte may contain bits of two chunks
                pending = np.concatenate([pending, np.unpackbits(packed, count=len(ids))[begin:end]])
                whole = len(pending) // 8 * 8
                yield np.packbits(pending[:whole], bitorder="little")
                pending = pending[whole:]
        if len(pending):
            yield np.packbits(pending, bitorder="little")


def write_stores(
    config: ConfigDict, chunks: list[Chunk], token_counts: dict[Chunk, int], tokenizer: Tokenizer, folder: Folder,
    work: Folder, options: Sequence[str],
) -> dict[str, WrittenStore]:  # fmt: skip
    """Writes the token stores below `folder` from the tokens of the chunks; `token_counts` is their number in each."""
    size, shard_bytes = tokenizer.vocab_size, config.data.shard_bytes
    layout = array_layout(size, shard_bytes)
    by_store = {
        store: [chunk for chunk in chunks if chunk.store == store] for store in sorted({c.store for c in chunks})
    }
    tasks = []
    for store, own in by_store.items():
        before = np.cumsum([0, *(token_counts[chunk] for chunk in own)]).tolist()
        names = [chunk.name for chunk in own]
        for array, counts, capacity in (
            ("tokens", [token_counts[chunk] for chunk in own], layout["tokens"][1]),
            ("word_starts", [token_counts[chunk] for chunk in own], layout["tokens"][1]),
            ("documents", [chunk.documents for chunk in own], layout["documents"][1]),
        ):
            tasks += [(store, array, number, p) for number, p in enumerate(_shards(names, counts, before, capacity))]

    def steps(pipeline: Any) -> Any:
        spread = pipeline | beam.Create(tasks) | beam.Reshuffle()
        return spread | "WriteFile" >> beam.ParDo(_WriteFile(folder, work, size, shard_bytes))

    results = sorted(run_pipeline(options, work, "write", steps), key=lambda result: result[:3])
    written = {}
    for store, own in by_store.items():
        files = {array: [r[3] for r in results if r[:2] == [store, array]] for array in layout}
        occurrences = np.zeros(size, np.int64)
        for number in range(len(files["tokens"])):
            occurrences += _load_arrays(f"{work}/counts/{store}/{number}", 1)[0]
        for number, start in enumerate(range(0, size, layout["counts"][1])):
            name, piece = array_file("counts", number), occurrences[start : start + layout["counts"][1]]
            total, crc = write_file(file_in(folder, f"{store}/{name}"), [piece.astype("<i8").tobytes()])
            files["counts"].append({"name": name, "bytes": total, "crc32": crc})
        tokens, documents = sum(token_counts[c] for c in own), sum(c.documents for c in own)
        text_bytes = sum(chunk.bytes for chunk in own)
        index = store_index(size, tokenizer.fingerprint, tokens, documents, text_bytes, shard_bytes, files)
        write_file(file_in(folder, f"{store}/index.json"), [json.dumps(index, indent=1).encode()])
        written[store] = WrittenStore(documents, text_bytes, tokens, index["fingerprint"])
    return written


def _shards(
    names: list[str], counts: list[int], before: list[int], capacity: int
) -> list[list[tuple[str, int, int, int]]]:
    """Returns the parts of each file of an array, as (chunk, begin, end, tokens of the store before the chunk).

    `counts` are the items of each chunk, and `capacity` those of a file.
    """
    shards: list[list[tuple[str, int, int, int]]] = []
    room = 0
    for name, count, tokens in zip(names, counts, before[:-1], strict=True):
        begin = 0
        while begin < count:
            if not room:
                shards.append([])
                room = capacity
            end = min(count, begin + room)
            shards[-1].append((name, begin, end, tokens))
            room, begin = room - (end - begin), end
    return shards
