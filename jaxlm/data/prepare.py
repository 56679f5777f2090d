"""From documents to token stores: duplicates dropped, held-out text set aside, the vocabulary trained, all tokenized.

A prepared directory holds `prepared.json` (what it was made of, and how), `tokenizer/`, `train/<n>/` (a token store for
each path of data.path) and `held_out/<name>/`. Its content depends on the text and the settings alone, never on the
number of workers. It is written under another name and renamed, so that one which is there is whole.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxlm import __version__
from jaxlm.config import config_to_dict, load_config, split_overrides
from jaxlm.data.added_tokens import read_added
from jaxlm.data.processes import map_in_processes, worker_count
from jaxlm.data.progress import Progress, closing_table
from jaxlm.data.sampling import Hashes, Sample, hashes_of
from jaxlm.data.sources import Tally, read_documents, source_fingerprint
from jaxlm.data.store import StoreWriter, TokenStore
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from jaxlm.errors import UserError

FORMAT_VERSION = 1
NOT_PREPARED = ("cache", "workers", "prefetch", "weights", "sequence_length", "prepend_begin")  # of the data section
CHUNK_CHARACTERS = 2**20


class Prepared(NamedTuple):
    """A prepared directory, opened: a store for each path of data.path, and each held-out set by its name.

    `fingerprint` names the content: it is the same wherever tokenizer and stores are the same.
    """

    directory: Path
    tokenizer: Tokenizer
    train: list[TokenStore]
    held_out: dict[str, TokenStore]
    fingerprint: str


def prepare(config: ConfigDict, directory: str | os.PathLike | None = None) -> Prepared:
    """Returns the token stores of the config's data, made now or found: in `directory`, else in the cache.

    Says on standard output what was made or reused; progress goes to standard error. Raises UserError where the text,
    the settings or the disk do not allow it, and where `directory` was prepared with other settings.
    """
    if not config.data.path:
        raise UserError("data.path is empty: name the text, as in --config.data.path='notes/*.txt', or pydocs")
    given = given_tokenizer(config.tokenizer)
    origin = _origin(config, given)
    name = _digest([FORMAT_VERSION, __version__, origin])
    target = Path(directory).expanduser().absolute() if directory else cache_directory(config) / name
    if _is_prepared(target, config, origin):
        _say_reused(target, directory is not None)
        return open_prepared(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if _is_prepared(target, config, origin):  # by another process, in the meantime
                _say_reused(target, directory is not None)
                return open_prepared(target)
            if directory is None:
                _remove_leftovers(target.parent)
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock is ours
            try:
                partial.mkdir()
                table = _build(config, given, origin, partial)
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(f"cannot write the token store {target}: {error.strerror or error}") from error
    print(f"{table}\ntoken store: {target}")
    return open_prepared(target)


def given_tokenizer(settings: ConfigDict) -> Tokenizer | None:
    """Returns the tokenizer that section `tokenizer` names, with the tokens to add; None where one is to be trained."""
    if not settings.path:
        if settings.add:
            raise UserError("tokenizer.add adds to a vocabulary that is there: name it by tokenizer.path or init_from")
        return None
    tokenizer = load_tokenizer(settings.path, settings.words)
    return tokenizer.with_added(read_added(settings.add)) if settings.add else tokenizer


def open_prepared(directory: str | os.PathLike) -> Prepared:
    """Opens a prepared directory and checks all of it. Raises UserError that names what is missing or damaged."""
    directory = Path(directory)
    record = _read_record(directory)
    tokenizer = load_tokenizer(str(directory / "tokenizer"), record["settings"]["tokenizer"]["words"])
    if tokenizer.fingerprint != record["tokenizer"]["fingerprint"]:
        raise UserError(f"{directory / 'tokenizer'} is not the tokenizer of these stores: prepare the data again")
    stores = {}
    for name, written in record["stores"].items():
        try:
            stores[name] = store = TokenStore.open(directory / name)
        except UserError as error:  # one store alone cannot be prepared again
            raise UserError(str(error).replace(f"remove {directory / name} and", f"remove {directory} and")) from error
        if store.fingerprint != written["fingerprint"] or store.tokenizer_fingerprint != tokenizer.fingerprint:
            raise UserError(f"{directory / name} is not the store that was prepared here: prepare the data again")
    train = [stores[f"train/{number}"] for number in range(len(record["settings"]["data"]["path"]))]
    held_out = {name.partition("/")[2]: store for name, store in stores.items() if name.startswith("held_out/")}
    return Prepared(directory, tokenizer, train, held_out, record["fingerprint"])


def cache_directory(config: ConfigDict) -> Path:
    """Returns the folder of token stores that runs share."""
    if config.data.cache:
        return Path(config.data.cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "jaxlm" / "stores"


# What a prepared directory was made of


def _origin(config: ConfigDict, given: Tokenizer | None) -> dict[str, Any]:
    """Returns all that decides the content, as JSON: settings, with files and tokenizer by their fingerprints."""
    settings = config_to_dict(config)
    data, tokenizer = settings["data"], settings["tokenizer"]
    origin = {f"data.{name}": value for name, value in data.items() if name not in NOT_PREPARED}
    origin["data.path"] = [source_fingerprint(path, config.data) for path in data["path"]]
    origin["data.held_out"] = {
        name: source_fingerprint(path, config.data) for name, path in _held_out_paths(config).items()
    }
    if data["held_out"]:
        del origin["data.held_out_fraction"]
    if given:
        return origin | {"tokenizer.path": given.fingerprint, "tokenizer.words": tokenizer["words"]}
    return origin | {f"tokenizer.{name}": value for name, value in tokenizer.items()}


def _held_out_paths(config: ConfigDict) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in config.data.held_out)


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def record_crc32(record: dict[str, Any]) -> int:
    """Returns the CRC-32 of a record that is kept as JSON."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _read_record(directory: Path) -> dict[str, Any]:
    path = directory / "prepared.json"
    if not path.is_file():
        raise UserError(
            f"{directory} was not made by `jaxlm prepare`, or is damaged (there is no {path}): prepare the data again"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, crc32 = record["format_version"], record.pop("crc32", None)
        if crc32 not in (None, record_crc32(record)):
            raise ValueError("its checksum differs")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove {directory} and prepare the data again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format {version}, this jaxlm reads {FORMAT_VERSION}: prepare the data again")
    return record


def _is_prepared(target: Path, config: ConfigDict, origin: dict[str, Any]) -> bool:
    """Returns whether the directory is there; raises UserError where it was made of something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not (target / "prepared.json").is_file():
        raise UserError(f"{target} is there and holds other files: name a new folder")
    record = _read_record(target)
    settings, differences = config_to_dict(config), []
    files = {"data.path", "data.held_out"}
    if origin.get("tokenizer.words") == record["origin"].get("tokenizer.words"):  # which is in the fingerprint
        files.add("tokenizer.path")
    for key in sorted(origin.keys() | record["origin"].keys()):
        if origin.get(key) != record["origin"].get(key):
            section, _, name = key.partition(".")
            old, new = (json.dumps(content[section].get(name)) for content in (record["settings"], settings))
            if old != new:
                differences.append(f"{key}: {old} -> {new}")
            elif key in files:
                differences.append(f"{key}: its files have changed")
    if differences:
        raise UserError(
            f"{target} was prepared with other settings ({'; '.join(differences)}): name another, or remove this one"
        )
    return True


def _say_reused(target: Path, named: bool) -> None:
    print(f"token store: {target} is complete already" if named else f"token store: reused {target}")


# Locks


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Lets one process at a time prepare `target`."""
    path = target.with_name(f".{target.name}.lock")
    file = _lock(path, wait=False)
    if file is None:
        print(f"waiting for another process that prepares {target}", file=sys.stderr)
        file = _lock(path, wait=True)
    assert file is not None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _lock(path: Path, wait: bool) -> io.TextIOWrapper | None:
    while True:
        file = open(path, "a")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file  # else its last owner removed it: the lock is on a file that nobody else will see
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have left in the cache."""
    for partial in folder.glob(".*.partial"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.partial", partial.name):
            path = partial.with_suffix(".lock")
            file = _lock(path, wait=False)
            if file:
                shutil.rmtree(partial, ignore_errors=True)
                path.unlink(missing_ok=True)
                file.close()


# The work


def _build(config: ConfigDict, given: Tokenizer | None, origin: dict[str, Any], folder: Path) -> str:
    """Writes the prepared directory `folder`, and returns the closing table."""
    tallies: dict[str, Tally] = {}
    seconds: dict[str, float] = {}
    record: dict[str, Any] = {"format_version": FORMAT_VERSION, "jaxlm": __version__, "origin": origin}
    began = time.monotonic()
    with Progress() as progress:
        if given:
            tokenizer = given
            tokenizer.save(folder / "tokenizer")
            stores = _write_stores(_routed(config, tallies), config, tokenizer, folder, progress)
            _need_documents(config, tallies, Counter({name: store.documents for name, store in stores.items()}))
            seconds["read and tokenize"] = time.monotonic() - began
        else:
            spill = folder / "documents.zst"
            sample = Sample(int(config.tokenizer.training_megabytes * 1e6))
            progress.begin("read")
            documents = _spilled(_routed(config, tallies), spill, sample, progress)
            _need_documents(config, tallies, documents)
            seconds["read"] = time.monotonic() - began
            total = progress.bytes
            progress.begin(f"train the tokenizer on {sample.bytes / 1e6:,.1f} MB")
            tokenizer = train_tokenizer(sample.texts(), config.tokenizer, folder / "tokenizer")
            seconds["train the tokenizer"] = time.monotonic() - began - sum(seconds.values())
            stores = _write_stores(_read_spilled(spill), config, tokenizer, folder, progress, total)
            spill.unlink()
            seconds["tokenize"] = time.monotonic() - began - sum(seconds.values())
            record["tokenizer_sample"] = {"pieces": len(sample.heap), "bytes": sample.bytes}
    paths = {f"held_out/{name}": path for name, path in _held_out_paths(config).items()}
    paths |= {f"train/{number}": path for number, path in enumerate(config.data.path)}
    record |= {
        "settings": {section: config_to_dict(config)[section] for section in ("data", "tokenizer")},
        "sources": [_source_record(name, path, tallies[name]) for name, path in paths.items()],
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "stores": {
            name: {
                "documents": store.documents,
                "bytes": store.text_bytes,
                "tokens": store.tokens,
                "fingerprint": store.fingerprint,
            }
            for name, store in stores.items()
        },
        "fingerprint": _digest([tokenizer.fingerprint, {name: store.fingerprint for name, store in stores.items()}]),
        "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
    }
    record["crc32"] = record_crc32(record)
    with open(folder / "prepared.json", "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    return closing_table(stores, paths, tallies, seconds)


def _source_record(name: str, path: str, tally: Tally) -> dict[str, Any]:
    return {
        "store": name, "path": path, "documents": tally.documents, "bytes": tally.bytes, "cut": tally.cut,
        "dropped": dict(tally.dropped), "places": tally.places,
    }  # fmt: skip


def _need_documents(config: ConfigDict, tallies: dict[str, Tally], documents: Counter[str]) -> None:
    for name, tally in tallies.items():
        if not documents[name]:
            kind, _, which = name.partition("/")
            path = config.data.path[int(which)] if kind == "train" else _held_out_paths(config)[which]
            why = "; ".join(f"{count:,} {reason}" for reason, count in tally.dropped.items())
            raise UserError(
                f"there is no document for {'training' if kind == 'train' else f'the held-out set {which}'} in {path}"
                f"{f' ({why})' if why else ''}: see data.path, data.field, data.held_out and data.held_out_fraction"
            )


def _routed(config: ConfigDict, tallies: dict[str, Tally]) -> Iterator[tuple[str, str, int]]:
    """Yields (store, text, key) for the documents that are kept; the key is a hash of the text, below 2**64."""
    data = config.data
    held_out = Hashes()
    for name, path in _held_out_paths(config).items():
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
        for text in read_documents(path, data, tally):
            if data.max_megabytes and tally.bytes > data.max_megabytes * 1e6:
                break
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
    """Returns (store, ids int32 [T], word_starts bool [T], ends and text bytes of each document)."""
    store, texts = chunk
    tokenizer = _tokenizer
    assert tokenizer is not None
    begin, end, special = np.array([tokenizer.begin_id]), np.array([tokenizer.end_id]), np.array([True])
    ids, word_starts, ends = [], [], []
    for encoding in tokenizer.encode_batch(texts):
        ids += [begin, encoding.ids, end]
        word_starts += [special, encoding.word_starts, special]
        ends.append(len(encoding.ids) + 2)
    sizes = [len(text.encode()) for text in texts]
    totals = np.cumsum(ends).tolist()
    return store, np.concatenate(ids).astype(np.int32), np.concatenate(word_starts), totals, sizes


def main(argv: Sequence[str]) -> int:
    """`jaxlm prepare --config=FILE[:ARG] [--output=DIR] [--config.section.key=VALUE ...]`."""
    import argparse

    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm prepare", description="Train the tokenizer and write the token stores of a config's data.",
        epilog="example: jaxlm prepare --config=configs/quickstart.py --config.data.path='notes/*.txt' --output=notes",
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a config file")
    parser.add_argument("--output", metavar="DIR", help="a new folder; without it, the cache that training looks in")
    args = parser.parse_args(rest)
    prepare(load_config(args.config, overrides), args.output)
    return 0
