"""`jaxlm evaluate`: the held-out loss of a model, or the metrics of a fine-tuned one; see `probes` for the others."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config import (
    apply_override,
    check_config,
    config_from_dict,
    config_to_dict,
    default_config,
    find_setting,
    split_overrides,
)
from jaxlm.data.prepare import prepare
from jaxlm.data.prepared import open_prepared
from jaxlm.data.table import CorpusData
from jaxlm.data.token_store import TokenStore
from jaxlm.data.unknown import check_spelling, spelling_of
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.held_out import describe, held_out_evaluators
from jaxlm.evaluation.whole_documents import whole_document_evaluators
from jaxlm.runtime import sharding
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.step import Assembly
from jaxlm.storage import local_path, read_json
from jaxlm.typed import Record
from jaxlm.use.assembly import assemble_trained
from jaxlm.use.evaluate_task import SETTINGS, describe_task, evaluate_task
from jaxlm.use.loading import Trained, add_model_options, load_named
from jaxlm.use.probes import add_probe_options, evaluate_tasks
from jaxlm.use.zero_shot import with_template

LONGEST_ROW = 512  # tokens of a text's rows, unless data.sequence_length is set or the model reads fewer
# The settings of section `data` that can change how a text is read or evaluated.
TEXT_SETTINGS = (
    "path", "format", "document", "field", "encoding", "deduplicate", "max_document_characters", "max_megabytes",
    "sequence_length", "prepend_begin", "cache", "workers",
)  # fmt: skip
ZERO_SHOT = ("task.template", "task.label_words")  # which make a classifier of a masked language model
PREFIXES = ("--data.", "--task.")  # of settings that can be given without --config


def evaluate(
    trained: Trained, stores: dict[str, TokenStore], rows: int = 0, whole_documents: bool = False
) -> dict[str, Metrics]:
    """Returns the metrics of each store by its name, on the first `rows` of each, 0 for all.

    They are those of `evaluate_held_out`, and `unknown_share`, the share of the store's tokens that are unknown.

    With `whole_documents`, a document of at most data.sequence_length tokens is never cut, and `rows` counts documents;
    otherwise the rows are those of training. They are split over all devices of this machine. The unigram baseline is
    that of the training text, or for a checkpoint from elsewhere that of the evaluated text; "unigram_of" says which.
    Raises UserError for a model without a masked-LM head, or with fewer positions than the rows are long.
    """
    config = config_from_dict(config_to_dict(trained.config), "config")
    length = config.data.sequence_length
    _require_masked_lm(trained)
    if trained.encoder.positions == "learned" and length > trained.longest:
        raise UserError(f"data.sequence_length={length} exceeds the {trained.longest} tokens that the model can read")
    counts, counts_of = trained.counts, "training text"
    if not counts.any():
        counts, counts_of = np.sum([store.counts for store in stores.values()], axis=0), "evaluated text"
    data = CorpusData(trained.directory, "", trained.tokenizer, [], stores, counts, counts_of)
    config.evaluation.rows = rows
    assembly = _assembly(config, trained, data)
    params = jax.device_put(trained.params, assembly.state_shardings["params"])
    last = len(assembly.phases) - 1
    evaluators = (whole_document_evaluators if whole_documents else held_out_evaluators)(assembly, data)
    results = {e.name: dict(e.evaluate(params, last)) for e in evaluators}
    for name, result in results.items():
        if not result["n"]:
            raise UserError(
                f"{name} has no token to predict: its text is too short, or none of it is in the model's vocabulary"
            )
        result["unknown_share"] = spelling_of(stores[name].counts, trained.tokenizer).unknown_share
    return results


def _require_masked_lm(trained: Trained) -> None:
    if not trained.has_head:
        labelled = "; evaluate it on labelled examples, with --task.evaluation=FILE" if trained.fine_tuned else ""
        raise UserError(f"{trained.directory} has no masked-LM head, so it has no masked-LM loss{labelled}")


def _assembly(config: Any, trained: Trained, data: CorpusData) -> Assembly:
    """Returns the assembly of a masked language model, whose batch size is a multiple of the parts of the mesh."""
    assembly = assemble_trained(trained, config, data.facts, "masked", trained.execution.compute_dtype)
    size = config.evaluation.batch_size or config.train.batch_size
    parts = sharding.batch_parts(assembly.mesh)
    config.evaluation.batch_size = parts * -(-size // parts)
    return assembly


def main(argv: Sequence[str]) -> int:
    """`jaxlm evaluate --model=DIR [--data.path=PATH ...] [--[no-]whole-documents] [--rows=N] [--json]`."""
    overrides, rest = split_overrides([f"--config.{a[2:]}" if a.startswith(PREFIXES) else a for a in argv])
    parser = argparse.ArgumentParser(
        prog="jaxlm evaluate",
        description="Evaluate a model on its held-out sets as in training, or on any text: --data.path=PATH and the "
        f"other settings of section data ({', '.join(TEXT_SETTINGS[1:])}) choose what is read. Their defaults are "
        "those of `jaxlm config data`, whatever the model was trained on. 15% of the tokens are masked, the same for "
        "every model with the same tokenizer. A fine-tuned model is evaluated with the metrics of its run, on the "
        "evaluation and test sets of the run, or on the labelled files of --task.evaluation=FILE or NAME=FILE,...; "
        f"{', '.join(SETTINGS[1:])} say how they are read, by default as in the run. With task.template and "
        "task.label_words a masked language model is evaluated on them without training.",
        usage="%(prog)s --model=DIR [--data.path=PATH,... [--data.key=VALUE ...]]\n"
        "                      [--task.evaluation=FILE [--task.key=VALUE ...]]\n"
        "                      [--output=DIR]\n"
        "                      [--[no-]whole-documents] [--rows=N] [--json]\n"
        "       %(prog)s --model=DIR --tasks=NAME,... --data=DIR [--variant=NAME]\n"
        "                      [--per-token] [--rows=N] [--json]",
        formatter_class=HelpFormatter,
        epilog="examples:\n  jaxlm evaluate --model=runs/mini --data.path='docs/*.md' --data.format=text\n"
        "  jaxlm evaluate --model=runs/sst2 --task.evaluation=new.tsv\n"
        "  jaxlm evaluate --model=runs/sst2 --task.test=new.tsv --output=predicted\n"
        "  jaxlm evaluate --model=runs/mini --tasks=blimp,crows_pairs --data=probes",
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument(
        "--whole-documents", action=argparse.BooleanOptionalAction,
        help="mask and encode each document by itself, and cut only documents longer than data.sequence_length "
        f"(default: the model's maximum, at most {LONGEST_ROW}); otherwise rows of that length are cut from the joined "
        "documents, as in training (default: whole documents with --data.path, rows without)",
    )  # fmt: skip
    parser.add_argument(
        "--rows", type=int, default=0, metavar="N",
        help="evaluate only the first N rows, or documents, of each set, or of each file of --tasks (default: all)",
    )  # fmt: skip
    add_probe_options(parser)
    parser.add_argument("--output", metavar="DIR", help="fine-tuned models: a new folder for predictions/SET.jsonl, "
                        "and with --task.submission=true for what GLUE's and SQuAD's servers and scripts read"
                        )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(rest)
    if args.rows < 0:
        raise UserError(f"--rows={args.rows}: it cannot be negative")
    if args.tasks is not None:
        if args.output is not None:
            raise UserError("--output has no effect on --tasks: remove it")
        _check_no_text(overrides, args.whole_documents)
        return evaluate_tasks(args)
    for option, given in (("--data", args.data), ("--variant", args.variant), ("--per-token", args.per_token)):
        if given not in (None, False):
            raise UserError(f"{option} applies to --tasks, which is not given; a text is read with --data.path")
    for override in overrides:  # before the model is loaded
        find_setting(override.partition("=")[0])
    trained, overrides = _as_classifier(load_named(args), overrides)
    of_text = any(override.startswith("data.path=") for override in overrides)
    if trained.fine_tuned and not of_text:
        return _evaluate_task(trained, overrides, args)
    if args.output is not None:
        raise UserError("--output is for the predictions of a fine-tuned model on labelled examples: remove it")
    whole_documents = of_text if args.whole_documents is None else args.whole_documents
    _check_overrides(overrides, of_text, whole_documents)
    _require_masked_lm(trained)
    if of_text:
        with contextlib.redirect_stdout(sys.stderr):  # what was read, beside the result
            stores = _stores_of_text(trained, overrides)
    else:
        stores = _stores_of_run(trained)
        if not stores:
            raise UserError(f"{args.model} has no held-out sets; give a text with --data.path")
        if whole_documents:
            trained.config.data.sequence_length = min(trained.longest, LONGEST_ROW)
        spellings = {name: spelling_of(store.counts, trained.tokenizer) for name, store in stores.items()}
        check_spelling(spellings, trained.tokenizer)
    results = evaluate(trained, stores, args.rows, whole_documents)
    if args.json:
        print_json(results)
    else:
        print("\n\n".join(describe(name, result) for name, result in results.items()))
    return 0


def _as_classifier(trained: Trained, overrides: list[str]) -> tuple[Trained, list[str]]:
    """Returns the model, with task.template as a classifier without training, and the other overrides."""
    given = {key: value for key, _, value in (o.partition("=") for o in overrides) if key in ZERO_SHOT}
    if not given:
        return trained, overrides
    config = default_config()
    for key, value in given.items():
        apply_override(config, f"{key}={value}")
    if any(override.startswith("data.path=") for override in overrides):
        raise UserError(
            "--task.template classifies the labelled examples of --task.evaluation=FILE, and --data.path names a text;"
            " remove one of them"
        )
    if not config.task.template:
        raise UserError("--task.label_words applies to --task.template, which is not given")
    trained = with_template(trained, config.task.template, config.task.label_words)
    return trained, [override for override in overrides if override.partition("=")[0] not in given]


def _evaluate_task(trained: Trained, overrides: Sequence[str], args: argparse.Namespace) -> int:
    if args.whole_documents is not None:
        raise UserError("--whole-documents has no effect on labelled examples: remove it")
    output = None if args.output is None else local_path("--output", args.output)
    results = evaluate_task(trained, overrides, args.rows, output)
    if args.json:
        print_json(results)
    else:
        print(describe_task(trained, results))
    return 0


def _check_overrides(overrides: Sequence[str], of_text: bool, whole_documents: bool) -> None:
    """Raises UserError for settings that would have no effect."""
    for override in overrides:
        key = override.partition("=")[0]
        section, _, name = key.partition(".")
        if section == "task":
            raise UserError(
                f"--{key} is for a model that was fine-tuned on labelled examples, which this one is not; evaluate it "
                "on a text with --data.path"
            )
        if section != "data":
            raise UserError(f"--config.{override}: only settings of section data can be given here")
        if name not in TEXT_SETTINGS:
            raise UserError(
                f"--{key} has no effect on an evaluation: remove it; settings with an effect are "
                f"{', '.join(TEXT_SETTINGS)}"
            )
        if name == "prepend_begin" and whole_documents:
            raise UserError(
                f"--{key} has no effect on whole documents, which begin with the begin token: remove it, or add "
                "--no-whole-documents"
            )
    if overrides and not of_text:
        raise UserError(f"--data.path is needed beside --{overrides[0]}")


def _check_no_text(overrides: Sequence[str], whole_documents: bool | None) -> None:
    """Raises UserError for options about text, which has no part in --tasks."""
    if whole_documents is not None:
        raise UserError(f"--{'' if whole_documents else 'no-'}whole-documents has no effect on --tasks: remove it")
    if overrides:
        option = f"--{'' if overrides[0].startswith('data.') else 'config.'}{overrides[0]}"
        raise UserError(f"{option} has no effect on --tasks, whose data is read from --data: remove it")


def _stores_of_run(trained: Trained) -> dict[str, TokenStore]:
    """Returns the held-out sets of a run; none for another model. Raises UserError if they are not those of the run."""
    file = trained.directory / "data.json"
    if not file.is_file():
        return {}
    remedy = f"run `jaxlm train` in {trained.directory} again to prepare them, or give a text with --data.path"
    record = Record(file, read_json(file), remedy)
    directory = Path(record.text("directory"))
    if not directory.is_dir():
        raise UserError(f"the held-out sets of {trained.directory} are missing: there is no {directory}; {remedy}")
    prepared = open_prepared(directory)
    known = prepared.fingerprint, prepared.tokenizer.fingerprint
    if known != (record.text("fingerprint"), trained.tokenizer.fingerprint):
        raise UserError(f"{directory} does not hold the data that {trained.directory} was trained on; {remedy}")
    return prepared.held_out


def _stores_of_text(trained: Trained, overrides: Sequence[str]) -> dict[str, TokenStore]:
    """Returns the token stores of a text, one for each path, made with the model's own tokenizer.

    The settings are the defaults with the overrides, so that every model reads the text alike: a run, its export, and
    any other model. Sets the length and the begin tokens of the rows in `trained.config`.
    """
    config, run = default_config(), trained.config
    config.data.update(
        held_out_fraction=0.0, cache=run.data.cache, workers=run.data.workers,
        sequence_length=min(trained.longest, LONGEST_ROW),
    )  # fmt: skip
    config.tokenizer.path = str(trained.directory / ("" if trained.source else "tokenizer"))
    config.tokenizer.words = run.tokenizer.words
    for override in overrides:
        apply_override(config, override)
    check_config(config)
    run.data.update(sequence_length=config.data.sequence_length, prepend_begin=config.data.prepend_begin)
    prepared = prepare(config)
    return dict(zip(config.data.path, prepared.train, strict=True))
