"""Published architectures, as settings of section `model`."""

from typing import Any

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


# Used in config files: config.model.update(PRESETS["bert_base"])
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
