"""Exact conversion of an architecture and its parameters to the form of another family."""

import dataclasses
from typing import Any

import numpy as np

from jaxlm.huggingface.families import Family
from jaxlm.model.config import EncoderConfig

# A plain feed-forward is a gated one whose linear half is always 1; relu(x)**2 is relu(x) gated by x.
_GATED = {"gelu": "geglu", "silu": "swiglu", "relu": "reglu", "relu_squared": "reglu"}


def refit(encoder: EncoderConfig, family: Family, pad_id: int) -> EncoderConfig:
    """Returns the architecture in the family's form, if that can compute the same function.

    Positions start at the family's first row (RoBERTa's at the pad token's id plus 1), a table of token types is added
    if the family requires it, and for ModernBERT the feed-forward is gated and the head has a dense layer. Heads of
    zeros replace those that were removed, since the heads of every family fill the width.
    """
    changes: dict[str, Any] = {}
    if encoder.attention_width < encoder.width and encoder.width % encoder.head_width == 0:
        changes["heads"] = encoder.width // encoder.head_width
    if encoder.positions == "learned":
        offset = pad_id + 1 if any(key.ours == "position_offset" for key in family.keys) else 0
        rows = encoder.max_positions - encoder.position_offset
        changes |= {"position_offset": offset, "max_positions": offset + rows}
    if not encoder.token_types and "encoder/embeddings/token_type" in family.modules:
        changes["token_types"] = 1
    if "encoder/layers_*/feed_forward/gate" in family.modules and encoder.activation in _GATED:
        changes["activation"] = _GATED[encoder.activation]
        if encoder.activation != "relu_squared":
            changes["feed_forward_bias"] = True
    plain_head = not encoder.head_transform and encoder.embedding_width == encoder.width
    if family.fixed["norm_position"] == encoder.norm_position == "pre" and plain_head:
        changes |= {"head_transform": True, "head_bias": False, "head_activation": "none"}
    return dataclasses.replace(encoder, **changes)


def refit_params(params: dict[str, Any], before: EncoderConfig, after: EncoderConfig) -> dict[str, Any]:
    """Returns the parameters (nested dicts of NumPy arrays) of `before` converted to `after = refit(before, ...)`."""
    encoder = dict(params["encoder"])
    embeddings = encoder["embeddings"] = dict(encoder["embeddings"])
    if before.position_offset != after.position_offset:
        used = embeddings["position"]["embedding"][before.position_offset :]
        unused = np.zeros((after.position_offset, used.shape[1]), used.dtype)
        embeddings["position"] = {"embedding": np.concatenate([unused, used])}
    if before.token_types != after.token_types:
        embeddings["token_type"] = {"embedding": np.zeros((1, before.embedding_width), np.float32)}
    if before.heads != after.heads:
        for index in range(before.layers):
            layer = encoder[f"layers_{index}"]
            encoder[f"layers_{index}"] = layer | {"attention": _with_zero_heads(layer["attention"], before, after)}
    if before.activation != after.activation:
        for index in range(before.layers):
            layer = encoder[f"layers_{index}"]
            encoder[f"layers_{index}"] = layer | {"feed_forward": _gated(layer["feed_forward"], before, after)}
    result = params | {"encoder": encoder}
    if before.head_transform != after.head_transform and "head" in params:
        final = encoder["final_norm"]
        # The head normalises the normalised states again, which only divides them by sqrt(1 + epsilon).
        scale = final["scale"] * np.float32((1 + before.norm_epsilon) ** 0.5)
        encoder["final_norm"] = {"scale": np.ones_like(scale)}
        norm = {"scale": scale}
        if "bias" in final:
            encoder["final_norm"]["bias"] = np.zeros_like(final["bias"])
            norm["bias"] = final["bias"]
        identity = {"kernel": np.eye(before.width, dtype=np.float32)}
        result["head"] = params["head"] | {"transform": identity, "norm": norm}
    return result


def _with_zero_heads(attention: dict[str, Any], before: EncoderConfig, after: EncoderConfig) -> dict[str, Any]:
    missing = after.attention_width - before.attention_width
    result = {"output": attention["output"] | {"kernel": np.pad(attention["output"]["kernel"], ((0, missing), (0, 0)))}}
    for name in ("query", "key", "value"):
        result[name] = {
            part: np.pad(array, ((0, 0),) * (array.ndim - 1) + ((0, missing),))
            for part, array in attention[name].items()
        }
    return result


def _gated(plain: dict[str, Any], before: EncoderConfig, after: EncoderConfig) -> dict[str, Any]:
    if before.activation == "relu_squared":
        return plain | {"gate": plain["up"]}
    kernel, width = plain["up"]["kernel"], before.feed_forward_width
    zeros = np.zeros(width, np.float32)
    return {
        "gate": {"kernel": kernel, "bias": plain["up"].get("bias", zeros)},
        "up": {"kernel": np.zeros_like(kernel), "bias": np.ones(width, np.float32)},
        "down": {"bias": np.zeros(before.width, np.float32)} | plain["down"],
    }
