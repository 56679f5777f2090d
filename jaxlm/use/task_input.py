"""The rows that a fine-tuned model reads: texts of the command line, standard input, or files."""

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.storage import check_named, standard_input_lines
from jaxlm.text.files import File
from jaxlm.text.formats import ENDINGS, format_of, lines, text_blocks
from jaxlm.text.labelled import Row
from jaxlm.text.records import FORMATS
from jaxlm.text.sources import find_files
from jaxlm.use.task_model import TaskModel, check_columns


def without_label(model: TaskModel, row: Row) -> Row:
    """Returns a row with its texts alone: it may have a label that the model does not know."""
    return Row(row.place, {name: row.values[name] for name in model.config.task.text})


def is_text(file: File, settings: Any) -> bool:
    """Returns whether a file has a text in each line. Raises UserError if its name does not say so."""
    return format_of(file, settings) == "text"


class TaskInput(NamedTuple):
    """How a verb reads rows.

    `row` returns the row of a line of text, which may lie in a file; its place is the last argument.
    """

    row: Callable[[TaskModel, argparse.Namespace, str, str], Row]
    files: str  # help on --input: the formats of files
    fields: str = "text"  # the setting of section `task` that names the columns of --field
    has_header: bool = True  # whether a file may be a table without a header
    endings: Mapping[str, str] = ENDINGS  # of the files that are read from a folder, with their formats
    reads_lines: Callable[[File, Any], bool] = is_text  # whether a line of a file is a text, by its name and format
    unlabelled: Callable[[TaskModel, Row], Row] = without_label  # a row whose label is not looked at
    line_option: str = ""  # an option of the verb that only texts and the lines of text files need


def add_input_options(parser: argparse.ArgumentParser, read: TaskInput) -> None:
    """Adds the options that `check_input` and `rows_of` read."""
    parser.set_defaults(header=None)
    parser.add_argument("--input", metavar="FILE", help=f"{read.files}; also .gz and .zst; a folder or a glob")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="format of the input (default: by "
                        "its name)")  # fmt: skip
    parser.add_argument("--field", metavar="COLUMN", help=f"column with the {read.fields}, or several with commas "
                        f"(default: task.{read.fields} of the run)")  # fmt: skip
    if read.has_header:
        parser.add_argument("--header", action=argparse.BooleanOptionalAction, help="the first line names the columns; "
                            "otherwise they are numbered from 0 (default: as in the run)")  # fmt: skip
    parser.add_argument("--encoding", help="encoding of the input (default: that of the run)")


def check_input(read: TaskInput, args: argparse.Namespace) -> list[File]:
    """Returns the files of --input; none if it is not given. Raises UserError for options that do not fit."""
    if args.input is None:
        for option, default in (("format", "auto"), ("field", None), ("encoding", None), ("header", None)):
            if getattr(args, option) != default:
                raise UserError(f"--{option} applies to the file of --input, which is not given")
        return []
    check_named("--input", args.input)
    if args.text:
        raise UserError("give either texts or --input, not both")
    with options_in_errors():
        files = find_files(args.input, args, read.endings)
        by_line = [read.reads_lines(file, args) for file in files]
    for option, given in (("field", args.field), ("header", args.header)):
        if all(by_line) and given is not None:
            raise UserError(f"--{option} has no effect on text files, as {args.input} is: remove it")
    if read.line_option and getattr(args, read.line_option) is not None and not all(by_line):
        raise UserError(
            f"--{read.line_option} has no effect on {args.input}, whose rows have one each: remove it, or give a text"
            " file, with --format=text if its name does not say so"
        )
    return files


def typed_texts(args: argparse.Namespace) -> list[str]:
    """Returns the texts of the arguments, or the lines of standard input. Raises UserError if there is none."""
    typed = args.text or list(standard_input_lines())
    if not typed:
        raise UserError("no text given: pass it as an argument, with --input, or on standard input")
    return typed


def rows_of_texts(read: TaskInput, model: TaskModel, args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """Returns the rows of what `typed_texts` returned."""
    where = "text " if args.text else "standard input, line "
    return [read.row(model, args, text, f"{where}{number}") for number, text in enumerate(texts, 1)]


def rows_of_files(read: TaskInput, model: TaskModel, args: argparse.Namespace, files: list[File]) -> list[Row]:
    """Returns the rows of files, in order: one for each line of a text file, otherwise the columns of the run.

    There is a row for each row of a file: one that cannot be read is an error, whatever task.bad_rows of the run.
    """
    task, data = model.config.task, model.config.data
    data.format, data.encoding = args.format, args.encoding or data.encoding
    task.bad_rows, task.scheme = "refuse", "none"  # labels in a file are not looked at
    task.header = task.header if args.header is None else args.header
    if args.field is not None:
        if read.fields == "text":
            task.text = tuple(args.field.split(","))
            check_columns(model.trained, "--field", task.text)
            task.label = ""  # the column may be one of the texts here
        else:
            task[read.fields] = args.field
    found: list[Row] = []
    with options_in_errors():
        for file in files:
            found += _rows_of_file(read, model, args, file)
    if not found:
        raise UserError(f"{args.input} contains no text")
    return found


def _rows_of_file(read: TaskInput, model: TaskModel, args: argparse.Namespace, file: File) -> list[Row]:
    data = model.config.data
    if read.reads_lines(file, data):
        texts = enumerate(lines(text_blocks(file, data.encoding)), 1)
        return [read.row(model, args, line, f"{file}, line {number}") for number, line in texts]
    rows = model.kind.read(file, "--input", model.config, labelled=False)
    return [read.unlabelled(model, row) for row in rows]


@contextlib.contextmanager
def options_in_errors() -> Iterator[None]:
    """Makes errors name the options of these verbs in place of settings."""
    try:
        yield
    except UserError as error:
        message = re.sub(r"(--config\.)?\bdata\.(format|encoding)\b", r"--\2", str(error))
        message = re.sub(r"\btask\.(text|words)\b", "--field", message)
        message = re.sub(r",? or set task\.bad_rows=skip\b[^;.]*", "", message)
        raise UserError(re.sub(r"\btask\.header\b", "--header", message)) from error
