"""`jaxlm config`: prints every setting with its value and its meaning."""

import argparse
import difflib
import json
from collections.abc import Sequence
from typing import Any

from jaxlm.config import (
    apply_override,
    check_config,
    config_to_dict,
    default_config,
    split_overrides,
)
from jaxlm.errors import UserError
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
        from jaxlm.init_from import load_config_and_start  # imports JAX, which takes a second

        config, _ = load_config_and_start(args.config, overrides)
    else:
        config = default_config()
        for override in overrides:
            apply_override(config, override)
        check_config(config)
    if args.section and args.section not in SETTINGS:
        near = difflib.get_close_matches(args.section, SETTINGS, 1)
        hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(SETTINGS)}"
        raise UserError(f"there is no section {args.section}; {hint}")
    content = config_to_dict(config)
    if args.section:
        content = {args.section: content[args.section]}
    if args.json:
        print_json(content, indent=2)
    else:
        print("\n\n".join(_described(section, values) for section, values in content.items()))
    return 0


def _described(section: str, values: dict[str, Any]) -> str:
    """Returns the settings of a section as lines `section.key = value  # help`."""
    lines = []
    for name, setting in SETTINGS[section].items():
        value = json.dumps(values[name], ensure_ascii=False)
        choices = f" [{', '.join(setting.choices)}]" if setting.choices else ""
        lines.append(f"{f'{section}.{name} = {value}':<44}  # {setting.help}{choices}")
    return "\n".join(lines)
