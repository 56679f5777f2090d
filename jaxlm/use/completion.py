"""`jaxlm completion`: prints a script that completes the command line in bash and zsh."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxlm.runtime.help_format import HelpFormatter

SCRIPT = Path(__file__).parent / "completion.bash"  # written by scripts/completion


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm completion`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm completion", description="Print a script that completes verbs, options, recipes and settings in "
        'bash and zsh. Add the line eval "$(jaxlm completion)" to ~/.bashrc or ~/.zshrc.',
        formatter_class=HelpFormatter, epilog="example:\n  jaxlm completion > jaxlm-completion.bash",
    )  # fmt: skip
    parser.parse_args(argv)
    print(SCRIPT.read_text(encoding="utf-8"), end="")
    return 0
