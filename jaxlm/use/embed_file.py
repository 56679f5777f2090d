"""`jaxlm embed`: a file of texts to a file of vectors, written in parts so that a stopped run can continue."""

import argparse
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from jaxlm.data.unknown import Spelling, check_spelling
from jaxlm.errors import UserError
from jaxlm.model.pooling import POOLINGS
from jaxlm.runtime.checksums import params_sha256
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.storage import (
    atomic_path,
    beside,
    check_named,
    lock,
    sync_directory,
)
from jaxlm.text.filters import Tally
from jaxlm.text.records import FORMATS, RecordSettings, check_options, read_records
from jaxlm.text.sources import find_files, source_fingerprint
from jaxlm.use.embed import TOO_LONG, Embedder, groups_of, settings_for
from jaxlm.use.loading import Trained, add_model_options, load_named
from jaxlm.use.parts import (
    append_part,
    check_identity,
    check_not_read,
    check_replaceable,
    clear_line,
    finished_parts,
    output_path,
    show_rate,
)
from jaxlm.version import __version__

_log = logging.getLogger("jaxlm")


class Embedded(NamedTuple):
    """What a run wrote; seconds, rate and padding are those of this process, compilation and files included."""

    vectors: int
    width: int
    tokens: int
    truncated: int  # texts longer than the model's maximum length
    unknown_share: float  # of the tokens: those that the vocabulary cannot spell
    seconds: float
    tokens_per_second: float  # without padding
    padding: float  # fraction of the computed tokens


def embed_file(
    embedder: Embedder, path: str, records: RecordSettings, output: Path, identity: dict[str, Any]
) -> Embedded:
    """Writes the vectors of a file's texts, in order, to .npy (float32 [n, D]), .jsonl or .parquet.

    Parts are collected in a hidden folder beside `output`. The output is written when all parts are complete, with the
    same bytes whether the run was interrupted or not. `identity` is everything that the vectors depend on; parts with
    another identity are rejected. Raises UserError.
    """
    begin, folder, tally = time.monotonic(), beside(output, "parts"), Tally()
    folder.mkdir(exist_ok=True)
    busy = f"{folder} is in use by another process: wait until it ends, or set another --output"
    with lock(folder / "lock", busy):
        done = finished_parts(folder, lambda number, part: _is_whole(_part(folder, number), part, embedder.width))
        check_identity(folder, identity, bool(done))
        counts = list(done)
        embedder.texts = sum(part["texts"] for part in done)
        for number, group in enumerate(groups_of(read_records(path, records, tally))):
            if number < len(done):
                continue
            tokens, truncated, spelling = embedder.tokens, embedder.truncated, embedder.spelling
            _write_part(folder, number, embedder(group))
            counts.append({"texts": len(group), "tokens": embedder.tokens - tokens,
                           "truncated": embedder.truncated - truncated,
                           "unknown": embedder.spelling.unknown - spelling.unknown,
                           "known": embedder.spelling.known - spelling.known,
                           "words": embedder.spelling.words - spelling.words})  # fmt: skip
            append_part(folder, counts[-1])
            seconds = time.monotonic() - begin
            show_rate("texts", embedder.texts, (embedder.texts - sum(p["texts"] for p in done)) / seconds)
        if not counts:
            raise UserError(f"{path} contains no records, so there is nothing to embed")
        total = {name: sum(part.get(name, 0) for part in counts)
                 for name in ("texts", "tokens", "truncated", "unknown", "known", "words")}  # fmt: skip
        spelling = Spelling(total["unknown"], total["known"], total["words"])
        check_spelling({path: spelling}, embedder.tokenizer)
        _assemble(folder, len(counts), output, (total["texts"], embedder.width))
        shutil.rmtree(folder)
    clear_line()
    if count := tally.dropped["control characters"]:
        _log.warning("%s: dropped %s control characters", path, f"{count:,}")
    if total["truncated"]:
        _log.warning("%s of %s texts are longer than %s tokens: they were truncated",
                     f"{total['truncated']:,}", f"{total['texts']:,}", embedder.settings.longest)  # fmt: skip
    seconds = time.monotonic() - begin
    padding = 1 - embedder.tokens / embedder.computed if embedder.computed else 0.0
    return Embedded(total["texts"], embedder.width, total["tokens"], total["truncated"], spelling.unknown_share,
                    seconds, embedder.tokens / seconds, padding)  # fmt: skip


# Parts


def _is_whole(file: Path, part: dict[str, int], width: int) -> bool:
    return _shape(file) == (part["texts"], width)


def _shape(file: Path) -> tuple[int, ...] | None:
    """Returns the shape of the float32 array in a .npy file; None if there is none, or the file is damaged."""
    if not file.is_file():  # opening a pipe would wait for its writer
        return None
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy raises errors of many types for a damaged header
        return None
    return array.shape if array.dtype == np.float32 else None


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.npy"


def _write_part(folder: Path, number: int, vectors: np.ndarray) -> None:
    with atomic_path(_part(folder, number)) as temporary, open(temporary, "wb") as file:
        np.save(file, vectors)


# Output


def _assemble(folder: Path, count: int, output: Path, shape: tuple[int, int]) -> None:
    parts = (np.load(_part(folder, number), allow_pickle=False) for number in range(count))
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        WRITERS[output.suffix](file, parts, shape)
    sync_directory(output.parent)  # before the parts are removed


def _write_npy(file: BinaryIO, parts: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for part in parts:
        file.write(part.astype("<f4", copy=False).tobytes())


def _write_jsonl(file: BinaryIO, parts: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    for part in parts:
        for vector in part.tolist():
            numbers = ", ".join([f"{number:.9g}" for number in vector])  # nine digits identify every float32
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


def _holds_vectors(file: Path) -> bool:
    """Returns whether a file looks like one that this module has written."""
    if file.suffix == ".npy":
        return len(_shape(file) or ()) == 2
    if file.suffix == ".jsonl":
        with open(file, "rb") as stream:
            begin = stream.read(14)
        return begin == b'{"embedding": '
    from pyarrow import parquet

    try:
        return parquet.read_schema(file).names == ["embedding"]
    except (OSError, ValueError):  # ArrowInvalid is a ValueError
        return False


# The verb


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm embed --model=DIR --input=FILE --output=FILE.npy|.jsonl|.parquet`."""
    args = _parser().parse_args(argv)
    check_named("--input", args.input)
    output, records = output_path(args.output, WRITERS), RecordSettings(args.format, args.field, args.encoding)
    try:
        layers = tuple(int(layer) for layer in args.layers.split(","))
    except ValueError as error:
        raise UserError(f"--layers={args.layers}: expected integers separated by commas, such as 4,-1") from error
    check_options(args.input, records)  # before the model is loaded, so that a wrong path fails at once
    source = source_fingerprint(args.input, records)
    check_not_read(output, args.input, find_files(args.input, records))

    trained = load_named(args, args.compute_dtype)
    check_replaceable(output, trained.directory, _holds_vectors, "vectors")
    settings = settings_for(trained, args.pooling, args.normalise, layers, args.prompt, args.dimensions)
    embedder = Embedder(trained, settings, args.too_long, args.batch_tokens)
    identity = {"input": source, **records._asdict(), **_model_identity(trained), **settings._asdict()}
    identity |= {"layers": list(layers), "too_long": args.too_long, "batch_tokens": embedder.batch_tokens}
    result = embed_file(embedder, args.input, records, output, identity)
    if args.json:
        print_json(result._asdict())
        return 0
    print(f"wrote {result.vectors:,} vectors of width {result.width} to {output}: {settings.pooling} pooling"
          f"{', normalised' * settings.normalise}, {trained.execution.compute_dtype}")  # fmt: skip
    if embedder.computed:
        print(f"{result.tokens:,} tokens, {result.unknown_share:.2%} unknown; {result.seconds:.1f} s, "
              f"{result.tokens_per_second:,.0f} tokens/s, {result.padding:.0%} padding")  # fmt: skip
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
        description="Write the vector of each text of a file, in order. A sentence-transformers directory sets pooling,"
        " normalisation, maximum length and prompt, and so does a model trained with train.objective=embedding; any"
        " other model uses the mean over all tokens, including begin and end, without normalisation. The vector of an"
        " empty text is that of begin and end alone.",
        formatter_class=HelpFormatter,
        epilog="example:\n  jaxlm embed --model=runs/mini --input=README.md --format=text \\\n"
        "    --output=runs/lines.npy\n\n"
        "Run the same command again to continue an interrupted run; the output is the\nsame.",
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument("--input", required=True, metavar="FILE", help="texts: .txt (one per line, empty lines "
                        "included), .jsonl, .csv, .tsv, .parquet, also .gz and .zst; a folder or a glob")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FILE", help=".npy (float32 [n, D]), .jsonl or .parquet "
                        "(column embedding); an existing file of vectors is replaced at the end")  # fmt: skip
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="format of the input (default: by "
                        "its name)")  # fmt: skip
    parser.add_argument("--field", default="text", help="field or column with the text (default text)")
    parser.add_argument("--encoding", default="utf-8", help="encoding of the input (default utf-8)")
    parser.add_argument("--pooling", choices=POOLINGS, help="how token states become one vector (default: the "
                        "directory's setting, otherwise mean)")  # fmt: skip
    parser.add_argument("--normalise", action=argparse.BooleanOptionalAction, help="scale vectors to length 1, so that "
                        "the dot product is the cosine (default: the directory's setting, otherwise no)")  # fmt: skip
    parser.add_argument("--prompt", metavar="NAME", help="prompt before each text: query, document, or the name of "
                        "another one of a sentence-transformers directory (default: its default prompt)")  # fmt: skip
    parser.add_argument("--dimensions", type=int, metavar="N", help="keep the first N dimensions of each vector, such "
                        "as one of task.dimensions; they are scaled to length 1 again only with --normalise (default: "
                        "all, or the directory's truncate_dim)")  # fmt: skip
    parser.add_argument("--layers", default="-1", help="layers whose states are averaged, such as 4,-1: 0 is the "
                        "embeddings, 1 the first layer, -1 the last (default -1)")  # fmt: skip
    parser.add_argument("--too-long", choices=TOO_LONG, default="truncate", help="a text longer than the model's "
                        "maximum length is truncated and counted, or is an error (default truncate)")  # fmt: skip
    parser.add_argument("--batch-tokens", type=int, default=0, help="tokens per batch (default 1,024 on CPU, which fit "
                        "its caches, otherwise 32,768)")  # fmt: skip
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16", "auto"), default="float32", help="dtype of "
                        "matrix products; auto is bfloat16 if the hardware is fast at it, with less precision (default "
                        "float32)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a summary as one JSON object")
    return parser
