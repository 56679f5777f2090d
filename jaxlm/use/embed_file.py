"""`jaxlm embed`: a file of texts to a file of vectors, in parts, so that a killed run goes on where it stopped."""

import argparse
import fcntl
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from jaxlm.errors import UserError
from jaxlm.huggingface.sentence_transformers import embed_settings
from jaxlm.huggingface.weights import read_json
from jaxlm.runtime.checksums import params_sha256
from jaxlm.storage import write_text
from jaxlm.text.filters import Tally
from jaxlm.text.records import FORMATS, RecordSettings, read_records
from jaxlm.text.sources import source_fingerprint
from jaxlm.use.embed import POOLINGS, TOO_LONG, Embedder, groups_of
from jaxlm.use.loading import Trained, load_trained
from jaxlm.version import __version__

_log = logging.getLogger("jaxlm")


class Embedded(NamedTuple):
    """What a run wrote and computed; the seconds are this process's for reading, compiling, computing and writing."""

    vectors: int
    width: int
    tokens: int
    truncated: int  # texts that were longer than the model
    seconds: float
    tokens_per_second: float  # of what this process computed, padding not counted
    padding: float  # share of what this process computed


def embed_file(
    embedder: Embedder, path: str, records: RecordSettings, output: Path, identity: dict[str, Any]
) -> Embedded:
    """Writes the vectors of a file's texts, in order, to .npy (float32 [n, D]), .jsonl or .parquet.

    Parts are collected in a folder beside `output`, which appears when it is whole and is the same file, byte for byte,
    whether the run was stopped or not. `identity` is what the vectors depend on: parts of another one are refused.
    Raises UserError.
    """
    begin, folder, tally = time.monotonic(), output.with_name(output.name + ".parts"), Tally()
    folder.mkdir(exist_ok=True)
    with _locked(folder):
        done = _finished_parts(folder, embedder.width)
        _check_identity(folder, identity, bool(done))
        counts = list(done)
        embedder.texts = sum(part["texts"] for part in done)
        for number, group in enumerate(groups_of(read_records(path, records, tally))):
            if number < len(done):
                continue
            tokens, truncated = embedder.tokens, embedder.truncated
            _write_part(folder, number, embedder(group))
            counts.append({"texts": len(group), "tokens": embedder.tokens - tokens,
                           "truncated": embedder.truncated - truncated})  # fmt: skip
            _append(folder, counts[-1])
            _show(embedder.texts, (embedder.texts - sum(p["texts"] for p in done)) / (time.monotonic() - begin))
        if not counts:
            raise UserError(f"{path} holds no record, so there is nothing to embed")
        total = {name: sum(part[name] for part in counts) for name in counts[0]}
        _assemble(folder, len(counts), output, (total["texts"], embedder.width))
        shutil.rmtree(folder)
    _clear_line()
    if count := tally.dropped["control characters"]:
        _log.warning("%s: dropped %s control characters", path, f"{count:,}")
    if total["truncated"]:
        longest = embedder.settings.longest
        _log.warning("%s of %s texts are longer than %s tokens: their vectors are of the first %s",
                     f"{total['truncated']:,}", f"{total['texts']:,}", longest, longest)  # fmt: skip
    seconds = time.monotonic() - begin
    padding = 1 - embedder.tokens / embedder.computed if embedder.computed else 0.0
    return Embedded(total["texts"], embedder.width, total["tokens"], total["truncated"], seconds,
                    embedder.tokens / seconds, padding)  # fmt: skip


# Parts


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder} is in use by another process: wait for it, or name another --output") from error
        yield


def _check_identity(folder: Path, identity: dict[str, Any], has_parts: bool) -> None:
    """Refuses parts that would not fit; writes down what they are of where there are none yet."""
    file = folder / "settings.json"
    if not has_parts:
        write_text(file, json.dumps(identity, indent=1) + "\n")
        return
    found = read_json(file, dict)
    if found != identity:
        other = ", ".join(name for name in identity if found.get(name) != identity[name])
        raise UserError(
            f"{folder} holds parts of a run that was stopped and had another {other}: remove it to start anew, or name"
            " another --output"
        )


def _finished_parts(folder: Path, width: int) -> list[dict[str, int]]:
    """Returns what is known of the parts that are whole, from the first to the last before one that is not."""
    found: list[dict[str, int]] = []
    record = folder / "parts.jsonl"
    for line in record.read_text().splitlines() if record.is_file() else ():
        try:
            part = json.loads(line)
            shape = np.load(_part(folder, len(found)), mmap_mode="r", allow_pickle=False).shape
            whole = shape == (part["texts"], width)
        except (ValueError, OSError, KeyError, TypeError):
            whole = False
        if not whole:
            break
        found.append(part)
    write_text(record, "".join(json.dumps(part) + "\n" for part in found))
    return found


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.npy"


def _write_part(folder: Path, number: int, vectors: np.ndarray) -> None:
    temporary = folder / "unfinished"
    with open(temporary, "wb") as file:
        np.save(file, vectors)
    temporary.replace(_part(folder, number))


def _append(folder: Path, part: dict[str, int]) -> None:
    with open(folder / "parts.jsonl", "a") as file:
        file.write(json.dumps(part) + "\n")


# Output


def _assemble(folder: Path, count: int, output: Path, shape: tuple[int, int]) -> None:
    parts = (np.load(_part(folder, number), allow_pickle=False) for number in range(count))
    whole = folder / "whole"
    with open(whole, "wb") as file:
        WRITERS[output.suffix](file, parts, shape)
        file.flush()
        os.fsync(file.fileno())
    whole.replace(output)


def _write_npy(file: BinaryIO, parts: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for part in parts:
        file.write(part.astype("<f4", copy=False).tobytes())


def _write_jsonl(file: BinaryIO, parts: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    for part in parts:
        for vector in part.tolist():
            numbers = ", ".join([f"{number:.9g}" for number in vector])  # nine digits tell every float32
            file.write(f'{{"embedding": [{numbers}]}}\n'.encode())


def _write_parquet(file: BinaryIO, parts: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([("embedding", pyarrow.list_(pyarrow.float32(), shape[1]))])
    with parquet.ParquetWriter(file, schema) as writer:
        for part in parts:
            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.reshape(-1)), shape[1])
            writer.write_table(pyarrow.table([column], schema=schema))


WRITERS = {".npy": _write_npy, ".jsonl": _write_jsonl, ".parquet": _write_parquet}


def _show(texts: int, rate: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{texts:,} texts, {rate:,.0f} texts/s \x1b[K", end="", file=sys.stderr, flush=True)


def _clear_line() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# The verb


def main(argv: Sequence[str]) -> int:
    """`jaxlm embed --model=DIR --input=FILE --output=FILE.npy|.jsonl|.parquet`."""
    args = _parser().parse_args(argv)
    output, records = Path(args.output), RecordSettings(args.format, args.field, args.encoding)
    if output.suffix not in WRITERS:
        raise UserError(f"--output={output}: the ending says the format, and must be one of {', '.join(WRITERS)}")
    if output.is_dir() or not output.parent.is_dir():
        problem = "it is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise UserError(f"--output={output}: {problem}; name a file in a folder that exists")
    if output.exists() and Path(args.input).exists() and output.samefile(args.input):
        raise UserError(f"--output={output} is the input: name another file")
    try:
        layers = tuple(int(layer) for layer in args.layers.split(","))
    except ValueError as error:
        raise UserError(f"--layers={args.layers}: numbers with commas are meant, such as 4,-1") from error
    source = source_fingerprint(args.input, records)  # before the model is loaded: a wrong path is told at once

    trained = load_trained(args.model, args.compute_dtype)
    settings = embed_settings(trained.directory, trained.longest, args.pooling, args.normalise, layers)
    embedder = Embedder(trained, settings, args.too_long, args.batch_tokens)
    identity = {"input": source, **records._asdict(), **_model_identity(trained), **settings._asdict()}
    identity |= {"layers": list(layers), "too_long": args.too_long, "batch_tokens": embedder.batch_tokens}
    result = embed_file(embedder, args.input, records, output, identity)
    if args.json:
        print(json.dumps(result._asdict()))
        return 0
    print(f"{result.vectors:,} vectors of {result.width} in {output}: {settings.pooling} pooling"
          f"{', normalised' * settings.normalise}, {trained.execution.compute_dtype}")  # fmt: skip
    if embedder.computed:
        print(f"{result.tokens:,} tokens; {result.seconds:.1f} s, {result.tokens_per_second:,.0f} tokens/s, "
              f"{result.padding:.0%} padding")  # fmt: skip
    return 0


def _model_identity(trained: Trained) -> dict[str, Any]:
    return {
        "model": params_sha256(trained.params["encoder"]),
        "architecture": repr(trained.encoder),
        "tokenizer": trained.tokenizer.fingerprint,
        "compute_dtype": trained.execution.compute_dtype,
        "platform": jax.devices()[0].platform,
        "jax": jax.__version__,
        "jaxlm": __version__,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxlm embed",
        description="Write the vector of each text of a file, in order. A directory of sentence-transformers says its"
        " own pooling, normalisation, longest text and prompt; any other is pooled by the mean over all tokens, begin"
        " and end included, and not normalised. An empty text gets a vector too: that of begin and end alone.",
        epilog="example: jaxlm embed --model=runs/quickstart --input=notes.jsonl --output=notes.npy --normalise."
        " A run that was stopped goes on where it was with the same command, and gives the same file.",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="a work directory of `jaxlm train`, or a Hugging Face directory")
    parser.add_argument("--input", required=True, metavar="FILE", help="texts: .txt (one a line, an empty line too), "
                        ".jsonl, .csv, .tsv, .parquet, also .gz and .zst; a folder or glob of them")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FILE", help=".npy (float32 [n, D]), .jsonl or .parquet "
                        "(column embedding); replaced when the new one is whole")  # fmt: skip
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="of the input (default: by name)")
    parser.add_argument("--field", default="text", help="of JSON Lines, CSV, TSV, Parquet (default text)")
    parser.add_argument("--encoding", default="utf-8", help="of the input (default utf-8)")
    parser.add_argument("--pooling", choices=POOLINGS, help="over a text's tokens (default: directory's, else mean)")
    parser.add_argument("--normalise", action=argparse.BooleanOptionalAction, help="vectors to length 1, so that a dot "
                        "product is the cosine (default: the directory's, else no)")  # fmt: skip
    parser.add_argument("--layers", default="-1", help="whose states are averaged, such as 4,-1: 0 the embeddings, "
                        "1 the first layer, -1 the last (default -1)")  # fmt: skip
    parser.add_argument("--too-long", choices=TOO_LONG, default="truncate", help="a text longer than the model: "
                        "its beginning is taken and it is counted, or it is an error (default truncate)")  # fmt: skip
    parser.add_argument("--batch-tokens", type=int, default=0, help="computed at once (default 1,024 on CPU, whose "
                        "caches hold that, and 32,768 elsewhere)")  # fmt: skip
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16", "auto"), default="float32", help="of "
                        "products; auto is bfloat16 where it is fast, and costs digits (default float32)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object about what was done")
    return parser
