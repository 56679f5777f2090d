"""`jaxlm sweep`: makes the runs of a sweep that are not done yet, and says what they show."""

import argparse
import csv
import io
import json
import statistics as plain
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import split_overrides
from jaxlm.errors import UserError
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.storage import foreign_entries, local_path, lock, read_json, write_text
from jaxlm.study import search
from jaxlm.study.analysis import VERDICTS_SHOWN, answer, compare_arms, number, p_text
from jaxlm.study.design import Sweep, read_sweep
from jaxlm.study.emit import FORMATS, emit
from jaxlm.study.execution import Job, Processes, check_workers, finished, progress_of
from jaxlm.study.grid import (
    PlannedRun,
    failure_of,
    forget_failure,
    is_done,
    link_runs,
    planned_runs,
    record_failure,
    set_aside,
    state_of,
    statement_of,
    write_configs,
)
from jaxlm.study.records import read_run
from jaxlm.typed import counted, listed
from jaxlm.version import __version__

STATEMENT = "sweep.json"
RESULTS = "results.csv"


def load_statement(root: Path) -> dict[str, Any]:
    """Returns what a sweep has stated: sweep.json. Raises UserError."""
    return read_json(root / STATEMENT, remedy="`jaxlm sweep` writes it; run the sweep again")


def write_statement(sweep: Sweep, overrides: Sequence[str], root: Path, done: int) -> None:
    """Writes sweep.json; an earlier statement that differs is kept in it, with the number of runs it had seen."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    content = statement_of(sweep, overrides) | {"jaxlm": __version__, "stated": now, "runs_done_before": done}
    history: list[Any] = []
    if (root / STATEMENT).exists():
        before = load_statement(root)
        history = before.pop("history", [])
        unimportant = {"jaxlm", "stated", "runs_done_before"}
        if {k: v for k, v in before.items() if k not in unimportant} == json.loads(
            json.dumps({k: v for k, v in content.items() if k not in unimportant})
        ):
            return
        history.append(before)
    write_text(root / STATEMENT, json.dumps(content | {"history": history}, indent=2, ensure_ascii=False) + "\n")


def results_of(
    runs: Sequence[PlannedRun], sweep: Sweep, root: Path
) -> tuple[dict[str, dict[int, float]], list[dict[str, Any]]]:
    """Returns the values by arm and seed of the runs that are done, and a row for each run."""
    values: dict[str, dict[int, float]] = {arm.name: {} for arm in sweep.arms}
    rows = []
    for run in sorted(runs, key=lambda run: ([arm.name for arm in sweep.arms].index(run.arm), run.seed)):
        row: dict[str, Any] = {"arm": run.arm, "seed": run.seed, "run": run.name, "state": state_of(run, root)}
        if row["state"] == "done":
            record = read_run(run.workdir(root))
            point = record.value(sweep.metric, sweep.evaluation, sweep.at)
            values[run.arm][run.seed] = point.value
            event = [e for e in record.events if e["kind"] == "evaluation" and e.get("name") == sweep.evaluation
                     and e["step"] == point.step][-1]  # fmt: skip
            row |= {"value": point.value, "step": point.step, "seconds": round(record.seconds, 1)}
            row |= {f"{sweep.evaluation}.{name}": event[name] for name in record.metrics(sweep.evaluation)}
        rows.append(row)
    return values, rows


def write_results(rows: list[dict[str, Any]], root: Path) -> None:
    """Writes results.csv: a line for each run, done or not."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(root / RESULTS, text.getvalue())


def run_sweep(
    folder: str | Path, workdir: str | Path, overrides: Sequence[str] = (), *, workers: int = 1,
    arms: Sequence[str] = (), seeds: Sequence[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """Makes the runs that are missing of the sweep in a folder; see `make_runs`, and `main` for the arguments."""
    sweep, file = read_sweep(folder)
    wanted = _chosen(sweep, arms, seeds)
    return make_runs(sweep, file, local_path("--workdir", workdir), overrides, workers=workers, wanted=wanted)


def make_runs(
    sweep: Sweep, file: Path, root: Path, overrides: Sequence[str] = (), *, workers: int = 1,
    wanted: set[tuple[str, int]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Makes the runs of a sweep that are not done, and returns its results as `summary` does.

    `file` is where the sweep is defined, `root` its directory, and `wanted` the pairs of arm and seed to make, by
    default all. "failure" in the result is the sentence that names every run that failed, or None. Raises UserError.
    """
    check_workers(workers)
    _check_root(root)
    planned_runs(sweep, file, overrides)  # a setting that does not exist is found before anything is written
    root.mkdir(parents=True, exist_ok=True)
    busy = f"{root} is in use by another sweep; wait for it, or name another --workdir"
    with lock(root / "lock", busy):
        write_statement(sweep, overrides, root, len(_done_below(root)))
        with Processes(workers) as processes:
            found = search.run_searches(sweep, file, overrides, root, processes)
            runs = planned_runs(sweep, file, overrides, found)
            if moved := set_aside(runs, root):
                print(f"moved to {root / 'aside'}, as their arms have changed: {listed(moved)}", flush=True)
            write_configs(runs, root)
            link_runs(runs, root)
            chosen = [run for run in runs if wanted is None or (run.arm, run.seed) in wanted]
            results_of(runs, sweep, root)  # a metric that finished runs lack is found before others are made
            failures = _make(chosen, runs, sweep, root, processes)
        values, rows = results_of(runs, sweep, root)
        write_results(rows, root)
    return summary(sweep, values, rows) | {"failure": _failure_text(failures, len(chosen)) if failures else None}


def _failure_text(failures: list[tuple[PlannedRun, str]], count: int) -> str:
    """Returns the sentence that names every run that failed; runs of one arm with the same sentence are named once."""
    groups: dict[tuple[str, str], list[int]] = {}
    for run, sentence in failures:
        groups.setdefault((run.arm, sentence), []).append(run.seed)
    texts = [
        f"{arm}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {sentence}"
        for (arm, sentence), seeds in groups.items()
    ]
    rest = "; the others are done" if len(failures) < count else ""
    return (
        f"{len(failures)} of {counted(count, 'run', 'runs')} failed{rest}: {'; '.join(texts)}. The same command tries"
        " the failed ones again"
    )


def _check_root(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"--workdir={root} is a file; name a directory")
    own = {STATEMENT, RESULTS, "lock", "runs", "configs", "failed", "aside", "search", "by_seed", "report.html"}
    names = foreign_entries(root, lambda path: (path / STATEMENT).exists() or {e.name for e in path.iterdir()} <= own)
    if names:
        raise UserError(
            f"--workdir={root} contains files that are not of a sweep ({listed(names, 3)}); name a new directory"
        )


def _done_below(root: Path) -> list[Path]:
    runs = root / "runs"
    return [path for path in sorted(runs.iterdir()) if is_done(path)] if runs.is_dir() else []


def _chosen(sweep: Sweep, arms: Sequence[str], seeds: Sequence[int]) -> set[tuple[str, int]]:
    """Returns the pairs of arm and seed to run. Raises UserError for a name that is none."""
    names = [arm.name for arm in sweep.arms]
    for name in arms:
        if name not in names:
            raise UserError(f"--arms: there is no arm {name}; the arms are {', '.join(names)}")
    for seed in seeds:
        if seed not in sweep.seed_numbers:
            raise UserError(f"--seeds: {seed} is not a seed of the sweep; they are {listed(sweep.seed_numbers)}")
    return {(arm, seed) for arm in arms or names for seed in seeds or sweep.seed_numbers}


def _make(
    chosen: list[PlannedRun], runs: list[PlannedRun], sweep: Sweep, root: Path, processes: Processes
) -> list[tuple[PlannedRun, str]]:
    """Makes the runs that are not done yet and returns those that failed, each with its sentence."""
    missing = [run for run in chosen if state_of(run, root) != "done"]
    if len(missing) < len(chosen):
        print(f"{len(chosen) - len(missing)} of {len(chosen)} runs are done already", flush=True)
    futures = {processes.submit(Job(run.name, run.config_file(root), run.workdir(root))): run for run in missing}
    failures: list[tuple[PlannedRun, str]] = []
    board = _Board(len(missing), processes.workers)
    for run in missing:
        forget_failure(run, root)
    ended: set[str] = set()
    for run, sentence in finished(
        futures, lambda: board.look([r.workdir(root) for r in missing if r.name not in ended])
    ):
        ended.add(run.name)
        if sentence is None:
            point = read_run(run.workdir(root)).value(sweep.metric, sweep.evaluation, sweep.at)
            board.ended(f"{run.arm}, seed {run.seed}: {sweep.metric} {number(point.value, sweep.smallest_effect)}")
        else:
            record_failure(run, root, sentence)
            failures.append((run, sentence))
            board.ended(f"{run.arm}, seed {run.seed}: failed: {sentence}")
        write_results(results_of(runs, sweep, root)[1], root)
    return failures


class _Board:
    """Progress over all runs of a sweep: a line for each run that ends, with the time left."""

    def __init__(self, total: int, workers: int) -> None:
        self._total, self._workers = total, workers
        self._count, self._begin = 0, time.monotonic()
        self._partial = 0.0
        self._terminal = sys.stdout is not None and sys.stdout.isatty()

    def look(self, workdirs: list[Path]) -> None:
        """Reads how far the runs are that have begun, and shows it on a terminal."""
        self._partial = sum(progress_of(workdir) for workdir in workdirs)
        if self._terminal and self._total:
            print(
                f"\r\x1b[K{self._count} of {self._total} runs, {self._fraction():.0%}{self._left()}", end="", flush=True
            )

    def ended(self, text: str) -> None:
        self._count += 1
        start = "\r\x1b[K" if self._terminal else ""
        print(f"{start}{self._count}/{self._total}  {text}{self._left()}", flush=True)

    def _fraction(self) -> float:
        return min(1.0, (self._count + self._partial) / max(self._total, 1))

    def _left(self) -> str:
        fraction = self._fraction()
        if self._count == self._total or fraction < 0.01:
            return ""
        return f"  {duration((time.monotonic() - self._begin) * (1 - fraction) / fraction)} left"


def duration(seconds: float) -> str:
    """Returns seconds as text, such as "about 12 min"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {max(seconds, 1):.0f} s"


def summary(sweep: Sweep, values: dict[str, dict[int, float]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the results of a sweep as JSON: the answer and, for each arm, n, mean, interval and difference."""
    results = compare_arms(values, sweep.smallest_effect, sweep.better)
    arms = []
    for result in results:
        entry: dict[str, Any] = {"arm": result.name, "n": len(result.values), "values": result.values}
        if result.interval:
            entry |= {"mean": result.interval.mean, "low": result.interval.low, "high": result.interval.high}
        if result.difference:
            entry["difference"] = {
                "n": result.difference.n, "mean": result.difference.mean, "low": result.difference.low,
                "high": result.difference.high, "p": result.difference.p, "p_corrected": result.p_corrected,
                "p_equivalent": result.difference.p_equivalent, "verdict": result.verdict,
                "seeds_needed": result.seeds_needed,
            }  # fmt: skip
        arms.append(entry)
    return {
        "question": sweep.question, "answer": answer(results, statement_of(sweep, ())), "metric": sweep.metric,
        "evaluation": sweep.evaluation, "arms": arms, "runs": rows,
    }  # fmt: skip


def table(sweep: Sweep, values: dict[str, dict[int, float]]) -> str:
    """Returns the arms as an aligned table."""
    results = compare_arms(values, sweep.smallest_effect, sweep.better)
    lines = [["arm", "n", sweep.metric, "95% interval", f"against {results[0].name}", "95% interval", "p (Holm)", ""]]
    for result in results:
        cells = [result.name, str(len(result.values))]
        interval, difference = result.interval, result.difference
        show = lambda value, signed=False: number(value, sweep.smallest_effect, signed)  # noqa: E731
        cells += [show(interval.mean), f"{show(interval.low)} to {show(interval.high)}"] if interval else ["", ""]
        if difference:
            cells += [show(difference.mean, True), f"{show(difference.low, True)} to {show(difference.high, True)}",
                      p_text(result.p_corrected).removeprefix("p = ").removeprefix("p "),
                      VERDICTS_SHOWN.get(result.verdict, result.verdict)]  # fmt: skip
        lines.append(cells + [""] * (8 - len(cells)))
    widths = [max(len(line[column]) for line in lines) for column in range(8)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def dry_run(
    folder: str | Path, workdir: str | Path, overrides: Sequence[str], arms: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns what a sweep would run: the state of each run, and the seconds it is expected to take, if known."""
    sweep, file = read_sweep(folder)
    root = local_path("--workdir", workdir)
    wanted = _chosen(sweep, arms, seeds)
    found = search.chosen_settings(sweep, file, overrides, root)
    runs = [run for run in planned_runs(sweep, file, overrides, found) if (run.arm, run.seed) in wanted]
    taken: dict[str, list[float]] = {}
    for run in runs:
        if state_of(run, root) == "done":
            taken.setdefault(run.arm, []).append(read_run(run.workdir(root)).seconds)
    every = [seconds for own in taken.values() for seconds in own]
    rows = []
    for run in runs:
        state = state_of(run, root)
        known = plain.median(taken.get(run.arm) or every) if every else None
        if run.config.train.minutes is not None:
            known = run.config.train.minutes * 60
        left = None if known is None else known * (1 - progress_of(run.workdir(root)))
        rows.append({"run": run.name, "arm": run.arm, "seed": run.seed, "state": state,
                     "sentence": failure_of(run.name, root) if state == "failed" else None,
                     "seconds": 0.0 if state == "done" else left})  # fmt: skip
    return rows


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError:
        raise UserError(f"--seeds={text}: expected whole numbers, separated by commas") from None


def main(argv: Sequence[str]) -> int:
    """`jaxlm sweep FOLDER --workdir=DIR [--config.section.key=VALUE ...]`."""
    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm sweep", formatter_class=HelpFormatter,
        description="Make the runs of a sweep that are not done yet, and compare its arms.",
        epilog="example:\n  jaxlm sweep experiments/mask_rate --workdir=runs/mask_rate --dry-run",
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="folder with sweep.py, which defines the arms and seeds")
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="directory of the sweep; it may hold earlier runs"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and how long it would take")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; they share the processor cores "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--arms", default="", metavar="NAME,...", help="run only these arms")
    parser.add_argument("--seeds", default="", metavar="SEED,...", help="run only these seeds")
    parser.add_argument("--emit", choices=FORMATS, help="write the commands of the missing runs for a cluster, and run "
                        "nothing")  # fmt: skip
    parser.add_argument("--hours", type=float, default=24.0, help="--emit: time limit of a run (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    args = parser.parse_args(rest)
    arms, seeds = _names(args.arms), _numbers(args.seeds)
    check_workers(args.workers)
    if args.emit:
        sweep, file = read_sweep(args.folder)
        root = local_path("--workdir", args.workdir)
        _check_root(root)
        wanted = _chosen(sweep, arms, seeds)
        text = emit(args.emit, sweep, file, overrides, root, wanted, args.workers, args.hours)
        write_statement(sweep, overrides, root, len(_done_below(root)))
        print(text, end="")
        return 0
    if args.dry_run:
        rows = dry_run(args.folder, args.workdir, overrides, arms, seeds)
        if args.json:
            print_json({"runs": rows})
            return 0
        sweep, file = read_sweep(args.folder)
        counts = search.trial_counts(sweep, file, overrides, local_path("--workdir", args.workdir))
        for arm, (count, total) in counts.items():
            print(f"{arm}: {count} of {total} trials are done; the names of its runs depend on what they find")
        _print_plan(rows, args.workers)
        return 0
    results = run_sweep(args.folder, args.workdir, overrides, workers=args.workers, arms=arms, seeds=seeds)
    if args.json:
        print_json(results)
    else:
        sweep, _ = read_sweep(args.folder)
        values = {entry["arm"]: entry["values"] for entry in results["arms"]}
        print(f"\n{sweep.question}\n{results['answer']}\n\n{table(sweep, values)}\n")
        print(f"`jaxlm report {args.workdir}` makes a page of it", flush=True)
    if results["failure"]:
        raise UserError(results["failure"])
    return 0


def _print_plan(rows: list[dict[str, Any]], workers: int) -> None:
    width = max(len(row["run"]) for row in rows)
    for row in rows:
        time_left = "" if row["state"] == "done" else duration(row["seconds"]) if row["seconds"] is not None else ""
        print(
            f"{row['run']:<{width}}  {row['state']:<8}{time_left}" + (f"  {row['sentence']}" if row["sentence"] else "")
        )
    missing = [row for row in rows if row["state"] != "done"]
    known = [row["seconds"] for row in missing if row["seconds"] is not None]
    if not missing:
        print("all runs are done")
    elif len(known) == len(missing):
        print(f"{len(missing)} of {len(rows)} runs are missing: {duration(sum(known) / workers)}")
    else:
        print(f"{len(missing)} of {len(rows)} runs are missing; how long they take is known when the first has ended")
