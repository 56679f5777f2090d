"""Loading a trained model from a work directory or a Hugging Face directory: parameters, architecture, tokenizer."""

import argparse
import dataclasses
import io
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxlm.config import default_config, load_config, phase_number, phases_of
from jaxlm.data.tasks.table import KINDS
from jaxlm.errors import UserError
from jaxlm.huggingface import conversion, task_heads
from jaxlm.huggingface.task_heads import TaskSettings
from jaxlm.huggingface.weights import some_of
from jaxlm.init_from import selected_step
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.execution import Execution, choose_execution
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.table import OBJECTIVES, abstract_params
from jaxlm.runtime import hardware
from jaxlm.runtime.checkpoint import find_step, restore_params, split_step
from jaxlm.storage import local_path, read_bytes
from jaxlm.tokenizer.tokenizer import Tokenizer, check_ids, load_tokenizer

TEXT_COLUMNS = ("text", "text_pair")  # of a Hugging Face model, which may read either one text or two
_log = logging.getLogger("jaxlm")


class Trained(NamedTuple):
    """A trained model; its parameters are on one device, whatever mesh it was trained on."""

    directory: Path
    config: ConfigDict
    encoder: EncoderConfig
    execution: Execution
    params: dict[str, Any]  # without "head" if has_head is False
    tokenizer: Tokenizer
    step: int
    counts: np.ndarray  # int64 [V], occurrences of each token in the training text; zeros if unknown
    longest: int  # maximum number of tokens in a row, including begin and end
    has_head: bool  # whether the model has a masked-LM head
    source: conversion.Source | None = None  # set if the directory is a Hugging Face directory
    left_out: tuple[str, ...] = ()  # names of its tensors that belong to other heads and were not loaded
    task: TaskSettings | None = None  # set if the model was fine-tuned with a head that Transformers has
    task_head: dict[str, Any] | None = None  # the parameters of the head of a task, if config.train.objective is one
    task_dtype: str = ""  # of the products in its predictions: that of the run, unless another one was asked for
    selected_by: str = ""  # the metric that selected the step, if it was not named

    @property
    def model(self) -> MaskedLM:
        return MaskedLM(self.encoder, self.execution)

    @property
    def fine_tuned(self) -> bool:
        """Whether the model was trained on labelled examples."""
        return bool(self.task_dtype)

    @property
    def reads_pairs_too(self) -> bool:
        """Whether the model may read one text or two: Transformers does not record which of them it was trained on."""
        return bool(self.source and self.task and self.task.kind == "sequence")


def require_head(trained: Trained) -> None:
    """Raises UserError if the model has no masked-LM head."""
    if not trained.has_head:
        raise UserError(
            f"{trained.directory} has no masked-LM head, which fill-mask and score need; `jaxlm embed` works without,"
            " and continued pretraining adds a head"
        )


def add_model_options(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """Adds --model, with its older names, and --step to the options of a verb, which `load_named` reads."""
    parser.add_argument(
        "--model", *aliases, dest="model", required=True, metavar="DIR",
        help="a work directory of `jaxlm train`, one of its checkpoints (DIR/checkpoints/N), or a Hugging Face"
        " directory",
    )  # fmt: skip
    parser.add_argument(
        "--step", metavar="N|best|latest",
        help="checkpoint of a work directory: its number of updates, best by the metric that selects the best one, or "
        "the latest (default: the best of a run on labelled examples, which results.json reports; of other runs the "
        "latest)",
    )  # fmt: skip


def load_named(args: argparse.Namespace, compute_dtype: str | None = None) -> Trained:
    """Returns the model that --model and --step name, and prints which checkpoint was read to standard error."""
    trained = load_trained(args.model, compute_dtype, args.step)
    if not trained.source:
        why = f", the best by {trained.selected_by}" if trained.selected_by else ""
        print(f"{trained.directory}: read the checkpoint of step {trained.step:,}{why}", file=sys.stderr)
    return trained


def load_trained(name: str | Path, compute_dtype: str | None = None, step: int | str | None = None) -> Trained:
    """Returns the model of a work directory or of a Hugging Face directory. Raises UserError.

    `name` may also be a checkpoint of a work directory (DIR/checkpoints/N), or the name of a model in the local Hugging
    Face cache. compute_dtype "auto" is bfloat16 if the hardware is fast at it, otherwise float32; None is float32, and
    for the predictions of a fine-tuned model the dtype of its run. step selects a checkpoint of a work directory: its
    number, "best", or "latest", the newest complete one. By default it is the one that a run on labelled examples has
    selected, as results.json reports it, and the latest of other runs.
    """
    directory, of_path = split_step(local_path("--model", name))
    directory = conversion.locate(name if of_path is None else directory)
    if of_path is not None and step is not None and str(step) != str(of_path):
        raise UserError(f"{name} is one checkpoint, but step={step} names another; omit one of them")
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{name} has no config.json; expected a work directory of `jaxlm train` or a Hugging Face directory"
        )
    if compute_dtype == "auto":
        compute_dtype = "bfloat16" if hardware.fast_bfloat16() else "float32"
    execution = choose_execution(compute_dtype or "float32", jax.devices()[0].platform, 1)
    if conversion.is_checkpoint(directory):
        if step is not None:
            raise UserError(f"{name} is a Hugging Face directory, which has no checkpoints to select; omit step={step}")
        return _load_checkpoint(directory, execution)
    config, selected_by = load_config(str(directory / "config.json")), ""
    if of_path is None and step is None:
        step, selected_by = selected_step(directory, config) or ("latest", "")
    number = of_path if of_path is not None else find_step(directory / "checkpoints", step)  # type: ignore[arg-type]
    return _load_workdir(directory, config, execution, number, compute_dtype)._replace(selected_by=selected_by)


def _load_workdir(
    directory: Path, config: ConfigDict, execution: Execution, step: int | None, compute_dtype: str | None
) -> Trained:
    tokenizer = load_tokenizer(directory / "tokenizer", config.tokenizer.words)
    encoder = encoder_config(config.model, tokenizer.vocab_size)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one_device), abstract_params(config, encoder)
    )
    saved = restore_params(directory / "checkpoints", shapes, step)
    has_head = OBJECTIVES[config.train.objective].predicts_tokens
    # A head may have no parameters: with a tied output, without a bias and a transform.
    params = {"head": {}} | saved.state if has_head else {"encoder": saved.state["encoder"]}
    phases = phases_of(config)
    encoder = dataclasses.replace(encoder, rotary_base=phases[phase_number(phases, saved.step - 1)].rotary_base)
    counts = _token_counts(directory / "token_counts.npy", tokenizer.vocab_size)
    longest = max(phase.sequence_length for phase in phases)
    if (directory / conversion.SOURCE_CONFIG).is_file():  # the original checkpoint was trained on longer rows
        longest = max(longest, encoder.max_positions - encoder.position_offset)
    task_head, task_dtype = None, ""
    if config.train.objective in KINDS:
        task_head, task_dtype = saved.state.get("head"), compute_dtype or config.train.compute_dtype
    return Trained(
        directory, config, encoder, execution, params, tokenizer, saved.step, counts, longest, has_head,
        task=task_heads.task_of_config(config, encoder), task_head=task_head, task_dtype=task_dtype,
    )  # fmt: skip


def _token_counts(path: Path, vocab_size: int) -> np.ndarray:
    try:
        counts = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
        if counts.shape != (vocab_size,) or counts.dtype != np.int64:
            raise ValueError(f"it contains {counts.dtype}{counts.shape}")
    except Exception as error:  # NumPy raises errors of many types for a damaged header
        raise UserError(
            f"{path} is missing or damaged ({error}): remove {path.parent / 'data.json'} and run `jaxlm train` again,"
            " which writes both again"
        ) from error
    return counts


def _load_checkpoint(directory: Path, execution: Execution) -> Trained:
    source = conversion.read_source(directory)
    config = default_config()
    config.model.update(conversion.model_settings(source))
    tokenizer = load_tokenizer(directory)
    check_ids(tokenizer, config.model.vocab_size, directory)
    conversion.check_padding(source, tokenizer)
    encoder = encoder_config(config.model, tokenizer.vocab_size)
    loaded = conversion.read_params(source, encoder)
    if loaded.fresh:
        loaded.params.pop("head", None)
        _log.warning("%s has no masked-LM head: it lacks %s", directory, some_of(loaded.fresh, 3))
    params = jax.device_put(loaded.params, jax.devices()[0])
    left_out, task = loaded.unused, task_heads.task_of_source(source)
    head = task_heads.read_head(source, encoder, task) if task else None
    if task and head:
        used = task_heads.head_names(source, task)
        left_out = [name for name in left_out if name not in used]
    longest = conversion.longest_text(source, encoder)
    config.data.update(sequence_length=min(longest, 512), prepend_begin=True)
    if task and head:
        config.train.objective = task.objective
        config.task.update(
            labels=task.labels, head=task.head, pooling=task.pooling, dropout=task.dropout, text=TEXT_COLUMNS[:1]
        )
    counts = np.zeros(encoder.vocab_size, np.int64)
    return Trained(
        directory, config, encoder, execution, params, tokenizer, 0, counts, longest, not loaded.fresh, source,
        tuple(left_out), task if head else None, head, execution.compute_dtype if task and head else "",
    )  # fmt: skip
