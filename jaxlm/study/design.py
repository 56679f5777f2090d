"""What a sweep is: the arms, the seeds, and what is stated before any result is known.

`experiments/NAME/sweep.py` defines get_sweep(), which returns a `Sweep` and depends on nothing but the file.
"""

import dataclasses
import hashlib
import importlib.util
import inspect
import math
import re
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.typed import shown

FILE = "sweep.py"
DIRECTIONS = ("lower", "higher")


class Range(NamedTuple):
    """Where a search looks for the value of one setting: from `low` to `high`, evenly on a scale."""

    low: float  # the lowest value
    high: float  # the highest value
    log: bool = True  # evenly in the logarithm
    whole: bool = False  # whole numbers only


@dataclasses.dataclass(frozen=True)
class Search:
    """How the settings in an arm's `search` are chosen: trials of one seed, judged on a set of their own.

    The set must not be the one that the sweep reports, so that no result is selected on what it is judged by; nor
    should the seed be one of the sweep's. Every arm that is searched gets the same number of trials.
    """

    trials: int  # of each arm
    evaluation: str  # the evaluation set that chooses
    metric: str = "loss"  # of that set
    better: str = "lower"  # or higher
    seed: int = 1000  # of all trials
    settings: tuple[str, ...] = ()  # of all trials, such as a smaller budget


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison: a name, the settings that it changes, and those that a search chooses for it."""

    name: str  # of the arm, in tables and directories
    settings: tuple[str, ...] = ()  # such as ("masking.rate=0.3",)
    search: dict[str, Range | tuple] = dataclasses.field(default_factory=dict)  # a range, or the values to choose from
    base: str = ""  # a config in place of the sweep's


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A question, the runs that answer it, and how they are read.

    Every arm is run with every seed, from the config `base` (a recipe, or a file beside sweep.py) with `settings`. The
    value of a run is `metric` on the evaluation set `evaluation`, at update `at` or at the end. Each arm is compared
    with the first one, the reference, at equal seeds.
    """

    question: str  # that the sweep answers
    base: str  # a recipe, or a config file beside sweep.py
    arms: tuple[Arm, ...]  # the reference first
    evaluation: str  # the evaluation set that is read
    smallest_effect: float  # in units of the metric; a smaller difference does not matter
    seeds: int | tuple[int, ...] = 5  # a number of seeds, or the seeds
    settings: tuple[str, ...] = ()  # of all arms
    metric: str = "loss"  # of the evaluation set
    better: str = "lower"  # or higher
    at: int | None = None  # the update after which it is read; None: the end of the run
    unit: str = ""  # of the metric, such as "nats"
    search: Search | None = None  # for the arms that have settings to search for

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)


def read_sweep(folder: str | Path) -> tuple[Sweep, Path]:
    """Returns the sweep that a folder, or a file, defines, and the file. Raises UserError."""
    path = Path(folder).expanduser()
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no {file}; a sweep is a folder with {FILE}, or such a file")
    spec = importlib.util.spec_from_file_location(
        f"jaxlm_sweep_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}", file
    )
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_sweep"):
            raise UserError(f"{file} has no function get_sweep() that returns a jaxlm.study.Sweep")
        if inspect.signature(module.get_sweep).parameters:
            raise UserError(f"{file}: get_sweep takes arguments; the grid must be a function of the file alone")
        sweep = module.get_sweep()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, TypeError | ValueError | SyntaxError) else f"{type(error).__name__}: "
        raise UserError(f"{file}{f', line {line}' if line else ''}: {kind}{text}") from error
    if not isinstance(sweep, Sweep):
        raise UserError(f"{file}: get_sweep returned {type(sweep).__name__}; it must return a jaxlm.study.Sweep")
    _check(sweep, str(file))
    return sweep, file


def _check(sweep: Sweep, where: str) -> None:
    """Raises UserError, beginning with `where`, for the first thing that is wrong with a sweep."""
    texts = {"question": sweep.question, "base": sweep.base, "metric": sweep.metric, "evaluation": sweep.evaluation}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: {name}={shown(text)}: expected a text")
    if not isinstance(sweep.arms, tuple | list) or not sweep.arms:
        raise UserError(f"{where}: there is no arm; give at least one, the reference first")
    for arm in sweep.arms:
        if not isinstance(arm, Arm) or not isinstance(arm.name, str) or not re.search(r"\w", arm.name):
            raise UserError(f"{where}: {shown(arm)} is not an Arm with a name")
        _check_settings(arm.settings, f"{where}, arm {arm.name}")
        _check_search(arm, sweep, f"{where}, arm {arm.name}")
    names = [arm.name for arm in sweep.arms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: two arms are called {twice[0]}; give each its own name")
    _check_settings(sweep.settings, where)
    seeds = sweep.seeds
    if isinstance(seeds, bool) or (isinstance(seeds, int) and seeds < 1):
        raise UserError(f"{where}: seeds={seeds}: expected a number of seeds, at least 1, or the seeds themselves")
    if not isinstance(seeds, int) and (not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds)):
        raise UserError(f"{where}: seeds={shown(seeds)}: expected whole numbers that are not negative")
    if len(set(sweep.seed_numbers)) < len(sweep.seed_numbers):
        raise UserError(f"{where}: a seed occurs twice in seeds={shown(seeds)}")
    for direction in (sweep.better, sweep.search.better if sweep.search else "lower"):
        if direction not in DIRECTIONS:
            raise UserError(f"{where}: better={shown(direction)}: expected lower or higher")
    if not _is_number(sweep.smallest_effect) or sweep.smallest_effect <= 0:
        raise UserError(f"{where}: smallest_effect={shown(sweep.smallest_effect)}: expected a number above 0")
    if sweep.at is not None and (not isinstance(sweep.at, int) or sweep.at < 1):
        raise UserError(f"{where}: at={shown(sweep.at)}: expected an update, or None for the end of the run")


def _check_settings(settings: Any, where: str) -> None:
    if isinstance(settings, str):
        raise UserError(f'{where}: settings={shown(settings)} is one text; write ("{settings}",), with the comma')
    if not all(isinstance(one, str) and "=" in one for one in settings):
        raise UserError(f'{where}: settings={shown(settings)}: expected a tuple such as ("train.steps=500",)')


def _check_search(arm: Arm, sweep: Sweep, where: str) -> None:
    if not arm.search:
        return
    if sweep.search is None:
        raise UserError(f"{where}: it has settings to search for, but the sweep has no search=Search(...)")
    if sweep.search.trials < 1:
        raise UserError(f"{where}: search.trials={sweep.search.trials}: expected at least 1")
    if sweep.search.evaluation == sweep.evaluation:
        raise UserError(
            f"{where}: the search would choose by the evaluation set {sweep.evaluation}, which the sweep reports; name"
            " another set"
        )
    for key, values in arm.search.items():
        if isinstance(values, Range):
            fits = _is_number(values.low) and _is_number(values.high) and values.low < values.high
            if not fits or (values.log and values.low <= 0):
                raise UserError(
                    f"{where}: {key}={shown(tuple(values))}: expected a low and a higher bound, above 0 if log"
                )
        elif not isinstance(values, tuple | list) or not values:
            raise UserError(f"{where}: {key}={shown(values)}: expected a Range, or the values to choose from")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
