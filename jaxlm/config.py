"""Loads, overrides, checks and saves the config of a run.

A config is an `ml_collections.ConfigDict` of sections. A file in `configs/` defines `get_config(arg=None)`, which
starts from `default_config()` and changes some settings; the command line overrides single settings; `config.json` in
the work directory contains the resolved config and reproduces the run.
"""

import dataclasses
import difflib
import importlib.util
import inspect
import json
import math
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from jaxlm.errors import UserError
from jaxlm.recipes import find_config
from jaxlm.setting_type import INTERVALS, Setting
from jaxlm.settings import (
    FORMER,
    LARGEST_INTEGERS,
    PHASE_OBJECTIVES,
    PHASE_SETTINGS,
    REQUIRED,
    RESUMABLE,
    RESUMABLE_SECTIONS,
    SETTINGS,
    SHORT_NAMES,
)
from jaxlm.storage import parse_json, read_json, write_text
from jaxlm.typed import cut, shown


def default_config() -> ConfigDict:
    """Returns a config with every setting at its default; assigning an unknown key or a wrong type raises an error."""
    sections = {}
    for section, settings in SETTINGS.items():
        sections[section] = {
            name: config_dict.placeholder(setting.kind) if setting.default is None else setting.default
            for name, setting in settings.items()
        }
    return ConfigDict(sections).lock()


def load_config(
    spec: str | Path | ConfigDict,
    overrides: Sequence[str] = (),
    start_settings: Callable[[str], dict[str, dict]] | None = None,
) -> ConfigDict:
    """Returns the config of `FILE[:ARG]` with overrides such as `train.steps=100` applied, checked and locked.

    FILE is the name of a recipe, a Python file that defines `get_config(arg=None)`, or the `config.json` of a run; a
    ConfigDict is treated like the result of `get_config`, and not changed. start_settings returns, by section, the
    settings of the directory model.init_from; they replace those of the file and are replaced by the overrides. An
    empty model.init_from remains REQUIRED where the file requires one. Raises UserError.
    """
    config, replayed = _read_config(spec)
    named = [override for override in overrides if full_name(override.partition("=")[0]) == "model.init_from"]
    start_required = config.model.init_from == REQUIRED
    for override in named:
        apply_override(config, override)
    start = config.model.init_from
    if start_settings and start not in ("", REQUIRED) and (named or not replayed):
        for section, values in start_settings(start).items():
            for name, value in values.items():
                key = f"{section}.{name}"
                config[section][name] = _as_kind(key, value, find_setting(key))
    for override in overrides:
        apply_override(config, override)
    if start_required and not start:
        config.model.init_from = REQUIRED
    check_config(config)
    return config.lock()


def _read_config(spec: str | Path | ConfigDict) -> tuple[ConfigDict, bool]:
    """Returns a config, and whether it is that of a run, which contains the settings of model.init_from."""
    if isinstance(spec, ConfigDict):
        return config_from_dict(spec.to_dict(), "config"), False
    if not isinstance(spec, str | Path):
        raise UserError(f"config must be a ConfigDict, a file or the name of a recipe, not {type(spec).__name__}")
    name, _, arg = str(spec).partition(":") if not Path(spec).exists() else (str(spec), "", "")
    path = find_config(name)
    if path.suffix == ".json":
        return _read_json(path), True
    return _run_config_file(path, name, arg or None), False


def _run_config_file(path: Path, name: str, arg: str | None) -> ConfigDict:
    """Returns what a Python file's get_config returns; messages call the file by `name`. Raises UserError."""
    spec = importlib.util.spec_from_file_location(f"jaxlm_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{name} is not a Python file; a config is FILE.py[:ARG] or a run's config.json")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{name} has no function get_config(arg=None) that returns the config")
        takes_arg = bool(inspect.signature(module.get_config).parameters)
        if arg is not None and not takes_arg:
            raise UserError(f"{name} has no variants; remove :{arg}")
        config = module.get_config(arg) if takes_arg else module.get_config()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise UserError(f"{name}{f', line {line}' if line else ''}: {_reason(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{name}: get_config returned {type(config).__name__}; it must return the config")
    if any(key not in config.get(section, ()) for section, settings in SETTINGS.items() for key in settings):
        raise UserError(f"{name}: the config of get_config lacks settings; start from jaxlm.config.default_config()")
    return config


def _reason(error: Exception) -> str:
    """Returns the message of an error in a config file in one line; for an unknown key, its name and the nearest."""
    wrapped = error.args and isinstance(error.args[0], KeyError)  # ml_collections' AttributeError
    text = " ".join(str((error.args[0] if wrapped else error).args[0] if error.args else "").split())
    if unknown := re.search(r'Did you mean "(.+)" instead of "(.+)"\?$', text):
        renamed = [former.name for old, former in FORMER.items() if former.name and old.endswith(f".{unknown[2]}")]
        return f"there is no setting {unknown[2]}; did you mean {' or '.join(renamed) or unknown[1]}?"
    if unknown := re.match(r'Key "(.+?)" does not exist', text):
        return f"there is no setting {unknown[1]}{_nearest(unknown[1])}"
    return text if isinstance(error, TypeError | ValueError | SyntaxError) else f"{type(error).__name__}: {text}"


def _read_json(path: Path) -> ConfigDict:
    content = read_json(path, remedy="`jaxlm train` writes config.json; restore it, or name a config file")
    return config_from_dict(content, str(path))


def config_from_dict(content: dict, where: str) -> ConfigDict:
    """Returns the config that `config_to_dict` wrote, also under the names that older versions gave to settings.

    Settings that the dict lacks keep their defaults. Raises UserError.
    """
    config = default_config()
    for section, settings in content.items():
        if not isinstance(settings, dict):
            raise UserError(f"{where}: {section} is not a section of settings")
        for name, value in settings.items():
            key = f"{section}.{name}"
            if former := FORMER.get(key):
                if former.name is None:
                    continue
                key = former.name
                value = former.values.get(value, value) if isinstance(value, bool | str) else value
            setting = find_setting(key, where)
            new_section, _, new_name = key.partition(".")
            config[new_section][new_name] = _as_kind(key, value, setting)
    return config


def config_to_dict(config: ConfigDict) -> dict:
    """Returns the config as nested dicts of JSON values, tuples as lists."""
    return json.loads(json.dumps({section: dict(config[section].items()) for section in SETTINGS}, default=_plain))


def save_config(config: ConfigDict, path: Path) -> None:
    """Writes the config to a JSON file, whole or not at all. Raises UserError."""
    write_text(path, json.dumps(config_to_dict(config), indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else dict(value)


def find_setting(key: str, where: str = "") -> Setting:
    """Returns the setting `section.name`. Raises UserError that names the nearest setting if there is none."""
    key = full_name(key)
    section, _, name = key.partition(".")
    if section in SETTINGS and name in SETTINGS[section]:
        return SETTINGS[section][name]
    raise UserError(f"{where + ': ' if where else ''}there is no setting {cut(key)}{_nearest(key)}")


def _nearest(key: str) -> str:
    """Returns the end of a message about an unknown setting: which one it was renamed to, or the nearest one."""
    known = [f"{s}.{n}" for s, settings in SETTINGS.items() for n in settings]
    name = key.rpartition(".")[2]
    renamed = {old: former.name for old, former in FORMER.items() if former.name}
    near = (
        [new for old, new in renamed.items() if old == key]
        or [other for other in known if other.rpartition(".")[2] == name][:1]
        or [new for old, new in renamed.items() if old.rpartition(".")[2] == name]
        or difflib.get_close_matches(key, known, 1, 0.4)
    )
    return f"; did you mean {' or '.join(near)}?" if near else "; `jaxlm config` prints them all"


def full_name(key: str) -> str:
    """Returns the key `section.name` of a setting given by its key or its short name."""
    return SHORT_NAMES.get(key, key)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the overrides `section.key=value` in a command line, and its other arguments.

    An override is given as `--config.section.key=value` or with a space. Raises UserError for one without a value.
    """
    overrides, rest = [], []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key = argument.removeprefix("--config.")
        if "=" not in key:
            if not queue or queue[0].startswith("--"):
                raise UserError(f"{argument} needs a value: {argument}=VALUE")
            key = f"{key}={queue.pop(0)}"
        overrides.append(key)
    return overrides, rest


def apply_override(config: ConfigDict, override: str) -> None:
    """Sets a setting from `section.key=value`. Raises UserError for an unknown key and a value of the wrong type."""
    key, equals, text = override.partition("=")
    key, setting = full_name(key), find_setting(key)
    if not equals:
        raise UserError(f"{key} has no value; write {key}=VALUE")
    section, _, name = key.partition(".")
    config[section][name] = parse_value(key, text, setting)


def parse_value(key: str, text: str, setting: Setting) -> Any:
    """Returns text as a value of the setting's type: numbers also as 1e3 or 1_000, tuples with commas or as JSON."""
    if text.lower() in ("none", "null") and setting.default is None:
        return None
    if setting.type is str:
        return text
    if setting.type is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise UserError(f"{key}={cut(text)}: expected true or false")
        return words[text.lower()]
    if setting.type is tuple:
        if (text.startswith("[") and text.endswith("]")) or setting.item is dict:
            try:
                return _as_kind(key, parse_json(text or "[]"), setting)
            except ValueError as error:
                raise UserError(f"{key}={cut(text)}: not a valid JSON list ({error})") from error
        return _as_kind(key, [part for part in text.split(",") if part], setting)
    return _as_kind(key, text.replace("_", ""), setting)


def _as_kind(key: str, value: Any, setting: Setting) -> Any:
    if value is None and setting.default is None:
        return None
    kind = setting.type
    try:
        if kind is tuple:
            if isinstance(value, str | dict) or not hasattr(value, "__iter__"):
                raise TypeError
            return tuple(dict(entry) if setting.item is dict else setting.item(entry) for entry in value)
        if kind is int:
            number = float(value)
            if isinstance(value, bool) or number != int(number):
                raise TypeError
            return int(value) if isinstance(value, int) or str(value).lstrip("+-").isdigit() else int(number)
        if kind is float:
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        if not isinstance(value, kind):
            raise TypeError
        return value
    except (TypeError, ValueError, OverflowError) as error:
        names = {int: "a whole number", float: "a number", tuple: "a list", bool: "true or false", str: "text"}
        raise UserError(f"{key}={cut(str(value))}: expected {names[kind]}") from error


def changed_settings(before: ConfigDict, after: ConfigDict, resuming: bool = True) -> list[str]:
    """Returns `section.key: old -> new` for each setting that differs; if resuming, only for those that must not."""
    changed = []
    for section, settings in SETTINGS.items():
        for name in settings:
            key = f"{section}.{name}"
            old, new = (json.dumps(c[section][name], default=_plain) for c in (before, after))
            allowed = resuming and (key in RESUMABLE or section in RESUMABLE_SECTIONS)
            if old != new and not allowed:
                changed.append(f"{key}: {old} -> {new}")
    return changed


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with its own batch shape, rates and objective; the last phase has no number of steps."""

    steps: int | None  # updates; None: until the run ends
    sequence_length: int
    batch_size: int  # rows of the global batch
    accumulate: int = 1  # micro-batches per update
    mask_rate: float = 0.15  # at the first step; masking.final_rate may change it over the run
    learning_rate: float = 1e-3  # peak rate, which the schedule multiplies
    rotary_base: float = 1e4  # of global layers
    objective: str = "masked"


def phases_of(config: ConfigDict) -> tuple[Phase, ...]:
    """Returns the phases of a run: `train.phases` completed by the config's settings, or one phase without them."""
    common = {
        "steps": None,
        "sequence_length": config.data.sequence_length,
        "batch_size": config.train.batch_size,
        "accumulate": config.train.accumulate,
        "mask_rate": config.masking.rate,
        "learning_rate": config.optimizer.learning_rate,
        "rotary_base": config.model.rotary_base,
        "objective": config.train.objective,
    }
    given: tuple[dict[str, Any], ...] = config.train.phases or ({},)
    phases = [Phase(**common | {name: PHASE_SETTINGS[name](value) for name, value in row.items()}) for row in given]
    return (*phases[:-1], dataclasses.replace(phases[-1], steps=None))


def phase_number(phases: Sequence[Phase], step: int) -> int:
    """Returns the index of the phase that computes update number `step`, counted from 0."""
    for number, phase in enumerate(phases[:-1]):
        if phase.steps is None:
            raise ValueError(f"phase {number} has no number of steps; only the last phase may lack one")
        if step < phase.steps:
            return number
        step -= phase.steps
    return len(phases) - 1


def checked_value(key: str, value: Any) -> Any:
    """Returns a value for the setting `section.name`, converted to its type. Raises UserError if it is invalid."""
    setting = find_setting(key)
    value = _as_kind(key, value, setting)
    _check_value(key, value, setting)
    return value


def _check_value(key: str, value: Any, setting: Setting) -> None:
    if setting.choices and value not in setting.choices:
        near = difflib.get_close_matches(str(value), setting.choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{key}={cut(str(value))} is not one of {', '.join(setting.choices)}{hint}")
    if wrong := wrong_value(key, value):
        raise UserError(f"{key}={shown(value)}: {wrong}")


def check_config(config: ConfigDict) -> None:
    """Checks every setting, alone and together, before any data is read. Raises UserError for invalid values."""
    for section, settings in SETTINGS.items():
        for name, setting in settings.items():
            _check_value(f"{section}.{name}", config[section][name], setting)
    check_architecture(config.model)
    _check_together(config)
    _check_end(config)
    _check_phases(config)


def wrong_value(key: str, value: Any) -> str:
    """Returns why a number is not valid for the setting `key`, such as "must be at least 1"; "" if it is valid."""
    setting = find_setting(key)
    if setting.within and value is not None:
        contains, message = INTERVALS[setting.within]
        if not contains(value) or (isinstance(value, float) and not math.isfinite(value)):
            return message
    largest = LARGEST_INTEGERS.get(key, 2**63 - 1)
    if setting.type is int and value is not None and abs(value) > largest:
        return f"must be at most {largest:,}"
    return ""


def check_architecture(model: Any) -> None:
    """Checks settings of section `model` that depend on each other. Raises UserError."""
    head_width, name = model.head_width or model.width // model.heads, "model.width / model.heads = "
    if model.head_width:
        name = "model.head_width="
    _raise_first_broken([
        (model.head_width or model.width % model.heads == 0,
         f"model.heads={model.heads} does not divide model.width={model.width}"),
        (model.positions != "rotary" or head_width % 2 == 0,
         f"rotary positions need an even head width, but {name}{head_width}"),
        (model.layer_pattern and set(model.layer_pattern) <= {"g", "l"},
         f"model.layer_pattern={model.layer_pattern}: must consist of the letters g (global) and l (local)"),
    ])  # fmt: skip


def _raise_first_broken(rules: Sequence[tuple[Any, str]]) -> None:
    """Raises UserError with the message of the first rule, (whether it holds, message), that does not hold."""
    for holds, message in rules:
        if not holds:
            raise UserError(message)


def _check_together(config: ConfigDict) -> None:
    """Checks settings of the other sections that depend on each other."""
    data, masking, tokenizer, mesh = config.data, config.masking, config.tokenizer, config.mesh
    held_out = [entry.partition("=") for entry in data.held_out]
    names = [name for name, _, _ in held_out]
    _raise_first_broken([
        (masking.mask_share + masking.random_share < 1 + 1e-9,
         f"masking.mask_share={masking.mask_share} plus masking.random_share={masking.random_share} must not exceed 1"),
        (tokenizer.character_coverage > 0.5,
         f"tokenizer.character_coverage={tokenizer.character_coverage}: must be above 0.5, for example 0.9995"),
        (len(data.weights) in (0, len(data.path)),
         f"data.weights has {len(data.weights)} entries and data.path {len(data.path)}; give one weight per path"),
        (all(weight > 0 and math.isfinite(weight) for weight in data.weights), "data.weights must all be above 0"),
        (all(name and path for name, _, path in held_out), f"data.held_out={data.held_out}: expected NAME=PATH"),
        (len(set(names)) == len(names), f"data.held_out={data.held_out}: a name occurs twice"),
        (_are_names(names), f"data.held_out={data.held_out}: names may contain letters, digits, - and _"),
        (config.model.init_from or not config.model.reinitialize_layers,
         f"model.reinitialize_layers={config.model.reinitialize_layers} needs init_from; without it, all layers start"
         " from new weights"),
        (config.model.reinitialize_layers <= config.model.layers,
         f"model.reinitialize_layers={config.model.reinitialize_layers} exceeds the {config.model.layers} layers of the"
         " model"),
        (mesh.data == -1 or mesh.data >= 1, f"mesh.data={mesh.data}: must be a number of devices, or -1 for the rest"),
    ])  # fmt: skip


def _are_names(names: Sequence[str]) -> bool:
    return all(name.replace("-", "").replace("_", "").isalnum() for name in names)


def _check_end(config: ConfigDict) -> None:
    """Checks that one setting ends the run, and that with a time budget the schedule uses fractions, not steps."""
    train, schedule = config.train, config.schedule
    ends = [name for name in ("steps", "epochs", "tokens", "minutes") if train[name] is not None]
    if len(ends) > 1:
        raise UserError(f"train.{' and train.'.join(ends)} are set; only one can end the run, set the others to none")
    if "minutes" in ends and (schedule.warmup >= 1 or (schedule.name == "wsd" and schedule.decay_steps >= 1)):
        raise UserError(
            "with train.minutes, schedule.warmup and schedule.decay_steps must be below 1: fractions of the run"
        )


def _check_phases(config: ConfigDict) -> None:
    """Checks the entries of train.phases, and that the rows of each phase fit the model."""
    rows: tuple[dict[str, Any], ...] = config.train.phases
    model = config.model
    for number, row in enumerate(rows, 1):
        where = f"train.phases, entry {number}"
        for name, value in row.items():
            if name not in PHASE_SETTINGS:
                raise UserError(f"{where}: {name} is not one of {', '.join(PHASE_SETTINGS)}")
            if name == "objective":
                if value not in PHASE_OBJECTIVES:
                    raise UserError(f"{where}: objective={value} is not one of {', '.join(PHASE_OBJECTIVES)}")
                if config.train.objective not in PHASE_OBJECTIVES:
                    raise UserError(
                        f"{where}: objective={value} cannot be combined with train.objective={config.train.objective};"
                        " remove it from the phase"
                    )
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UserError(f"{where}: {name}={value}: expected a number above 0")
            if PHASE_SETTINGS[name] is int and value != int(value):
                raise UserError(f"{where}: {name}={value}: expected a whole number")
        if "steps" not in row and number < len(rows):
            raise UserError(f"{where} has no steps; only the last phase may omit them, and lasts until the run ends")
    for phase in phases_of(config):
        length, batch, parts = phase.sequence_length, phase.batch_size, phase.accumulate
        table = model.max_positions - model.position_offset
        if length < 8:
            raise UserError(f"data.sequence_length={length}: must be at least 8")
        if model.positions == "learned" and length > table:
            remedy = "raise model.max_positions" + (" and set model.extend_positions" if model.init_from else "")
            raise UserError(
                f"data.sequence_length={length} exceeds the {table} rows of the model's position table; {remedy}"
            )
        if batch % parts:
            raise UserError(f"train.batch_size={batch} must be a multiple of train.accumulate={parts}")
        if not 0 < phase.mask_rate < 1:
            raise UserError(f"train.phases: mask_rate={phase.mask_rate}: {INTERVALS['(0,1)'][1]}")
