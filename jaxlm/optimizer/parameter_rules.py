"""Which parameters decay, are frozen, or have a learning rate of their own, by rules over parameter paths."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxlm.errors import UserError
from jaxlm.runtime.parameter_paths import (
    NAMES,
    check_pattern,
    find_in,
    layer_count,
    layer_number,
    map_params,
    match_rules,
    param_path,
)


def decay_mask(settings: Any, params: Any) -> Any:
    """Returns a tree of bools, True where weight decay applies, from the rules of `optimizer.decay_mask`.

    params may be shapes. Raises UserError for an invalid rule, and for a parameter that no rule matches.
    """
    answers = {"yes": True, "no": False}
    rules = _read_rules(settings.decay_mask, params, "optimizer.decay_mask", "PATTERN=yes or PATTERN=no", answers.get)
    return match_rules(rules, params, "optimizer.decay_mask")


def frozen_mask(settings: Any, params: Any) -> Any:
    """Returns a tree of bools, True for the parameters that `optimizer.freeze` excludes from training.

    params may be shapes. Raises UserError for an entry that matches no parameter, and if every parameter is frozen.
    """
    key, entries = "optimizer.freeze", _join_layer_lists(settings.freeze)
    paths = [param_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for entry in entries:
        check_pattern(entry, entry, params, key)
        if re.fullmatch(r"[\d,-]*", entry) or not any(find_in(entry, path) for path in paths):
            raise UserError(f"{key}: {entry} matches no parameter; expected {NAMES}")
    mask = map_params(lambda path, _: any(find_in(entry, path) for entry in entries), params)
    if all(jax.tree.leaves(mask)):
        raise UserError(f"{key}={','.join(entries)} freezes every parameter; remove an entry")
    return mask


def rate_multipliers(settings: Any, params: Any) -> Any:
    """Returns each parameter's multiplier of the learning rate: its rule's factor times its layer's decay.

    With n layers, the decay is 1 for the head and the final norm, layer_decay ** (n - i) for layer i counted from 0,
    and layer_decay ** (n + 1) for the embeddings. Layer-wise decay follows ELECTRA (arXiv 2003.10555), the exponents
    BEiT (arXiv 2106.08254); ELECTRA's code has one more step below the head. params may be shapes. Raises UserError for
    an invalid rule, and for one that matches no parameter.
    """
    key, expected = "optimizer.rate_multipliers", "PATTERN=FACTOR with a factor above 0"
    rules = _read_rules(settings.rate_multipliers, params, key, expected, _positive_number)
    factors = match_rules(rules, params, key, otherwise=1.0)
    layers = layer_count(params)

    def depth_below_head(path: str, _: Any) -> int:
        number = layer_number(path)
        return layers + 1 if find_in("embeddings", path) else 0 if number is None else layers - number

    depths = map_params(depth_below_head, params)
    return jax.tree.map(lambda factor, depth: factor * settings.layer_decay**depth, factors, depths)


def _read_rules(entries: Sequence[str], params: Any, key: str, expected: str, read: Callable[[str], Any]) -> list:
    """Returns (pattern, value) of each PATTERN=VALUE; `read` returns None for text that is not a value."""
    rules = []
    for rule in entries:
        pattern, _, text = rule.rpartition("=")
        if not pattern or (value := read(text)) is None:
            raise UserError(f"{key}: {rule}: expected {expected}")
        check_pattern(pattern, rule, params, key)
        rules.append((pattern, value))
    return rules


def _join_layer_lists(entries: Sequence[str]) -> list[str]:
    """Returns the entries with `layers:0,1,2` as one entry, which the command line has split at its commas."""
    joined: list[str] = []
    for entry in entries:
        if joined and joined[-1].startswith("layers:") and re.fullmatch(r"\d+(-\d+)?", entry):
            joined[-1] += f",{entry}"
        else:
            joined.append(entry)
    return joined


def _positive_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
