"""`jaxlm config`: prints every setting with its value and its meaning."""

import argparse
from collections.abc import Sequence

from jaxlm.config import (
    apply_override,
    check_config,
    config_to_dict,
    default_config,
    format_config,
    load_config,
    split_overrides,
)
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.settings import SETTINGS


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm config [--config=CONFIG[:ARG]] [SECTION] [--config.section.key=VALUE ...] [--json]`."""
    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm config", description="Print every setting with its value and its meaning.",
        usage="%(prog)s [SECTION] [--config=CONFIG[:ARG]] [--json]\n"
        "                    [--config.section.key=VALUE ...]",
        formatter_class=HelpFormatter, epilog="example:\n  jaxlm config optimizer --config=bert_base",
    )  # fmt: skip
    parser.add_argument("section", nargs="?", default="", help=f"print only this section: {', '.join(SETTINGS)}")
    parser.add_argument(
        "--config", default="", metavar="CONFIG[:ARG]", help="a recipe or a config file; default: the default settings"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, which --config=FILE.json can load")
    args = parser.parse_args(rest)
    if args.config:
        from jaxlm.init_from import start_settings  # imports JAX, which takes a second

        config = load_config(args.config, overrides, start_settings)
    else:
        config = default_config()
        for override in overrides:
            apply_override(config, override)
        check_config(config)
    text = format_config(config, args.section)
    if args.json:
        content = config_to_dict(config)
        print_json({args.section: content[args.section]} if args.section else content, indent=2)
    else:
        print(text)
    return 0
