"""What `model.init_from` names, resolved once: its architecture, tokenizer and weights, grown to fit the new model."""

import dataclasses
import functools
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxlm.config import config_from_dict, config_to_dict, full_name, load_config, phases_of
from jaxlm.data.tasks.table import KINDS
from jaxlm.errors import UserError
from jaxlm.huggingface import conversion, task_heads
from jaxlm.huggingface.families import FAMILIES
from jaxlm.huggingface.sentence_transformers import read_sentence_model
from jaxlm.huggingface.task_heads import TaskSettings
from jaxlm.huggingface.weights import some_of, tensor_names
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.narrowing import keep_heads, keep_layers, keep_units, kept_layers
from jaxlm.objectives.table import OBJECTIVES, abstract_params
from jaxlm.runtime.checkpoint import best_step, restore_params, split_step
from jaxlm.settings import SETTINGS
from jaxlm.storage import read_json
from jaxlm.tokenizer.tokenizer import Tokenizer, check_ids
from jaxlm.typed import listed

# Settings of section `model` that describe how weights are initialized or trained, so a run may have its own.
_OWN = ("initialization", "initialization_std", "output_bias_from_frequencies", "init_from", "extend_positions",
        "reinitialize_layers", "remove_layers", "remove_units", "remove_heads")  # fmt: skip
_FREE = (*_OWN, "dropout", "attention_dropout", "rotary_base", "local_rotary_base", "vocab_size", "max_positions")
_HEAD = ("tied_output", "output_bias", "head_transform", "head_bias", "head_activation")
# Settings of section `task` that say how a text becomes a vector.
_EMBEDDING = ("pooling", "query_prompt", "document_prompt")
_log = logging.getLogger("jaxlm")


class Fitting(NamedTuple):
    """How weights are fitted to an encoder of another size: the settings of section `model` with these names."""

    extend_positions: str = "refuse"
    remove_layers: str = "refuse"
    remove_units: str = "refuse"
    remove_heads: str = "refuse"

    @classmethod
    def of(cls, model: Any) -> "Fitting":
        return cls(*(model[name] for name in cls._fields))


UNCHANGED = Fitting()


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The directory that a run starts from, located and parsed: a work directory or a Hugging Face directory."""

    name: str  # as model.init_from gives it
    directory: Path
    model: dict[str, Any]  # its settings of section `model` that a run takes over
    tokenizer: dict[str, Any]  # likewise of section `tokenizer`
    source: conversion.Source | None  # of a Hugging Face directory
    source_config: dict[str, Any] | None  # config.json of the Hugging Face directory that it is or once started from
    objective: str | None = None  # that of a work directory
    step: int | None = None  # the checkpoint of a work directory, named or selected; None: the newest
    labels: tuple[str, ...] = ()  # names of the outputs of a model that was fine-tuned
    head: str = ""  # the family whose head it has, a value of task.head; "": not known
    pooling: str = ""  # likewise of task.pooling
    trained_on: str = ""  # of a work directory: the known task or the training file that it was fine-tuned on
    dropouts: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of heads, by their kind
    vectors: Mapping[str, str] = dataclasses.field(default_factory=dict)  # the settings _EMBEDDING of a work directory

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings that a run takes over, by section."""
        task = {name: value for name, value in (("head", self.head), ("pooling", self.pooling)) if value}
        return {"model": self.model, "tokenizer": self.tokenizer, "task": task}

    def embedding_settings(self) -> Mapping[str, str]:
        """Returns the settings of section `task` that a run with train.objective=embedding takes over: those of a model
        that was made to embed texts. Raises UserError if they are not supported."""
        model = read_sentence_model(self.directory) if self.source else None
        if model is None:
            return self.vectors
        try:
            pooling = model.checked_pooling() if model.pooling else "auto"
            return dict(zip(_EMBEDDING, (pooling, model.prompt("query"), model.prompt("document")), strict=True))
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error

    @functools.cached_property
    def task(self) -> TaskSettings | None:
        """What it was fine-tuned for, if that is known."""
        if self.objective not in task_heads.KINDS:
            return None
        return task_heads.resolve_head(TaskSettings(self.objective, self.labels, self.head, self.pooling), self.encoder)

    def why_new_head(self, objective: str, labels: tuple[str, ...], task: TaskSettings | None) -> str:
        """Returns why its head cannot go on with an objective, outputs of these names and a task; "" if it can."""
        if self.objective != objective and not task_heads.one_output(self.objective, objective):
            return f"was trained for {self.objective}, not {objective}"
        if not task_heads.same_labels(self.labels, labels):
            return f"was trained for other labels ({listed(self.labels, 5)}, not {listed(labels, 5)})"
        if self.task and task and (self.task.style, self.task.pooling) != (task.style, task.pooling):
            heads = (f"task.head={given.head}, task.pooling={given.pooling}" for given in (self.task, task))
            return f"has another head ({'; not '.join(heads)})"
        return ""

    @property
    def has_head(self) -> bool:
        """Whether there is a masked-LM head among the weights."""
        if self.source is not None:
            return conversion.has_head(self.source, self.encoder)
        return self.objective is None or OBJECTIVES[self.objective].predicts_tokens

    @functools.cached_property
    def encoder(self) -> EncoderConfig:
        return encoder_config(config_from_dict({"model": self.model}, self.name).model)

    def check(self, encoder: EncoderConfig, fitting: Fitting = UNCHANGED) -> None:
        """Raises UserError that names the settings of an encoder which do not fit these weights."""
        name, theirs = self.name, self.encoder
        fresh_head = not self.has_head
        free = {*_FREE, *(_HEAD if fresh_head else ())}
        for field in dataclasses.fields(EncoderConfig):
            ours, given = getattr(encoder, field.name), getattr(theirs, field.name)
            if field.name == "layers" and ours < given:
                self._check_layers(encoder, fitting.remove_layers)
                continue
            if field.name == "feed_forward_width" and ours < given:
                if fitting.remove_units == "refuse":
                    raise UserError(
                        f"model.feed_forward_width={ours} is below the {given} of {name}; set"
                        " model.remove_units=magnitude to keep the most important units, or remove the setting"
                    )
                continue
            if field.name == "heads" and ours < given:
                self._check_heads(ours, fitting.remove_heads)
                continue
            if ours != given and field.name not in free:
                raise UserError(f"model.{field.name}={ours}, but {name} has {given}; remove the setting")
        if encoder.positions != "learned" or encoder.max_positions == theirs.max_positions:
            return
        if encoder.max_positions < theirs.max_positions:
            raise UserError(
                f"model.max_positions={encoder.max_positions} would cut the {theirs.max_positions} positions of {name}"
            )
        if fitting.extend_positions == "refuse":
            raise UserError(
                f"model.max_positions={encoder.max_positions} exceeds the {theirs.max_positions} positions of {name}; "
                "set model.extend_positions to repeat or interpolate"
            )

    def _check_layers(self, encoder: EncoderConfig, remove_layers: str) -> None:
        """Raises UserError unless the weights can be reduced to fewer layers, and the setting says how."""
        given, which = self.encoder, f"model.layers={encoder.layers} is below the {self.encoder.layers} of {self.name}"
        if remove_layers == "refuse":
            raise UserError(
                f"{which}; set model.remove_layers to top or spread to keep some of them, or remove the setting"
            )
        kept = kept_layers(given.layers, encoder.layers, remove_layers)
        if any(given.is_local(theirs) != encoder.is_local(ours) for ours, theirs in enumerate(kept)):
            raise UserError(
                f"{which}, but model.remove_layers={remove_layers} would keep local layers where model.layer_pattern="
                f"{encoder.layer_pattern} has global ones; set remove_layers=top, or another number of layers"
            )

    def _check_heads(self, heads: int, remove_heads: str) -> None:
        """Raises UserError unless the weights can be reduced to this number of heads, and the setting says how."""
        given, which = self.encoder, f"model.heads={heads} is below the {self.encoder.heads} of {self.name}"
        if remove_heads == "refuse":
            raise UserError(
                f"{which}; set model.remove_heads=magnitude to keep the most important heads, or remove the setting"
            )
        if given.positions == "alibi" or given.value_residual:
            reason = "model.positions=alibi" if given.positions == "alibi" else "model.value_residual"
            raise UserError(f"{which}, but with {reason} a head depends on its number: remove the setting")

    def params(
        self,
        encoder: EncoderConfig,
        before: Tokenizer,
        tokenizer: Tokenizer,
        fitting: Fitting = UNCHANGED,
    ) -> dict[str, Any]:
        """Returns the weights, float32 on the host, fitted to `encoder`; a head that they lack is left out.

        `tokenizer` is `before`, the directory's own, with tokens added: each new token starts at the mean of the pieces
        that it was before. Raises UserError that names the settings which do not fit the weights.
        """
        theirs = self.encoder
        self.check(encoder, fitting)
        check_ids(before, theirs.vocab_size, self.directory)
        if self.source is not None:
            conversion.check_padding(self.source, before)
        loaded, step = self._read()
        params = loaded.params
        if step is not None and jax.process_index() == 0:
            print(f"{self.directory}: read the checkpoint of step {step:,}", file=sys.stderr)
        unused = [name for name in loaded.unused if not ("pooler" in params and "pooler.dense." in name)]
        if unused:
            _log.warning("%s: ignored, since a masked language model has none: %s", self.name, some_of(unused, 3))
        if loaded.fresh:
            params.pop("head", None)  # incomplete
        params.pop("discriminator", None)
        _grow_vocabulary(params, theirs, encoder, before, tokenizer)
        if encoder.positions == "learned" and encoder.max_positions != theirs.max_positions:
            _extend_positions(params, theirs, encoder, fitting.extend_positions)
        if encoder.layers < theirs.layers:
            kept = kept_layers(theirs.layers, encoder.layers, fitting.remove_layers)
            params["encoder"] = keep_layers(params["encoder"], kept)
        if encoder.feed_forward_width < theirs.feed_forward_width:
            params["encoder"] = keep_units(params["encoder"], encoder.feed_forward_width)
        if encoder.heads < theirs.heads:
            params["encoder"] = keep_heads(params["encoder"], encoder.heads, encoder.head_width)
        return params

    def check_task(self, intermediate: str) -> None:
        """Raises UserError unless this was fine-tuned on the task that task.intermediate names.

        The task of a Hugging Face directory is not recorded: a classifier is accepted.
        """
        classes = (self.source_config or {}).get("architectures") or []
        is_classifier = any("ForSequenceClassification" in str(name) for name in classes)
        if not intermediate or self.trained_on == intermediate or (self.source is not None and is_classifier):
            return
        was = f"was fine-tuned on {self.trained_on}" if self.trained_on else "was not fine-tuned on labelled examples"
        raise UserError(
            f"task.intermediate={intermediate}, but {self.name} {was}; name a model that was fine-tuned on"
            f" {intermediate} in init_from, or remove the requirement with --config.task.intermediate="
        )

    def check_masked_lm_head(self) -> None:
        """Raises UserError unless there is a masked-LM head among the weights."""
        if not self.has_head:
            raise UserError(
                f"{self.name} has no masked-LM head, with which train.objective=template predicts words; start from a"
                " model that has one (...ForMaskedLM), or use train.objective=classification, which needs none"
            )

    def check_weights(self) -> None:
        """Raises UserError if the weights cannot be read, do not fit their config, or hold NaN or infinity.

        They are not kept: much may be done before `params` is called.
        """
        self._read()

    def _read(self) -> tuple[conversion.Loaded, int | None]:
        """Returns the weights, and the step of a work directory's checkpoint.

        Beside "encoder" and "head" they may have "pooler", and "task_head" if the model was fine-tuned.
        """
        if self.source is not None:
            loaded = conversion.read_params(self.source, self.encoder)
            if pooler := conversion.pooler_params(self.source, self.encoder):
                loaded.params["pooler"] = pooler
            if self.task and (head := task_heads.read_head(self.source, self.encoder, self.task)):
                loaded.params["task_head"] = head
                used = task_heads.head_names(self.source, self.task)
                loaded = loaded._replace(unused=[name for name in loaded.unused if name not in used])
            return loaded, None
        config = load_config(str(self.directory / "config.json"))
        restored = restore_params(self.directory / "checkpoints", abstract_params(config, self.encoder), self.step)
        params = jax.tree.map(np.asarray, restored.state)
        if not self.has_head and "head" in params:
            params["task_head"] = params.pop("head")
        return conversion.Loaded(params, [], []), restored.step


def resolve(name: str, workdir: Path | None = None) -> Start:
    """Returns the work directory or Hugging Face directory that `name` refers to. Raises UserError.

    DIR/checkpoints/N is a checkpoint of the work directory DIR. If `workdir` holds a run that started from `name` and
    saved a checkpoint, the settings are those of that run: its checkpoints hold the weights, and `name` may be gone.
    """
    saved = workdir and any(entry.name.isdigit() for entry in (workdir / "checkpoints").glob("*"))
    if workdir and saved and (workdir / "config.json").is_file():
        before = config_to_dict(load_config(str(workdir / "config.json")))
        if before["model"]["init_from"] == name:
            task, kind = before["task"], task_heads.KINDS.get(before["train"]["objective"])
            dropouts = {kind: task["dropout"]} if kind and task["dropout"] is not None else {}
            return Start(
                name, Path(name), before["model"], {"path": before["tokenizer"]["path"]}, None, None,
                head=task["head"], pooling=task["pooling"], dropouts=dropouts, vectors=_vectors(before),
            )  # fmt: skip
    vectors: Mapping[str, str] = {}
    directory, step = split_step(Path(name).expanduser())
    directory = conversion.locate(name if step is None else directory)
    if conversion.is_checkpoint(directory):
        source = conversion.read_source(directory)
        task, trained_on = task_heads.task_of_source(source), ""
        model = conversion.model_settings(source)
        tensor_names(directory)  # missing or damaged weights are reported before any text is read
        tokenizer = {"path": str(directory.absolute())}
        source_config = read_json(directory / "config.json")
        objective, labels = (task.objective, task.labels) if task else (None, ())
        head = task_heads.HEADS.get(source.family.name, source.family.name)
        pooling = task.pooling if task else task_heads.head_pooling(source.config, source.family)
        dropouts = task_heads.head_dropouts(source.config, source.family)
    elif (directory / "config.json").is_file():
        source, config = None, load_config(str(directory / "config.json"))
        objective = config.train.objective
        model = config_to_dict(config)["model"] | {"rotary_base": phases_of(config)[-1].rotary_base}
        step = step if step is not None else (selected_step(directory, config) or (None,))[0]
        vectors = _vectors(config_to_dict(config))
        labels, head, pooling = config.task.labels, config.task.head, "" if vectors else config.task.pooling
        trained_on = config.task.train if config.task.name == "none" else config.task.name
        tokenizer = {"path": str((directory / "tokenizer").absolute()), "words": config.tokenizer.words}
        before_it = directory / conversion.SOURCE_CONFIG
        source_config = read_json(before_it) if before_it.is_file() else None
        dropouts = _dropouts_of_run(config, source_config)
    else:
        raise UserError(f"init_from={name} has no config.json; expected a work directory or a Hugging Face directory")
    model = {key: value for key, value in model.items() if key not in _OWN}
    model["head_width"] = model.get("head_width") or model["width"] // model["heads"]  # also of a run with fewer heads
    if head in ("", "auto") and source_config:  # a run that continued a checkpoint
        family = str(source_config.get("model_type"))
        head = task_heads.HEADS.get(family, family)
    head, pooling = ("" if value == "auto" else value for value in (head, pooling))
    return Start(
        name,
        directory,
        model,
        tokenizer,
        source,
        source_config,
        objective,
        step,
        labels,
        head,
        pooling,
        trained_on,
        dropouts,
        vectors,
    )


def _vectors(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns how the run with this config makes vectors of texts; nothing if it does not."""
    if config["train"]["objective"] != "embedding":
        return {}
    return {name: config["task"][name] for name in _EMBEDDING}


def selected_step(directory: Path, config: Any) -> tuple[int, str] | None:
    """Returns the checkpoint that a run on labelled examples has selected and reports on, and the metric in words.

    Returns None for other runs, and for those that select none: their newest checkpoint stands for them.
    """
    selects = config.train.objective in KINDS and config.evaluation.select != "none" and config.checkpoint.keep_best
    return best_step(directory / "checkpoints") if selects else None


def _dropouts_of_run(config: Any, source_config: dict[str, Any] | None) -> dict[str, float]:
    """Returns the dropout of a run's heads by their kind: its own, and those of the checkpoint that it started from."""
    family = FAMILIES.get(str((source_config or {}).get("model_type")))
    dropouts = task_heads.head_dropouts(source_config, family) if source_config and family else {}
    if config.train.objective in task_heads.KINDS and config.task.dropout is not None:
        dropouts[task_heads.KINDS[config.train.objective]] = config.task.dropout
    return dropouts


def load_config_and_start(
    spec: str | Path | ConfigDict, overrides: Sequence[str], workdir: Path | None = None
) -> tuple[ConfigDict, Start | None]:
    """Returns a config and what its model.init_from names, from which architecture, tokenizer and head come.

    Arguments as of `load_config`. Raises UserError.
    """
    found: list[Start] = []

    def settings(name: str) -> dict[str, dict[str, Any]]:
        found.append(resolve(name, workdir))
        return found[0].settings

    config = load_config(spec, overrides, settings)
    if found and config.task.dropout is None:  # which rate it is depends on the objective
        config.task.dropout = found[0].dropouts.get(task_heads.KINDS.get(config.train.objective, ""))
    if found and config.train.objective == "embedding":
        named = {full_name(override.partition("=")[0]) for override in overrides}
        for key, value in found[0].embedding_settings().items():
            if f"task.{key}" not in named and config.task[key] == SETTINGS["task"][key].default:
                config.task[key] = value
    return config, found[0] if found else None


def start_settings(name: str, workdir: Path | None = None) -> dict[str, dict[str, Any]]:
    """Returns the settings that a run takes from the directory `name`, by section. Raises UserError."""
    return resolve(name, workdir).settings


def _grow_vocabulary(
    params: dict[str, Any], theirs: EncoderConfig, encoder: EncoderConfig, before: Tokenizer, tokenizer: Tokenizer
) -> None:
    """Gives each new token the mean of its old pieces, in the token table and in the head's output and bias, if any."""
    if encoder.vocab_size < theirs.vocab_size:
        raise UserError(f"model.vocab_size={encoder.vocab_size} would cut the {theirs.vocab_size} rows of the weights")
    new = range(before.vocab_size, tokenizer.vocab_size)
    pieces = [before.encode(tokenizer.text_of(id)).ids for id in new]

    def grown(array: np.ndarray) -> np.ndarray:
        """Returns the array with rows for the new tokens; the table's spare rows start at the mean of all."""
        spare = np.repeat(array.mean(0, keepdims=True), encoder.vocab_size - len(array), axis=0)
        result = np.concatenate([array, spare.astype(array.dtype)])
        for id, old in zip(new, pieces, strict=True):
            result[id] = array[old].mean(0) if len(old) else array.mean(0)
        return result

    token, head = params["encoder"]["embeddings"]["token"], params.get("head", {})
    token["embedding"] = grown(token["embedding"])
    if "bias" in head:
        head["bias"] = grown(head["bias"])
    if "kernel" in head:
        head["kernel"] = np.ascontiguousarray(grown(head["kernel"].T).T)


def _extend_positions(params: dict[str, Any], theirs: EncoderConfig, encoder: EncoderConfig, how: str) -> None:
    """Lengthens the position table by repeating its rows (arXiv 2004.05150) or by linear interpolation."""
    table, offset = params["encoder"]["embeddings"]["position"], theirs.position_offset
    rows, wanted = theirs.max_positions - offset, encoder.max_positions - offset
    first, known = table["embedding"][:offset], table["embedding"][offset:]
    if how == "repeat":
        longer = known[np.arange(wanted) % rows]
    else:
        points = np.linspace(0, rows - 1, wanted)
        below = np.minimum(points.astype(int), rows - 2)
        share = (points - below)[:, None].astype(known.dtype)
        longer = known[below] * (1 - share) + known[below + 1] * share
    table["embedding"] = np.concatenate([first, longer.astype(known.dtype)])
