"""The runs of a sweep: their configs, the directories named after them, and how far each has come.

DIR/sweep.json         what is asked and compared, and when it was stated
DIR/configs/NAME.json  the config of each run
DIR/runs/NAME/         its work directory; NAME is the arm, the seed, and the fingerprint of the config
DIR/failed/NAME.json   the sentence with which a run failed
DIR/by_seed/ARM/SEED   a link to the run, under a name that does not change with the settings
DIR/aside/NAME/        runs whose arm has changed since
DIR/search/ARM/        trials of a search, and their storage
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxlm.config import config_from_dict, config_to_dict, default_config, full_name, save_config
from jaxlm.errors import UserError
from jaxlm.run import load_run_config
from jaxlm.runtime.run_log import read_metrics
from jaxlm.storage import read_json, write_text
from jaxlm.study.design import Arm, Sweep

STATES = ("done", "failed", "started", "new")
SEED = "{seed}"  # in a setting: the seed of the run
# What a run's results do not depend on: where it keeps things, and what it writes beside them.
IGNORED = {"data.cache", "data.workers", "data.prefetch"}
IGNORED_SECTIONS = {"logging", "checkpoint", "mesh"}


class PlannedRun(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int
    config: ConfigDict
    name: str

    def workdir(self, root: Path) -> Path:
        return root / "runs" / self.name

    def config_file(self, root: Path) -> Path:
        return root / "configs" / f"{self.name}.json"


def fingerprint(config: ConfigDict) -> str:
    """Returns a checksum, 8 hex digits, of the settings that the results of a run depend on.

    Settings at their defaults do not count, so that it stays the same when a later version has more settings.
    """
    defaults = config_to_dict(default_config())
    content = {
        f"{section}.{name}": value
        for section, settings in config_to_dict(config).items() if section not in IGNORED_SECTIONS
        for name, value in settings.items() if f"{section}.{name}" not in IGNORED and value != defaults[section][name]
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def slug(name: str) -> str:
    """Returns a name with only characters that suit a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "arm"


def base_of(sweep: Sweep, arm: Arm, file: Path) -> str:
    """Returns the config that an arm starts from: a file beside sweep.py, or else what `jaxlm train` would find."""
    base = arm.base or sweep.base
    name, _, arg = base.partition(":")
    beside = file.parent / name
    return f"{beside}{':' if arg else ''}{arg}" if beside.is_file() else base


def planned_runs(
    sweep: Sweep, file: Path, overrides: Sequence[str] = (), found: dict[str, list[str]] | None = None
) -> list[PlannedRun]:
    """Returns the runs of a sweep: all arms with the first seed, then all with the second, and so on.

    `overrides` are settings of the command line, which no arm may set; `found` are those that a search has chosen, by
    arm. Raises UserError that names the arm, also for two arms with the same settings.
    """
    runs: dict[str, list[PlannedRun]] = {}
    same: dict[str, str] = {}
    for arm in sweep.arms:
        extra = (found or {}).get(arm.name, [])
        differs = any(SEED in setting for setting in (*sweep.settings, *arm.settings))
        seeds = sweep.seed_numbers if differs else sweep.seed_numbers[:1]
        configs = [arm_config(sweep, file, arm, overrides, extra, seed) for seed in seeds]
        mark = fingerprint(configs[0])
        if mark in same and (found is not None or not arm.search):
            raise UserError(
                f"{file}: the arms {same[mark]} and {arm.name} have the same settings; change or remove one"
            )
        same[mark] = arm.name
        configs = configs if differs else configs * len(sweep.seed_numbers)
        pairs = zip(configs, sweep.seed_numbers, strict=True)
        runs[arm.name] = [_with_seed(config, arm.name, seed) for config, seed in pairs]
    return [runs[arm.name][index] for index in range(len(sweep.seed_numbers)) for arm in sweep.arms]


def arm_config(
    sweep: Sweep, file: Path, arm: Arm, overrides: Sequence[str], extra: Sequence[str] = (), seed: int = 0
) -> ConfigDict:
    """Returns the config of an arm, with `seed` in place of SEED in its settings but train.seed as in the base.

    Raises UserError that names the arm.
    """
    _check_disjoint(sweep, arm, overrides)
    settings = [setting.replace(SEED, str(seed)) for setting in (*sweep.settings, *overrides, *arm.settings, *extra)]
    try:
        config, _ = load_run_config(base_of(sweep, arm, file), settings)
    except UserError as error:
        raise UserError(f"{file}, arm {arm.name}: {error}") from error
    sets = [entry.partition("=")[0] for entry in (*config.data.held_out, *config.task.evaluation)]
    for name in [sweep.evaluation, *([sweep.search.evaluation] if arm.search and sweep.search else [])]:
        if sets and name not in sets and all("=" in e for e in (*config.data.held_out, *config.task.evaluation)):
            raise UserError(
                f"{file}, arm {arm.name}: there is no evaluation set {name}; the sets are {', '.join(sets)}"
            )
    return config


def _check_disjoint(sweep: Sweep, arm: Arm, overrides: Sequence[str]) -> None:
    given = {full_name(override.partition("=")[0]) for override in overrides}
    own = {full_name(setting.partition("=")[0]) for setting in (*arm.settings, *arm.search)}
    for key, who in [
        ("train.seed", "the seeds of sweep.py set it"),
        *((key, f"the arm {arm.name} sets it") for key in sorted(own)),
    ]:
        if key in given:
            raise UserError(f"--config.{key} would be the same in all runs, but {who}; remove the option")
    if "train.seed" in own:
        raise UserError(f"the arm {arm.name} sets train.seed; the seeds are those of the sweep")


def _with_seed(config: ConfigDict, arm: str, seed: int) -> PlannedRun:
    own = config_from_dict(config_to_dict(config), "config")
    own.train.seed = seed
    return PlannedRun(arm, seed, own, f"{slug(arm)}-seed{seed}-{fingerprint(own)}")


def state_of(run: PlannedRun, root: Path) -> str:
    """Returns one of STATES: a run is done when its last record is there."""
    workdir = run.workdir(root)
    if (root / "failed" / f"{run.name}.json").exists():
        return "failed"
    if is_done(workdir):
        return "done"
    return "started" if workdir.exists() and any(workdir.iterdir()) else "new"


def is_done(workdir: Path) -> bool:
    """Returns whether the last record of a run, or of its last continuation, is that of its end."""
    if not (workdir / "metrics.jsonl").exists():
        return False
    kinds = [event["kind"] for event in read_metrics(workdir) if event["kind"] in ("start", "end")]
    return bool(kinds) and kinds[-1] == "end"


def link_runs(runs: Sequence[PlannedRun], root: Path) -> None:
    """Writes DIR/by_seed anew: a link for each run, which another sweep can start from."""
    folder = root / "by_seed"
    for link in folder.glob("*/*"):
        if link.is_symlink():
            link.unlink()
    for run in runs:
        place = folder / slug(run.arm)
        place.mkdir(parents=True, exist_ok=True)
        (place / str(run.seed)).symlink_to(Path("..") / ".." / "runs" / run.name)


def failure_of(name: str, root: Path) -> str | None:
    """Returns the sentence with which a run failed, or None."""
    file = root / "failed" / f"{name}.json"
    return read_json(file).get("sentence") if file.exists() else None


def record_failure(run: PlannedRun, root: Path, sentence: str) -> None:
    (root / "failed").mkdir(exist_ok=True)
    content = {"arm": run.arm, "seed": run.seed, "sentence": sentence}
    write_text(root / "failed" / f"{run.name}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def forget_failure(run: PlannedRun, root: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (root / "failed" / f"{run.name}.json").unlink()


def set_aside(runs: Sequence[PlannedRun], root: Path) -> list[str]:
    """Moves the runs that are no longer part of the grid to DIR/aside, and those that are again back; returns which
    were moved aside."""
    wanted = {run.name for run in runs}
    (root / "runs").mkdir(parents=True, exist_ok=True)
    moved = []
    for directory in sorted((root / "runs").iterdir()):
        if directory.is_dir() and directory.name not in wanted:
            (root / "aside").mkdir(exist_ok=True)
            target = _free(root / "aside" / directory.name)
            directory.rename(target)
            moved.append(directory.name)
    for name in wanted:
        if (old := root / "aside" / name).is_dir() and not (root / "runs" / name).exists():
            old.rename(root / "runs" / name)
    for file in (root / "failed").glob("*.json"):
        if file.stem not in wanted:
            file.unlink()
    return moved


def _free(path: Path) -> Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.partition(' ')[0]} {number}")
    return path


def write_configs(runs: Sequence[PlannedRun], root: Path) -> None:
    """Writes the config of each run, from which `jaxlm train` runs it, and removes those of runs that are no more."""
    (root / "configs").mkdir(parents=True, exist_ok=True)
    wanted = {run.name for run in runs}
    for file in (root / "configs").glob("*.json"):
        if file.stem not in wanted:
            file.unlink()
    for run in runs:
        save_config(run.config, run.config_file(root))


def statement_of(sweep: Sweep, overrides: Sequence[str]) -> dict[str, Any]:
    """Returns what a sweep states before its results are known, as JSON."""
    return {
        "question": sweep.question, "metric": sweep.metric, "evaluation": sweep.evaluation, "better": sweep.better,
        "unit": sweep.unit, "at": sweep.at, "smallest_effect": sweep.smallest_effect,
        "seeds": list(sweep.seed_numbers), "base": sweep.base, "settings": list(sweep.settings),
        "overrides": list(overrides),
        "arms": [
            {"name": arm.name, "settings": list(arm.settings), "base": arm.base or sweep.base,
             "search": {key: list(values) for key, values in arm.search.items()}}
            for arm in sweep.arms
        ],
        "search": None if sweep.search is None else {
            "trials": sweep.search.trials, "evaluation": sweep.search.evaluation, "metric": sweep.search.metric,
            "better": sweep.search.better, "seed": sweep.search.seed, "settings": list(sweep.search.settings),
        },
    }  # fmt: skip
