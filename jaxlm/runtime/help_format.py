"""The format of a verb's --help."""

import argparse


class HelpFormatter(argparse.HelpFormatter):
    """Wraps a description, but keeps the lines of an epilog with examples, so that these can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(("example:", "examples:")):
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)
