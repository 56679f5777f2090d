"""Removes whole units of the feed-forward networks, so that a model becomes smaller and faster."""

from typing import Any

import numpy as np


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
