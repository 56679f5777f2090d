"""`jaxlm report`: one page about a sweep, or about any runs, that needs nothing outside itself."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import config_from_dict, config_to_dict
from jaxlm.errors import UserError
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.storage import local_path, read_text, write_text
from jaxlm.study import charts
from jaxlm.study.analysis import VERDICTS_SHOWN, ArmResult, answer, compare_arms, describe_arm, number, p_text
from jaxlm.study.grid import IGNORED, IGNORED_SECTIONS, failure_of, fingerprint
from jaxlm.study.records import RunRecord, config_differences, correct_examples, read_run
from jaxlm.study.statistics import multi_bootstrap
from jaxlm.study.sweep import STATEMENT, load_statement
from jaxlm.typed import counted, cut, listed
from jaxlm.version import __version__

GENERATOR = "jaxlm report"
HIGHER = ("accuracy", "f1", "mcc", "pearson", "spearman", "map", "mrr", "ndcg", "recall", "precision", "exact", "auc")
MACHINE = {"processor": "processor", "cores": "cores", "device_kind": "device", "devices": "devices",
           "compute_dtype": "dtype of products", "commit": "commit", "python": "Python"}  # fmt: skip
IDLE = {"train.seed"}  # a setting that differs between runs of one arm


class Study(NamedTuple):
    """Runs grouped by arm, and how they are read."""

    statement: dict[str, Any]
    arms: dict[str, list[RunRecord]]  # the reference first; only runs that are done or that have logged something
    failures: list[str]
    remarks: list[str]  # sentences about what was stated, and about runs that are missing
    title: str


def read_study(directories: Sequence[Path], choices: Mapping[str, Any]) -> Study:
    """Returns the study in the directory of a sweep, or that of several runs. Raises UserError."""
    sweeps = [directory for directory in directories if (directory / STATEMENT).is_file()]
    if sweeps and len(directories) > 1:
        raise UserError(f"{sweeps[0]} is a sweep; report on one sweep, or on single runs such as {sweeps[0]}/runs/*")
    return _read_sweep(sweeps[0]) if sweeps else _read_runs(directories, choices)


def _read_sweep(root: Path) -> Study:
    statement = load_statement(root)
    arms: dict[str, list[RunRecord]] = {arm["name"]: [] for arm in statement["arms"]}
    failures, missing = [], 0
    for file in sorted((root / "configs").glob("*.json")):
        arm = _arm_of(file.stem, list(arms))
        if arm is None:
            continue
        if sentence := failure_of(file.stem, root):
            failures.append(f"{file.stem}: {sentence}")
            continue
        try:
            record = read_run(root / "runs" / file.stem)
        except UserError:
            missing += 1
            continue
        if record.done:
            arms[arm].append(record)
        else:
            missing += 1
    if not any(arms.values()):
        raise UserError(f"no run of {root} is done yet; `jaxlm sweep` makes them")
    remarks = [_statement_text(statement)]
    if missing:
        remarks.append(
            f"{counted(missing, 'run is', 'runs are')} not done yet; the same sweep goes on where it stopped."
        )
    for before in statement.get("history", []):
        changed = [key for key in before if before[key] != statement.get(key) and key in (
            "question", "metric", "evaluation", "better", "at", "smallest_effect", "seeds", "arms", "settings",
            "base")]  # fmt: skip
        if changed:
            remarks.append(
                f"Changed since the statement of {before.get('stated')}: {listed(changed)}; "
                f"{counted(statement.get('runs_done_before', 0), 'run was', 'runs were')} done by then."
            )
    return Study(statement, arms, failures, remarks, statement["question"])


def _arm_of(name: str, arms: Sequence[str]) -> str | None:
    from jaxlm.study.grid import slug

    stem = name.rpartition("-seed")[0]
    return next((arm for arm in arms if slug(arm) == stem), None)


def _statement_text(statement: Mapping[str, Any]) -> str:
    unit = f" {statement['unit']}" if statement.get("unit") else ""
    at = f"after update {statement['at']:,}" if statement.get("at") else "at the end of the run"
    done = statement.get("runs_done_before", 0)
    when = "before any run was done" if not done else f"when {counted(done, 'run was', 'runs were')} done"
    metric, seeds = statement["metric"].replace("_", " "), counted(len(statement["seeds"]), "seed", "seeds")
    smallest = f"{statement['smallest_effect']:g}{unit}"
    return (
        f"Stated on {statement.get('stated', 'an unknown date')}, {when}: the {metric} on {statement['evaluation']},"
        f" {at}; {statement['better']} is better; {seeds}; the smallest effect that matters is {smallest}."
    )


def _read_runs(directories: Sequence[Path], choices: Mapping[str, Any]) -> Study:
    records = [read_run(directory) for directory in directories]
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        config = config_from_dict(record.config, str(record.directory))
        config.train.seed = 0
        groups.setdefault(fingerprint(config), []).append(record)
    differences = config_differences([_important(group[0].config) for group in groups.values()])
    arms: dict[str, list[RunRecord]] = {}
    for index, group in enumerate(groups.values()):
        name = _name_of(group, {key: values[index] for key, values in differences.items()})
        arms[name if name not in arms else f"{name} ({group[0].directory})"] = group
    sets = [name for name in records[0].sets if all(name in record.sets for record in records)]
    if not sets:
        raise UserError("the runs share no evaluation set, so there is nothing to compare: " + "; ".join(
            f"{r.directory} has {listed(r.sets) or 'none'}" for r in records))  # fmt: skip
    evaluation = choices.get("evaluation") or sets[0]
    shared = [m for m in records[0].metrics(evaluation) if all(m in r.metrics(evaluation) for r in records)]
    usual = [*records[0].selecting_metric, "loss", *shared]  # the task's own metric first
    metric = choices.get("metric") or next((name for name in usual if name in shared), "loss")
    better = choices.get("better") or ("higher" if metric.startswith(HIGHER) else "lower")
    statement = {
        "metric": metric, "evaluation": evaluation, "better": better, "at": choices.get("at"), "unit": "",
        "smallest_effect": choices.get("smallest_effect") or _default_effect(records, metric, evaluation),
    }  # fmt: skip
    remarks = [
        f"The {metric.replace('_', ' ')} on {evaluation}, {better} is better; nothing was stated before the runs, so"
        " this is a description and not a test."
    ]
    unfinished = [str(record.directory) for record in records if not record.done]
    if unfinished:
        remarks.append(f"Not finished, so read at the last evaluation: {listed(unfinished, 5)}.")
    title = "What a run did" if len(records) == 1 else f"Comparison of {len(records)} runs"
    return Study(statement, arms, [], remarks, title)


def _default_effect(records: Sequence[RunRecord], metric: str, evaluation: str) -> float:
    """Returns a hundredth of the values' size: the decimals that are shown, and the width of the grey band."""
    values = [abs(record.value(metric, evaluation).value) for record in records]
    size = max(values) or 1.0
    return float(f"{size / 100:.1g}")


def _important(config: dict[str, Any]) -> dict[str, Any]:
    full = config_to_dict(config_from_dict(config, "config.json"))
    return {
        section: {name: value for name, value in settings.items() if f"{section}.{name}" not in IGNORED | IDLE}
        for section, settings in full.items() if section not in IGNORED_SECTIONS
    }  # fmt: skip


def _name_of(group: Sequence[RunRecord], differing: Mapping[str, Any]) -> str:
    """Returns the name of an arm that was given none: its settings that differ, or its directory."""
    if 0 < len(differing) <= 2:
        return ", ".join(f"{key.partition('.')[2]}={_shown(value)}" for key, value in differing.items())
    return group[0].directory.name or str(group[0].directory)


def _shown(value: Any) -> str:
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def check_comparable(study: Study) -> None:
    """Raises UserError, with the reason, if the values of the runs do not measure the same thing."""
    statement = study.statement
    records = [record for runs in study.arms.values() for record in runs]
    name, metric = statement["evaluation"], statement["metric"]
    first = records[0]
    for record in records[1:]:
        pairs = {
            "the evaluation of " + name: [(r.start.get("evaluation") or {}).get(name) for r in (first, record)],
            "the number of predictions": [_count(r, name) for r in (first, record)],
        }
        if metric not in ("nats_per_byte",) and not first.config.get("task", {}).get("train"):
            pairs["the tokenizer"] = [r.start.get("tokenizer") for r in (first, record)]
        for what, (one, other) in pairs.items():
            if one != other and one is not None and other is not None:
                remedy = (
                    "; compare nats_per_byte (--metric), which does not depend on it" if what == "the tokenizer" else ""
                )
                raise UserError(
                    f"{first.directory} and {record.directory} cannot be compared: {what} differs"
                    f" ({cut(str(one))}; {cut(str(other))}){remedy}"
                )


def _count(record: RunRecord, evaluation: str) -> Any:
    events = [e for e in record.events if e["kind"] == "evaluation" and e.get("name") == evaluation]
    return events[-1].get("n") if events else None


def values_of(study: Study) -> dict[str, dict[int, float]]:
    """Returns the value of each run by arm and seed. Raises UserError for two runs of one arm and seed."""
    statement = study.statement
    values: dict[str, dict[int, float]] = {}
    for arm, records in study.arms.items():
        values[arm] = {}
        for record in records:
            if record.seed in values[arm]:
                raise UserError(
                    f"{record.directory} has the same settings and seed as another run; leave one of them out"
                )
            values[arm][record.seed] = record.value(
                statement["metric"], statement["evaluation"], statement.get("at")
            ).value
    return {arm: own for arm, own in values.items() if own}


def make_report(study: Study) -> tuple[str, dict[str, Any]]:
    """Returns the page, and what it is made of: the results, the specifications of the charts, and the table."""
    from jinja2 import Environment, StrictUndefined

    check_comparable(study)
    statement, values = study.statement, values_of(study)
    results = compare_arms(values, statement["smallest_effect"], statement["better"])
    arms = {arm: records for arm, records in study.arms.items() if records}
    names = list(arms)
    unit = f" {statement['unit']}" if statement.get("unit") else ""
    compared = len(results) > 1
    spread = any(result.difference for result in results)
    title = f"difference of the {statement['metric'].replace('_', ' ')} from {names[0]}" + (f",{unit}" if unit else "")
    differences = charts.differences_chart(results, statement["smallest_effect"], title) if spread else None
    curves = _curves(arms, statement)
    spec = (
        charts.curves_chart(next(iter(curves.values()))["rows"], names, next(iter(curves.values()))["title"])
        if curves
        else None
    )
    differing = config_differences([_important(records[0].config) for records in arms.values()]) if compared else {}
    columns, rows, common = _run_table(arms, statement)
    data = {"curves": curves, "spec": spec, "differences": differences}
    context = {
        "generator": f"{GENERATOR} {__version__}", "title": study.title,
        "answer": _answer(results, study), "remarks": study.remarks, "compared": compared,
        "metric_title": f"{statement['metric'].replace('_', ' ')}{',' + unit if unit else ''}",
        "arms": [_arm_row(result, statement) for result in results],
        "sentences": [describe_arm(result, statement) for result in results[1:]] + _bootstraps(study, results),
        "reference": names[0], "smallest_effect": f"{statement['smallest_effect']:g}", "unit": unit,
        "differences_svg": charts.as_svg(differences, 900, None) if differences else "",
        "differences_alt": "Differences from the reference with their intervals. " + " ".join(
            describe_arm(result, statement) for result in results[1:]),
        "curves": curves, "axes": _axes(curves), "curves_svg": charts.as_svg(spec, 900, None) if spec else "",
        "curves_alt": "Curves of the runs over time; the table of arms has their last values.",
        "settings": {key: [_shown(value) for value in found] for key, found in differing.items()},
        "failures": study.failures, "runs": rows, "run_columns": columns, "common": common,
        "footer": f"Made by jaxlm {__version__} on {time.strftime('%Y-%m-%d')} from the records of the runs.",
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "script": charts.script().replace("</script", "<\\/script"),
    }  # fmt: skip
    template = (files("jaxlm.study") / "report.html").read_text(encoding="utf-8")
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False).from_string(template).render(context)
    )
    return page, {"results": results, "curves": spec, "differences": differences, "context": context}


def _bootstraps(study: Study, results: Sequence[ArmResult]) -> list[str]:
    """Returns a sentence for each arm whose answers to single examples are known: the interval over seeds and examples.

    The t interval is of other seeds on the same examples; this one is of other seeds on other examples.
    """
    statement = study.statement
    if statement["metric"] != "accuracy":
        return []
    right: dict[str, dict[int, np.ndarray]] = {}
    for arm, records in study.arms.items():
        found = {record.seed: correct_examples(record, statement["evaluation"]) for record in records}
        right[arm] = {seed: own for seed, own in found.items() if own is not None}
    sentences = []
    first = results[0].name
    for result in results[1:]:
        seeds = [seed for seed in (result.difference.seeds if result.difference else ())
                 if seed in right[first] and seed in right[result.name]]  # fmt: skip
        arrays = [[right[name][seed] for seed in seeds] for name in (first, result.name)]
        if len(seeds) < 2 or len({len(own) for own in (*arrays[0], *arrays[1])}) != 1:
            continue
        found_difference = multi_bootstrap(np.array(arrays[0]), np.array(arrays[1]))
        low, high = (number(value, statement["smallest_effect"], True) for value in found_difference[1:3])
        sentences.append(
            f"{result.name}, over other seeds and other examples: 95% interval {low} to {high},"
            f" {p_text(found_difference.p)} (Multi-Bootstrap of {len(seeds)} seeds and {len(arrays[0][0]):,} examples)."
        )
    return sentences


def _answer(results: Sequence[ArmResult], study: Study) -> str:
    if len(results) > 1:
        return answer(results, study.statement)
    result = results[0]
    value = number(result.interval.mean, study.statement["smallest_effect"]) if result.interval else "–"
    where = f"{study.statement['metric'].replace('_', ' ')} on {study.statement['evaluation']}"
    runs = "in a single run, without an error bar" if len(result.values) == 1 else f"mean of {len(result.values)} seeds"
    return f"{where[:1].upper()}{where[1:]}: {value} ({runs})."


def _arm_row(result: ArmResult, statement: Mapping[str, Any]) -> dict[str, Any]:
    effect = statement["smallest_effect"]
    row: dict[str, Any] = dict.fromkeys(
        ("mean", "interval", "difference", "difference_interval", "p", "verdict_text"), ""
    )
    row |= {"name": result.name, "n": len(result.values), "verdict": result.verdict}
    if result.interval:
        row["mean"] = number(result.interval.mean, effect)
        row["interval"] = (
            _between(result.interval.low, result.interval.high, effect) if result.interval.n > 1 else "single run"
        )
    if result.difference:
        row["difference"] = number(result.difference.mean, effect, True)
        if result.difference.n > 1:
            row["difference_interval"] = _between(result.difference.low, result.difference.high, effect, True)
            row["p"] = p_text(result.p_corrected).removeprefix("p ").removeprefix("= ")
        row["verdict_text"] = VERDICTS_SHOWN.get(result.verdict, result.verdict)
    return row


def _between(low: float, high: float, effect: float, signed: bool = False) -> str:
    return f"{number(low, effect, signed)} to {number(high, effect, signed)}"


def _curves(arms: Mapping[str, list[RunRecord]], statement: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the curves that the page offers: the stated metric first, then other metrics and the training loss."""
    found: dict[str, dict[str, Any]] = {}
    first = next(iter(arms.values()))[0]
    wanted: list[tuple[str, str | None]] = [(statement["metric"], statement["evaluation"]), ("loss", None)]
    wanted += [(metric, name) for name in first.sets for metric in ("loss", "accuracy", *first.metrics(name)[:1])]
    wanted += [("accuracy", None)]
    for metric, name in dict.fromkeys(wanted):
        rows = charts.curve_rows(arms, metric, name)
        if len({(row["arm"], row["step"]) for row in rows}) > len(arms):
            title = f"training {metric}" if name is None else f"{metric.replace('_', ' ')} on {name}"
            found[f"{name or 'train'}-{metric}"] = {"title": title, "rows": rows}
    order = sorted(found, key=lambda key: len(found[key]["rows"]) < 3 * len(arms))
    return {key: found[key] for key in order}


def _axes(curves: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    rows = [row for curve in curves.values() for row in curve["rows"]]
    return {key: name for key, name in charts.AXES.items() if all(row[key] is not None for row in rows)}


def _run_table(
    arms: Mapping[str, list[RunRecord]], statement: Mapping[str, Any]
) -> tuple[list[str], list[dict[str, str]], list[str]]:
    """Returns the columns and rows of the table of runs, and what all runs have in common as sentences."""
    records = [record for runs in arms.values() for record in runs]
    facts = {title: [str(record.start.get(key, "")) for record in records] for key, title in MACHINE.items()}
    packages = list(dict.fromkeys(name for record in records for name in record.start.get("versions") or {}))
    facts |= {
        name: [str((record.start.get("versions") or {}).get(name, "")) for record in records] for name in packages
    }
    common = {title: found[0] for title, found in facts.items() if len(set(found)) == 1 and found[0]}
    own = [title for title, found in facts.items() if len(set(found)) > 1]
    rows = []
    for index, (arm, record) in enumerate((arm, record) for arm, runs in arms.items() for record in runs):
        point = record.value(statement["metric"], statement["evaluation"], statement.get("at"))
        speed = record.tokens_per_second
        row = {
            "arm": arm, "seed": str(record.seed),
            statement["metric"].replace("_", " "): number(point.value, statement["smallest_effect"]),
            "updates": f"{point.step:,}", "seconds": f"{record.seconds:,.0f}",
            "tokens/s": f"{speed:,.0f}" if speed else "",
            "parameters": f"{record.start['parameters']:,}" if record.start.get("parameters") else "",
        } | {title: facts[title][index] for title in own}  # fmt: skip
        rows.append(row)
    shared = ", ".join(f"{title} {value}" for title, value in common.items())
    return list(rows[0]), rows, [f"All runs: {shared}."] if shared else []


def write_figures(parts: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the charts as SVG and the table of arms as Markdown, for a README; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ("curves", "differences"):
        if parts[name]:
            written.append(folder / f"{name}.svg")
            write_text(written[-1], charts.as_svg(parts[name]) + "\n")
    context = parts["context"]
    head = ["arm", "n", context["metric_title"], "95% interval"]
    head += ["difference", "95% interval", "p (Holm)", ""] if context["compared"] else []
    keys = ["name", "n", "mean", "interval", "difference", "difference_interval", "p", "verdict_text"][: len(head)]
    lines = [head, ["---"] * len(head), *([str(row[key]) for key in keys] for row in context["arms"])]
    written.append(folder / "table.md")
    write_text(written[-1], "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return written


def main(argv: Sequence[str]) -> int:
    """`jaxlm report DIR ... [--output=report.html]`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm report", formatter_class=HelpFormatter,
        description="Make a page of a sweep, or of one or several runs, that opens without a network.",
        epilog="examples:\n  jaxlm report runs/mask_rate\n  jaxlm report runs/a runs/b --output=a_and_b.html",
    )  # fmt: skip
    parser.add_argument("directories", nargs="+", metavar="DIR", help="the directory of a sweep, or work directories")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page (default: report.html in DIR; with several DIR, in the current folder)",
    )
    parser.add_argument("--figures", metavar="FOLDER", help="also write the charts as SVG and the table as Markdown")
    parser.add_argument("--metric", help="metric to compare single runs by (default: the loss)")
    parser.add_argument(
        "--evaluation", metavar="SET", help="evaluation set to compare single runs by (default: the first)"
    )
    parser.add_argument("--better", choices=("lower", "higher"), help="direction of the metric of single runs")
    parser.add_argument("--at", type=int, metavar="UPDATE", help="read single runs after this update, not at their end")
    parser.add_argument(
        "--smallest_effect", type=float, metavar="SIZE", help="smallest difference of single runs that matters"
    )
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    args = parser.parse_args(argv)
    directories = [local_path("DIR", directory) for directory in args.directories]
    choices = {key: getattr(args, key) for key in ("metric", "evaluation", "better", "at", "smallest_effect")}
    if args.smallest_effect is not None and not 0 < args.smallest_effect < float("inf"):
        raise UserError(f"--smallest_effect={args.smallest_effect:g}: must be above 0")
    study = read_study(directories, choices)
    if (directories[0] / STATEMENT).is_file() and any(choices.values()):
        given = next(f"--{key}" for key, value in choices.items() if value)
        raise UserError(f"{given} has no effect on a sweep, which states how it is read in sweep.py; remove it")
    output = local_path("--output", args.output) if args.output else (
        directories[0] / "report.html" if len(directories) == 1 else Path("report.html"))  # fmt: skip
    _check_output(output)
    page, parts = make_report(study)
    write_text(output, page)
    figures = write_figures(parts, local_path("--figures", args.figures)) if args.figures else []
    if args.json:
        print_json({"output": str(output), "answer": parts["context"]["answer"], "arms": parts["context"]["arms"],
                    "figures": [str(path) for path in figures]})  # fmt: skip
        return 0
    print(parts["context"]["answer"])
    print(" ".join([str(output), *map(str, figures)]))
    return 0


def _check_output(output: Path) -> None:
    """Raises UserError if a file is in the way that is no report."""
    if not output.parent.is_dir():
        raise UserError(f"--output={output}: the folder {output.parent} does not exist")
    if output.is_dir():
        raise UserError(f"--output={output} is a directory; name a file")
    if output.exists() and f'content="{GENERATOR}' not in read_text(output)[:1000]:
        raise UserError(f"--output={output} exists and is not a report; set another file")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
