"""A trained model from its work directory: parameters, architecture, tokenizer."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxlm.checkpoint import restore_params
from jaxlm.config import load_config, phase_number, phases_of
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.errors import UserError
from jaxlm.model.config import EncoderConfig, Execution, choose_execution, encoder_config
from jaxlm.model.heads import MaskedLM, abstract_params


class Trained(NamedTuple):
    """What `load_trained` found; the parameters are on one device whatever mesh trained them."""

    directory: Path
    config: ConfigDict
    encoder: EncoderConfig
    execution: Execution
    params: dict[str, Any]
    tokenizer: Tokenizer
    step: int
    counts: np.ndarray  # int64 [V], how often each token occurred in the training text

    @property
    def model(self) -> MaskedLM:
        return MaskedLM(self.encoder, self.execution)

    @property
    def longest(self) -> int:
        """Tokens of the longest row that the model was trained on."""
        return max(phase["sequence_length"] for phase in phases_of(self.config))


def load_trained(directory: str | Path, compute_dtype: str = "float32") -> Trained:
    """Returns the model of a work directory at its newest whole checkpoint. Raises UserError."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}; --model is a work directory of `jaxlm train`")
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds no config.json; --model is a work directory of `jaxlm train`")
    config = load_config(str(directory / "config.json"))
    tokenizer = load_tokenizer(directory / "tokenizer", config.tokenizer.words)
    encoder = encoder_config(config.model, tokenizer.vocab_size)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), abstract_params(encoder))
    saved = restore_params(directory / "checkpoints", shapes)
    phases = phases_of(config)
    encoder = dataclasses.replace(encoder, rotary_base=phases[phase_number(phases, saved.step - 1)]["rotary_base"])
    execution = choose_execution(compute_dtype, jax.devices()[0].platform, 1)
    counts = np.load(directory / "token_counts.npy", allow_pickle=False)
    return Trained(directory, config, encoder, execution, saved.state, tokenizer, saved.step, counts)
