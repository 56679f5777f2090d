"""The architecture of an encoder and its head: `EncoderConfig`."""

import dataclasses
import difflib
from typing import Any

from jaxlm.config import check_architecture, checked_value
from jaxlm.errors import UserError
from jaxlm.model.presets import PRESETS
from jaxlm.settings import MAX_CHOSEN_VOCABULARY, SETTINGS

_DEFAULTS = {name: setting.default for name, setting in SETTINGS["model"].items()}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The architecture of an encoder and its masked-LM head; `jaxlm config model` describes the fields.

    The defaults are those of the settings of section `model`, and vocab_size is that of a trained vocabulary;
    embedding_width=0 stands for `width`, and head_width=0 for `width` / `heads`. Raises UserError for invalid values.
    """

    vocab_size: int = MAX_CHOSEN_VOCABULARY
    layers: int = _DEFAULTS["layers"]
    width: int = _DEFAULTS["width"]
    heads: int = _DEFAULTS["heads"]
    head_width: int = _DEFAULTS["head_width"]
    feed_forward_width: int = _DEFAULTS["feed_forward_width"]
    embedding_width: int = _DEFAULTS["embedding_width"]
    norm: str = _DEFAULTS["norm"]
    norm_position: str = _DEFAULTS["norm_position"]
    norm_epsilon: float = _DEFAULTS["norm_epsilon"]
    norm_bias: bool = _DEFAULTS["norm_bias"]
    attention_bias: bool = _DEFAULTS["attention_bias"]
    feed_forward_bias: bool = _DEFAULTS["feed_forward_bias"]
    first_norm: bool = _DEFAULTS["first_norm"]
    embedding_norm: bool = _DEFAULTS["embedding_norm"]
    activation: str = _DEFAULTS["activation"]
    positions: str = _DEFAULTS["positions"]
    max_positions: int = _DEFAULTS["max_positions"]
    position_offset: int = _DEFAULTS["position_offset"]
    rotary_base: float = _DEFAULTS["rotary_base"]
    local_rotary_base: float = _DEFAULTS["local_rotary_base"]
    layer_pattern: str = _DEFAULTS["layer_pattern"]
    window: int = _DEFAULTS["window"]
    value_residual: float = _DEFAULTS["value_residual"]
    token_types: int = _DEFAULTS["token_types"]
    tied_output: bool = _DEFAULTS["tied_output"]
    output_bias: bool = _DEFAULTS["output_bias"]
    output_bias_from_frequencies: bool = _DEFAULTS["output_bias_from_frequencies"]
    head_transform: bool = _DEFAULTS["head_transform"]
    head_bias: bool = _DEFAULTS["head_bias"]
    head_activation: str = _DEFAULTS["head_activation"]
    dropout: float = _DEFAULTS["dropout"]
    attention_dropout: float = _DEFAULTS["attention_dropout"]
    initialization: str = _DEFAULTS["initialization"]
    initialization_std: float = _DEFAULTS["initialization_std"]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked_value(f"model.{field.name}", getattr(self, field.name)))
        if self.vocab_size < 8:
            raise UserError("model.vocab_size must be at least 8 if there is no tokenizer to take it from")
        if not self.embedding_width:
            object.__setattr__(self, "embedding_width", self.width)
        check_architecture(self)
        if not self.head_width:
            object.__setattr__(self, "head_width", self.width // self.heads)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "EncoderConfig":
        """Returns a published architecture, such as "bert_base" or "modernbert_base", with some fields changed.

        Raises UserError for an unknown name.
        """
        if name not in PRESETS:
            near = difflib.get_close_matches(str(name), PRESETS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the presets are {', '.join(PRESETS)}"
            raise UserError(f"there is no preset {name}; {hint}")
        return cls(**PRESETS[name] | changes)

    @property
    def attention_width(self) -> int:
        """The width of all heads together, which is `width` unless heads have been removed."""
        return self.heads * self.head_width

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
    if fields["vocab_size"] < tokenizer_size:
        raise UserError(
            f"model.vocab_size={fields['vocab_size']} is smaller than the tokenizer's {tokenizer_size} entries; "
            f"set it to 0 to follow the tokenizer, or to at least {tokenizer_size}"
        )
    return EncoderConfig(**fields)
