"""Zero-shot probes of masked language models, and `jaxlm evaluate --tasks`, which also knows labelled tasks."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.probes import (
    INTERVALS,
    blimp_metrics,
    cloze_metrics,
    crows_pairs_metrics,
    describe_blimp,
    describe_cloze,
    describe_crows_pairs,
    preferences,
    shared_positions,
)
from jaxlm.runtime.json_output import print_json
from jaxlm.storage import local_path
from jaxlm.text.known_tasks import KNOWN_TASKS
from jaxlm.text.probe_sets import Cloze, MinimalPair, StereotypePair, read_blimp, read_cloze, read_crows_pairs
from jaxlm.use.cloze import predict_targets
from jaxlm.use.evaluate_task import describe_task
from jaxlm.use.known_sets import evaluate_known, folder_of, for_task
from jaxlm.use.loading import Trained, load_named
from jaxlm.use.model_card import is_causal
from jaxlm.use.score import VARIANTS, Score, score

SHOWN_EVERY = 500  # sentences between updates of the progress on a terminal


class Probe(NamedTuple):
    """A task that needs no training: how its data is read, how a model is evaluated on it, and what the table shows."""

    read: Callable[[Path, int], Any]  # from the folder --data, the first so many rows of each file, 0 for all
    evaluate: Callable[[Trained, Any, str, bool], Metrics]  # with the variant, and whether scores are means per token
    describe: Callable[[Metrics], str]
    variant: str  # unless --variant is given
    measures: str  # what the figures mean, for the table


def probe(
    trained: Trained, data: Mapping[str, Any], variant: str | None = None, per_token: bool = False
) -> dict[str, Metrics]:
    """Returns the metrics of each task by its name; `data` has what its `Probe.read` returned.

    `variant` is one of VARIANTS, by default that of the task. With `per_token`, BLiMP compares means per token. Raises
    UserError for a model that is not a masked language model, and for a text that it cannot score.
    """
    _require_masked_lm(trained)
    results = {}
    for task, content in data.items():
        used = variant or PROBES[task].variant
        results[task] = PROBES[task].evaluate(trained, content, used, per_token) | {
            "variant": used, "intervals_are": INTERVALS,
        }  # fmt: skip
    return results


def _require_masked_lm(trained: Trained) -> None:
    if not trained.has_head:
        raise UserError(
            f"{trained.directory} has no masked-LM head, so it predicts no tokens, which blimp, crows_pairs and cloze "
            "need; name a pretrained masked language model"
        )
    if is_causal(trained):
        raise UserError(
            f"{trained.directory} was trained to predict next tokens (train.objective=causal), not masked ones, which"
            " blimp, crows_pairs and cloze need: train it with train.objective=masked first"
        )


# Tasks


def _blimp(trained: Trained, data: dict[str, list[MinimalPair]], variant: str, per_token: bool) -> Metrics:
    places: dict[str, str] = {}
    for pair in (pair for pairs in data.values() for pair in pairs):
        places.setdefault(pair.good, f"{pair.place}: sentence_good")
        places.setdefault(pair.bad, f"{pair.place}: sentence_bad")
    scores = _score_all(trained, places, variant, "blimp")
    value = (lambda text: scores[text].per_token) if per_token else (lambda text: scores[text].total)
    metrics = blimp_metrics({
        name: preferences([value(pair.good) for pair in pairs], [value(pair.bad) for pair in pairs])
        for name, pairs in data.items()
    })  # fmt: skip
    return metrics | {"scores": "mean per token" if per_token else "sum over tokens"}


def _crows_pairs(trained: Trained, data: list[StereotypePair], variant: str, per_token: bool) -> Metrics:
    places: dict[str, str] = {}
    for pair in data:
        places.setdefault(pair.more, f"{pair.place}: sent_more")
        places.setdefault(pair.less, f"{pair.place}: sent_less")
    scores = _score_all(trained, places, variant, "crows_pairs")
    sums = [_shared_sums(scores[pair.more], scores[pair.less]) for pair in data]
    metrics = crows_pairs_metrics(
        preferences([more for more, _ in sums], [less for _, less in sums]),
        [pair.direction for pair in data],
        [pair.bias_type for pair in data],
    )
    return metrics | {"scores": "sum over the tokens that both sentences share"}


def _shared_sums(first: Score, second: Score) -> tuple[float, float]:
    """Returns the sum of the log-probabilities of the shared tokens in each of two sentences."""
    positions = shared_positions(first.tokens, second.tokens)
    return (
        sum(first.log_probabilities[position] for position in positions[0]),
        sum(second.log_probabilities[position] for position in positions[1]),
    )


def _cloze(trained: Trained, data: dict[str, list[Cloze]], variant: str, per_token: bool) -> Metrics:
    return cloze_metrics({name: predict_targets(trained, texts, variant) for name, texts in data.items()})


def _score_all(trained: Trained, places: Mapping[str, str], variant: str, task: str) -> dict[str, Score]:
    """Returns the score of each text; `places` are the texts with what messages call them.

    All texts of a task are scored together, so that they are packed in few batches, and each text once.
    """
    scores = {}
    for number, one in enumerate(score(trained, places, variant, names=places.values()), 1):
        scores[one.text] = one
        if number % SHOWN_EVERY == 0 and sys.stderr.isatty():
            print(f"\r{task}: {number:,} of {len(places):,} sentences\x1b[K", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return scores


PROBES = {
    "blimp": Probe(
        read_blimp, _blimp, describe_blimp, "within_word_l2r",
        "share of minimal pairs whose acceptable sentence is the more probable one; a tie is not right",
    ),
    "crows_pairs": Probe(
        read_crows_pairs, _crows_pairs, describe_crows_pairs, "original",
        "share of pairs whose more stereotypical sentence is the more probable one; 50% is ideal; a tie does not count",
    ),
    "cloze": Probe(
        read_cloze, _cloze, describe_cloze, "within_word_l2r",
        "share of targets whose tokens are each the most probable one, from left to right",
    ),
}  # fmt: skip


# The verb


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxlm evaluate` that `evaluate_tasks` reads."""
    parser.add_argument(
        "--tasks", metavar="NAME,...",
        help="tasks by their names, read from --data: zero-shot probes of a masked language model "
        f"({', '.join(PROBES)}), or the known task that a model was fine-tuned on, such as sst2",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="DIR",
        help="folder with the data of --tasks as published: the files of a known task in DIR or DIR/NAME; "
        "DIR/blimp/PARADIGM.jsonl (sentence_good, sentence_bad), DIR/crows_pairs/crows_pairs_anonymized.csv, and "
        "DIR/cloze.jsonl, .tsv, .csv or .parquet (columns text, with one [MASK], and target)",
    )  # fmt: skip
    parser.add_argument(
        "--variant", choices=VARIANTS,
        help="pseudo-log-likelihood of --tasks, as of `jaxlm score` (default: that of the paper for crows_pairs, "
        "original; otherwise within_word_l2r)",
    )  # fmt: skip
    parser.add_argument(
        "--per-token", action="store_true", help="for --tasks=blimp, compare means per token instead of sums"
    )


def evaluate_tasks(args: argparse.Namespace) -> int:
    """Evaluates the model of `jaxlm evaluate` on --tasks, and prints the result. Raises UserError."""
    tasks = _tasks(args.tasks)
    if args.data is None:
        raise UserError(f"--tasks={args.tasks} needs --data, the folder with their data")
    if args.per_token and "blimp" not in tasks:
        raise UserError(f"--per-token has no effect on {args.tasks}: remove it; it applies to blimp")
    folder = local_path("--data", args.data)
    if not os.path.isdir(folder):
        wrong = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise UserError(f"--data={args.data} {wrong}; name the folder with the data of {args.tasks}")
    probes = [task for task in tasks if task in PROBES]
    if args.variant and not probes:
        raise UserError(f"--variant has no effect on {args.tasks}: remove it; it applies to {', '.join(PROBES)}")
    data = {task: PROBES[task].read(folder, args.rows) for task in probes}
    folders = {task: folder_of(task, Path(folder)) for task in tasks if task in KNOWN_TASKS}
    trained = load_named(args)
    models = {task: for_task(trained, task) for task in folders}
    known = {task: evaluate_known(models[task], task, folders[task], args.rows) for task in folders}
    results = known | (probe(trained, data, args.variant, args.per_token) if probes else {})
    if args.json:
        print_json({task: results[task] for task in tasks})
    else:
        tables = {task: describe(task, results[task]) for task in probes}
        tables |= {task: f"{task}: {folders[task]}\n{describe_task(models[task], known[task])}" for task in known}
        print("\n\n".join(tables[task] for task in tasks))
    return 0


def _tasks(names: str) -> list[str]:
    """Returns the names of --tasks. Raises UserError for one that is unknown or given twice."""
    tasks = [name.strip() for name in names.split(",")]
    for name in tasks:
        if name not in PROBES and name not in KNOWN_TASKS:
            near = difflib.get_close_matches(name, [*PROBES, *KNOWN_TASKS], 1)
            hint = f"did you mean {near[0]}?" if near else f"they are {', '.join([*PROBES, *KNOWN_TASKS])}"
            raise UserError(f"--tasks={names}: there is no task {name!r}; {hint}")
        if tasks.count(name) > 1:
            raise UserError(f"--tasks={names}: {name} is given twice")
    return tasks


def describe(task: str, metrics: Metrics) -> str:
    """Returns the metrics of a task as a table with its protocol."""
    scores = f"; score: {metrics['scores']}" if "scores" in metrics else ""
    return "\n".join([
        f"{task}: {PROBES[task].measures}",
        PROBES[task].describe(metrics),
        f"  variant: {metrics['variant']} {VARIANTS[metrics['variant']]}{scores}",
        f"  intervals: {metrics['intervals_are']}",
    ])  # fmt: skip
