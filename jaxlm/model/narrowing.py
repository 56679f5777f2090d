"""Removes whole layers, attention heads and units of feed-forward networks: the model becomes smaller and faster."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def kept_layers(given: int, layers: int, remove: str) -> list[int]:
    """Returns which of `given` layers remain, in order, when the `top` ones are removed or a `spread` of them is kept.

    The spread has the first and the last layer and as many as evenly as possible between them: of 12 layers 0, 2, 4, 7,
    9 and 11, with which DistilBERT (arXiv 1910.01108) starts.
    """
    if remove == "top":
        return list(range(layers))
    return np.linspace(0, given - 1, layers).round().astype(int).tolist()


def keep_layers(encoder: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Returns the parameters of an encoder with some of its layers, numbered anew."""
    layers = {f"layers_{new}": encoder[f"layers_{old}"] for new, old in enumerate(kept)}
    return {name: branch for name, branch in encoder.items() if not name.startswith("layers_")} | layers


def keep_units(params: Any, width: int) -> Any:
    """Returns parameters of arrays on the host whose feed-forward networks have their `width` most important units.

    The importance of a unit is the product of the norms of the weights into it and out of it: a unit without effect has
    0. Each layer keeps as many, in their order.
    """
    if not isinstance(params, dict):
        return params
    if {"up", "down"} <= params.keys():
        return _narrowed(params, width)
    return {name: keep_units(branch, width) for name, branch in params.items()}


def _narrowed(block: dict[str, Any], width: int) -> dict[str, Any]:
    importance = np.linalg.norm(block["down"]["kernel"], axis=1)
    for name in block.keys() - {"down"}:
        importance = importance * np.linalg.norm(block[name]["kernel"], axis=0)
    kept = np.sort(np.argsort(-importance, kind="stable")[:width])
    narrow = {
        name: {part: np.ascontiguousarray(array[..., kept]) for part, array in dense.items()}
        for name, dense in block.items()
        if name != "down"
    }
    return narrow | {"down": block["down"] | {"kernel": np.ascontiguousarray(block["down"]["kernel"][kept])}}


def keep_heads(params: Any, heads: int, head_width: int) -> Any:
    """Returns parameters of arrays on the host whose attention has its `heads` most important heads in each layer.

    The importance of a head is the Frobenius norm of its product of value and output kernel, all that it can write into
    the states: a head without effect has 0. It needs no data, unlike the gradients of arXiv 1905.10650. What the biases
    of the values of a removed head add is the same for all tokens, and goes into the bias of the output.
    """
    if not isinstance(params, dict):
        return params
    if {"query", "key", "value", "output"} <= params.keys():
        return _with_fewer_heads(params, heads, head_width)
    return {name: keep_heads(branch, heads, head_width) for name, branch in params.items()}


def _with_fewer_heads(block: dict[str, Any], heads: int, head_width: int) -> dict[str, Any]:
    value = block["value"]["kernel"].reshape(len(block["value"]["kernel"]), -1, head_width)
    output = block["output"]["kernel"].reshape(-1, head_width, block["output"]["kernel"].shape[1])
    # The square of the norm of V O is the trace of V'V OO', whose factors are as small as a head is wide.
    squares = (np.einsum("dnh,dng->nhg", value, value) * np.einsum("nho,ngo->nhg", output, output)).sum((1, 2))
    kept = np.sort(np.argsort(-squares, kind="stable")[:heads])
    columns = (kept[:, None] * head_width + np.arange(head_width)).ravel()
    result = {
        name: {part: np.ascontiguousarray(array[..., columns]) for part, array in block[name].items()}
        for name in ("query", "key", "value")
    }
    result["output"] = block["output"] | {"kernel": np.ascontiguousarray(block["output"]["kernel"][columns])}
    if "bias" in block["value"] and "bias" in block["output"]:
        removed = np.setdiff1d(np.arange(len(block["output"]["kernel"])), columns)
        constant = block["value"]["bias"][removed] @ block["output"]["kernel"][removed]
        result["output"]["bias"] = block["output"]["bias"] + constant
    return result
