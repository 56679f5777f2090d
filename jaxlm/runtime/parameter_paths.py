"""Paths of parameters, such as `encoder/layers_0/attention/query/kernel`, and rules of (pattern, value) over them."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from jaxlm.errors import UserError

# Names that rules take beside patterns. Whatever stands on the encoder is a head; a tied output is the token table.
GROUPS = {"embeddings": "^encoder/embeddings/", "encoder": "^encoder/", "head": "^(?!encoder/)"}


NAMES = "embeddings, encoder, head, layers:0-5, layers:0,1,2 or a pattern of parameter paths"


def param_path(path: Sequence[Any]) -> str:
    """Returns the path of a leaf as `encoder/layers_0/attention/query/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def map_params(function, params: Any) -> Any:
    """Returns the tree with function(path, leaf) in each leaf's place."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(param_path(path), leaf), params)


def find_in(pattern: str, path: str) -> bool:
    """Whether a regular expression, or a name such as `embeddings` or `layers:0-5`, is found in a parameter's path."""
    if pattern.startswith("layers:"):
        number = layer_number(path)
        return number is not None and any(number in span for span in _layer_spans(pattern))
    return re.search(GROUPS.get(pattern, pattern), path) is not None


def layer_number(path: str) -> int | None:
    """Returns which layer, counted from 0, a parameter belongs to; None outside the layers."""
    found = re.search(r"/layers_(\d+)/", path)
    return int(found[1]) if found else None


def layer_count(params: Any) -> int:
    numbers = (layer_number(param_path(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return max((number + 1 for number in numbers if number is not None), default=0)


def _layer_spans(pattern: str) -> list[range]:
    """Returns the layers of `layers:0-5` or `layers:0,1,2`."""
    spans = (part.partition("-") for part in pattern.removeprefix("layers:").split(","))
    return [range(int(first), int(last or first) + 1) for first, _, last in spans]


def check_pattern(pattern: str, rule: str, params: Any, key: str) -> None:
    """Raises UserError for layers that the model has not, and for what is no regular expression."""
    if pattern.startswith("layers:"):
        if not re.fullmatch(r"layers:\d+(-\d+)?(,\d+(-\d+)?)*", pattern) or not all(_layer_spans(pattern)):
            raise UserError(f"{key}: {rule}: layers:0-5 or layers:0,1,2 is meant, counted from 0")
        if max(span[-1] for span in _layer_spans(pattern)) >= (count := layer_count(params)):
            raise UserError(f"{key}: {rule}: the model's layers are 0 to {count - 1}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}: {rule}: {pattern} is no regular expression ({error})") from error


def match_rules(
    rules: Sequence[tuple[str, Any]], params: Any, what: str, every_rule: bool = True, otherwise: Any = None
) -> Any:
    """Returns for each parameter the value of the first rule whose pattern is found in its path.

    Raises UserError for a parameter that no rule covers, unless `otherwise` is its value, and, unless `every_rule` is
    off, a rule that covers none.
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
            f"no rule of {what} covers {uncovered[0]}" + (f" and {len(uncovered) - 1} more" if uncovered[1:] else "")
        )
    idle = [pattern for number, (pattern, _) in enumerate(rules) if number not in used]
    if idle and every_rule:
        raise UserError(f"the rule {idle[0]} of {what} covers no parameter; mend or remove it")
    return values
