"""`jaxlm prepare`: trains the tokenizer and writes the token stores of a config, without training a model."""

import argparse
import functools
import logging
from collections.abc import Sequence

from jaxlm.config import load_config, split_overrides
from jaxlm.data.corpus import Build, prepare, prepare_with
from jaxlm.errors import UserError


def main(argv: Sequence[str]) -> int:
    """`jaxlm prepare --config=FILE[:ARG] [--output=DIR] [--runner=beam] [--config.section.key=VALUE ...] [-- ...]`."""
    argv = list(argv)
    options = argv[argv.index("--") + 1 :] if "--" in argv else []
    overrides, rest = split_overrides(argv[: argv.index("--")] if "--" in argv else argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm prepare", description="Train the tokenizer and write the token stores of a config's data.",
        usage="%(prog)s --config=FILE[:ARG] [--output=DIR] [--runner=beam] [--config.section.key=VALUE ...]"
        " [-- BEAM OPTION ...]",
        epilog="example: jaxlm prepare --config=configs/quickstart.py --config.data.path='notes/*.txt' --output=notes."
        " Paths, --output and data.cache may be URLs (gs://, s3://): see docs/text.md.",
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a config file")
    parser.add_argument("--output", metavar="DIR", help="a new folder; without it, the cache that training looks in")
    parser.add_argument(
        "--runner", choices=("local", "beam"), default="local",
        help="local: this machine's processors; beam: Apache Beam, with its own options behind --, such as"
        " -- --runner=DataflowRunner --project=NAME; the stores are the same",
    )  # fmt: skip
    args = parser.parse_args(rest)
    config = load_config(args.config, overrides)
    if args.runner == "beam":
        prepare_with(_beam_build(options), config, args.output)
    elif options:
        raise UserError(f"{options[0]} is an option of Beam: add --runner=beam")
    else:
        prepare(config, args.output)
    return 0


def _beam_build(options: list[str]) -> Build:
    logging.disable(logging.WARNING)  # which Beam gives at its import of parts that it does not find
    try:
        from jaxlm.data import beam
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise UserError("--runner=beam needs Apache Beam, which is not here: pip install 'jaxlm[beam]'") from error
    finally:
        logging.disable(logging.NOTSET)
    return functools.partial(beam.build, options)
