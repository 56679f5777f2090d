"""The same preparation by Apache Beam, for text that outgrows one machine: the same stores, byte for byte.

A document's place is its path, its file and its number in the file, whoever reads it; of copies the first place counts.
Three pipelines, each of which leaves files in `work/` and what it counted in one JSON file:

    read        files -> documents -> the first of each text -> chunks of documents that follow each other
    tokenize    chunk -> its tokens
    write       a file of a token store <- the chunks whose tokens it holds

Between them the vocabulary is trained here on the sample that the local path takes, and the places of the chunks in
the stores are added up. Only `read` moves text between workers, and none holds more than a chunk or a document. A file
is read by one worker: give large texts in many files.
"""

import io
import json
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from ml_collections import ConfigDict

from jaxlm.config import config_to_dict
from jaxlm.data.files import File, Folder, RemoteFile, file_in, read_file, remove_folder, write_file
from jaxlm.data.origin import held_out_paths
from jaxlm.data.prepare import encode_documents, need_documents, paths_of_stores
from jaxlm.data.prepared import write_record
from jaxlm.data.progress import Progress
from jaxlm.data.sampling import Sample, hashes_of
from jaxlm.data.sources import Tally, find_files, read_documents
from jaxlm.data.store import array_file, array_layout, store_index
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from jaxlm.errors import UserError

CHUNK_BYTES = 2**22  # of text in a file, before the duplicates are dropped
HELD_OUT_BY_HASH = "held_out/held_out"


class Written(NamedTuple):
    """A store that was written."""

    documents: int
    text_bytes: int
    tokens: int
    fingerprint: str


def build(options: Sequence[str], config: ConfigDict, given: Tokenizer | None, origin: Any, folder: Folder) -> str:
    """Writes a prepared directory, local or remote, by pipelines with Beam's own options; returns the closing table."""
    work = folder / "work" if isinstance(folder, Path) else f"{folder}/work"
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def clock(phase: str) -> None:
        seconds[phase] = time.monotonic() - began - sum(seconds.values())

    with Progress() as progress:
        progress.begin("read")
        chunks, tallies = _read(config, work, options)
        documents = Counter[str]()
        for chunk in chunks:
            documents[chunk.store] += chunk.documents
        need_documents(config, tallies, documents)
        clock("read")
        trained_on = None
        if given:
            tokenizer = given
            with tempfile.TemporaryDirectory() as local:
                tokenizer.save(local)
                _copy_tokenizer(Path(local), folder)
        else:
            sample = _sample(config, chunks, work, options)
            progress.begin(f"train the tokenizer on {sample.bytes / 1e6:,.1f} MB")
            with tempfile.TemporaryDirectory() as local:
                tokenizer = train_tokenizer(sample.texts(), config.tokenizer, local)
                _copy_tokenizer(Path(local), folder)
            trained_on = {"pieces": len(sample.heap), "bytes": sample.bytes}
            clock("train the tokenizer")
        progress.begin("tokenize")
        counted = _tokenize(config, chunks, folder, work, options)
        clock("tokenize")
        progress.begin("write")
        stores = _write(config, chunks, counted, tokenizer, folder, work, options)
        clock("write")
    remove_folder(work)
    return write_record(
        folder, origin, config_to_dict(config), paths_of_stores(config), tallies, tokenizer, stores, seconds, trained_on
    )


def _run(options: Sequence[str], work: Folder, name: str, steps: Any) -> list[Any]:
    """Runs a pipeline; `steps(pipeline)` gives a collection of JSON texts, which are returned as values."""
    with_defaults = PipelineOptions(list(options) or ["--runner=DirectRunner"])
    file = file_in(work, f"{name}.json")
    try:
        with beam.Pipeline(options=with_defaults) as pipeline:
            lines = steps(pipeline)
            lines | "Gather" >> beam.combiners.ToList() | "Keep" >> beam.Map(_write_lines, str(file))
    except Exception as error:  # a runner's own kind; what a worker raised is in its text
        lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
        told = [line for line in lines if "UserError: " in line] or lines
        reason = told[-1].rpartition("UserError: ")[2].partition(" [while running ")[0]
        raise UserError(f"the Beam pipeline that should {name} the text failed: {reason}") from error
    content = read_file(file)
    if content is None:
        raise UserError(f"{file} was not written: Beam's workers must see the same folders as this machine")
    return [json.loads(line) for line in content.decode().splitlines()]


def _write_lines(lines: list[str], file: str) -> None:
    write_file(_file(file), ["".join(line + "\n" for line in lines).encode()])


def _file(name: str) -> File:
    return RemoteFile(name) if "://" in name else Path(name)


def _copy_tokenizer(directory: Path, folder: Folder) -> None:
    for file in sorted(directory.iterdir()):
        write_file(file_in(folder, f"tokenizer/{file.name}"), [file.read_bytes()])


# Read


class Chunk(NamedTuple):
    """Documents of one store that follow each other; sorted, chunks are in the order of the text."""

    source: int  # the held-out sets, then the paths
    store: str
    number: int  # of the file among those of the path
    block: int
    documents: int
    bytes: int

    @property
    def name(self) -> str:
        return f"{self.store.replace('/', '-')}/{self.source}-{self.number}-{self.block}"


class _ReadFile(beam.DoFn):
    """(source, file number, path, file or "") -> (hash of the text, document), and what was counted of the file."""

    def __init__(self, settings: dict[str, Any], held_out: int) -> None:
        self.settings, self.held_out = settings, held_out

    def process(self, unit: tuple[int, int, str, str]) -> Iterator[Any]:
        source, number, path, file = unit
        settings, tally, before = SimpleNamespace(**self.settings), Tally(), 0
        train = source >= self.held_out
        below = 0 if self.settings["held_out"] or not train else int(self.settings["held_out_fraction"] * 2**64)
        files = [_file(file)] if file else None
        error = None
        try:
            limit = settings.max_megabytes if train else None
            for index, text in enumerate(read_documents(path, settings, tally, files, limit)):
                first, second, key = hashes_of(text)
                place = (source, number, before // CHUNK_BYTES, index)
                before = tally.bytes
                # The local path's set of hashes keeps zero as one.
                yield (first or 1).to_bytes(8), (place, second < below, key.to_bytes(8), text)
        except UserError as raised:  # the first file's is told, whichever worker comes to it first
            error = str(raised)
        counts = [tally.documents, tally.bytes, tally.cut, dict(tally.dropped), tally.places]
        yield beam.pvalue.TaggedOutput("told", json.dumps(["file", source, number, error, counts]))


class _FirstOfEach(beam.CombineFn):
    """Of the copies of a text: the first of each held-out set, the first of the paths, and how many each source has."""

    def __init__(self, held_out: int) -> None:
        self.held_out = held_out

    def create_accumulator(self) -> tuple[dict, dict]:
        return {}, {}

    def add_input(self, accumulator: tuple[dict, dict], document: tuple) -> tuple[dict, dict]:
        source = document[0][0]
        return self._added(accumulator, {min(source, self.held_out): document}, {source: 1})

    def merge_accumulators(self, accumulators: Iterable[tuple[dict, dict]]) -> tuple[dict, dict]:
        result: tuple[dict, dict] = {}, {}
        for other in accumulators:
            result = self._added(result, *other)
        return result

    def _added(self, accumulator: tuple[dict, dict], kept: dict, counts: dict) -> tuple[dict, dict]:
        for group, document in kept.items():
            if group not in accumulator[0] or tuple(document[0]) < tuple(accumulator[0][group][0]):
                accumulator[0][group] = document
        for source, count in counts.items():
            accumulator[1][source] = accumulator[1].get(source, 0) + count
        return accumulator

    def extract_output(self, accumulator: tuple[dict, dict]) -> tuple[dict, dict]:
        return accumulator


class _KeepFirst(beam.DoFn):
    """The copies of a text -> those documents that are kept; what is dropped is told."""

    def __init__(self, held_out: int) -> None:
        self.held_out = held_out

    def process(self, copies: tuple[bytes, tuple[dict, dict]]) -> Iterator[Any]:
        _, (kept, counts) = copies
        in_held_out = any(group < self.held_out for group in kept)
        left = Counter(counts)
        for group, document in kept.items():
            if group < self.held_out or not in_held_out:
                left[document[0][0]] -= 1
                yield document
        for source, count in left.items():
            if count:
                of_held_out = source >= self.held_out and in_held_out
                reason = "documents of a held-out set" if of_held_out else "duplicates"
                yield beam.pvalue.TaggedOutput("dropped", ((source, reason), count))


class _WriteChunk(beam.DoFn):
    """The documents of a chunk, in any order -> a file with them in order; tells of it."""

    def __init__(self, work: Folder) -> None:
        self.work = str(work)

    def process(self, chunk: tuple[tuple, Iterable[tuple[int, bytes, str]]]) -> Iterator[str]:
        import zstandard

        (source, store, number, block), documents = chunk
        texts = [(text, key.hex()) for _, key, text in sorted(documents)]
        made = Chunk(source, store, number, block, len(texts), sum(len(text.encode()) for text, _ in texts))
        content = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in texts).encode()
        write_file(_file(f"{self.work}/documents/{made.name}"), [zstandard.ZstdCompressor(1).compress(content)])
        yield json.dumps(["chunk", *made])


def _read_chunk(work: Folder, chunk: Chunk) -> list[tuple[str, str]]:
    """Returns (text, key) of each document."""
    import zstandard

    content = read_file(_file(f"{work}/documents/{chunk.name}"))
    if content is None:
        raise UserError(f"{work}/documents/{chunk.name} has gone: prepare the data again")
    # A line of JSON has no line end of its own, but may have what `splitlines` takes for one.
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(content).decode().split("\n")[:-1]
    return [tuple(json.loads(line)) for line in lines]


def _read(config: ConfigDict, work: Folder, options: Sequence[str]) -> tuple[list[Chunk], dict[str, Tally]]:
    stores = paths_of_stores(config)
    names, held_out = list(stores), len(held_out_paths(config))
    settings = config_to_dict(config)["data"] | {"workers": 1}
    units = [unit for source, path in enumerate(stores.values()) for unit in _units(source, path, config, held_out)]

    def route(document: tuple) -> tuple[tuple, tuple[int, bytes, str]]:
        (source, number, block, index), by_hash, key, text = document
        return (source, HELD_OUT_BY_HASH if by_hash else names[source], number, block), (index, key, text)

    def steps(pipeline: Any) -> Any:
        # Without a shuffle one worker would read what one list of files became.
        files = pipeline | "Files" >> beam.Create(units) | "Spread" >> beam.Reshuffle()
        read = files | "Read" >> beam.ParDo(_ReadFile(settings, held_out)).with_outputs("told", main="documents")
        told = [read.told]
        if settings["deduplicate"]:
            copies = read.documents | "Copies" >> beam.CombinePerKey(_FirstOfEach(held_out))
            first = copies | "First" >> beam.ParDo(_KeepFirst(held_out)).with_outputs("dropped", main="kept")
            documents = first.kept
            sums = first.dropped | "Dropped" >> beam.CombinePerKey(sum)
            told.append(sums | "Tell" >> beam.Map(lambda drop: json.dumps(["dropped", *drop[0], drop[1]])))
        else:
            documents = read.documents | "Documents" >> beam.Values()
        chunks = documents | "Route" >> beam.Map(route) | "Chunks" >> beam.GroupByKey()
        told.append(chunks | "Write" >> beam.ParDo(_WriteChunk(work)))
        return tuple(told) | "All" >> beam.Flatten()

    results = _run(options, work, "read", steps)
    tallies = {name: Tally() for name in names}
    for _, source, _, error, counts in sorted(result for result in results if result[0] == "file"):
        if error:
            raise UserError(error)
        tally = tallies[names[source]]
        documents, size, cut, dropped, places = counts
        tally.documents, tally.bytes, tally.cut = tally.documents + documents, tally.bytes + size, tally.cut + cut
        for reason, count in dropped.items():
            known = len(tally.places.get(reason, []))
            tally.dropped[reason] += count
            if reason in places:
                tally.places.setdefault(reason, []).extend(places[reason][: 3 - known])
    for _, source, reason, count in sorted(result for result in results if result[0] == "dropped"):
        tallies[names[source]].dropped[reason] += count
    return sorted(Chunk(*result[1:]) for result in results if result[0] == "chunk"), tallies


def _units(source: int, path: str, config: ConfigDict, held_out: int) -> list[tuple[int, int, str, str]]:
    """Returns what one worker reads each: a file, or a path that must be read in one go."""
    if path == "pydocs":
        raise UserError("pydocs is the text of this machine, not of Beam's workers: prepare it without --runner=beam")
    if path.startswith("tfds:") or (source >= held_out and config.data.max_megabytes):
        return [(source, 0, path, "")]
    return [(source, number, path, str(file)) for number, file in enumerate(find_files(path, config.data))]


# The tokenizer


class _Candidates(beam.DoFn):
    """A chunk -> a file of the pieces of its documents with a key below the limit."""

    def __init__(self, work: Folder, limit: int) -> None:
        self.work, self.limit = str(work), limit

    def process(self, chunk: tuple) -> Iterator[str]:
        made = Chunk(*chunk)
        sample = Sample(2**63)
        sample.limit = self.limit
        for text, key in _read_chunk(self.work, made):
            sample.offer(text, int(key, 16))
        pieces = [(-key, content.decode()) for key, _, content in sorted(sample.heap, key=lambda entry: entry[1])]
        content = "".join(json.dumps(piece, ensure_ascii=False) + "\n" for piece in pieces).encode()
        write_file(_file(f"{self.work}/sample/{made.name}"), [zlib.compress(content, 1)])
        yield json.dumps([*made, sample.bytes])


def _sample(config: ConfigDict, chunks: list[Chunk], work: Folder, options: Sequence[str]) -> Sample:
    """Returns the sample that the local path takes: the pieces of training text with the smallest keys."""
    train = [chunk for chunk in chunks if chunk.store.startswith("train/")]
    size = int(config.tokenizer.training_megabytes * 1e6)
    total = sum(chunk.bytes for chunk in train)
    share = 1.1 * size / total + 0.001
    while True:  # keys are spread evenly, so the first try does, but where documents are few and long
        limit = int(min(share, 1.0) * 2**64)

        def steps(pipeline: Any, limit: int = limit) -> Any:
            spread = pipeline | beam.Create([tuple(chunk) for chunk in train]) | beam.Reshuffle()
            return spread | "Sample" >> beam.ParDo(_Candidates(work, limit))

        results = _run(options, work, "sample", steps)
        if share >= 1 or sum(result[-1] for result in results) > size:
            break
        share *= 2
    sample = Sample(size)
    for chunk in train:
        content = read_file(_file(f"{work}/sample/{chunk.name}"))
        for line in zlib.decompress(content or b"").decode().split("\n")[:-1]:
            key, text = json.loads(line)
            sample.take(text, key)
    return sample


# Tokenize and write


class _Tokenize(beam.DoFn):
    """A chunk -> a file of its tokens; tells how many, and where its documents end."""

    def __init__(self, folder: Folder, work: Folder, words: str) -> None:
        self.folder, self.work, self.words = str(folder), str(work), words

    def setup(self) -> None:
        with tempfile.TemporaryDirectory() as local:
            for file in find_files(f"{self.folder}/tokenizer", SimpleNamespace(format="text")):
                (Path(local) / file.name).write_bytes(read_file(file) or b"")
            self.tokenizer = load_tokenizer(local, self.words)

    def process(self, chunk: tuple) -> Iterator[str]:
        made = Chunk(*chunk)
        texts = [text for text, _ in _read_chunk(self.work, made)]
        ids, word_starts, ends, sizes = encode_documents(self.tokenizer, texts)
        starts = np.array([0, *ends[:-1]], np.int64)
        _save_arrays(f"{self.work}/tokens/{made.name}", ids, np.packbits(word_starts), starts)
        yield json.dumps([*made, len(ids), sum(sizes)])


def _save_arrays(name: str, *arrays: np.ndarray) -> None:
    content = io.BytesIO()
    for array in arrays:
        np.save(content, array, allow_pickle=False)
    write_file(_file(name), [content.getvalue()])


def _load_arrays(name: str, count: int) -> list[np.ndarray]:
    content = read_file(_file(name))
    if content is None:
        raise UserError(f"{name} has gone: prepare the data again")
    stream = io.BytesIO(content)
    return [np.load(stream, allow_pickle=False) for _ in range(count)]


def _tokenize(
    config: ConfigDict, chunks: list[Chunk], folder: Folder, work: Folder, options: Sequence[str]
) -> dict[Chunk, int]:
    """Returns the number of tokens of each chunk."""

    def steps(pipeline: Any) -> Any:
        spread = pipeline | beam.Create([tuple(chunk) for chunk in chunks]) | beam.Reshuffle()
        return spread | "Tokenize" >> beam.ParDo(_Tokenize(folder, work, config.tokenizer.words))

    results = _run(options, work, "tokenize", steps)
    return {Chunk(*result[:-2]): result[-2] for result in results}


class _WriteFile(beam.DoFn):
    """A file of a token store, with the parts of the chunks that it holds -> the file; tells its size and checksum.

    The parts of tokens and word starts are of tokens; those of documents are of documents.
    """

    def __init__(self, folder: Folder, work: Folder, vocab_size: int, shard_bytes: int) -> None:
        self.folder, self.work = str(folder), str(work)
        self.vocab_size, self.layout = vocab_size, array_layout(vocab_size, shard_bytes)

    def process(self, task: tuple[str, str, int, list[tuple[str, int, int, int]]]) -> Iterator[str]:
        store, array, number, parts = task
        counts = np.zeros(self.vocab_size if array == "tokens" else 0, np.int64)
        name = array_file(array, number)
        size, crc = write_file(
            _file(f"{self.folder}/{store}/{name}"), (part.tobytes() for part in self._parts(array, parts, counts))
        )
        if array == "tokens":
            _save_arrays(f"{self.work}/counts/{store}/{number}", counts)
        yield json.dumps([store, array, number, {"name": name, "bytes": size, "crc32": crc}])

    def _parts(self, array: str, parts: list[tuple[str, int, int, int]], counts: np.ndarray) -> Iterator[np.ndarray]:
        dtype, held = self.layout[array][0], np.zeros(0, np.uint8)
        for name, begin, end, before in parts:
            ids, packed, starts = _load_arrays(f"{self.work}/tokens/{name}", 3)
            if array == "documents":
                yield (starts[begin:end] + before).astype(dtype)
            elif array == "tokens":
                counts += np.bincount(ids[begin:end], minlength=len(counts))
                yield ids[begin:end].astype(dtype)
            else:  # bits, of which eight make a byte across chunks too
                held = np.concatenate([held, np.unpackbits(packed, count=len(ids))[begin:end]])
                whole = len(held) // 8 * 8
                yield np.packbits(held[:whole], bitorder="little")
                held = held[whole:]
        if len(held):
            yield np.packbits(held, bitorder="little")


def _write(
    config: ConfigDict, chunks: list[Chunk], counted: dict[Chunk, int], tokenizer: Tokenizer, folder: Folder,
    work: Folder, options: Sequence[str],
) -> dict[str, Written]:  # fmt: skip
    size, shard_bytes = tokenizer.vocab_size, config.data.shard_bytes
    layout = array_layout(size, shard_bytes)
    by_store = {
        store: [chunk for chunk in chunks if chunk.store == store] for store in sorted({c.store for c in chunks})
    }
    tasks = []
    for store, own in by_store.items():
        before = np.cumsum([0, *(counted[chunk] for chunk in own)]).tolist()
        names = [chunk.name for chunk in own]
        for array, counts, capacity in (
            ("tokens", [counted[chunk] for chunk in own], layout["tokens"][1]),
            ("word_starts", [counted[chunk] for chunk in own], layout["tokens"][1]),
            ("documents", [chunk.documents for chunk in own], layout["documents"][1]),
        ):
            tasks += [(store, array, number, p) for number, p in enumerate(_shards(names, counts, before, capacity))]

    def steps(pipeline: Any) -> Any:
        spread = pipeline | beam.Create(tasks) | beam.Reshuffle()
        return spread | "WriteFile" >> beam.ParDo(_WriteFile(folder, work, size, shard_bytes))

    results = sorted(_run(options, work, "write", steps), key=lambda result: result[:3])
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
        tokens, documents = sum(counted[c] for c in own), sum(c.documents for c in own)
        text_bytes = sum(chunk.bytes for chunk in own)
        index = store_index(size, tokenizer.fingerprint, tokens, documents, text_bytes, shard_bytes, files)
        write_file(file_in(folder, f"{store}/index.json"), [json.dumps(index, indent=1).encode()])
        written[store] = Written(documents, text_bytes, tokens, index["fingerprint"])
    return written


def _shards(
    names: list[str], counts: list[int], before: list[int], capacity: int
) -> list[list[tuple[str, int, int, int]]]:
    """Returns for each file the parts that it holds, as (chunk, begin, end, tokens of the store before the chunk)."""
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
