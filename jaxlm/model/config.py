"""What the encoder is (`EncoderConfig`), how it is computed (`Execution`), published architectures (`PRESETS`)."""

import dataclasses
import math
from typing import Any

from jaxlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The architecture. The fields are the settings of section `model`, which tells what each one means."""

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
        """Whether a layer sees a window only: the pattern is tiled over the layers."""
        return self.layer_pattern[layer % len(self.layer_pattern)] == "l"


def encoder_config(settings: Any, tokenizer_size: int = 0) -> EncoderConfig:
    """Returns the architecture of section `model`; its vocabulary is the tokenizer's unless set. Raises UserError."""
    fields = {field.name: settings[field.name] for field in dataclasses.fields(EncoderConfig)}
    fields["vocab_size"] = fields["vocab_size"] or tokenizer_size
    fields["embedding_width"] = fields["embedding_width"] or fields["width"]
    if fields["vocab_size"] < tokenizer_size:
        raise UserError(
            f"model.vocab_size={fields['vocab_size']} is smaller than the tokenizer's {tokenizer_size} entries; "
            f"set it to 0 to follow the tokenizer, or to at least {tokenizer_size}"
        )
    if fields["vocab_size"] < 8:
        raise UserError("model.vocab_size must be set where no tokenizer gives it")
    return EncoderConfig(**fields)


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed, which never changes its parameters.

    `compute_dtype` is that of matrix products, `activation_dtype` that between them. On CPU products of bfloat16 are
    fast only with a float32 result, and gradients of kernels only with a transpose in memory (`transpose_gradients`),
    which on more than one device would cost an all-gather; and XLA must be kept from computing a layer's small
    operations again in each later one (`keep_sums`). `attention` names the kernel; `interpret` runs a Pallas
    kernel where its hardware is not. `fused_norm` computes norms by the GPU's own kernel. `rows` is how devices split
    a batch, if at all.
    """

    compute_dtype: str = "float32"
    activation_dtype: str = "float32"
    transpose_gradients: bool = False
    keep_sums: bool = False
    rematerialise: str = "none"
    attention: str = "xla"
    interpret: bool = False
    fused_norm: bool = False
    rows: Any = None  # jax.sharding.NamedSharding

    @property
    def splits_heads(self) -> bool:
        """Whether devices split attention's heads."""
        return self.rows is not None and self.rows.mesh.shape["tensor"] > 1

    @property
    def batch_parts(self) -> int:
        """Into how many parts devices split a batch."""
        return 1 if self.rows is None else math.prod(self.rows.mesh.shape[axis] for axis in self.rows.spec[0])


def choose_execution(
    compute_dtype: str,
    platform: str,
    devices: int,
    rematerialise: str = "none",
    attention: str = "xla",
    rows: Any = None,
) -> Execution:
    """Returns the execution that is fast on this platform ("cpu", "gpu", "tpu") and number of devices."""
    on_cpu = platform == "cpu"
    return Execution(
        compute_dtype=compute_dtype,
        activation_dtype="float32" if on_cpu else compute_dtype,
        transpose_gradients=on_cpu and devices == 1,
        keep_sums=on_cpu,
        rematerialise=rematerialise,
        attention=attention,
        fused_norm=platform == "gpu" and compute_dtype == "bfloat16" and devices == 1,
        rows=rows if devices > 1 else None,
    )


def choose_attention(
    wanted: str, config: EncoderConfig, compute_dtype: str, platform: str, mesh: Any = None
) -> tuple[str, str]:
    """Returns the attention kernel that train.attention=`wanted` means here, and a clause that says why it is that one.

    Raises UserError where a kernel cannot do what is asked of it.
    """
    if wanted == "xla":
        return "xla", "as train.attention says"
    if wanted != "auto":
        if lack := _lacks(wanted, config, compute_dtype, platform, mesh):
            raise UserError(f"train.attention={wanted}: {lack}; train.attention=auto takes a kernel that is right")
        return wanted, "as train.attention says"
    if platform == "tpu":
        lack = _lacks("splash", config, compute_dtype, platform, mesh)
        return ("xla", f"for splash: {lack}") if lack else ("splash", "the TPU's own, exact for packed rows")
    if platform == "gpu":
        lack = _lacks("flash", config, compute_dtype, platform, mesh)
        return ("xla", f"for flash: {lack}") if lack else ("flash", "jaxlm's own kernel, exact for packed rows")
    return "xla", "the only one for this platform"


def _lacks(kernel: str, config: EncoderConfig, compute_dtype: str, platform: str, mesh: Any) -> str:
    """Returns what an attention kernel cannot do of what is asked, in a clause; empty where it can do all."""
    home = {"splash": "tpu", "flash": "gpu"}[kernel]
    tensor = mesh.shape["tensor"] if mesh is not None else 1
    rules = [
        (platform == home, f"it runs on {home.upper()}s, and this is a {platform.upper()}"),
        (compute_dtype == "bfloat16", f"it computes in bfloat16, and train.compute_dtype is {compute_dtype}"),
        (kernel == "flash" or not config.attention_dropout,
         f"it cannot drop attention weights, and model.attention_dropout is {config.attention_dropout}"),
        (config.positions != "alibi", "it cannot add ALiBi's bias exactly, and model.positions is alibi"),
        (config.heads % tensor == 0, f"mesh.tensor={tensor} does not divide model.heads={config.heads}"),
        (kernel != "flash" or config.head_width in (16, 32, 64, 128),
         f"its head width is 16, 32, 64 or 128, not {config.head_width}"),
    ]  # fmt: skip
    return next((lack for holds, lack in rules if not holds), "")


def training_flops(config: EncoderConfig, batch: int, length: int, predictions: int) -> float:
    """Returns the FLOPs of one update's matrix products, forward and backward (three times the forward).

    Counts the layers' products, attention's two (all of a row, or the window in local layers), the head's and the
    logits' at `predictions` positions; not lookups, norms, softmax, or what rematerialisation computes twice.
    """
    width, hidden, table = config.width, config.feed_forward_width, config.embedding_width
    layer = 4 * width * width + (3 if config.gated else 2) * width * hidden
    seen = sum(min(length, config.window + 1) if config.is_local(i) else length for i in range(config.layers))
    head = width * table if config.head_transform or table != width else 0
    per_token = config.layers * layer + 2 * width * seen + (table * width if table != width else 0)
    return 6.0 * (batch * length * per_token + predictions * (head + table * config.vocab_size))


_BERT = {
    "feed_forward_width": 3072,
    "norm": "layer_norm",
    "norm_position": "post",
    "norm_epsilon": 1e-12,
    "norm_bias": True,
    "attention_bias": True,
    "feed_forward_bias": True,
    "embedding_norm": True,
    "activation": "gelu",
    "positions": "learned",
    "max_positions": 512,
    "token_types": 2,
    "tied_output": True,
    "output_bias": True,
    "head_transform": True,
    "head_bias": True,
    "head_activation": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initialization": "normal",
    "vocab_size": 30_522,
}
_BASE = {"layers": 12, "width": 768, "heads": 12}
_LARGE = {"layers": 24, "width": 1024, "heads": 16}
_MODERNBERT = {
    "norm": "layer_norm",
    "norm_position": "pre",
    "norm_epsilon": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "feed_forward_bias": False,
    "first_norm": False,
    "embedding_norm": True,
    "activation": "geglu",
    "positions": "rotary",
    "rotary_base": 160_000.0,
    "local_rotary_base": 10_000.0,
    "layer_pattern": "gll",
    "window": 128,
    "token_types": 0,
    "tied_output": True,
    "output_bias": True,
    "head_transform": True,
    "head_bias": False,
    "head_activation": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "initialization": "depth_scaled",
    "vocab_size": 50_368,
}

# Section `model` of published architectures, for `config.model.update(PRESETS["bert_base"])` in a config file.
PRESETS: dict[str, dict[str, Any]] = {
    # Devlin et al. 2018, arXiv 1810.04805
    "bert_base": _BERT | _BASE,
    "bert_large": _BERT | _LARGE | {"feed_forward_width": 4096},
    # Liu et al. 2019, arXiv 1907.11692; positions begin at row 2 of the table
    "roberta_base": _BERT | _BASE | {
        "norm_epsilon": 1e-5, "max_positions": 514, "position_offset": 2, "token_types": 1, "vocab_size": 50_265,
    },
    # Portes et al. 2023, arXiv 2312.17482: BERT with ALiBi and a gated feed-forward, no dropout in attention
    "mosaicbert_base": _BERT | _BASE | {
        "activation": "geglu", "positions": "alibi", "attention_dropout": 0.0, "vocab_size": 30_528,
    },
    # Warner et al. 2024, arXiv 2412.13663
    "modernbert_base": _MODERNBERT | {"layers": 22, "width": 768, "heads": 12, "feed_forward_width": 1152},
    "modernbert_large": _MODERNBERT | {"layers": 28, "width": 1024, "heads": 16, "feed_forward_width": 2624},
    # Weller et al. 2025, arXiv 2507.11412
    "ettin_17m": _MODERNBERT | {
        "layers": 7, "width": 256, "heads": 4, "feed_forward_width": 384, "local_rotary_base": 160_000.0,
    },
    "ettin_1b": _MODERNBERT | {
        "layers": 28, "width": 1792, "heads": 28, "feed_forward_width": 3840, "local_rotary_base": 160_000.0,
    },
}  # fmt: skip
