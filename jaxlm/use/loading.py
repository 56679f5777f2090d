"""Loading a trained model from a work directory or a Hugging Face directory: parameters, architecture, tokenizer."""

import dataclasses
import io
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxlm.config import default_config, load_config, phase_number, phases_of
from jaxlm.errors import UserError
from jaxlm.huggingface import conversion
from jaxlm.huggingface.weights import some_of
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.execution import Execution, choose_execution
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.table import OBJECTIVES, abstract_params
from jaxlm.runtime import hardware
from jaxlm.runtime.checkpoint import restore_params
from jaxlm.storage import read_bytes
from jaxlm.tokenizer.tokenizer import Tokenizer, check_ids, load_tokenizer

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

    @property
    def model(self) -> MaskedLM:
        return MaskedLM(self.encoder, self.execution)


def require_head(trained: Trained) -> None:
    """Raises UserError if the model has no masked-LM head."""
    if not trained.has_head:
        raise UserError(
            f"{trained.directory} has no masked-LM head, which fill-mask and score need; `jaxlm embed` works without,"
            " and continued pretraining adds a head"
        )


def load_trained(name: str | Path, compute_dtype: str = "float32") -> Trained:
    """Returns the model of a work directory, at its newest complete checkpoint, or of a Hugging Face directory.

    `name` may also be the name of a model in the local Hugging Face cache. compute_dtype "auto" is bfloat16 if the
    hardware is fast at it, otherwise float32. Raises UserError.
    """
    directory = conversion.locate(name)
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{name} has no config.json; expected a work directory of `jaxlm train` or a Hugging Face directory"
        )
    if compute_dtype == "auto":
        compute_dtype = "bfloat16" if hardware.fast_bfloat16() else "float32"
    execution = choose_execution(compute_dtype, jax.devices()[0].platform, 1)
    if conversion.is_checkpoint(directory):
        return _load_checkpoint(directory, execution)
    return _load_workdir(directory, execution)


def _load_workdir(directory: Path, execution: Execution) -> Trained:
    config = load_config(str(directory / "config.json"))
    tokenizer = load_tokenizer(directory / "tokenizer", config.tokenizer.words)
    encoder = encoder_config(config.model, tokenizer.vocab_size)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one_device), abstract_params(config, encoder)
    )
    saved = restore_params(directory / "checkpoints", shapes)
    has_head = OBJECTIVES[config.train.objective].predicts_tokens
    params = saved.state if has_head else {"encoder": saved.state["encoder"]}
    phases = phases_of(config)
    encoder = dataclasses.replace(encoder, rotary_base=phases[phase_number(phases, saved.step - 1)].rotary_base)
    counts = _token_counts(directory / "token_counts.npy", tokenizer.vocab_size)
    longest = max(phase.sequence_length for phase in phases)
    if (directory / conversion.SOURCE_CONFIG).is_file():  # the original checkpoint was trained on longer rows
        longest = max(longest, encoder.max_positions - encoder.position_offset)
    return Trained(directory, config, encoder, execution, params, tokenizer, saved.step, counts, longest, has_head)


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
    encoder = encoder_config(config.model, tokenizer.vocab_size)
    loaded = conversion.read_params(source, encoder)
    if loaded.fresh:
        loaded.params.pop("head", None)
        _log.warning("%s has no masked-LM head: it lacks %s", directory, some_of(loaded.fresh, 3))
    params = jax.device_put(loaded.params, jax.devices()[0])
    longest = conversion.longest_text(source, encoder)
    config.data.update(sequence_length=min(longest, 512), prepend_begin=True)
    counts = np.zeros(encoder.vocab_size, np.int64)
    return Trained(
        directory, config, encoder, execution, params, tokenizer, 0, counts, longest, not loaded.fresh, source
    )
