"""Parameters selected by their paths, such as `encoder/layers_0/attention/query/kernel`.

A pattern is a regular expression that is searched for in the path, or one of the names `embeddings`, `encoder`, `head`,
`layers:0-5` and `layers:0,1,2`. A rule is a (pattern, value); the first rule that matches a path decides the value.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxlm.errors import UserError

# Everything on top of the encoder is a head; a tied output layer is the token table.
GROUPS = {"embeddings": "^encoder/embeddings/", "encoder": "^encoder/", "head": "^(?!encoder/)"}

NAMES = "embeddings, encoder, head, layers:0-5, layers:0,1,2 or a pattern of parameter paths"


def param_path(path: Sequence[Any]) -> str:
    """Returns a key path of `jax.tree_util` as keys joined by slashes."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def map_params(function: Callable[[str, Any], Any], params: Any) -> Any:
    """Returns the tree of function(path, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(param_path(path), leaf), params)


def layer_number(path: str) -> int | None:
    """Returns the layer, counted from 0, that a parameter belongs to; None outside the layers."""
    found = re.search(r"/layers_(\d+)/", path)
    return int(found[1]) if found else None


def layer_count(params: Any) -> int:
    """Returns the number of layers in a tree of parameters."""
    numbers = (layer_number(param_path(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return max((number + 1 for number in numbers if number is not None), default=0)


def find_in(pattern: str, path: str) -> bool:
    """Returns whether a pattern matches a parameter's path."""
    if pattern.startswith("layers:"):
        number = layer_number(path)
        return number is not None and any(number in span for span in _layer_spans(pattern))
    return re.search(GROUPS.get(pattern, pattern), path) is not None


def check_pattern(pattern: str, rule: str, params: Any, key: str) -> None:
    """Raises UserError if a pattern names layers that the model does not have, or is not a regular expression.

    `rule` is the text of the setting `key` that contains the pattern, for the message.
    """
    if pattern.startswith("layers:"):
        if not re.fullmatch(r"layers:\d+(-\d+)?(,\d+(-\d+)?)*", pattern) or not all(_layer_spans(pattern)):
            raise UserError(f"{key}: {rule}: expected layers:0-5 or layers:0,1,2, counted from 0")
        if max(span[-1] for span in _layer_spans(pattern)) >= (count := layer_count(params)):
            raise UserError(f"{key}: {rule}: the model's layers are 0 to {count - 1}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}: {rule}: {pattern} is not a regular expression ({error})") from error


def _layer_spans(pattern: str) -> list[range]:
    """Returns the ranges of layers in `layers:0-5` or `layers:0,1,2`."""
    spans = (part.partition("-") for part in pattern.removeprefix("layers:").split(","))
    return [range(int(first), int(last or first) + 1) for first, _, last in spans]


def match_rules(
    rules: Sequence[tuple[str, Any]], params: Any, table: str, every_rule: bool = True, otherwise: Any = None
) -> Any:
    """Returns the tree of the values that the rules give to the parameters.

    Raises UserError, which names the `table` of rules, if no rule matches a parameter and there is no value
    `otherwise`, or, with `every_rule`, if a rule decides no parameter.
    """
    used, uncovered = set(), []

    def value(path: str, leaf: Any) -> Any:
        for number, (pattern, result) in enumerate(rules):
            if find_in(pattern, path):
                used.add(number)
                return result
        uncovered.append(path)
        return otherwise

    values = map_params(value, params)
    if uncovered and otherwise is None:
        raise UserError(
            f"no rule of {table} covers {uncovered[0]}" + (f" and {len(uncovered) - 1} more" if uncovered[1:] else "")
        )
    unused = [pattern for number, (pattern, _) in enumerate(rules) if number not in used]
    if unused and every_rule:
        raise UserError(f"the rule {unused[0]} of {table} covers no parameter; fix or remove it")
    return values
