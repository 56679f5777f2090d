"""The program `jaxlm`: a table of verbs, each a module's main, imported when it is called."""

import contextlib
import importlib
import logging
import os
import sys
from pathlib import Path

from jaxlm import __version__
from jaxlm.errors import UserError
from jaxlm.memory import restart_with_huge_pages

VERBS = {
    "train": ("jaxlm.train", "train a masked language model, or go on where it stopped"),
    "prepare": ("jaxlm.data.prepare", "turn text into a token store, without training"),
    "config": ("jaxlm.config", "print every setting, its value and what it means"),
    "fill-mask": ("jaxlm.predict", "fill in the blanks of a text"),
    "embed": ("jaxlm.embed_file", "the vector of each text of a file"),
    "score": ("jaxlm.score", "how probable sentences are, for ranking them"),
    "evaluate": ("jaxlm.evaluate", "the held-out loss of a model on any text"),
    "export": ("jaxlm.export", "write a model as a directory that Transformers loads"),
    "bench": ("jaxlm.bench", "tokens per second, share of peak, memory, input rate"),
    "plan": ("jaxlm.plan", "memory, collectives and hours on devices that nobody has yet"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs `jaxlm VERB ...`; returns the exit status, 0 or 1."""
    program = argv is None  # the process is ours, not a test's or a notebook's
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: jaxlm VERB [--help] ...\n\nmasked language models in JAX\n")
        print("\n".join(f"  {verb:<10} {what}" for verb, (_, what) in VERBS.items()))
        print("\nexample: jaxlm train --config=configs/mini.py --workdir=runs/mini")
        print("\ncompiled steps are kept for later runs in ~/.cache/jaxlm/compiled, which may be removed at any time;")
        print("JAX_COMPILATION_CACHE_DIR names another directory, JAX_ENABLE_COMPILATION_CACHE=false keeps none")
        return 0
    if argv[0] == "--version":
        print(f"jaxlm {__version__}")
        return 0
    try:
        if argv[0] not in VERBS:
            raise UserError(f"there is no verb {argv[0]}; they are {', '.join(VERBS)}")
        if program:
            restart_with_huge_pages()
        _set_environment()
        return importlib.import_module(VERBS[argv[0]][0]).main(argv[1:])
    except UserError as error:
        print(f"jaxlm: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("jaxlm: interrupted", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as error:  # argparse: 2 for a wrong call is 1 here, as for every other mistake
        return 1 if error.code else 0
    return 1


def _set_environment() -> None:
    """Settings that libraries read when they are imported; what the user has set stays."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError, RuntimeError):  # no home, or none that can be written: compile each time
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm" / "compiled"
            cache.mkdir(parents=True, exist_ok=True)
            if os.access(cache, os.W_OK):
                os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
