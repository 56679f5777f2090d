"""Every setting of a run: its default, what it means, and which values it takes.

A config is an `ml_collections.ConfigDict` of sections. A file under `configs/` has a function `get_config(arg=None)`
that starts from `default_config()` and changes what differs; the command line overrides single settings; the work
directory's `config.json` holds the resolved result and replays the run.
"""

import difflib
import importlib.util
import inspect
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from jaxlm.errors import UserError


class Setting(NamedTuple):
    """One setting: its default, what it means, the only values or the interval that it takes, and its type."""

    default: Any
    help: str
    choices: tuple = ()
    within: str = ""  # a key of INTERVALS
    kind: type | None = None  # where the default does not tell
    item: type = str  # of the entries, where the setting is a tuple

    @property
    def type(self) -> type:
        return self.kind or type(self.default)


INTERVALS: dict[str, tuple[Callable[[float], bool], str]] = {
    ">=1": (lambda x: x >= 1, "at least 1 is needed"),
    ">=0": (lambda x: x >= 0, "it cannot be negative"),
    ">0": (lambda x: x > 0, "it must be above 0"),
    ">1": (lambda x: x > 1, "it must be above 1"),
    "(0,1)": (lambda x: 0 < x < 1, "a share between 0 and 1 is meant, such as 0.15"),
    "[0,1)": (lambda x: 0 <= x < 1, "a share from 0 to below 1 is meant"),
    "[0,1]": (lambda x: 0 <= x <= 1, "a share from 0 to 1 is meant"),
    "(0,1]": (lambda x: 0 < x <= 1, "a number above 0 and up to 1 is meant"),
}

S = Setting

SETTINGS: dict[str, dict[str, Setting]] = {
    "data": {
        "path": S((), "what to train on: files, folders, globs, 'tfds:NAME[:SPLIT]', 'pydocs'; several with commas"),
        "weights": S(
            (), "share of rows from each path, as 9,1; empty: every row of every path once an epoch", item=float
        ),
        "format": S("auto", "auto goes by the file name", ("auto", "text", "jsonl", "csv", "tsv", "parquet")),
        "document": S("file", "what is one document of a text file", ("file", "paragraph", "line")),
        "field": S("text", "the field that holds the text (JSON Lines, CSV, TSV, Parquet, TFDS)"),
        "encoding": S("utf-8", "of text, JSON Lines, CSV and TSV files"),
        "held_out": S((), "held-out sets with their own paths, as NAME=PATH; several with commas"),
        "held_out_fraction": S(
            0.01, "without data.held_out: this share of documents, by a hash of the text, is set aside", within="[0,1)"
        ),
        "deduplicate": S(True, "drop documents whose text was seen before, held-out text included"),
        "max_document_characters": S(
            1_000_000, "longer documents are cut there, at a space where there is one", within=">=1"
        ),
        "sequence_length": S(128, "tokens in a row", within=">=1"),
        "prepend_begin": S(
            False, "a row that begins inside a document gets the begin token in front, as inference will"
        ),
        "shard_bytes": S(256 * 2**20, "no file of the token store is larger than this", within=">=1"),
        "cache": S("", "folder of token stores, shared by runs; empty: ~/.cache/jaxlm/stores"),
        "workers": S(0, "processes that tokenize; 0: one for each processor", within=">=0"),
        "prefetch": S(4, "batches prepared ahead of the accelerator", within=">=1"),
    },
    "tokenizer": {
        "path": S(
            "", "a .model, tokenizer.json or vocab.txt, or a folder with one; empty: train SentencePiece on the data"
        ),
        "algorithm": S("unigram", "of the trained vocabulary", ("unigram", "bpe")),
        "vocab_size": S(8192, "entries of the trained vocabulary, special tokens included", within=">=1"),
        "lower_case": S(False, "the trained vocabulary folds case"),
        "character_coverage": S(
            0.9995, "share of characters the trained vocabulary must spell; the rest are unknown", within="(0,1]"
        ),
        "byte_fallback": S(False, "spell unknown characters in bytes (256 entries)"),
        "training_megabytes": S(
            32.0, "text used to train the vocabulary, spread evenly over the documents", within=">0"
        ),
        "words": S(
            "unicode",
            "who finds words: Unicode boundaries, jieba (Chinese), ICU (Thai, Lao, Khmer, Burmese), or"
            " the spaces of text that is already segmented",
            ("unicode", "jieba", "icu", "spaces"),
        ),
    },
    "model": {
        "layers": S(4, "Transformer layers", within=">=1"),
        "width": S(256, "width of the residual stream", within=">=1"),
        "heads": S(4, "attention heads; they divide the width", within=">=1"),
        "feed_forward_width": S(1024, "hidden width of the feed-forward; of each half where it is gated", within=">=1"),
        "embedding_width": S(0, "width of the embedding tables; 0: the model's; another is projected", within=">=0"),
        "vocab_size": S(0, "entries of the token table; 0: the tokenizer's size", within=">=0"),
        "norm": S("layer_norm", "normalisation", ("layer_norm", "rms_norm")),
        "norm_position": S("pre", "before each sublayer, or after the residual sum as in BERT", ("pre", "post")),
        "norm_epsilon": S(1e-5, "added to the variance", within=">0"),
        "norm_bias": S(True, "bias in the norms"),
        "attention_bias": S(True, "bias in query, key, value and output projections"),
        "feed_forward_bias": S(True, "bias in the feed-forward"),
        "first_norm": S(True, "attention norm of the first layer; ModernBERT leaves it out"),
        "embedding_norm": S(False, "norm after the embeddings"),
        "activation": S(
            "relu_squared",
            "of the feed-forward; geglu and swiglu are gated",
            ("gelu", "gelu_tanh", "relu", "relu_squared", "geglu", "swiglu"),
        ),
        "positions": S("rotary", "how tokens know their place", ("learned", "rotary", "alibi", "none")),
        "max_positions": S(512, "rows of the learned position table", within=">=1"),
        "position_offset": S(0, "first row of the position table that is used; RoBERTa's is 2", within=">=0"),
        "rotary_base": S(10_000.0, "rotary base of global layers", within=">1"),
        "local_rotary_base": S(10_000.0, "rotary base of local layers", within=">1"),
        "layer_pattern": S("g", "tiled over the layers: g sees all of a document, l a window; ModernBERT's is gll"),
        "window": S(128, "a local layer's window: half of it on each side", within=">=1"),
        "token_types": S(0, "rows of the token-type table; 0: none", within=">=0"),
        "tied_output": S(True, "the output projection is the token table"),
        "output_bias": S(True, "bias on the vocabulary logits"),
        "output_bias_from_frequencies": S(False, "the output bias starts at the log of token frequencies"),
        "head_transform": S(True, "dense layer, activation and norm between encoder and logits"),
        "head_bias": S(True, "bias in the head's dense layer"),
        "head_activation": S("gelu", "of the head's dense layer", ("gelu", "gelu_tanh", "relu", "relu_squared")),
        "dropout": S(0.0, "after embeddings and each sublayer", within="[0,1)"),
        "attention_dropout": S(0.0, "of attention weights", within="[0,1)"),
        "initialization": S(
            "normal",
            "normal: truncated at two deviations; depth_scaled: output projections divided by"
            " sqrt(2 layers); zero_output: output projections at zero",
            ("normal", "depth_scaled", "zero_output"),
        ),
        "initialization_std": S(0.02, "standard deviation of the initial weights", within=">0"),
    },
    "masking": {
        "scheme": S("token", "what is masked as one", ("token", "whole_word", "span")),
        "rate": S(0.15, "share of a row's ordinary tokens that are predicted", within="(0,1)"),
        "final_rate": S(
            None,
            "the rate falls or rises on a line to this one at the end of the run; none: constant",
            kind=float,
            within="(0,1)",
        ),
        "mask_share": S(0.8, "of the predicted tokens: replaced by the mask token", within="[0,1]"),
        "random_share": S(
            0.1, "of the predicted tokens: replaced by an ordinary token; the rest stay as they are", within="[0,1]"
        ),
        "span_p": S(
            0.2,
            "of the geometric distribution of a span's words: 0.2, clipped at 10, has a mean of 3.8",
            within="(0,1]",
        ),
        "span_max": S(10, "words of the longest span", within=">=1"),
    },
    "train": {
        "steps": S(None, "stop after so many updates (one of steps, epochs, tokens, minutes)", kind=int, within=">0"),
        "epochs": S(None, "stop after so many passes over the data", kind=float, within=">0"),
        "tokens": S(None, "stop after so many tokens", kind=float, within=">0"),
        "minutes": S(
            None, "stop after so many minutes of training; the schedule follows the clock", kind=float, within=">0"
        ),
        "batch_size": S(32, "rows in the global batch", within=">=1"),
        "accumulate": S(
            1, "micro-batches a step, one after another; the result is that of the whole batch", within=">=1"
        ),
        "phases": S(
            (),
            "rows of settings that hold one after another, as JSON: steps (all but the last), sequence_length,"
            " batch_size, accumulate, mask_rate, rotary_base",
            item=dict,
        ),
        "seed": S(0, "of initialization, data order, masks and dropout", within=">=0"),
        "init_seed": S(None, "of the initial weights; none: train.seed", kind=int, within=">=0"),
        "data_seed": S(None, "of the order of rows; none: train.seed", kind=int, within=">=0"),
        "mask_seed": S(None, "of masks and dropout; none: train.seed", kind=int, within=">=0"),
        "compute_dtype": S(
            "auto",
            "of matrix products; auto: bfloat16 where the processor is fast at it",
            ("auto", "float32", "bfloat16"),
        ),
        "deterministic": S(False, "the same bits each time on GPUs too, slower"),
        "rematerialise": S(False, "compute a layer's activations again in the backward pass, to save memory"),
        "logits_megabytes": S(256, "vocabulary logits are computed in pieces of at most this size", within=">=1"),
    },
    "optimizer": {
        "name": S("adamw", "muon: for the layers' matrices, AdamW for the rest", ("adamw", "lamb", "muon")),
        "learning_rate": S(1e-3, "peak rate", within="(0,1]"),
        "muon_learning_rate": S(0.02, "peak rate of the matrices under muon", within="(0,1]"),
        "muon_momentum": S(0.95, "momentum of the matrices under muon", within="[0,1)"),
        "beta1": S(0.9, "decay of the mean of gradients", within="[0,1)"),
        "beta2": S(0.98, "decay of the mean of squared gradients", within="[0,1)"),
        "epsilon": S(1e-8, "added to the root of the mean square", within=">0"),
        "weight_decay": S(0.01, "decoupled weight decay, times the learning rate", within=">=0"),
        "decay": S(
            ("/(kernel|embedding)$=yes", "/(bias|scale)$=no"),
            "which parameters decay: PATTERN=yes or no, the first that matches a parameter's path counts",
        ),
        "clip_norm": S(1.0, "gradients are scaled down to this global norm; 0: never", within=">=0"),
    },
    "schedule": {
        "name": S(
            "linear",
            "after the warm-up: falls on a line, on a cosine, stays and falls at the end (wsd), stays",
            ("linear", "cosine", "wsd", "constant"),
        ),
        "warmup": S(0.06, "steps of linear warm-up, or, below 1, its share of the run", within=">=0"),
        "decay": S(0.1, "wsd: steps of the fall at the end, or, below 1, its share of the run", within=">=0"),
        "decay_shape": S("linear", "wsd: 1-sqrt falls fast at first", ("linear", "1-sqrt")),
        "final": S(0.0, "share of the peak rate that is left at the end", within="[0,1]"),
    },
    "mesh": {
        "data": S(-1, "devices that split the batch; -1: all that are left"),
        "fsdp": S(1, "devices that split batch and parameters", within=">=1"),
        "tensor": S(1, "devices that split the matrices' widths", within=">=1"),
    },
    "checkpoint": {
        "every": S(1000, "steps between checkpoints", within=">=1"),
        "keep": S(2, "newest checkpoints kept", within=">=1"),
        "keep_best": S(True, "keep the one with the lowest held-out loss too"),
    },
    "evaluation": {
        "every": S(1000, "steps between evaluations on the held-out sets; 0: only at the end", within=">=0"),
        "rows": S(512, "rows of each held-out set that are used, the first ones; 0: all", within=">=0"),
        "batch_size": S(0, "rows in a batch; 0: train.batch_size", within=">=0"),
    },
    "logging": {
        "every": S(10, "steps between lines of metrics.jsonl", within=">=1"),
        "tensorboard": S(True, "write TensorBoard events"),
        "curve": S(True, "draw curve.png"),
    },
}

# What may differ when a run is resumed: it only prolongs, spreads or watches the run.
RESUMABLE = {"train.steps", "train.epochs", "train.tokens", "train.minutes", "train.rematerialise", "data.cache",
             "data.workers", "data.prefetch"}  # fmt: skip
RESUMABLE_SECTIONS = {"mesh", "checkpoint", "evaluation", "logging"}

PHASE_SETTINGS = {"steps": int, "sequence_length": int, "batch_size": int, "accumulate": int, "mask_rate": float,
                  "rotary_base": float}  # fmt: skip


def default_config() -> ConfigDict:
    """Returns a config with every setting at its default; assigning an unknown key or another type raises."""
    sections = {}
    for section, settings in SETTINGS.items():
        sections[section] = {
            name: config_dict.placeholder(setting.kind) if setting.default is None else setting.default
            for name, setting in settings.items()
        }
    return ConfigDict(sections)


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the config of `FILE[:ARG]` with overrides such as `train.steps=100` applied, checked and locked.

    FILE is a Python file with `get_config(arg=None)`, or a `config.json` that a run left behind. Raises UserError.
    """
    name, _, arg = spec.partition(":") if not Path(spec).exists() else (spec, "", "")
    path = Path(name)
    if not path.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py"))
        near = difflib.get_close_matches(f"configs/{path.stem}.py", known, 1, 0.5)
        raise UserError(f"there is no config file {name}" + (f"; did you mean {near[0]}?" if near else ""))
    config = _read_json(path) if path.suffix == ".json" else _run_config_file(path, arg or None)
    for override in overrides:
        apply_override(config, override)
    check_config(config)
    return config.lock()


def _run_config_file(path: Path, arg: str | None) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f"jaxlm_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: a config is FILE.py[:ARG], or a run's config.json")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no function get_config(arg=None) that returns the config")
        takes_arg = bool(inspect.signature(module.get_config).parameters)
        if arg is not None and not takes_arg:
            raise UserError(f"{path} has no variants, so :{arg} means nothing there")
        config = module.get_config(arg) if takes_arg else module.get_config()
    except (AttributeError, KeyError, TypeError, ValueError, SyntaxError, NameError, ImportError) as error:
        line = (
            next((f.lineno for f in inspect.getinnerframes(error.__traceback__) if f.filename == str(path)), None)
            if error.__traceback__
            else None
        )
        line = error.lineno if isinstance(error, SyntaxError) else line
        message = " ".join(str(error).split()).strip("'\"")
        raise UserError(f"{path}{f', line {line}' if line else ''}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {type(config).__name__}, not the config")
    return config


def _read_json(path: Path) -> ConfigDict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); config.json is written by `jaxlm train`") from error
    return config_from_dict(content, str(path))


def config_from_dict(content: dict, where: str) -> ConfigDict:
    """Returns the config that `config_to_dict` wrote; settings that it lacks keep their defaults. Raises UserError."""
    config = default_config()
    for section, settings in content.items():
        if not isinstance(settings, dict):
            raise UserError(f"{where}: {section} is no section of settings")
        for name, value in settings.items():
            setting = find_setting(f"{section}.{name}", where)
            config[section][name] = _as_kind(f"{section}.{name}", value, setting)
    return config


def config_to_dict(config: ConfigDict) -> dict:
    """Returns the config as nested dicts of JSON values, tuples as lists."""
    return json.loads(json.dumps({section: dict(config[section].items()) for section in SETTINGS}, default=_plain))


def save_config(config: ConfigDict, path: Path) -> None:
    """Writes the config as JSON; a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps(config_to_dict(config), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else dict(value)


def find_setting(key: str, where: str = "") -> Setting:
    """Returns the setting `section.name`; raises UserError that names the nearest known key."""
    section, _, name = key.partition(".")
    if section in SETTINGS and name in SETTINGS[section]:
        return SETTINGS[section][name]
    known = [f"{s}.{n}" for s, settings in SETTINGS.items() for n in settings]
    same_name = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(key, known, 1, 0.4)
    hint = f"; did you mean {near[0]}?" if near else "; `jaxlm config` prints them all"
    raise UserError(f"{where + ': ' if where else ''}there is no setting {key}{hint}")


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits `--config.section.key=value` (or with a space) from the other arguments of a command line."""
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
    """Sets `section.key=value` with the setting's own type; raises UserError on an unknown key or another type."""
    key, _, text = override.partition("=")
    setting = find_setting(key)
    section, _, name = key.partition(".")
    config[section][name] = parse_value(key, text, setting)


def parse_value(key: str, text: str, setting: Setting) -> Any:
    """Returns the text as the setting's type: numbers also as 1e3 or 1_000, tuples with commas or as JSON."""
    if text.lower() in ("none", "null") and setting.default is None:
        return None
    if setting.type is str:
        return text
    if setting.type is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise UserError(f"{key}={text}: true or false is meant here")
        return words[text.lower()]
    if setting.type is tuple:
        if text.startswith("[") or setting.item is dict:
            try:
                return _as_kind(key, json.loads(text or "[]"), setting)
            except ValueError as error:
                raise UserError(f"{key}={text}: no valid JSON list ({error})") from error
        return _as_kind(key, [part for part in text.split(",") if part], setting)
    return _as_kind(key, text.replace("_", ""), setting)


def _as_kind(key: str, value: Any, setting: Setting) -> Any:
    if value is None and setting.default is None:
        return None
    kind = setting.type
    try:
        if kind is tuple:
            if isinstance(value, str) or not hasattr(value, "__iter__"):
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
        meant = {int: "a whole number", float: "a number", tuple: "a list", bool: "true or false", str: "a text"}[kind]
        raise UserError(f"{key}={value}: {meant} is meant here") from error


def changed_settings(before: ConfigDict, after: ConfigDict) -> list[str]:
    """Returns `section.key: old -> new` for each difference that a resumed run may not have."""
    changed = []
    for section, settings in SETTINGS.items():
        for name in settings:
            key = f"{section}.{name}"
            old, new = (json.dumps(c[section][name], default=_plain) for c in (before, after))
            if old != new and key not in RESUMABLE and section not in RESUMABLE_SECTIONS:
                changed.append(f"{key}: {old} -> {new}")
    return changed


def phases_of(config: ConfigDict) -> list[dict[str, Any]]:
    """Returns the run's phases, each with every phase setting; the last one's steps are None (until the run ends)."""
    common = {
        "sequence_length": config.data.sequence_length,
        "batch_size": config.train.batch_size,
        "accumulate": config.train.accumulate,
        "mask_rate": config.masking.rate,
        "rotary_base": config.model.rotary_base,
        "steps": None,
    }
    phases = [common | dict(phase) for phase in config.train.phases or ({},)]
    phases[-1]["steps"] = None
    return phases


def check_config(config: ConfigDict) -> None:
    """Refuses values that cannot be meant, before anything is read. Raises UserError."""
    for section, settings in SETTINGS.items():
        for name, setting in settings.items():
            value = config[section][name]
            if setting.choices and value not in setting.choices:
                near = difflib.get_close_matches(str(value), setting.choices, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"{section}.{name}={value} is not one of {', '.join(setting.choices)}{hint}")
            if setting.within and value is not None:
                holds, meant = INTERVALS[setting.within]
                if not (math.isfinite(value) and holds(value)):
                    raise UserError(f"{section}.{name}={value}: {meant}")
    _check_together(config)
    _check_end(config)
    _check_phases(config)


def _check_together(config: ConfigDict) -> None:
    """Settings that must fit each other."""
    data, model, masking, tokenizer, mesh = config.data, config.model, config.masking, config.tokenizer, config.mesh
    held_out = [entry.partition("=") for entry in data.held_out]
    names = [name for name, _, _ in held_out]
    rules = [
        (model.width % model.heads == 0, f"model.heads={model.heads} do not divide model.width={model.width}"),
        (model.positions != "rotary" or model.width // model.heads % 2 == 0,
         f"rotary positions need an even head width, not model.width / model.heads = {model.width // model.heads}"),
        (model.layer_pattern and set(model.layer_pattern) <= {"g", "l"},
         f"model.layer_pattern={model.layer_pattern}: only g (global) and l (local) are known"),
        (masking.mask_share + masking.random_share < 1 + 1e-9,
         f"masking.mask_share={masking.mask_share} and masking.random_share={masking.random_share} add up to more than 1"),
        (tokenizer.character_coverage > 0.5,
         f"tokenizer.character_coverage={tokenizer.character_coverage}: a share such as 0.9995 is meant"),
        (len(data.weights) in (0, len(data.path)),
         f"data.weights has {len(data.weights)} entries for the {len(data.path)} of data.path; one for each is needed"),
        (all(weight > 0 and math.isfinite(weight) for weight in data.weights), "data.weights must all be above 0"),
        (all(name and path for name, _, path in held_out), f"data.held_out={data.held_out}: NAME=PATH is meant"),
        (len(set(names)) == len(names), f"data.held_out={data.held_out}: a name stands twice"),
        (all(name.replace("-", "").replace("_", "").isalnum() for name in names),
         f"data.held_out={data.held_out}: names are made of letters, digits, - and _"),
        (mesh.data == -1 or mesh.data >= 1, f"mesh.data={mesh.data}: a number of devices, or -1 for all that are left"),
    ]  # fmt: skip
    for holds, message in rules:
        if not holds:
            raise UserError(message)


def _check_end(config: ConfigDict) -> None:
    """One rule ends the run, and a schedule by the clock counts no steps."""
    train, schedule = config.train, config.schedule
    ends = [name for name in ("steps", "epochs", "tokens", "minutes") if train[name] is not None]
    if len(ends) > 1:
        raise UserError(f"only one of train.{' and train.'.join(ends)} can end the run; set the others to none")
    if "minutes" in ends and (schedule.warmup >= 1 or (schedule.name == "wsd" and schedule.decay >= 1)):
        raise UserError(
            "where train.minutes ends the run, schedule.warmup and schedule.decay are shares of it, below 1"
        )


def _check_phases(config: ConfigDict) -> None:
    """Each phase is whole, and its rows fit the model."""
    phases, model = config.train.phases, config.model
    for number, phase in enumerate(phases, 1):
        where = f"train.phases, entry {number}"
        for name, value in phase.items():
            if name not in PHASE_SETTINGS:
                raise UserError(f"{where}: {name} is not one of {', '.join(PHASE_SETTINGS)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise UserError(f"{where}: {name}={value}: a number above 0 is meant")
            if PHASE_SETTINGS[name] is int and value != int(value):
                raise UserError(f"{where}: {name}={value}: a whole number is meant")
        if "steps" not in phase and number < len(phases):
            raise UserError(f"{where} needs its steps; only the last phase goes on to the end of the run")
    for phase in phases_of(config):
        length, batch, parts = phase["sequence_length"], phase["batch_size"], phase["accumulate"]
        table = model.max_positions - model.position_offset
        if length < 8:
            raise UserError(f"data.sequence_length={length}: at least 8 tokens are needed in a row")
        if model.positions == "learned" and length > table:
            raise UserError(f"data.sequence_length={length} is beyond the {table} rows of the model's position table")
        if batch % parts:
            raise UserError(f"train.batch_size={batch} is not divided by train.accumulate={parts}")
        if not 0 < phase["mask_rate"] < 1:
            raise UserError(f"train.phases: mask_rate={phase['mask_rate']}: {INTERVALS['(0,1)'][1]}")


def format_config(config: ConfigDict, section: str = "") -> str:
    """Returns the config as `section.key = value  # meaning`, all of it or one section. Raises UserError."""
    if section and section not in SETTINGS:
        near = difflib.get_close_matches(section, SETTINGS, 1)
        raise UserError(
            f"there is no section {section}; "
            + (f"did you mean {near[0]}?" if near else f"they are {', '.join(SETTINGS)}")
        )
    lines = []
    for name, settings in SETTINGS.items():
        if section in ("", name):
            values = {key: json.dumps(config[name][key], default=_plain, ensure_ascii=False) for key in settings}
            for key, setting in settings.items():
                choices = f" [{', '.join(setting.choices)}]" if setting.choices else ""
                lines.append(f"{f'{name}.{key} = {values[key]}':<44}  # {setting.help}{choices}")
            lines.append("")
    return "\n".join(lines).rstrip()


def main(argv: Sequence[str]) -> int:
    """`jaxlm config [--config=FILE[:ARG]] [SECTION] [--config.section.key=VALUE ...] [--json]`."""
    import argparse

    overrides, rest = split_overrides(argv)
    parser = argparse.ArgumentParser(
        prog="jaxlm config", description="Print every setting, its value and what it means.",
        epilog="example: jaxlm config optimizer --config=configs/bert_base.py",
    )  # fmt: skip
    parser.add_argument("section", nargs="?", default="", help=f"one of {', '.join(SETTINGS)}")
    parser.add_argument("--config", default="", metavar="FILE[:ARG]", help="a config file; without it, the defaults")
    parser.add_argument("--json", action="store_true", help="as JSON, which --config=FILE.json reads again")
    args = parser.parse_args(rest)
    if args.config:
        config = load_config(args.config, overrides)
    else:
        config = default_config()
        for override in overrides:
            apply_override(config, override)
        check_config(config)
    text = format_config(config, args.section)
    if args.json:
        content = config_to_dict(config)
        text = json.dumps(
            {args.section: content[args.section]} if args.section else content, indent=2, ensure_ascii=False
        )
    print(text)
    return 0
