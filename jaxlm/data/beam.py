"""Preparation by Apache Beam, for text that is too large for one machine; writes the same bytes as the local runner.

The position of a document is its path, its file and its number in the file, whichever worker reads it. Of several
copies of a text, the one at the first position is kept. There are three pipelines, each of which writes files below
`work/` and its counts to one JSON file:

    read        files -> documents -> the first copy of each text -> chunks of consecutive documents
    tokenize    chunk -> its tokens
    write       the chunks whose tokens a file of a token store contains -> the file

Between them, this process trains the tokenizer on the same sample as the local runner and computes the offsets of the
chunks in the stores. Text moves between workers only in `read`, and a worker holds at most one chunk or one document in
memory. Each file is read by one worker, so large texts should be split into many files.
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
from jaxlm.data.corpus import check_documents, store_paths
from jaxlm.data.origin import held_out_paths
from jaxlm.data.prepared import write_record
from jaxlm.data.sampling import Sample, hashes_of
from jaxlm.errors import UserError
from jaxlm.runtime.progress import Progress
from jaxlm.text.files import Folder, file_in, read_file, remove_folder, write_file
from jaxlm.text.filters import Tally
from jaxlm.text.sources import find_files, read_documents
from jaxlm.tokenizer.tokenizer import Tokenizer, train_tokenizer

CHUNK_BYTES = 2**22  # of text, counted before duplicates are dropped
HELD_OUT_BY_HASH = "held_out/held_out"


def build(options: Sequence[str], config: ConfigDict, tokenizer: Tokenizer | None, origin: Any, folder: Folder) -> str:
    """Writes a local or remote prepared directory and returns the closing table; `options` are Beam's own.

    Trains a tokenizer if it is None. Raises UserError if a pipeline fails or a path of the config yields no documents.
    """
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
        check_documents(config, tallies, documents)
        clock("read")
        sample_size = None
        if tokenizer:
            with tempfile.TemporaryDirectory() as local:
                tokenizer.save(local)
                _copy_tokenizer(Path(local), folder)
        else:
            sample = _sample(config, chunks, work, options)
            progress.begin(f"train the tokenizer on {sample.bytes / 1e6:,.1f} MB")
            with tempfile.TemporaryDirectory() as local:
                tokenizer = train_tokenizer(sample.texts(), config.tokenizer, local)
                _copy_tokenizer(Path(local), folder)
            sample_size = {"pieces": len(sample.heap), "bytes": sample.bytes}
            clock("train the tokenizer")
        progress.begin("tokenize")
        token_counts = tokenize(config, chunks, folder, work, options)
        clock("tokenize")
        progress.begin("write")
        stores = write_stores(config, chunks, token_counts, tokenizer, folder, work, options)
        clock("write")
    remove_folder(work)
    return write_record(
        folder, origin, config_to_dict(config), store_paths(config), tallies, tokenizer, stores, seconds, sample_size
    )


def _copy_tokenizer(directory: Path, folder: Folder) -> None:
    for file in sorted(directory.iterdir()):
        write_file(file_in(folder, f"tokenizer/{file.name}"), [file.read_bytes()])


# Read


class _ReadFile(beam.DoFn):
    """(source, file number, path, file or "") -> (hash of the text, document), and a report with the file's counts."""

    def __init__(self, settings: dict[str, Any], held_out: int) -> None:
        self.settings, self.held_out = settings, held_out  # the sources from number `held_out` on are for training

    def process(self, unit: tuple[int, int, str, str]) -> Iterator[Any]:
        source, number, path, file = unit
        settings, tally, bytes_before = SimpleNamespace(**self.settings), Tally(), 0
        train = source >= self.held_out
        threshold = 0 if self.settings["held_out"] or not train else int(self.settings["held_out_fraction"] * 2**64)
        files = [as_file(file)] if file else None
        error = None
        try:
            limit = settings.max_megabytes if train else None
            for index, text in enumerate(read_documents(path, settings, tally, files, limit)):
                first, second, key = hashes_of(text)
                position = (source, number, bytes_before // CHUNK_BYTES, index)
                bytes_before = tally.bytes
                # The local runner's set of hashes stores 0 as 1.
                yield (first or 1).to_bytes(8), (position, second < threshold, key.to_bytes(8), text)
        except UserError as raised:  # collected, so that the error of the first file is reported, in any order of work
            error = str(raised)
        counts = [tally.documents, tally.bytes, tally.cut, dict(tally.dropped), tally.places]
        yield beam.pvalue.TaggedOutput("reports", json.dumps(["file", source, number, error, counts]))


class _FirstCopies(beam.CombineFn):
    """The copies of a text -> the first in each held-out set, the first for training, and the count in each source."""

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
    """The first copies of a text -> the documents that are kept, and the counts of those that are dropped."""

    def __init__(self, held_out: int) -> None:
        self.held_out = held_out

    def process(self, copies: tuple[bytes, tuple[dict, dict]]) -> Iterator[Any]:
        _, (kept, counts) = copies
        in_held_out = any(group < self.held_out for group in kept)
        dropped = Counter(counts)
        for group, document in kept.items():
            if group < self.held_out or not in_held_out:
                dropped[document[0][0]] -= 1
                yield document
        for source, count in dropped.items():
            if count:
                is_held_out = source >= self.held_out and in_held_out
                reason = "documents of a held-out set" if is_held_out else "duplicates"
                yield beam.pvalue.TaggedOutput("dropped", ((source, reason), count))


class _WriteChunk(beam.DoFn):
    """The documents of a chunk, in any order -> a file with the documents in order, and a report with its counts."""

    def __init__(self, work: Folder) -> None:
        self.work = str(work)

    def process(self, chunk: tuple[tuple, Iterable[tuple[int, bytes, str]]]) -> Iterator[str]:
        import zstandard

        (source, store, number, block), documents = chunk
        texts = [(text, key.hex()) for _, key, text in sorted(documents)]
        written = Chunk(source, store, number, block, len(texts), sum(len(text.encode()) for text, _ in texts))
        content = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in texts).encode()
        write_file(as_file(f"{self.work}/documents/{written.name}"), [zstandard.ZstdCompressor(1).compress(content)])
        yield json.dumps(["chunk", *written])


def _read(config: ConfigDict, work: Folder, options: Sequence[str]) -> tuple[list[Chunk], dict[str, Tally]]:
    """Writes the chunks of documents to `work`; returns them in order, with the tally of each store's path."""
    stores = store_paths(config)
    names, held_out = list(stores), len(held_out_paths(config))
    settings = config_to_dict(config)["data"] | {"workers": 1}
    units = [unit for source, path in enumerate(stores.values()) for unit in _units(source, path, config, held_out)]

    def route(document: tuple) -> tuple[tuple, tuple[int, bytes, str]]:
        (source, number, block, index), by_hash, key, text = document
        return (source, HELD_OUT_BY_HASH if by_hash else names[source], number, block), (index, key, text)

    def steps(pipeline: Any) -> Any:
        # Without the reshuffle, Beam may fuse the steps, and one worker would read all files.
        files = pipeline | "Files" >> beam.Create(units) | "Spread" >> beam.Reshuffle()
        read = files | "Read" >> beam.ParDo(_ReadFile(settings, held_out)).with_outputs("reports", main="documents")
        reports = [read.reports]
        if settings["deduplicate"]:
            copies = read.documents | "Copies" >> beam.CombinePerKey(_FirstCopies(held_out))
            first = copies | "First" >> beam.ParDo(_KeepFirst(held_out)).with_outputs("dropped", main="kept")
            documents = first.kept
            sums = first.dropped | "Dropped" >> beam.CombinePerKey(sum)
            reports.append(sums | "Report" >> beam.Map(lambda drop: json.dumps(["dropped", *drop[0], drop[1]])))
        else:
            documents = read.documents | "Documents" >> beam.Values()
        chunks = documents | "Route" >> beam.Map(route) | "Chunks" >> beam.GroupByKey()
        reports.append(chunks | "Write" >> beam.ParDo(_WriteChunk(work)))
        return tuple(reports) | "All" >> beam.Flatten()

    results = run_pipeline(options, work, "read", steps)
    tallies = {name: Tally() for name in names}
    for _, source, _, error, counts in sorted(result for result in results if result[0] == "file"):
        if error:
            raise UserError(error)
        tally = tallies[names[source]]
        documents, size, cut, dropped, places = counts
        tally.documents += documents
        tally.bytes += size
        tally.cut += cut
        for reason, count in dropped.items():
            known = len(tally.places.get(reason, []))
            tally.dropped[reason] += count
            if reason in places:
                tally.places.setdefault(reason, []).extend(places[reason][: 3 - known])
    for _, source, reason, count in sorted(result for result in results if result[0] == "dropped"):
        tallies[names[source]].dropped[reason] += count
    return sorted(Chunk(*result[1:]) for result in results if result[0] == "chunk"), tallies


def _units(source: int, path: str, config: ConfigDict, held_out: int) -> list[tuple[int, int, str, str]]:
    """Returns the units of work of a path: its files, or the whole path if it cannot be split."""
    if path == "pydocs":
        raise UserError("pydocs is installed on this machine, not on Beam's workers: prepare it without --runner=beam")
    if path.startswith("tfds:") or (source >= held_out and config.data.max_megabytes):
        return [(source, 0, path, "")]
    return [(source, number, path, str(file)) for number, file in enumerate(find_files(path, config.data))]


# The tokenizer


class _Candidates(beam.DoFn):
    """A chunk -> a file with those pieces of its documents whose key is below the limit, and their size."""

    def __init__(self, work: Folder, limit: int) -> None:
        self.work, self.limit = str(work), limit

    def process(self, chunk: tuple) -> Iterator[str]:
        source = Chunk(*chunk)
        sample = Sample(2**63)
        sample.limit = self.limit
        for text, key in read_chunk(self.work, source):
            sample.offer(text, int(key, 16))
        pieces = [(-key, content.decode()) for key, _, content in sorted(sample.heap, key=lambda entry: entry[1])]
        content = "".join(json.dumps(piece, ensure_ascii=False) + "\n" for piece in pieces).encode()
        write_file(as_file(f"{self.work}/sample/{source.name}"), [zlib.compress(content, 1)])
        yield json.dumps([*source, sample.bytes])


def _sample(config: ConfigDict, chunks: list[Chunk], work: Folder, options: Sequence[str]) -> Sample:
    """Returns the same sample as the local runner: the pieces of training text with the smallest keys."""
    train = [chunk for chunk in chunks if chunk.store.startswith("train/")]
    size = int(config.tokenizer.training_megabytes * 1e6)
    total = sum(chunk.bytes for chunk in train)
    share = 1.1 * size / total + 0.001
    while True:  # keys are uniform, so the first try suffices unless there are only a few, long documents
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
