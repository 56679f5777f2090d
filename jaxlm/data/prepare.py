"""`jaxlm prepare`: the prepared directory of a config, found or written, in a cache, a directory or an object store.

Its content depends only on the text and the settings, not on the number of workers or the runner. It is written under a
temporary name and then renamed, so a directory that exists under its final name is complete.
"""

import argparse
import contextlib
import functools
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxlm.config import load_config, split_overrides
from jaxlm.data import corpus
from jaxlm.data.origin import is_prepared, origin_of
from jaxlm.data.prepared import FORMAT_VERSION, Prepared, digest, open_prepared, read_record
from jaxlm.data.remote_stores import begin_upload, end_upload, local_copy, upload
from jaxlm.data.unknown import Spelling, check_spelling, spelling_of
from jaxlm.errors import UserError
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.runtime.progress import show
from jaxlm.storage import beside, check_named, lock, reason
from jaxlm.text.files import Folder, is_remote
from jaxlm.tokenizer.added_tokens import read_added
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jaxlm.version import __version__

# (config, tokenizer or None if one is to be trained, origin, target) -> the closing table; writes the target.
Build = Callable[[ConfigDict, Tokenizer | None, dict[str, Any], Any], str]


def prepare(config: ConfigDict, directory: str | os.PathLike | None = None) -> Prepared:
    """Returns the tokenizer and the token stores of the config's data, which are written first if they do not exist.

    They are in `directory`, by default in the cache. If that is a URL, they are opened from a copy in the cache of this
    machine. What was written or reused is printed to standard output, progress to standard error. Raises UserError if
    the text, the settings or the disk do not allow it, or if `directory` was prepared with other settings.
    """
    tokenizer, origin, target, local = _resolve(config, directory)
    if isinstance(target, Path):
        _write(corpus.build, config, tokenizer, origin, target, directory is not None)
        return _reported(open_prepared(target), config)
    if is_prepared(target, config, origin):
        _print_reused(target, directory is not None)
    else:
        _write(corpus.build, config, tokenizer, origin, local, False)
        open_prepared(local)
        upload(local, target)
        show(f"token store: {target}")
    return _reported(open_prepared(local_copy(target, local.parent, local, open_prepared)), config)


def _reported(prepared: Prepared, config: ConfigDict) -> Prepared:
    """Prints the share of unknown tokens in each store. Raises UserError for a store without a known token."""
    spellings = spellings_of(prepared, config)
    for source, spelling in spellings.items():
        show(f"{source}: {spelling}")
    check_spelling(spellings, prepared.tokenizer)
    return prepared


def spellings_of(prepared: Prepared, config: ConfigDict) -> dict[str, Spelling]:
    """Returns the spelling of each token store, by its source."""
    stores = dict(zip(config.data.path, prepared.train, strict=True))
    stores |= {f"held-out set {name}": store for name, store in prepared.held_out.items()}
    return {name: spelling_of(store.counts, prepared.tokenizer) for name, store in stores.items()}


def prepare_with(build: Build, config: ConfigDict, directory: str | os.PathLike | None = None) -> Folder:
    """Writes what `prepare` returns with another `build` function, which writes to a URL directly.

    Returns the prepared directory.
    """
    tokenizer, origin, target, _ = _resolve(config, directory)
    if isinstance(target, Path):
        _write(build, config, tokenizer, origin, target, directory is not None)
        _reported(open_prepared(target), config)
    elif is_prepared(target, config, origin):
        _print_reused(target, directory is not None)
    else:
        begin_upload(target)
        table = build(config, tokenizer, origin, target)
        end_upload(target)
        show(f"{table}\ntoken store: {target}")
    return target


def _resolve(
    config: ConfigDict, directory: str | os.PathLike | None
) -> tuple[Tokenizer | None, dict[str, Any], Folder, Path]:
    """Returns the existing tokenizer, if any, the origin, the target, and its counterpart in this machine's cache."""
    if not config.data.path:
        raise UserError("data.path is empty: set it to text, as in --config.data.path='notes/*.txt', or to pydocs")
    tokenizer = existing_tokenizer(config.tokenizer)
    origin = origin_of(config, tokenizer)
    name = digest([FORMAT_VERSION, __version__, origin])
    local = cache_directory(config) / name
    if directory and is_remote(directory):
        return tokenizer, origin, str(directory).rstrip("/"), local
    if directory:
        return tokenizer, origin, Path(os.path.abspath(Path(directory).expanduser())), local
    target = f"{config.data.cache.rstrip('/')}/{name}" if is_remote(config.data.cache) else local
    return tokenizer, origin, target, local


def existing_tokenizer(settings: ConfigDict) -> Tokenizer | None:
    """Returns the tokenizer of the config's section `tokenizer` with its added tokens, or None if one is to be trained.

    Raises UserError if tokenizer.add is set without an existing vocabulary.
    """
    if not settings.path:
        if settings.add:
            raise UserError("tokenizer.add needs an existing vocabulary: set tokenizer.path or init_from")
        return None
    tokenizer = load_tokenizer(settings.path, settings.words)
    if not settings.add:
        return tokenizer
    words = read_added(settings.add)
    extended = tokenizer.with_added(words)
    new = extended.vocab_size - tokenizer.vocab_size
    print(
        f"{settings.add}: tokens added to the vocabulary: {new:,}; in it already: {len(set(words)) - new:,}",
        file=sys.stderr,
    )
    return extended


def cache_directory(config: ConfigDict) -> Path:
    """Returns the directory of token stores that all runs on this machine share."""
    if config.data.cache and not is_remote(config.data.cache):
        return Path(config.data.cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "jaxlm" / "stores"


def _write(
    build: Build, config: ConfigDict, tokenizer: Tokenizer | None, origin: dict[str, Any], target: Path, named: bool
) -> None:
    """Writes the prepared directory `target`, unless it exists; `named` is False for a directory in the cache."""
    if is_prepared(target, config, origin):
        return _print_reused(target, named)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process that is preparing {target}"
        with lock(beside(target, "lock"), waiting=waiting, remove=True):
            if is_prepared(target, config, origin):  # written by another process in the meantime
                return _print_reused(target, named)
            if not named:
                _remove_leftovers(target.parent)
            partial = beside(target, "partial")
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process, since this one holds the lock
            try:
                partial.mkdir()
                table = build(config, tokenizer, origin, partial)
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(f"cannot write the token store {target}: {reason(error)}") from error
    show(f"{table}\ntoken store: {target}")


def _remove_leftovers(cache: Path) -> None:
    """Removes the partial directories of killed processes from the cache."""
    for partial in cache.glob(".*partial"):
        if re.fullmatch(r"\.[0-9a-f]{32}\.(jaxlm-)?partial", partial.name):  # those of older versions lack jaxlm-
            held = partial.with_name(partial.name.replace("partial", "lock"))
            unused = lock(held, busy=f"another process is writing {partial}", remove=True)
            with contextlib.suppress(UserError), unused:
                shutil.rmtree(partial, ignore_errors=True)


def _print_reused(target: Folder, named: bool) -> None:
    show(f"token store: {target} is already complete" if named else f"token store: reused {target}")


# The command


def main(argv: Sequence[str]) -> int:
    """`jaxlm prepare --config=CONFIG[:ARG] [--output=DIR] [--config.section.key=VALUE ...] [-- ...]`."""
    argv = list(argv)
    options = argv[argv.index("--") + 1 :] if "--" in argv else []
    overrides, rest = split_overrides(argv[: argv.index("--")] if "--" in argv else argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm prepare",
        description="Train the tokenizer and write the token stores of a config's data, without training a model.",
        usage="%(prog)s --config=CONFIG[:ARG] [--output=DIR] [--runner=beam]\n"
        "                     [--json] [--config.section.key=VALUE ...]\n"
        "                     [-- BEAM OPTION ...]",
        formatter_class=HelpFormatter,
        epilog="example:\n  jaxlm prepare --config=mini --output=runs/pydocs\n\n"
        "Paths, --output and data.cache may be URLs (gs://, s3://): see docs/text.md.",
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="CONFIG[:ARG]", help="a recipe or a config file")
    parser.add_argument(
        "--output", metavar="DIR",
        help="a new directory for the tokenizer and the stores (default: the cache, where training looks for them)",
    )  # fmt: skip
    parser.add_argument(
        "--runner", choices=("local", "beam"), default="local",
        help="local: the cores of this machine (the default); beam: Apache Beam, with its own options after --, as in"
        " -- --runner=DataflowRunner --project=NAME; both write the same stores",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args(rest)
    if args.output is not None:
        check_named("--output", args.output)
    config = load_config(args.config, overrides)
    if config.model.init_from and not config.tokenizer.path:
        raise UserError(
            "model.init_from has no effect here: set --config.tokenizer.path=DIR, the directory whose tokenizer is used"
        )
    if args.runner == "beam":
        written = prepare_with(_beam_build(options), config, args.output)
    elif options:
        raise UserError(f"{options[0]} is an option for Beam: add --runner=beam")
    else:
        written = prepare(config, args.output).directory
    if args.json:
        record = read_record(written)
        content = {name: record[name] for name in ("fingerprint", "tokenizer", "stores", "sources", "seconds")}
        print_json({"directory": str(written)} | content)
    return 0


def _beam_build(options: list[str]) -> Build:
    """Returns Beam's build function with Beam's own options. Raises UserError if Beam is not installed."""
    logging.disable(logging.WARNING)  # Beam logs warnings about optional parts that are not installed
    try:
        from jaxlm.data import beam
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise UserError("--runner=beam needs Apache Beam, which is not installed: pip install 'jaxlm[beam]'") from error
    finally:
        logging.disable(logging.NOTSET)
    return functools.partial(beam.build, options)
