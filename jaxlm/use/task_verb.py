"""What the verbs of fine-tuned models share: texts, standard input or a file in; lines, JSON or a file out."""

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json, print_json_list
from jaxlm.storage import check_named, standard_input_lines
from jaxlm.text.formats import format_of, lines, text_blocks
from jaxlm.text.labelled import Row, check_file
from jaxlm.text.records import FORMATS
from jaxlm.use.loading import Trained, add_model_options, load_named
from jaxlm.use.parts import check_replaceable, output_path
from jaxlm.use.predict_file import ENDINGS, holds_predictions, predict_file
from jaxlm.use.task_model import TaskModel, require_task

Prediction = dict[str, Any]


def without_label(model: TaskModel, row: Row) -> Row:
    """Returns a row whose label, which may be one that the model does not know, is blank."""
    return Row(row.place, {**row.values, model.config.task.label: None})


def is_text(path: Path, settings: Any) -> bool:
    """Returns whether a file has a text in each line. Raises UserError if its name does not say so."""
    return format_of(path, settings) == "text"


class TaskVerb(NamedTuple):
    """A verb, and what it does with a row.

    `row` returns the row of a line of text, which may lie in a file; its place is the last argument.
    """

    name: str
    description: str
    examples: tuple[str, ...]
    text: str  # help on the arguments
    row: Callable[[TaskModel, argparse.Namespace, str, str], Row]
    given: Callable[[TaskModel, Row], Prediction]  # what --json repeats of a row
    show: Callable[[Prediction, Row, TaskModel], str]  # a prediction as text
    keys: tuple[str, ...]  # the first keys of its predictions
    fields: str = "text"  # the setting of section `task` that names the columns of --field
    unlabelled: Callable[[TaskModel, Row], Row] = without_label  # a row whose label is not looked at
    reads_lines: Callable[[Path, Any], bool] = is_text  # whether a line of a file is a text, by its path and format
    options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None  # adds its own options
    order: Callable[[Prediction], Any] = lambda prediction: 0  # the order in which predictions are shown
    # What the verb makes of a model that was loaded, by its own options.
    prepare: Callable[[Trained, argparse.Namespace], Trained] = lambda trained, args: trained


def run_verb(verb: TaskVerb, argv: Sequence[str]) -> int:
    """Runs `jaxlm VERB --model=DIR [TEXT ...] [--input=FILE] [--output=FILE]`."""
    args = _parser(verb).parse_args(argv)
    _check_options(args)
    output = output_path(args.output, ENDINGS) if args.output is not None else None
    if args.input:
        with _options_in_errors():
            check_file(Path(args.input), "--input")
            verb.reads_lines(Path(args.input), args)
    if args.input and output and output.exists() and output.samefile(args.input):
        raise UserError(f"--output={output} is the input; set another file")
    typed = args.text or (None if args.input else list(standard_input_lines()))
    if typed is not None and not typed:
        raise UserError("no text given: pass it as an argument, with --input, or on standard input")

    trained = verb.prepare(load_named(args, args.compute_dtype), args)
    require_task(trained, verb.name)
    if output:
        check_replaceable(output, trained.directory, lambda file: holds_predictions(file, verb.keys), "predictions")
    model = TaskModel(trained)
    if typed is None:
        rows = _rows_of_file(verb, model, args)
    else:
        where = "text " if args.text else "standard input, line "
        rows = [verb.row(model, args, text, f"{where}{number}") for number, text in enumerate(typed, 1)]
    name = args.input or ("the texts" if args.text else "standard input")
    if output:
        result = predict_file(model, rows, name, output)
        if args.json:
            print_json(result._asdict())
        else:
            print(f"wrote {result.examples:,} predictions to {output}; {result.seconds:.1f} s, {model.compute_dtype}")
        return 0
    predictions = zip(rows, model.predict(rows, name), strict=True)
    if args.json:
        print_json_list("predictions", (verb.given(model, row) | found for row, found in predictions))
    else:
        for row, found in sorted(predictions, key=lambda pair: verb.order(pair[1])):
            print(verb.show(found, row, model))
    return 0


def columns_of(model: TaskModel, args: argparse.Namespace, text: str, place: str) -> Row:
    """Returns the row of a text, or of several separated by tabs if the model reads pairs. Raises UserError."""
    columns = model.config.task.text
    texts = [text] if len(columns) == 1 else text.split("\t")
    if len(texts) != len(columns):
        expected = "two texts separated by one tab, since the model was trained on pairs"
        if len(columns) > 2:
            expected = f"{len(columns)} texts separated by tabs, one for each column of the template"
        raise UserError(f"{place}: expected {expected} ({' and '.join(columns)}), but there are {len(texts) - 1} tabs")
    return Row(place, dict(zip(columns, texts, strict=True)))


def _rows_of_file(verb: TaskVerb, model: TaskModel, args: argparse.Namespace) -> list[Row]:
    """Returns the rows of --input, one for each line of a text file; columns are those of the run, or of --field."""
    path, task, data = Path(args.input), model.config.task, model.config.data
    data.format, data.encoding = args.format, args.encoding or data.encoding
    with _options_in_errors():
        by_line = verb.reads_lines(path, data)
    for option, given in (("field", args.field), ("header", args.header)):
        if by_line and given is not None:
            raise UserError(f"--{option} has no effect on text files, as {path} is: remove it")
    with _options_in_errors():
        if by_line:
            found = [verb.row(model, args, line, f"{path}, line {number}")
                     for number, line in enumerate(lines(text_blocks(path, data.encoding)), 1)]  # fmt: skip
        else:
            if args.field is not None:
                names = args.field.split(",")
                task[verb.fields] = tuple(names) if isinstance(task[verb.fields], tuple) else names[0]
            task.header = task.header if args.header is None else args.header
            rows = model.kind.read(path, "--input", model.config, labelled=False)
            found = [verb.unlabelled(model, row) for row in rows]
    if not found:
        raise UserError(f"{path} contains no text")
    return found


@contextlib.contextmanager
def _options_in_errors() -> Iterator[None]:
    """Makes errors name the options of these verbs in place of settings."""
    try:
        yield
    except UserError as error:
        message = re.sub(r"(--config\.)?\bdata\.(format|encoding)\b", r"--\2", str(error))
        message = re.sub(r"\btask\.(text|words)\b", "--field", message)
        raise UserError(re.sub(r"\btask\.header\b", "--header", message)) from error


def _check_options(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not fit each other."""
    if args.input is not None:
        check_named("--input", args.input)
    if args.input and args.text:
        raise UserError("give either texts or --input, not both")
    for option, default in (("format", "auto"), ("field", None), ("encoding", None), ("header", None)):
        if not args.input and getattr(args, option) != default:
            raise UserError(f"--{option} applies to the file of --input, which is not given")


def _parser(verb: TaskVerb) -> argparse.ArgumentParser:
    examples = "".join(f"  {example}\n" for example in verb.examples)
    parser = argparse.ArgumentParser(
        prog=f"jaxlm {verb.name}", description=verb.description, formatter_class=HelpFormatter,
        epilog=f"examples:\n{examples}\nWith --output, run the same command again to continue an interrupted one;\n"
        "the output is the same.",
    )  # fmt: skip
    parser.set_defaults(field=None, header=None)
    add_model_options(parser)
    parser.add_argument("--input", metavar="FILE", help="a file of the form that the model was trained on, or "
                        ".txt with one text per line")  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help=".jsonl: an object for each row, in order; an existing file "
                        "of predictions is replaced at the end")  # fmt: skip
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="format of the input (default: by "
                        "its name)")  # fmt: skip
    if verb.fields:
        parser.add_argument("--field", metavar="COLUMN", help=f"column with the {verb.fields}, or several with commas "
                            f"(default: task.{verb.fields} of the run)")  # fmt: skip
    if verb.fields == "text":
        parser.add_argument("--header", action=argparse.BooleanOptionalAction, help="the first line names the columns; "
                            "otherwise they are numbered from 0 (default: as in the run)")  # fmt: skip
    parser.add_argument("--encoding", help="encoding of the input (default: that of the run)")
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16", "auto"), help="dtype of matrix products "
                        "(default: that of the run, whose predictions are then reproduced)")  # fmt: skip
    verb.options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object: a list of the predictions, or with "
                        "--output a summary")  # fmt: skip
    parser.add_argument("text", nargs="*", help=verb.text)
    return parser
