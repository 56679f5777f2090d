"""What the verbs of fine-tuned models share: texts, standard input or files in; lines, JSON or a file out."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json, print_json_list
from jaxlm.text.labelled import Row
from jaxlm.use.loading import TEXT_COLUMNS, Trained, add_model_options, load_named
from jaxlm.use.parts import check_not_read, check_replaceable, output_path
from jaxlm.use.predict_file import predict_file
from jaxlm.use.prediction_formats import holds_answers, holds_predictions
from jaxlm.use.task_input import TaskInput, add_input_options, check_input, rows_of_files, rows_of_texts, typed_texts
from jaxlm.use.task_model import TaskModel, for_verb

Prediction = dict[str, Any]
Predictions = Iterable[tuple[Row, Prediction]]
TABLES = (".jsonl", ".csv", ".tsv", ".parquet")


class TaskVerb(NamedTuple):
    """A verb, and what it does with rows."""

    name: str
    description: str
    examples: tuple[str, ...]
    text: str  # help on the arguments
    input: TaskInput
    given: Callable[[TaskModel, Row], Prediction]  # what --json repeats of a row
    show: Callable[[TaskModel, Predictions], Iterator[str]]  # the lines that are printed
    keys: tuple[tuple[str, ...], ...]  # of its predictions, where these cannot be taken for labelled examples
    outputs: tuple[str, ...] = TABLES  # the endings of --output
    options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None  # adds its own options
    # What the verb makes of a model that was loaded, by its own options.
    prepare: Callable[[Trained, argparse.Namespace], Trained] = lambda trained, args: trained


def run_verb(verb: TaskVerb, argv: Sequence[str]) -> int:
    """Runs `jaxlm VERB --model=DIR [TEXT ...] [--input=FILE] [--output=FILE]`."""
    args = _parser(verb).parse_args(argv)
    files = check_input(verb.input, args)  # before the model is loaded, so that a wrong path fails at once
    output = output_path(args.output, verb.outputs) if args.output is not None else None
    if output:
        check_not_read(output, args.input, files)
    typed = [] if files else typed_texts(args)

    trained = for_verb(verb.prepare(load_named(args, args.compute_dtype), args), verb.name)
    model = TaskModel(trained)
    if files:
        rows, name = rows_of_files(verb.input, model, args, files), args.input
    else:
        rows, name = rows_of_texts(verb.input, model, args, typed), "the texts" if args.text else "standard input"
    model.read_columns_of(rows)
    if output:

        def is_own(file: Path) -> bool:
            return holds_predictions(file, verb.keys) or holds_answers(file, rows)

        check_replaceable(output, trained.directory, is_own, "predictions")
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
        for line in verb.show(model, predictions):
            print(line)
    return 0


def columns_of(model: TaskModel, text: str, place: str, remedy: str = "") -> Row:
    """Returns the row of a text, or of several separated by tabs if the model reads pairs. Raises UserError."""
    columns = model.config.task.text
    if model.trained.reads_pairs_too and model.objective != "reranking":
        columns = TEXT_COLUMNS[: 1 + ("\t" in text)]
    texts = [text] if len(columns) == 1 else text.split("\t")
    if len(texts) != len(columns):
        expected = "two texts separated by one tab, since the model was trained on pairs"
        if len(columns) > 2:
            expected = f"{len(columns)} texts separated by tabs, one for each column of the template"
        raise UserError(
            f"{place}: expected {expected} ({' and '.join(columns)}), but there"
            f" {'is 1 tab' if len(texts) == 2 else f'are {len(texts) - 1} tabs'}{remedy}"
        )
    return Row(place, dict(zip(columns, texts, strict=True)))


def _parser(verb: TaskVerb) -> argparse.ArgumentParser:
    examples = "".join(f"  {example}\n" for example in verb.examples)
    parser = argparse.ArgumentParser(
        prog=f"jaxlm {verb.name}", description=verb.description, formatter_class=HelpFormatter,
        epilog=f"examples:\n{examples}\nWith --output, run the same command again to continue an interrupted one;\n"
        "the output is the same.",
    )  # fmt: skip
    add_model_options(parser)
    add_input_options(parser, verb.input)
    replaced = "an existing file of predictions is replaced at the end" if verb.keys else "no existing file is replaced"
    parser.add_argument("--output", metavar="FILE", help=f"{', '.join(verb.outputs[:-1])} or {verb.outputs[-1]}: the "
                        f"prediction for each row of the input, in order; {replaced}")  # fmt: skip
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16", "auto"), help="dtype of matrix products "
                        "(default: that of the run, whose predictions are then reproduced; of a Hugging Face directory "
                        "float32)")  # fmt: skip
    verb.options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object: a list of the predictions, or with "
                        "--output a summary")  # fmt: skip
    parser.add_argument("text", nargs="*", help=verb.text)
    return parser
