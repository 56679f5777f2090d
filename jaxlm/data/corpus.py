"""From documents to token stores: duplicates are dropped, held-out documents are set aside, and both are tokenized.

If the tokenizer has yet to be trained, the documents are first written to a compressed file, while a sample of the
training text is collected for the tokenizer. They are tokenized from that file, so that each source is read only once.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxlm.config import config_to_dict
from jaxlm.data.origin import held_out_paths
from jaxlm.data.prepared import write_record
from jaxlm.data.sampling import Hashes, Sample, hashes_of
from jaxlm.data.token_store import StoreWriter, TokenStore
from jaxlm.errors import UserError
from jaxlm.runtime.processes import map_in_processes, worker_count
from jaxlm.runtime.progress import Progress
from jaxlm.text.filters import Tally
from jaxlm.text.sources import read_documents
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

CHUNK_CHARACTERS = 2**20


def build(config: ConfigDict, tokenizer: Tokenizer | None, origin: dict[str, Any], folder: Path) -> str:
    """Writes the prepared directory `folder` and returns the closing table; trains a tokenizer if it is None.

    Raises UserError if a file cannot be read or a path of the config yields no documents.
    """
    tallies: dict[str, Tally] = {}
    seconds: dict[str, float] = {}
    sample_size = None
    began = time.monotonic()
    with Progress() as progress:
        if tokenizer:
            tokenizer.save(folder / "tokenizer")
            stores = _write_stores(_route_documents(config, tallies), config, tokenizer, folder, progress)
            check_documents(config, tallies, Counter({name: store.documents for name, store in stores.items()}))
            seconds["read and tokenize"] = time.monotonic() - began
        else:
            spill = folder / "documents.zst"
            sample = Sample(int(config.tokenizer.training_megabytes * 1e6))
            progress.begin("read")
            documents = _spill_documents(_route_documents(config, tallies), spill, sample, progress)
            check_documents(config, tallies, documents)
            seconds["read"] = time.monotonic() - began
            total = progress.bytes
            progress.begin(f"train the tokenizer on {sample.bytes / 1e6:,.1f} MB")
            tokenizer = train_tokenizer(sample.texts(), config.tokenizer, folder / "tokenizer")
            seconds["train the tokenizer"] = time.monotonic() - began - sum(seconds.values())
            stores = _write_stores(_read_spill(spill), config, tokenizer, folder, progress, total)
            spill.unlink()
            seconds["tokenize"] = time.monotonic() - began - sum(seconds.values())
            sample_size = {"pieces": len(sample.heap), "bytes": sample.bytes}
    return write_record(
        folder, origin, config_to_dict(config), store_paths(config), tallies, tokenizer, stores, seconds, sample_size
    )


def store_paths(config: ConfigDict) -> dict[str, str]:
    """Returns the source path of each store, in the order in which the paths are read."""
    paths = {f"held_out/{name}": path for name, path in held_out_paths(config).items()}
    return paths | {f"train/{number}": path for number, path in enumerate(config.data.path)}


def check_documents(config: ConfigDict, tallies: dict[str, Tally], documents: Counter[str]) -> None:
    """Raises UserError if a path yielded no documents for its store; `documents` holds the count of each store."""
    for name, tally in tallies.items():
        if not documents[name]:
            kind, _, which = name.partition("/")
            path = config.data.path[int(which)] if kind == "train" else held_out_paths(config)[which]
            why = "; ".join(f"{count:,} {reason}" for reason, count in tally.dropped.items())
            raise UserError(
                f"no documents for {'training' if kind == 'train' else f'the held-out set {which}'} in {path}"
                f"{f' (dropped: {why})' if why else ''}: check data.path, data.field, data.held_out and"
                " data.held_out_fraction"
            )


def _route_documents(config: ConfigDict, tallies: dict[str, Tally]) -> Iterator[tuple[str, str, int]]:
    """Yields (store, text, key) for each document that is kept; the key is a 64-bit hash of the text."""
    data = config.data
    held_out = Hashes()
    for name, path in held_out_paths(config).items():
        store = f"held_out/{name}"
        tally = tallies[store] = Tally()
        seen = Hashes()  # of this set only: held-out sets may share documents
        for text in read_documents(path, data, tally):
            first, _, key = hashes_of(text)
            held_out.add(first)
            if data.deduplicate and not seen.add(first):
                tally.drop("duplicates")
            else:
                yield store, text, key
    threshold = 0 if data.held_out else int(data.held_out_fraction * 2**64)
    seen = Hashes()
    for number, path in enumerate(data.path):
        store = f"train/{number}"
        tally = tallies[store] = Tally()
        for text in read_documents(path, data, tally, megabytes=data.max_megabytes):
            first, second, key = hashes_of(text)
            if data.deduplicate and first in held_out:
                tally.drop("documents of a held-out set")
            elif data.deduplicate and not seen.add(first):
                tally.drop("duplicates")
            else:
                yield ("held_out/held_out" if second < threshold else store), text, key


def _spill_documents(
    routed: Iterable[tuple[str, str, int]], file: Path, sample: Sample, progress: Progress
) -> Counter[str]:
    """Writes the documents to a compressed file and offers those for training to the sample.

    Returns the number of documents of each store.
    """
    import zstandard

    documents: Counter[str] = Counter()
    with zstandard.open(file, "wt", cctx=zstandard.ZstdCompressor(1), encoding="utf-8", newline="\n") as spill:
        for store, text, key in routed:
            spill.write(json.dumps([store, text], ensure_ascii=False) + "\n")
            documents[store] += 1
            if store.startswith("train/"):
                sample.offer(text, key)
            progress.advance(1, len(text.encode()))
    return documents


def _read_spill(file: Path) -> Iterator[tuple[str, str, int]]:
    import zstandard

    with zstandard.open(file, "rt", encoding="utf-8", newline="\n") as spill:
        for line in spill:
            store, text = json.loads(line)
            yield store, text, 0


def _write_stores(
    routed: Iterable[tuple[str, str, int]], config: ConfigDict, tokenizer: Tokenizer, folder: Path,
    progress: Progress, total: int = 0,
) -> dict[str, TokenStore]:  # fmt: skip
    """Tokenizes the documents in worker processes and writes the stores below `folder`, in the order of the documents.

    `total` is the size of the text in bytes, 0 if it is not known.
    """
    progress.begin("tokenize" if total else "read and tokenize", total)
    writers: dict[str, StoreWriter] = {}
    with contextlib.ExitStack() as stack:
        encoded = map_in_processes(
            _encode,
            _chunks(routed),
            worker_count(config.data),
            _load_tokenizer,
            (str(folder / "tokenizer"), config.tokenizer.words),
        )
        stack.enter_context(contextlib.closing(encoded))
        for store, ids, word_starts, ends, sizes in encoded:
            if store not in writers:
                writers[store] = stack.enter_context(
                    StoreWriter(folder / store, tokenizer.vocab_size, tokenizer.fingerprint, config.data.shard_bytes)
                )
            begin = 0
            for end, size in zip(ends, sizes, strict=True):
                writers[store].add(ids[begin:end], word_starts[begin:end], size)
                begin = end
            progress.advance(len(sizes), sum(sizes))
    return {store: writers[store].close() for store in sorted(writers)}


def _chunks(routed: Iterable[tuple[str, str, int]]) -> Iterator[tuple[str, list[str]]]:
    """Yields (store, texts) of about a million characters each; the texts of a store stay in order."""
    pending: dict[str, list[str]] = {}
    sizes: Counter[str] = Counter()
    for store, text, _ in routed:
        pending.setdefault(store, []).append(text)
        sizes[store] += len(text)
        if sizes[store] >= CHUNK_CHARACTERS:
            yield store, pending.pop(store)
            sizes[store] = 0
    yield from pending.items()


_tokenizer: Tokenizer | None = None  # of a worker process


def _load_tokenizer(path: str, words: str) -> None:
    global _tokenizer
    _tokenizer = load_tokenizer(path, words)


def _encode(chunk: tuple[str, list[str]]) -> tuple[str, np.ndarray, np.ndarray, list[int], list[int]]:
    store, texts = chunk
    assert _tokenizer is not None
    ids, *others = encode_documents(_tokenizer, texts)
    # Half as many bytes to send to the parent process.
    return store, ids.astype(np.uint16) if _tokenizer.vocab_size < 65_536 else ids, *others  # type: ignore[return-value]


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Returns the tokens of all documents, concatenated: ids int32 [T] and word_starts bool [T].

    Also returns the end of each document in these arrays, and the size of its text in UTF-8 bytes.
    """
    begin, end, special = np.array([tokenizer.begin_id]), np.array([tokenizer.end_id]), np.array([True])
    ids, word_starts, ends = [], [], []
    for encoding in tokenizer.encode_batch(texts):
        ids += [begin, encoding.ids, end]
        word_starts += [special, encoding.word_starts, special]
        ends.append(len(encoding.ids) + 2)
    sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
    return np.concatenate(ids).astype(np.int32), np.concatenate(word_starts), np.cumsum(ends).tolist(), sizes
