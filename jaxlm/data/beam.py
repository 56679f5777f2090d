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

import json
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
from ml_collections import ConfigDict

from jaxlm.config import config_to_dict
from jaxlm.data.beam_stores import Chunk, as_file, read_chunk, run_pipeline, tokenize, write_stores
from jaxlm.data.corpus import need_documents, paths_of_stores
from jaxlm.data.origin import held_out_paths
from jaxlm.data.prepared import write_record
from jaxlm.data.sampling import Sample, hashes_of
from jaxlm.errors import UserError
from jaxlm.runtime.progress import Progress
from jaxlm.text.files import Folder, file_in, read_file, remove_folder, write_file
from jaxlm.text.sources import Tally, find_files, read_documents
from jaxlm.tokenizer.tokenizer import Tokenizer, train_tokenizer

CHUNK_BYTES = 2**22  # of text in a file, before the duplicates are dropped
HELD_OUT_BY_HASH = "held_out/held_out"


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
        counted = tokenize(config, chunks, folder, work, options)
        clock("tokenize")
        progress.begin("write")
        stores = write_stores(config, chunks, counted, tokenizer, folder, work, options)
        clock("write")
    remove_folder(work)
    return write_record(
        folder, origin, config_to_dict(config), paths_of_stores(config), tallies, tokenizer, stores, seconds, trained_on
    )


def _copy_tokenizer(directory: Path, folder: Folder) -> None:
    for file in sorted(directory.iterdir()):
        write_file(file_in(folder, f"tokenizer/{file.name}"), [file.read_bytes()])


# Read


class _ReadFile(beam.DoFn):
    """(source, file number, path, file or "") -> (hash of the text, document), and what was counted of the file."""

    def __init__(self, settings: dict[str, Any], held_out: int) -> None:
        self.settings, self.held_out = settings, held_out

    def process(self, unit: tuple[int, int, str, str]) -> Iterator[Any]:
        source, number, path, file = unit
        settings, tally, before = SimpleNamespace(**self.settings), Tally(), 0
        train = source >= self.held_out
        below = 0 if self.settings["held_out"] or not train else int(self.settings["held_out_fraction"] * 2**64)
        files = [as_file(file)] if file else None
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
        write_file(as_file(f"{self.work}/documents/{made.name}"), [zstandard.ZstdCompressor(1).compress(content)])
        yield json.dumps(["chunk", *made])


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

    results = run_pipeline(options, work, "read", steps)
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
        for text, key in read_chunk(self.work, made):
            sample.offer(text, int(key, 16))
        pieces = [(-key, content.decode()) for key, _, content in sorted(sample.heap, key=lambda entry: entry[1])]
        content = "".join(json.dumps(piece, ensure_ascii=False) + "\n" for piece in pieces).encode()
        write_file(as_file(f"{self.work}/sample/{made.name}"), [zlib.compress(content, 1)])
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

        results = run_pipeline(options, work, "sample", steps)
        if share >= 1 or sum(result[-1] for result in results) > size:
            break
        share *= 2
    sample = Sample(size)
    for chunk in train:
        content = read_file(as_file(f"{work}/sample/{chunk.name}"))
        for line in zlib.decompress(content or b"").decode().split("\n")[:-1]:
            key, text = json.loads(line)
            sample.take(text, key)
    return sample
