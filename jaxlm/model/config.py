"""The architecture of an encoder and its head: `EncoderConfig`."""

import dataclasses
from typing import Any

from jaxlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The architecture; the fields are settings of section `model`, documented in `jaxlm.settings`."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    feed_forward_width: int
    embedding_width: int
    norm: str
    norm_position: str
    norm_epsilon: float
    norm_bias: bool
    attention_bias: bool
    feed_forward_bias: bool
    first_norm: bool
    embedding_norm: bool
    activation: str
    positions: str
    max_positions: int
    position_offset: int
    rotary_base: float
    local_rotary_base: float
    layer_pattern: str
    window: int
    value_residual: float
    token_types: int
    tied_output: bool
    output_bias: bool
    output_bias_from_frequencies: bool
    head_transform: bool
    head_bias: bool
    head_activation: str
    dropout: float
    attention_dropout: float
    initialization: str
    initialization_std: float

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def gated(self) -> bool:
        return self.activation in ("geglu", "swiglu", "reglu")

    def is_local(self, layer: int) -> bool:
        """Returns whether a layer attends within a window; the pattern repeats over the layers."""
        return self.layer_pattern[layer % len(self.layer_pattern)] == "l"


def encoder_config(settings: Any, tokenizer_size: int = 0) -> EncoderConfig:
    """Returns the architecture of section `model`; model.vocab_size=0 is replaced by the tokenizer's size.

    Raises UserError if the vocabulary is unknown, or smaller than the tokenizer's.
    """
    fields = {field.name: settings[field.name] for field in dataclasses.fields(EncoderConfig)}
    fields["vocab_size"] = fields["vocab_size"] or tokenizer_size
    fields["embedding_width"] = fields["embedding_width"] or fields["width"]
    if fields["vocab_size"] < tokenizer_size:
        raise UserError(
            f"model.vocab_size={fields['vocab_size']} is smaller than the tokenizer's {tokenizer_size} entries; "
            f"set it to 0 to follow the tokenizer, or to at least {tokenizer_size}"
        )
    if fields["vocab_size"] < 8:
        raise UserError("model.vocab_size must be at least 8 if there is no tokenizer to take it from")
    return EncoderConfig(**fields)
