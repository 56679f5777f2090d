"""Task heads of each family in Transformers: the class, the tensors and the settings of each kind, for both ways.

A head of ours has the parameters {"transform", "norm", "kernel", "bias"} (model/task_model.py), of which a kind of head
may lack the first two. It goes to and from one class per family and kind, such as BertForSequenceClassification.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.huggingface import conversion, family_config
from jaxlm.huggingface.families import FAMILIES, Family
from jaxlm.huggingface.weights import check_finite, tensor_names
from jaxlm.model.config import EncoderConfig
from jaxlm.model.task_model import (
    CHOICE_HEADS,
    SEGMENT_HEADS,
    SPAN_HEADS,
    TOKEN_HEADS,
    HeadStyle,
    default_pooling,
    family_style,
)
from jaxlm.typed import shown

# The objective that trains a head -> the kind of head.
KINDS = {
    "classification": "sequence", "multi_label": "sequence", "regression": "sequence", "reranking": "sequence",
    "tagging": "token", "span": "span", "choice": "choice",
}  # fmt: skip
STYLES = {"sequence": SEGMENT_HEADS, "token": TOKEN_HEADS, "span": SPAN_HEADS, "choice": CHOICE_HEADS}
# Families with the heads of another.
HEADS = {"xlm-roberta": "roberta", "camembert": "roberta"}
_CLASSES = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "choice": "ForMultipleChoice",
}
_PROBLEMS = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
    "reranking": "regression",
}
# The keys of config.json that belong to a head, in any family.
_HEAD_KEYS = ("id2label", "label2id", "problem_type", "num_labels", "_num_labels")
# Settings of an encoder that describe its masked-LM head only; a head with a norm shares bias and activation.
_MASKED_LM = {"tied_output", "output_bias", "head_transform", "head_bias", "head_activation"}
_log = logging.getLogger("jaxlm")


class HeadFormat(NamedTuple):
    """How a family stores one kind of head."""

    output: str  # module of the output, without the family's prefix
    transform: str = ""
    norm: str = ""
    dropout: str = ""  # key of config.json with the rate; "": the head has none of its own
    default_dropout: float | None = None  # what Transformers uses if the key is missing; None: the encoder's rate
    pooling: str = ""  # key of config.json that names the pooling; "": always the first token
    fixed: Mapping[str, Any] = {}  # keys of config.json that have to have these values

    def modules(self) -> dict[str, str]:
        """Returns their modules by the name of ours; that of the output is ""."""
        return {ours: theirs for ours, theirs in
                (("transform", self.transform), ("norm", self.norm), ("", self.output)) if theirs}  # fmt: skip


_BERT_OUTPUT = HeadFormat("classifier", dropout="classifier_dropout")
_BERT_POOLED = _BERT_OUTPUT._replace(transform="pooler.dense")
_DENSE = HeadFormat("classifier.out_proj", "classifier.dense", dropout="classifier_dropout")
_SPAN = HeadFormat("qa_outputs")
_DISTILBERT = HeadFormat("classifier", "pre_classifier", dropout="seq_classif_dropout", default_dropout=0.2)
_MODERNBERT = HeadFormat("classifier", "head.dense", "head.norm", "classifier_dropout", 0.0)
_MODERNBERT_POOLED = _MODERNBERT._replace(pooling="classifier_pooling")
_ELECTRA_SUMMARY = HeadFormat(
    "classifier", "sequence_summary.summary", dropout="summary_last_dropout", default_dropout=0.1,
    fixed={"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
)  # fmt: skip
# The heads by the family of their layers, a value of task.head, and by kind.
FORMATS: dict[str, dict[str, HeadFormat]] = {
    "bert": {"sequence": _BERT_POOLED, "token": _BERT_OUTPUT, "span": _SPAN, "choice": _BERT_POOLED},
    "roberta": {
        "sequence": _DENSE, "token": _BERT_OUTPUT, "span": _SPAN,
        "choice": HeadFormat("classifier", "pooler.dense"),
    },
    "distilbert": {
        "sequence": _DISTILBERT, "token": HeadFormat("classifier"),
        "span": _SPAN._replace(dropout="qa_dropout", default_dropout=0.1), "choice": _DISTILBERT,
    },
    "electra": {"sequence": _DENSE, "token": _BERT_OUTPUT, "span": _SPAN, "choice": _ELECTRA_SUMMARY},
    "modernbert": {
        "sequence": _MODERNBERT_POOLED, "token": _MODERNBERT, "span": _MODERNBERT, "choice": _MODERNBERT_POOLED,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What a fine-tuned model predicts, and the layers of its head."""

    objective: str  # a key of KINDS
    labels: tuple[str, ...]  # names of the outputs; () for numbers, spans and choices
    head: str  # a key of FORMATS
    pooling: str
    dropout: float | None = None  # of the head; None: the encoder's

    @property
    def kind(self) -> str:
        return KINDS[self.objective]

    @property
    def style(self) -> HeadStyle:
        return STYLES[self.kind][self.head]

    @property
    def pools(self) -> bool:
        """Whether the head has one output for each segment, not one for each token."""
        return self.kind in ("sequence", "choice")

    @property
    def outputs(self) -> int:
        return {"span": 2, "choice": 1}.get(self.kind) or len(self.labels) or 1


def head_format(family: Family, kind: str) -> HeadFormat:
    """Returns how a family stores a kind of head."""
    return FORMATS[HEADS.get(family.name, family.name)][kind]


def class_name(family: Family, kind: str) -> str:
    """Returns the class of a kind of head in Transformers, such as BertForSequenceClassification."""
    return family.masked_lm.removesuffix("ForMaskedLM") + _CLASSES[kind]


def task_of_config(config: Any, encoder: EncoderConfig) -> TaskSettings | None:
    """Returns the task of a run; None if it trains no head that Transformers has."""
    objective, task = config.train.objective, config.task
    if objective not in KINDS:
        return None
    labels = () if objective in ("regression", "reranking", "span", "choice") else tuple(task.labels)
    return resolve_head(TaskSettings(objective, labels, task.head, task.pooling, task.dropout), encoder)


def resolve_head(task: TaskSettings, encoder: EncoderConfig) -> TaskSettings:
    """Returns a task with the head and the pooling that "auto", or "", stands for."""
    head = family_style(encoder) if task.head in ("", "auto") else task.head
    pooling = default_pooling(head) if task.pooling in ("", "auto") else task.pooling
    return dataclasses.replace(task, head=head, pooling=pooling)


def same_labels(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Returns whether two models have the same outputs; those that Transformers calls LABEL_0, LABEL_1 and so on have
    no names, and are equal to labels that are numbered so."""
    return numbered(theirs) == numbered(ours)


def numbered(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Returns 0, 1 and so on for the names that Transformers gives to labels without names; others as they are."""
    plain = tuple(name.removeprefix("LABEL_") for name in labels)
    return plain if plain == tuple(map(str, range(len(labels)))) else labels


def one_output(first: str | None, second: str | None) -> bool:
    """Returns whether heads of two objectives have one output each.

    Transformers calls both a regression, and does not record whether the output is a number or the logit of relevance.
    """
    return {first, second} <= {"regression", "reranking"}


# Import


def task_of_source(source: conversion.Source) -> TaskSettings | None:
    """Returns the task of a checkpoint, by the class in its config.json; None if it has no head that we have."""
    config, family = source.config, source.family
    named = next(iter(config.get("architectures") or []), "")
    kind = next((kind for kind in _CLASSES if named == class_name(family, kind)), None)
    if kind is None:
        return None
    form, where = head_format(family, kind), source.directory / "config.json"
    named_outputs = kind in ("sequence", "token")
    labels = _labels(config) if named_outputs else ()
    objective = _objective(kind, config, labels or ())
    wrong = {key: config[key] for key, value in form.fixed.items() if config.get(key, value) != value}
    wrong |= {"id2label": config.get("id2label")} if labels is None else {}
    wrong |= {"problem_type": config.get("problem_type")} if objective is None else {}
    if wrong or objective is None or labels is None:
        differences = ", ".join(f"{key}={shown(value)}" for key, value in wrong.items())
        _log.warning("%s: the head of %s is not used, since jaxlm has none with %s", where, named, differences)
        return None
    if objective == "regression":
        labels = ()
    pooling = config.get(form.pooling) or "cls"
    dropout = config.get(form.dropout, form.default_dropout)
    return TaskSettings(objective, labels, HEADS.get(family.name, family.name), pooling, dropout)


def _objective(kind: str, config: dict[str, Any], labels: tuple[str, ...]) -> str | None:
    """Returns the objective of a head; as in Transformers, without problem_type a single output is a number."""
    if kind != "sequence":
        return next(objective for objective, of in KINDS.items() if of == kind)
    problem = config.get("problem_type") or ("regression" if len(labels) == 1 else "single_label_classification")
    objective = next((name for name, theirs in _PROBLEMS.items() if theirs == problem), None)
    outputs_fit = {"classification": len(labels) > 1, "regression": len(labels) == 1, "multi_label": len(labels) > 0}
    return objective if objective and outputs_fit[objective] else None


def _labels(config: dict[str, Any]) -> tuple[str, ...] | None:
    """Returns the names of the outputs in order; None if id2label does not number them from 0."""
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", 2)
        return tuple(f"LABEL_{number}" for number in range(count)) if isinstance(count, int) else None
    if not isinstance(names, dict) or {*map(str, names)} != {*map(str, range(len(names)))}:
        return None
    by_number = {str(number): name for number, name in names.items()}
    return tuple(str(by_number[str(number)]) for number in range(len(names)))


def head_dropouts(config: dict[str, Any], family: Family) -> dict[str, float]:
    """Returns the dropout rates of a family's heads by kind, where config.json or Transformers states one."""
    rates: dict[str, float] = {}
    for kind in _CLASSES:
        form = head_format(family, kind)
        rate = config.get(form.dropout, form.default_dropout) if form.dropout else None
        if isinstance(rate, int | float) and 0 <= rate < 1:
            rates[kind] = float(rate)
    return rates


def head_pooling(config: dict[str, Any], family: Family) -> str:
    """Returns how the heads of a checkpoint pool, if its config.json says so; else ""."""
    pooling = config.get(head_format(family, "sequence").pooling)
    return pooling if pooling in ("cls", "mean") else ""


def read_head(source: conversion.Source, encoder: EncoderConfig, task: TaskSettings) -> dict[str, Any] | None:
    """Returns the parameters of a checkpoint's head, float32.

    Returns None, after a warning, if tensors are missing or have other shapes. Raises UserError for NaN or infinity.
    """
    shapes = _shapes(source.family, encoder, task)
    found = conversion.read_tensors(source, shapes)
    wrong = [f"{name} is missing" for name in shapes if name not in found]
    wrong += [
        f"{name} has the shape {list(array.shape)}, not {list(shapes[name])}"
        for name, array in found.items()
        if array.shape != shapes[name]
    ]
    if wrong:
        _log.warning("%s: the head of the task is not used: %s", source.directory, "; ".join(wrong))
        return None
    for name, array in found.items():
        check_finite(name, array, str(source.directory))
    head: dict[str, Any] = {}
    for module, theirs in head_format(source.family, task.kind).modules().items():
        leaves = {name.rpartition(".")[2]: found[name] for name in shapes if name.rpartition(".")[0] == theirs}
        if module == "norm":
            part = {"scale": leaves["weight"]}
        else:
            part = {"kernel": np.ascontiguousarray(leaves["weight"].T)}
        part |= {"bias": leaves["bias"]} if "bias" in leaves else {}
        head |= {module: part} if module else part
    return head


def head_names(source: conversion.Source, task: TaskSettings) -> list[str]:
    """Returns the names of the tensors of a checkpoint's head, as they are in its files."""
    modules = {*head_format(source.family, task.kind).modules().values()}
    prefix = source.family.prefix
    return [n for n in tensor_names(source.directory) if n.removeprefix(prefix).rpartition(".")[0] in modules]


def _shapes(family: Family, encoder: EncoderConfig, task: TaskSettings) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a head's tensors by name, without the family's prefix."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module, theirs in head_format(family, task.kind).modules().items():
        rows = task.outputs if not module else encoder.width
        shapes[f"{theirs}.weight"] = (rows,) if module == "norm" else (rows, encoder.width)
        has_bias = not (task.style.norm and module) or (encoder.norm_bias if module == "norm" else encoder.head_bias)
        shapes |= {f"{theirs}.bias": (rows,)} if has_bias else {}
    return shapes


# Export


class Target(NamedTuple):
    """The family that a fine-tuned model is written as."""

    family: Family
    lacking: list[str]  # settings of the encoder that it cannot express, such as model.positions=alibi
    headless: str  # why it cannot express the head; "": it can


def target_of(encoder: EncoderConfig, task: TaskSettings, base: str | None = None, wanted: str | None = None) -> Target:
    """Returns the family `wanted`, or else the first that can express encoder and head, or else only the encoder.

    The family `base` comes first.
    """
    names = [wanted] if wanted else [*filter(None, [base]), *family_config.family_order(encoder)]
    targets = []
    for name in dict.fromkeys(name for name in names if name in FAMILIES):
        family = FAMILIES[name]
        lacking = family_config.lacking_settings(as_task_encoder(encoder), family, ignored=_MASKED_LM)
        targets.append(Target(family, lacking, _headless(family, task)))
    return min(targets, key=lambda target: (len(target.lacking), bool(target.headless)))


def as_task_encoder(encoder: EncoderConfig) -> EncoderConfig:
    """Returns an architecture whose masked-LM head, which is not written, has all layers that a family may require."""
    return dataclasses.replace(encoder, head_transform=True)


def _headless(family: Family, task: TaskSettings) -> str:
    """Returns why a family cannot express a head, as the end of a sentence; "" if it can."""
    own = STYLES[task.kind][HEADS.get(family.name, family.name)]
    name, form = class_name(family, task.kind), head_format(family, task.kind)
    if _layers(own) != _layers(task.style):
        return f"{name} lacks the layers of task.head={task.head}"
    if task.pools and task.pooling not in (("cls", "mean") if form.pooling else ("cls",)):
        return f"{name} lacks task.pooling={task.pooling}"
    return ""


def _layers(style: HeadStyle) -> tuple[bool, str, bool]:
    return style.transform, style.activation, style.norm


def unwritten_dropout(target: Target, encoder: EncoderConfig, task: TaskSettings) -> str:
    """Returns a line about a dropout rate that config.json has no key for; "" if there is none."""
    own = task.dropout is not None and task.dropout != encoder.dropout
    if target.headless or head_format(target.family, task.kind).dropout or not (own and task.style.dropout):
        return ""
    name = class_name(target.family, task.kind)
    return f"`jaxlm export` does not write task.dropout={task.dropout:g}: the head of {name} uses model.dropout"


def head_config(
    family: Family, encoder: EncoderConfig, task: TaskSettings, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the content of config.json with the keys of a head in place of those of another."""
    form = head_format(family, task.kind)
    result = {key: value for key, value in config.items() if key not in _HEAD_KEYS}
    result["architectures"] = [class_name(family, task.kind)]
    labels = task.labels or (("LABEL_0",) if task.kind == "sequence" else ())
    if labels:
        result["id2label"] = {str(number): name for number, name in enumerate(labels)}
        result["label2id"] = {name: number for number, name in enumerate(labels)}
    if task.objective in _PROBLEMS:
        result["problem_type"] = _PROBLEMS[task.objective]
    if form.dropout:
        follows = task.dropout is None and form.default_dropout is not None
        result[form.dropout] = encoder.dropout if follows else task.dropout
    if form.pooling:
        result[form.pooling] = task.pooling
    return result | dict(form.fixed)


def head_tensors(family: Family, task: TaskSettings, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the tensors of a head by name, without the family's prefix."""
    tensors: dict[str, np.ndarray] = {}
    for module, theirs in head_format(family, task.kind).modules().items():
        part = params[module] if module else params
        weight = part["scale"] if module == "norm" else np.asarray(part["kernel"]).T
        tensors[f"{theirs}.weight"] = np.ascontiguousarray(weight)
        if "bias" in part:
            tensors[f"{theirs}.bias"] = np.asarray(part["bias"])
    return tensors
