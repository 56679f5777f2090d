"""The program `jaxlm`: a table of verbs. The module of a verb is imported only when the verb is called."""

import contextlib
import errno
import importlib
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

from jaxlm.errors import UserError
from jaxlm.runtime.json_output import only_json, wants_json
from jaxlm.runtime.memory import restart_with_malloc_settings
from jaxlm.runtime.program_cache import set_up_program_cache
from jaxlm.unexpected import explain
from jaxlm.version import __version__

VERBS = {
    "train": ("jaxlm.trainer", "train a model, or resume a run from its last checkpoint"),
    "prepare": ("jaxlm.data.prepare", "train a tokenizer and tokenize text, without training a model"),
    "config": ("jaxlm.use.show_config", "print every setting with its value and its description"),
    "fill-mask": ("jaxlm.use.fill_mask", "predict the masked tokens of a text"),
    "embed": ("jaxlm.use.embed_file", "compute an embedding of each text in a file"),
    "score": ("jaxlm.use.score", "compute how probable sentences are (pseudo-log-likelihood)"),
    "classify": ("jaxlm.use.classify", "predict the label of each text with a fine-tuned model"),
    "tag": ("jaxlm.use.tag", "predict a tag for each word with a fine-tuned model"),
    "answer": ("jaxlm.use.answer", "find the answer to a question in a text with a fine-tuned model"),
    "rank": ("jaxlm.use.rank", "rank passages for a query with a fine-tuned model"),
    "evaluate": ("jaxlm.use.evaluate", "compute metrics on held-out text, labelled examples or zero-shot probes"),
    "export": ("jaxlm.use.export", "write a model as a directory that Hugging Face Transformers loads"),
    "sweep": ("jaxlm.study.sweep", "run an ablation: its arms and seeds, and what they show"),
    "report": ("jaxlm.study.report", "make a page of one or several runs, or of a sweep"),
    "bench": ("jaxlm.performance.bench", "measure the speed and memory use of the training step"),
    "plan": ("jaxlm.performance.plan", "estimate memory, communication and time of a run on other devices"),
    "completion": ("jaxlm.use.completion", "print a script that completes the command line in bash and zsh"),
}

HELP = """usage: jaxlm VERB [--help] ...

Language models of the BERT family in JAX.

verbs:
{verbs}

example: jaxlm train --config=mini --workdir=runs/mini

--debug, before or after the verb, prints the traceback of an unexpected error instead of saving it to a file.

Compiled programs are cached in ~/.cache/jaxlm/compiled, which may be removed at any time.
Those that were used least recently are removed when it exceeds 4 GiB.
JAX_COMPILATION_CACHE_DIR=DIR selects another directory, which has no bound,
JAX_COMPILATION_CACHE_MAX_SIZE=BYTES sets the bound (-1: none), and
JAX_ENABLE_COMPILATION_CACHE=false disables the cache."""

# Errors that come from the machine or a path and not from a bug: a full disk, missing permissions, limits, a directory
# in place of a file.
MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
                  errno.EMFILE, errno.ENFILE, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
                  errno.ENXIO}  # fmt: skip


# Characters that move the cursor, colour the terminal or reverse the text; a sentence may quote a file that has them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def main(argv: list[str] | None = None) -> int:
    """Runs `jaxlm VERB ...` and returns its exit status: 0, or 1 after an error."""
    program = argv is None  # called as a program, not from a test or a notebook
    argv, debug = _take_debug(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(argv, program)
        if sys.stdout:
            sys.stdout.flush()  # here and not when Python ends, so that a full disk is reported
        return status
    except UserError as error:
        _report(str(error))
    except KeyboardInterrupt as error:
        _report(error.args[0] if error.args else "interrupted")
    except BrokenPipeError:  # the program that reads our output has ended, as in `| head`
        _discard_output()
    except BaseException as error:  # also the panics of libraries in Rust, which are not of the class Exception
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            _report(f"{error.filename or 'output'}: {error.strerror}; fix that and run the same command again")
            _discard_output()
        elif debug:
            raise
        else:
            _report(explain(error, argv))
    return 1


def _run(argv: list[str], program: bool) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<10} {summary}" for verb, (_, summary) in VERBS.items())))
        return 0
    if argv[0] == "--version":
        print(f"jaxlm {__version__}")
        return 0
    for argument in argv:
        if any("\udc80" <= character <= "\udcff" for character in argument):  # Python's form of bytes it cannot decode
            raise UserError(f"the argument {argument!a} is not valid {sys.getfilesystemencoding().upper()}")
        if re.fullmatch(r"--[\w.-]+=--", argument):  # which argparse takes for an empty list
            raise UserError(f"{argument}: expected a value after the equals sign")
    if argv[0] not in VERBS:
        raise UserError(f"there is no verb {argv[0]}; the verbs are {', '.join(VERBS)}")
    if program:
        restart_with_malloc_settings()
        _make_output_encodable()
    _set_environment()
    with _termination(), only_json() if wants_json(argv[1:]) else contextlib.nullcontext():
        try:
            return importlib.import_module(VERBS[argv[0]][0]).main(argv[1:])
        except SystemExit as error:  # argparse exits with status 2; every error of ours has status 1
            return 1 if error.code else 0


def _take_debug(argv: list[str]) -> tuple[list[str], bool]:
    """Returns the arguments without the option --debug, which may stand before or after the verb, and whether it was
    among them. After the argument --, it is a text."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [argument for argument in argv[:end] if argument != "--debug"]
    return options + argv[end:], len(options) < end


def _make_output_encodable() -> None:
    """Makes characters that the terminal's encoding lacks appear as escapes such as \\u2581 instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _report(sentence: str) -> None:
    sentence = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], sentence)
    if len(sentence) > 1200:  # it quotes something very long; its end, which says what to do, is kept
        sentence = f"{sentence[:800]} ... {sentence[-300:]}"
    with contextlib.suppress(OSError, AttributeError):  # standard error is closed or full
        print(f"jaxlm: {sentence}", file=sys.stderr)


def _discard_output() -> None:
    """Discards what standard output could not write, which Python would otherwise try to write again at its end."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or replaced by a notebook or a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end a command as Ctrl-C does: temporary files are removed, and a sentence is printed."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    in_main_thread = threading.current_thread() is threading.main_thread()
    ends = [s for s in (signal.SIGTERM, signal.SIGHUP) if in_main_thread and signal.getsignal(s) == signal.SIG_DFL]
    for name in ends:
        signal.signal(name, end)
    try:
        yield
    finally:
        for name in ends:
            signal.signal(name, signal.SIG_DFL)


def _set_environment() -> None:
    """Sets what libraries read when they are imported, unless the user has set it."""
    set_up_program_cache()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
