"""The families of Hugging Face checkpoints that our encoder can express: one table each, for import and export.

A table lists the module names, the keys of config.json and their settings, and the settings that the family fixes.
MPNet and DeBERTa are missing: their attention has position terms that no setting of ours expresses.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.model.config import EncoderConfig
from jaxlm.settings import LARGEST_INTEGERS
from jaxlm.typed import Record, is_kind


class Part(NamedTuple):
    """A module whose tensor is one of several that a checkpoint concatenates along the first axis."""

    module: str
    number: int


class Key(NamedTuple):
    """A key of config.json (dots separate nested keys) and the corresponding setting of section `model`."""

    theirs: str
    ours: str
    default: Any  # the value that Transformers uses if the key is missing
    values: dict[Any, Any] | None = None  # their value -> ours; of several for one value, the first is written
    reader: Callable[[Any], Any] | None = None
    writer: Callable[[Any, EncoderConfig], Any] | None = None

    @property
    def kind(self) -> type:
        """The type of their value."""
        return type(self.default)

    def read(self, value: Any) -> Any:
        """Returns the setting for a value of config.json.

        Raises TypeError if it is not of `kind`, and KeyError or ValueError if it is unknown.
        """
        if not is_kind(value, self.kind):
            raise TypeError
        if self.values is not None:
            return self.values[value]
        return self.reader(value) if self.reader else value

    def write(self, value: Any, encoder: EncoderConfig) -> Any:
        """Returns the value for config.json of a setting, or None if there is none."""
        if self.values is not None:
            return next((theirs for theirs, ours in self.values.items() if ours == value), None)
        return self.writer(value, encoder) if self.writer else value


def _unchanged(config: Record) -> dict[str, Any]:
    return config.content


def _no_keys(encoder: EncoderConfig) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family. `modules` maps our module names to theirs, with * for the layer number and without `prefix`."""

    name: str
    masked_lm: str  # the class in Transformers
    base: str  # the class without a head
    prefix: str
    modules: dict[str, str | Part]
    decoder: str  # the output projection, missing from the file if it is tied
    output_bias: str
    decoder_bias: str  # a second name of the output bias, if any; an untied decoder uses this one
    keys: tuple[Key, ...]
    fixed: dict[str, Any]
    special_ids: dict[str, str]  # key of config.json -> role of the token
    has_pooler: bool = False  # a dense layer and tanh on the state of the begin token, as in BERT
    allowed: dict[str, tuple] = dataclasses.field(
        default_factory=dict
    )  # keys for which other values change the function
    modernise: Callable[[Record], dict[str, Any]] = _unchanged  # converts older formats of config.json
    older_keys: Callable[[EncoderConfig], dict[str, Any]] = _no_keys  # read by older versions of Transformers

    def is_encoder(self, name: str) -> bool:
        """Returns whether a tensor, named without the prefix, belongs to the encoder and not to a head."""
        roots = {
            (theirs.module if isinstance(theirs, Part) else theirs).split(".")[0]
            for ours, theirs in self.modules.items()
            if ours.startswith("encoder/")
        }
        return name.split(".")[0] in roots


_ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_python_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu_squared",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
_GATED = {"gelu": "geglu", "silu": "swiglu", "swish": "swiglu", "relu": "reglu"}

# What all post-norm encoders with learned positions share (Devlin et al. 2018, arXiv 1810.04805).
_POST_NORM: dict[str, Any] = {
    "embedding_width": 0, "head_width": 0, "norm": "layer_norm", "norm_position": "post", "norm_bias": True,
    "attention_bias": True, "feed_forward_bias": True, "first_norm": True, "embedding_norm": True,
    "positions": "learned", "position_offset": 0, "rotary_base": 10_000.0, "local_rotary_base": 10_000.0,
    "layer_pattern": "g", "window": 128, "value_residual": 0.0, "output_bias": True,
    "output_bias_from_frequencies": False, "head_transform": True, "head_bias": True, "initialization": "normal",
}  # fmt: skip
_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_BERT_MODULES: dict[str, str | Part] = {
    "encoder/embeddings/token": "embeddings.word_embeddings",
    "encoder/embeddings/position": "embeddings.position_embeddings",
    "encoder/embeddings/token_type": "embeddings.token_type_embeddings",
    "encoder/embeddings/norm": "embeddings.LayerNorm",
    **{f"encoder/layers_*/{ours}": f"encoder.layer.*.{theirs}" for ours, theirs in _LAYER.items()},
}
_BERT_KEYS = (
    Key("vocab_size", "vocab_size", 30_522),
    Key("hidden_size", "width", 768),
    Key("num_hidden_layers", "layers", 12),
    Key("num_attention_heads", "heads", 12),
    Key("intermediate_size", "feed_forward_width", 3072),
    Key("hidden_act", "activation", "gelu", _ACTIVATIONS),
    Key("max_position_embeddings", "max_positions", 512),
    Key("type_vocab_size", "token_types", 2),
    Key("layer_norm_eps", "norm_epsilon", 1e-12),
    Key("hidden_dropout_prob", "dropout", 0.1),
    Key("attention_probs_dropout_prob", "attention_dropout", 0.1),
    Key("initializer_range", "initialization_std", 0.02),
    Key("tie_word_embeddings", "tied_output", True),
)
_ALLOWED = {"is_causal": (False,)}  # Transformers then hides later tokens, in every family
_BERT_ALLOWED = _ALLOWED | {
    "is_decoder": (False,), "add_cross_attention": (False,), "position_embedding_type": ("absolute",),
    "pruned_heads": ({},),
}  # fmt: skip

_BERT = Family(
    name="bert",
    masked_lm="BertForMaskedLM",
    base="BertModel",
    prefix="bert.",
    modules=_BERT_MODULES | {
        "head/transform": "cls.predictions.transform.dense",
        "head/norm": "cls.predictions.transform.LayerNorm",
        "head": "cls.predictions.decoder",
    },
    decoder="cls.predictions.decoder.weight",
    output_bias="cls.predictions.bias",
    decoder_bias="cls.predictions.decoder.bias",
    keys=(Key("hidden_act", "head_activation", "gelu", _ACTIVATIONS), *_BERT_KEYS),
    fixed=_POST_NORM,
    special_ids={"pad_token_id": "pad"},
    has_pooler=True,
    allowed=_BERT_ALLOWED,
)  # fmt: skip

# Liu et al. 2019, arXiv 1907.11692: positions start at the row after the pad token's id.
_ROBERTA = Family(
    name="roberta",
    masked_lm="RobertaForMaskedLM",
    base="RobertaModel",
    prefix="roberta.",
    modules=_BERT_MODULES | {
        "head/transform": "lm_head.dense", "head/norm": "lm_head.layer_norm", "head": "lm_head.decoder",
    },
    decoder="lm_head.decoder.weight",
    output_bias="lm_head.bias",
    decoder_bias="lm_head.decoder.bias",
    keys=(*_BERT_KEYS, Key("pad_token_id", "position_offset", 1, None, lambda pad: pad + 1, lambda row, _: row - 1)),
    fixed=_POST_NORM | {"head_activation": "gelu"},
    special_ids={"pad_token_id": "pad", "bos_token_id": "begin", "eos_token_id": "end"},
    has_pooler=True,
    allowed=_BERT_ALLOWED,
)  # fmt: skip

# Sanh et al. 2019, arXiv 1910.01108
_DISTILBERT = Family(
    name="distilbert",
    masked_lm="DistilBertForMaskedLM",
    base="DistilBertModel",
    prefix="distilbert.",
    modules={
        "encoder/embeddings/token": "embeddings.word_embeddings",
        "encoder/embeddings/position": "embeddings.position_embeddings",
        "encoder/embeddings/norm": "embeddings.LayerNorm",
        "encoder/layers_*/attention/query": "transformer.layer.*.attention.q_lin",
        "encoder/layers_*/attention/key": "transformer.layer.*.attention.k_lin",
        "encoder/layers_*/attention/value": "transformer.layer.*.attention.v_lin",
        "encoder/layers_*/attention/output": "transformer.layer.*.attention.out_lin",
        "encoder/layers_*/attention_norm": "transformer.layer.*.sa_layer_norm",
        "encoder/layers_*/feed_forward/up": "transformer.layer.*.ffn.lin1",
        "encoder/layers_*/feed_forward/down": "transformer.layer.*.ffn.lin2",
        "encoder/layers_*/feed_forward_norm": "transformer.layer.*.output_layer_norm",
        "head/transform": "vocab_transform",
        "head/norm": "vocab_layer_norm",
        "head": "vocab_projector",
    },
    decoder="vocab_projector.weight",
    output_bias="vocab_projector.bias",
    decoder_bias="",
    keys=(
        Key("vocab_size", "vocab_size", 30_522),
        Key("dim", "width", 768),
        Key("n_layers", "layers", 6),
        Key("n_heads", "heads", 12),
        Key("hidden_dim", "feed_forward_width", 3072),
        Key("activation", "head_activation", "gelu", _ACTIVATIONS),
        Key("activation", "activation", "gelu", _ACTIVATIONS),
        Key("max_position_embeddings", "max_positions", 512),
        Key("dropout", "dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.1),
        Key("initializer_range", "initialization_std", 0.02),
        Key("tie_word_embeddings", "tied_output", True),
    ),
    fixed=_POST_NORM | {"token_types": 0, "norm_epsilon": 1e-12},
    special_ids={"pad_token_id": "pad"},
    allowed=_ALLOWED,
)

# Clark et al. 2020, arXiv 2003.10555: narrow embeddings with a projection; a discriminator has its own head
_ELECTRA = Family(
    name="electra",
    masked_lm="ElectraForMaskedLM",
    base="ElectraModel",
    prefix="electra.",
    modules=_BERT_MODULES | {
        "encoder/embeddings/projection": "embeddings_project",
        "head/transform": "generator_predictions.dense",
        "head/norm": "generator_predictions.LayerNorm",
        "head": "generator_lm_head",
        "discriminator/transform": "discriminator_predictions.dense",
        "discriminator/score": "discriminator_predictions.dense_prediction",
    },
    decoder="generator_lm_head.weight",
    output_bias="generator_lm_head.bias",
    decoder_bias="",
    keys=(*_BERT_KEYS, Key("embedding_size", "embedding_width", 128)),
    fixed=_POST_NORM | {"head_activation": "gelu"},
    special_ids={"pad_token_id": "pad"},
    allowed=_BERT_ALLOWED,
)  # fmt: skip

_LAYER_TYPES = {"full_attention": "g", "sliding_attention": "l"}


def _read_pattern(types: list[str]) -> str:
    letters = "".join(_LAYER_TYPES[kind] for kind in types)
    for period in range(1, len(letters) + 1):
        if all(letter == letters[i % period] for i, letter in enumerate(letters)):
            return letters[:period]
    raise ValueError("no layers")


def _write_pattern(pattern: str, encoder: EncoderConfig) -> list[str]:
    names = {letter: name for name, letter in _LAYER_TYPES.items()}
    return [names[pattern[layer % len(pattern)]] for layer in range(encoder.layers)]


def _read_window(width: int) -> int:
    if width < 1:
        raise ValueError("a token would not see itself")
    return max(1, width // 2 * 2)  # half of it on each side


def _modernise(record: Record) -> dict[str, Any]:
    """Returns ModernBERT's config.json in the format of Transformers 5; version 4 had a layer period and two bases."""
    config = dict(record.content)
    if "sliding_window" in config:  # half of the window; it replaces local_attention
        config["local_attention"] = 2 * record.integer("sliding_window", 64)
    layers = record.integer("num_hidden_layers", 22, at_least=1, at_most=LARGEST_INTEGERS["model.layers"])
    if not record.items("layer_types", str, []):
        every = record.integer("global_attn_every_n_layers", 3, at_least=1)
        config["layer_types"] = [list(_LAYER_TYPES)[bool(layer % every)] for layer in range(layers)]
    elif len(config["layer_types"]) != layers:
        raise record.error("layer_types", f"expected one for each of the {layers} layers in num_hidden_layers")
    full = record.number("global_rope_theta", 160_000.0)
    # A null local base means the global base; a missing one has its own default.
    local = record.number("local_rope_theta", full if "local_rope_theta" in config else 10_000.0)
    given = record.record("rope_parameters", {})
    if not given.content.keys() <= _LAYER_TYPES.keys():
        raise record.error("rope_parameters", f"expected an object with the keys {' and '.join(_LAYER_TYPES)}")
    config["rope_parameters"] = {
        kind: {"rope_theta": base, "rope_type": "default"} | given.record(kind, {}).content
        for kind, base in zip(_LAYER_TYPES, (full, local), strict=True)
    }
    return config


def _older_modernbert(encoder: EncoderConfig) -> dict[str, Any]:
    """Returns the keys that Transformers 4 reads, or none if it cannot express the layer pattern."""
    pattern = encoder.layer_pattern
    if pattern != "g" + "l" * (len(pattern) - 1):
        return {}
    return {
        "global_attn_every_n_layers": len(pattern),
        "global_rope_theta": encoder.rotary_base,
        "local_rope_theta": encoder.local_rotary_base,
    }


# Warner et al. 2024, arXiv 2412.13663; Ettin and mmBERT belong to this family
_MODERNBERT = Family(
    name="modernbert",
    masked_lm="ModernBertForMaskedLM",
    base="ModernBertModel",
    prefix="model.",
    modules={
        "encoder/embeddings/token": "embeddings.tok_embeddings",
        "encoder/embeddings/norm": "embeddings.norm",
        "encoder/layers_*/attention_norm": "layers.*.attn_norm",
        "encoder/layers_*/attention/query": Part("layers.*.attn.Wqkv", 0),
        "encoder/layers_*/attention/key": Part("layers.*.attn.Wqkv", 1),
        "encoder/layers_*/attention/value": Part("layers.*.attn.Wqkv", 2),
        "encoder/layers_*/attention/output": "layers.*.attn.Wo",
        "encoder/layers_*/feed_forward_norm": "layers.*.mlp_norm",
        "encoder/layers_*/feed_forward/gate": Part("layers.*.mlp.Wi", 0),  # the half with the activation
        "encoder/layers_*/feed_forward/up": Part("layers.*.mlp.Wi", 1),
        "encoder/layers_*/feed_forward/down": "layers.*.mlp.Wo",
        "encoder/final_norm": "final_norm",
        "head/transform": "head.dense",
        "head/norm": "head.norm",
        "head": "decoder",
    },
    decoder="decoder.weight",
    output_bias="decoder.bias",
    decoder_bias="",
    keys=(
        Key("vocab_size", "vocab_size", 50_368),
        Key("hidden_size", "width", 768),
        Key("num_hidden_layers", "layers", 22),
        Key("num_attention_heads", "heads", 12),
        Key("intermediate_size", "feed_forward_width", 1152),
        Key("hidden_activation", "activation", "gelu", _GATED),
        Key("max_position_embeddings", "max_positions", 8192),
        Key("norm_eps", "norm_epsilon", 1e-5),
        Key("norm_bias", "norm_bias", False),
        Key("attention_bias", "attention_bias", False),
        Key("mlp_bias", "feed_forward_bias", False),
        Key("local_attention", "window", 128, None, _read_window),
        Key("layer_types", "layer_pattern", [], None, _read_pattern, _write_pattern),
        Key("rope_parameters.full_attention.rope_theta", "rotary_base", 160_000.0, None, float),
        Key("rope_parameters.sliding_attention.rope_theta", "local_rotary_base", 10_000.0, None, float),
        Key("embedding_dropout", "dropout", 0.0, None, float),
        Key("attention_dropout", "attention_dropout", 0.0, None, float),
        Key("initializer_range", "initialization_std", 0.02),
        Key("classifier_bias", "head_bias", False),
        Key("classifier_activation", "head_activation", "gelu", _ACTIVATIONS | {"linear": "none"}),
        Key("decoder_bias", "output_bias", True),
        Key("tie_word_embeddings", "tied_output", True),
    ),
    fixed=_POST_NORM | {
        "norm_position": "pre", "first_norm": False, "positions": "rotary", "token_types": 0,
        "initialization": "depth_scaled",
    },
    special_ids={
        "pad_token_id": "pad", "bos_token_id": "begin", "cls_token_id": "begin",
        "eos_token_id": "end", "sep_token_id": "end",
    },
    allowed=_ALLOWED | {
        "rope_parameters.full_attention.rope_type": ("default",),
        "rope_parameters.sliding_attention.rope_type": ("default",),
        "rope_scaling": (None,),
    },
    modernise=_modernise,
    older_keys=_older_modernbert,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _BERT,
        _ROBERTA,
        dataclasses.replace(_ROBERTA, name="xlm-roberta", masked_lm="XLMRobertaForMaskedLM", base="XLMRobertaModel"),
        dataclasses.replace(_ROBERTA, name="camembert", masked_lm="CamembertForMaskedLM", base="CamembertModel"),
        _DISTILBERT,
        _ELECTRA,
        _MODERNBERT,
    )
}
