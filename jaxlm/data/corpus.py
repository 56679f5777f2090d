"""From documents to token stores: duplicates dropped, held-out text set aside, the vocabulary trained, all tokenized.

A prepared directory holds `prepared.json` (what it was made of, and how), `tokenizer/`, `train/<n>/` (a token store for
each path of data.path) and `held_out/<name>/`. Its content depends on the text and the settings alone, never on the
number of workers. It is written under another name and renamed, so that one which is there is whole.
"""

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxlm.config import config_to_dict
from jaxlm.data.locks import locked, remove_leftovers
from jaxlm.data.origin import held_out_paths, is_prepared, origin_of
from jaxlm.data.prepared import FORMAT_VERSION, Prepared, digest, open_prepared, write_record
from jaxlm.data.remote_stores import begin_upload, end_upload, local_copy, upload
from jaxlm.data.sampling import Hashes, Sample, hashes_of
from jaxlm.data.token_store import StoreWriter, TokenStore
from jaxlm.errors import UserError
from jaxlm.runtime.processes import map_in_processes, worker_count
from jaxlm.runtime.progress import Progress
from jaxlm.text.files import Folder, is_remote
from jaxlm.text.sources import Tally, read_documents
from jaxlm.tokenizer.added_tokens import read_added
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from jaxlm.version import __version__

CHUNK_CHARACTERS = 2**20


Build = Callable[[ConfigDict, Tokenizer | None, dict[str, Any], Any], str]  # writes a folder, returns the closing table


def prepare(config: ConfigDict, directory: str | os.PathLike | None = None) -> Prepared:
    """Returns the token stores of the config's data, made now or found: in `directory`, else in the cache.

    Either may be a URL; the stores are then opened from a copy in the cache of this machine. Says on standard output
    what was made or reused; progress goes to standard error. Raises UserError where the text, the settings or the disk
    do not allow it, and where `directory` was prepared with other settings.
    """
    given, origin, target, here = _what_and_where(config, directory)
    if isinstance(target, Path):
        _make(config, given, origin, target, directory is not None)
        return open_prepared(target)
    if is_prepared(target, config, origin):
        _say_reused(target, directory is not None)
    else:
        _make(config, given, origin, here, False)
        open_prepared(here)
        upload(here, target)
        print(f"token store: {target}")
    return open_prepared(local_copy(target, here.parent, here, open_prepared))


def prepare_with(build: Build, config: ConfigDict, directory: str | os.PathLike | None = None) -> None:
    """Prepares as `prepare` does, in `directory` or the cache, by another `build`, which writes to a URL by itself."""
    given, origin, target, _ = _what_and_where(config, directory)
    if isinstance(target, Path):
        _make(config, given, origin, target, directory is not None, build)
        open_prepared(target)
    elif is_prepared(target, config, origin):
        _say_reused(target, directory is not None)
    else:
        begin_upload(target)
        table = build(config, given, origin, target)
        end_upload(target)
        print(f"{table}\ntoken store: {target}")


def _what_and_where(
    config: ConfigDict, directory: str | os.PathLike | None
) -> tuple[Tokenizer | None, dict[str, Any], Folder, Path]:
    """Returns the tokenizer that is given, the origin, the folder to prepare, and its like in this machine's cache."""
    if not config.data.path:
        raise UserError("data.path is empty: name the text, as in --config.data.path='notes/*.txt', or pydocs")
    given = given_tokenizer(config.tokenizer)
    origin = origin_of(config, given)
    name = digest([FORMAT_VERSION, __version__, origin])
    here = cache_directory(config) / name
    if directory and is_remote(directory):
        return given, origin, str(directory).rstrip("/"), here
    if directory:
        return given, origin, Path(directory).expanduser().absolute(), here
    return given, origin, f"{config.data.cache.rstrip('/')}/{name}" if is_remote(config.data.cache) else here, here


def _make(
    config: ConfigDict, given: Tokenizer | None, origin: dict[str, Any], target: Path, named: bool,
    build: Build | None = None,
) -> None:  # fmt: skip
    """Makes the prepared directory `target`, unless it is there."""
    if is_prepared(target, config, origin):
        return _say_reused(target, named)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if is_prepared(target, config, origin):  # by another process, in the meantime
                return _say_reused(target, named)
            if not named:
                remove_leftovers(target.parent)
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock is ours
            try:
                partial.mkdir()
                table = (build or _build)(config, given, origin, partial)
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(f"cannot write the token store {target}: {error.strerror or error}") from error
    print(f"{table}\ntoken store: {target}")


def _say_reused(target: Folder, named: bool) -> None:
    print(f"token store: {target} is complete already" if named else f"token store: reused {target}")


def given_tokenizer(settings: ConfigDict) -> Tokenizer | None:
    """Returns the tokenizer that section `tokenizer` names, with the tokens to add; None where one is to be trained."""
    if not settings.path:
        if settings.add:
            raise UserError("tokenizer.add adds to a vocabulary that is there: name it by tokenizer.path or init_from")
        return None
    tokenizer = load_tokenizer(settings.path, settings.words)
    return tokenizer.with_added(read_added(settings.add)) if settings.add else tokenizer


def cache_directory(config: ConfigDict) -> Path:
    """Returns the folder of token stores that runs on this machine share."""
    if config.data.cache and not is_remote(config.data.cache):
        return Path(config.data.cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "jaxlm" / "stores"


def _build(config: ConfigDict, given: Tokenizer | None, origin: dict[str, Any], folder: Path) -> str:
    """Writes the prepared directory `folder`, and returns the closing table."""
    tallies: dict[str, Tally] = {}
    seconds: dict[str, float] = {}
    trained_on = None
    began = time.monotonic()
    with Progress() as progress:
        if given:
            tokenizer = given
            tokenizer.save(folder / "tokenizer")
            stores = _write_stores(_routed(config, tallies), config, tokenizer, folder, progress)
            need_documents(config, tallies, Counter({name: store.documents for name, store in stores.items()}))
            seconds["read and tokenize"] = time.monotonic() - began
        else:
            spill = folder / "documents.zst"
            sample = Sample(int(config.tokenizer.training_megabytes * 1e6))
            progress.begin("read")
            documents = _spilled(_routed(config, tallies), spill, sample, progress)
            need_documents(config, tallies, documents)
            seconds["read"] = time.monotonic() - began
            total = progress.bytes
            progress.begin(f"train the tokenizer on {sample.bytes / 1e6:,.1f} MB")
            tokenizer = train_tokenizer(sample.texts(), config.tokenizer, folder / "tokenizer")
            seconds["train the tokenizer"] = time.monotonic() - began - sum(seconds.values())
            stores = _write_stores(_read_spilled(spill), config, tokenizer, folder, progress, total)
            spill.unlink()
            seconds["tokenize"] = time.monotonic() - began - sum(seconds.values())
            trained_on = {"pieces": len(sample.heap), "bytes": sample.bytes}
    return write_record(
        folder, origin, config_to_dict(config), paths_of_stores(config), tallies, tokenizer, stores, seconds, trained_on
    )


def paths_of_stores(config: ConfigDict) -> dict[str, str]:
    """Returns the path that each store comes from, in the order in which they are read."""
    paths = {f"held_out/{name}": path for name, path in held_out_paths(config).items()}
    return paths | {f"train/{number}": path for number, path in enumerate(config.data.path)}


def need_documents(config: ConfigDict, tallies: dict[str, Tally], documents: Counter[str]) -> None:
    """Raises UserError where a path gave no document to its store; `documents` counts those of each store."""
    for name, tally in tallies.items():
        if not documents[name]:
            kind, _, which = name.partition("/")
            path = config.data.path[int(which)] if kind == "train" else held_out_paths(config)[which]
            why = "; ".join(f"{count:,} {reason}" for reason, count in tally.dropped.items())
            raise UserError(
                f"there is no document for {'training' if kind == 'train' else f'the held-out set {which}'} in {path}"
                f"{f' ({why})' if why else ''}: see data.path, data.field, data.held_out and data.held_out_fraction"
            )


def _routed(config: ConfigDict, tallies: dict[str, Tally]) -> Iterator[tuple[str, str, int]]:
    """Yields (store, text, key) for the documents that are kept; the key is a hash of the text, below 2**64."""
    data = config.data
    held_out = Hashes()
    for name, path in held_out_paths(config).items():
        store = f"held_out/{name}"
        tally = tallies[store] = Tally()
        seen = Hashes()  # sets may share documents
        for text in read_documents(path, data, tally):
            first, _, key = hashes_of(text)
            held_out.add(first)
            if data.deduplicate and not seen.add(first):
                tally.drop("duplicates")
            else:
                yield store, text, key
    below = 0 if data.held_out else int(data.held_out_fraction * 2**64)
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
                yield ("held_out/held_out" if second < below else store), text, key


def _spilled(routed: Iterable[tuple[str, str, int]], file: Path, sample: Sample, progress: Progress) -> Counter[str]:
    """Writes the documents to a compressed file, so that no source is read twice, and offers them to the sample.

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


def _read_spilled(file: Path) -> Iterator[tuple[str, str, int]]:
    import zstandard

    with zstandard.open(file, "rt", encoding="utf-8", newline="\n") as spill:
        for line in spill:
            store, text = json.loads(line)
            yield store, text, 0


def _write_stores(
    routed: Iterable[tuple[str, str, int]], config: ConfigDict, tokenizer: Tokenizer, folder: Path,
    progress: Progress, total: int = 0,
) -> dict[str, TokenStore]:  # fmt: skip
    """Tokenizes the documents in worker processes and writes the stores below `folder`, in the order of the text."""
    progress.begin("tokenize" if total else "read and tokenize", total)
    writers: dict[str, StoreWriter] = {}
    with contextlib.ExitStack() as stack:
        encoded = map_in_processes(
            _encode,
            _chunks(routed),
            worker_count(config.data),
            _load,
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
    """Yields (store, texts) of about a million characters, the texts of each store in order."""
    held: dict[str, list[str]] = {}
    sizes: Counter[str] = Counter()
    for store, text, _ in routed:
        held.setdefault(store, []).append(text)
        sizes[store] += len(text)
        if sizes[store] >= CHUNK_CHARACTERS:
            yield store, held.pop(store)
            sizes[store] = 0
    yield from held.items()


_tokenizer: Tokenizer | None = None  # of a worker process


def _load(path: str, words: str) -> None:
    global _tokenizer
    _tokenizer = load_tokenizer(path, words)


def _encode(chunk: tuple[str, list[str]]) -> tuple[str, np.ndarray, np.ndarray, list[int], list[int]]:
    store, texts = chunk
    assert _tokenizer is not None
    ids, *others = encode_documents(_tokenizer, texts)
    # Half the bytes on their way to the parent.
    return store, ids.astype(np.uint16) if _tokenizer.vocab_size < 65_536 else ids, *others  # type: ignore[return-value]


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Returns ids int32 [T] and word_starts bool [T] of all documents, and the end and text bytes of each."""
    begin, end, special = np.array([tokenizer.begin_id]), np.array([tokenizer.end_id]), np.array([True])
    ids, word_starts, ends = [], [], []
    for encoding in tokenizer.encode_batch(texts):
        ids += [begin, encoding.ids, end]
        word_starts += [special, encoding.word_starts, special]
        ends.append(len(encoding.ids) + 2)
    sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
    return np.concatenate(ids).astype(np.int32), np.concatenate(word_starts), np.cumsum(ends).tolist(), sizes
