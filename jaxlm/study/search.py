"""Chooses settings of an arm by trials, with optuna. Each trial is an ordinary run; the storage lies beside the runs.

Trial t draws its settings from a generator seeded by t, so a search that was killed goes on as if it had not been, and
ends with exactly the number of trials that the sweep states.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxlm.config import config_from_dict, config_to_dict, save_config
from jaxlm.errors import UserError
from jaxlm.study.design import Arm, Range, Search, Sweep
from jaxlm.study.execution import Job, Processes, finished
from jaxlm.study.grid import arm_config, fingerprint, is_done, slug
from jaxlm.study.records import read_run

_printing = threading.Lock()


def run_searches(
    sweep: Sweep, file: Path, overrides: Sequence[str], root: Path, processes: Processes
) -> dict[str, list[str]]:
    """Makes the trials that are missing and returns the settings that were found, by arm. Raises UserError."""
    searched = [arm for arm in sweep.arms if arm.search]
    if not searched or sweep.search is None:
        return {}
    _import_optuna()
    with ThreadPoolExecutor(len(searched)) as pool:  # one search is sequential; those of several arms run side by side
        futures = {
            pool.submit(_search, sweep, sweep.search, file, arm, overrides, root, processes): arm.name
            for arm in searched
        }
        try:
            return dict(finished(futures, lambda: None))
        except BaseException:
            processes.__exit__(None)
            raise


def chosen_settings(sweep: Sweep, file: Path, overrides: Sequence[str], root: Path) -> dict[str, list[str]] | None:
    """Returns the settings that finished searches have chosen, by arm; None if a search is not finished."""
    found = {}
    for arm in sweep.arms:
        if arm.search and sweep.search:
            result = _folder(sweep, file, arm, overrides, root) / "chosen.json"
            if not result.exists():
                return None
            found[arm.name] = json.loads(result.read_text(encoding="utf-8"))["settings"]
    return found


def trial_counts(sweep: Sweep, file: Path, overrides: Sequence[str], root: Path) -> dict[str, tuple[int, int]]:
    """Returns how many trials of each searched arm are done, and how many there are to be."""
    if sweep.search is None:
        return {}
    folders = {arm.name: _folder(sweep, file, arm, overrides, root) for arm in sweep.arms if arm.search}
    return {
        name: (sum(is_done(path) for path in folder.glob("trial-*")), sweep.search.trials)
        for name, folder in folders.items()
    }


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("this sweep has a search, which needs optuna: pip install 'jaxlm[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _folder(sweep: Sweep, file: Path, arm: Arm, overrides: Sequence[str], root: Path) -> Path:
    """Returns where the trials of an arm lie; another arm, space or search has another folder."""
    search: Any = sweep.search
    config = arm_config(sweep, file, arm, [*overrides, *search.settings])
    space = {key: list(values) for key, values in arm.search.items()}
    content = [fingerprint(config), space, search.evaluation, search.metric, search.better, search.seed]
    mark = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return root / "search" / f"{slug(arm.name)}-{mark}"


def _search(
    sweep: Sweep, search: Search, file: Path, arm: Arm, overrides: Sequence[str], root: Path, processes: Processes
) -> list[str]:
    optuna = _import_optuna()
    folder = _folder(sweep, file, arm, overrides, root)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'trials.db'}", study_name=slug(arm.name), load_if_exists=True,
        direction="minimize" if search.better == "lower" else "maximize",
    )  # fmt: skip
    running = optuna.trial.TrialState.RUNNING
    ended = [trial for trial in study.trials if trial.state != running]
    while len(ended) < search.trials:
        interrupted = [trial for trial in study.trials if trial.state == running]
        number = interrupted[0].number if interrupted else len(study.trials)
        if not interrupted:
            study.sampler = optuna.samplers.TPESampler(seed=search.seed + number)
            trial = study.ask(_distributions(optuna, arm))
            params = trial.params
        else:
            params = interrupted[0].params
        settings = [f"{key}={value}" for key, value in params.items()]
        workdir = folder / f"trial-{number:03}"
        config = arm_config(sweep, file, arm, [*overrides, *search.settings], settings)
        config = config_from_dict(config_to_dict(config), "config")
        config.train.seed = search.seed
        save_config(config, folder / f"trial-{number:03}.json")
        if is_done(workdir):  # it ended before its result was recorded
            sentence = None
        else:
            sentence = processes.submit(
                Job(f"{arm.name}, trial {number}", folder / f"trial-{number:03}.json", workdir)
            ).result()
        if sentence is None and not is_done(workdir):
            raise UserError("interrupted")
        value = None if sentence else read_run(workdir).value(search.metric, search.evaluation).value
        if value is None:
            study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(number, value)
        ended = [trial for trial in study.trials if trial.state != running]
        with _printing:
            what = f"failed: {sentence}" if sentence else f"{search.metric} of {search.evaluation} {value:.4f}"
            print(f"{arm.name}, trial {len(ended)} of {search.trials}: {' '.join(settings)}: {what}", flush=True)
    complete = [trial for trial in study.trials if trial.value is not None]
    if not complete:
        raise UserError(f"arm {arm.name}: all {search.trials} trials failed; narrow its search")
    settings = [f"{key}={value}" for key, value in study.best_trial.params.items()]
    content = {"settings": settings, "trial": study.best_trial.number, "value": study.best_value, "trials": len(ended)}
    (folder / "chosen.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return settings


def _distributions(optuna: Any, arm: Arm) -> dict[str, Any]:
    """Returns the space of an arm as optuna describes it."""
    found: dict[str, Any] = {}
    for key, values in arm.search.items():
        if not isinstance(values, Range):
            found[key] = optuna.distributions.CategoricalDistribution(tuple(values))
        elif values.whole:
            found[key] = optuna.distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
        else:
            found[key] = optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
    return found
