"""Prepared directories: what they contain, the record that completes one, and opening and checking one.

prepared.json      the origin, the settings, and counts and fingerprints of what was written; it is written last
tokenizer/
train/0/ ...       a token store for each path of data.path
held_out/NAME/     a token store for each held-out set
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxlm.data.token_store import TokenStore
from jaxlm.errors import UserError
from jaxlm.storage import parse_json
from jaxlm.text.files import Folder, file_in, read_file, write_file
from jaxlm.text.filters import Tally, dropped
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jaxlm.typed import Record, counted
from jaxlm.version import __version__

FORMAT_VERSION = 1
PREPARED = "prepared.json"


class Prepared(NamedTuple):
    """An open prepared directory: a training store for each path of data.path, and the held-out stores by name.

    Directories with the same tokenizer and the same stores have the same `fingerprint`.
    """

    directory: Path
    tokenizer: Tokenizer
    train: list[TokenStore]
    held_out: dict[str, TokenStore]
    fingerprint: str


class StoreSummary(Protocol):
    """The counts and the fingerprint of a token store, as `TokenStore` has them."""

    @property
    def documents(self) -> int: ...
    @property
    def text_bytes(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


def open_prepared(directory: str | Path) -> Prepared:
    """Opens a prepared directory and checks all of it. Raises UserError that names what is missing or damaged."""
    directory = Path(directory)
    remedy = f"remove {directory} and prepare the data again"
    record = Record(directory / PREPARED, read_record(directory), remedy)
    settings, written = record.record("settings"), record.record("stores")
    tokenizer = load_tokenizer(str(directory / "tokenizer"), settings.record("tokenizer").text("words"))
    if tokenizer.fingerprint != record.record("tokenizer").text("fingerprint"):
        raise UserError(f"{directory / 'tokenizer'} is not the tokenizer of these token stores: prepare the data again")
    stores = {}
    for name in written.content:
        fingerprint = written.record(name).text("fingerprint")
        try:
            stores[name] = store = TokenStore.open(directory / name)
        except UserError as error:  # only the whole directory can be prepared again
            raise UserError(str(error).replace(f"remove {directory / name} and", f"remove {directory} and")) from error
        if store.fingerprint != fingerprint or store.tokenizer_fingerprint != tokenizer.fingerprint:
            raise UserError(f"{directory / name} is not the token store that was prepared here: prepare the data again")
    numbers = range(len(settings.record("data").items("path", str)))
    train = [stores[name] for name in (f"train/{number}" for number in numbers) if name in stores]
    if len(train) != len(numbers):
        raise UserError(f"{record.where} lists {len(numbers)} paths, but {len(train)} of their token stores; {remedy}")
    held_out = {name.partition("/")[2]: store for name, store in stores.items() if name.startswith("held_out/")}
    return Prepared(directory, tokenizer, train, held_out, record.text("fingerprint"))


def read_record(directory: Folder) -> dict[str, Any]:
    """Returns the content of prepared.json in a local or remote directory. Raises UserError."""
    file = file_in(directory, PREPARED)
    content = read_file(file)
    if content is None:
        raise UserError(
            f"{directory} was not written by `jaxlm prepare` or is damaged ({file} does not exist): prepare the data"
            " again"
        )
    try:
        record = parse_json(content)
        version, crc32 = record["format_version"], record.pop("crc32", None)
        if crc32 not in (None, record_crc32(record)):
            raise ValueError("checksum mismatch")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: remove {directory} and prepare the data again") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {version}, but this jaxlm reads version {FORMAT_VERSION}: prepare the data"
            " again"
        )
    return record


def write_record(
    directory: Folder, origin: dict[str, Any], settings: dict[str, Any], paths: dict[str, str],
    tallies: dict[str, Tally], tokenizer: Tokenizer, stores: Mapping[str, StoreSummary], seconds: dict[str, float],
    sample_size: dict[str, int] | None,
) -> str:  # fmt: skip
    """Writes prepared.json, which completes the directory, and returns the closing table.

    `paths` and `tallies` hold the source path of each store and what was read from it; `seconds` the duration of each
    phase; `sample_size` the pieces and bytes that the tokenizer was trained on, or None if it existed before.
    """
    record: dict[str, Any] = {"format_version": FORMAT_VERSION, "jaxlm": __version__, "origin": origin}
    if sample_size:
        record["tokenizer_sample"] = sample_size
    record |= {
        "settings": {section: settings[section] for section in ("data", "tokenizer")},
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
        "fingerprint": digest([tokenizer.fingerprint, {name: store.fingerprint for name, store in stores.items()}]),
        "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
    }
    record["crc32"] = record_crc32(record)
    write_file(file_in(directory, PREPARED), [json.dumps(record, indent=1, ensure_ascii=False).encode()])
    return closing_table(stores, paths, tallies, seconds)


def _source_record(name: str, path: str, tally: Tally) -> dict[str, Any]:
    return {
        "store": name, "path": path, "documents": tally.documents, "bytes": tally.bytes, "cut": tally.cut,
        "dropped": dict(tally.dropped), "places": tally.places,
    }  # fmt: skip


def record_crc32(record: dict[str, Any]) -> int:
    """Returns the CRC-32 of a record that is stored as JSON."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def digest(content: Any) -> str:
    """Returns a hash of JSON content as 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def closing_table(
    stores: Mapping[str, StoreSummary], paths: dict[str, str], tallies: dict[str, Tally], seconds: dict[str, float]
) -> str:
    """Returns a table of the stores and their sources, followed by what was dropped and why, and the durations."""
    rows = [("store", "documents", "bytes", "tokens", "bytes/token", "source")]
    for name, store in stores.items():
        counts = f"{store.documents:,}", f"{store.text_bytes:,}", f"{store.tokens:,}"
        rows.append(
            (name, *counts, f"{store.text_bytes / store.tokens:.2f}", paths.get(name, "data.path (selected by hash)"))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]) for row in rows
    ]
    for name, tally in tallies.items():
        for reason, count in sorted(tally.dropped.items()):
            first = f" (first: {'; '.join(tally.places[reason])})" if reason in tally.places else ""
            lines.append(f"{name}: dropped {dropped(count, reason)}{first}")
        if tally.cut:
            lines.append(
                f"{name}: split {counted(tally.cut, 'document', 'documents')} longer than data.max_document_characters"
            )
    if not any(name.startswith("held_out/") for name in stores):
        lines.append("no held-out set: data.held_out is empty, and data.held_out_fraction selected no document")
    lines.append("seconds: " + ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items()))
    return "\n".join(lines)
