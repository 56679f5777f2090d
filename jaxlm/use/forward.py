"""A model's outputs for arrays of tokens: checked, differentiable, and compiled for few shapes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jaxlm.data.packing import padded_size
from jaxlm.errors import UserError
from jaxlm.model.heads import MaskedLM, encode, predict
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.parameter_paths import param_path
from jaxlm.use.loading import Trained

SHORTEST_ROW = 16  # tokens; shorter rows are padded to it


def forward(
    trained: Trained, head: bool, tokens: ArrayLike, segment_ids: ArrayLike | None, token_types: ArrayLike | None,
    params: Mapping[str, Any] | None,
) -> Array:  # fmt: skip
    """Returns the states of the last layer, float32 [B, L, D], or with `head` the vocabulary logits, float32 [B, L, V].

    tokens, segment_ids and token_types are int32 [B, L]. Arrays with values are padded to powers of two, so that few
    shapes are compiled, and the padding is cut off the result. Traced arrays, or traced params, are computed in their
    own shape, as a part of the caller's program. Raises UserError for arrays that do not fit each other or the model.
    """
    expected = {part: trained.params[part] for part in (("encoder", "head") if head else ("encoder",))}
    if params is not None:
        _check_params(params, expected)
        expected = {part: params[part] for part in expected}
    leaves = jax.tree.leaves((expected, tokens, segment_ids, token_types))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        arrays = _checked(trained, jnp, tokens, segment_ids, token_types)
        return _nested(trained.model, head, expected, *arrays)
    with jax.ensure_compile_time_eval():  # also inside a jit, since nothing here depends on its arguments
        arrays = _checked(trained, np, tokens, segment_ids, token_types)
        rows, length = arrays[0].shape
        padded = _outermost(trained.model, head, expected, *_padded(trained, *arrays))
        return jnp.asarray(np.asarray(padded)[:rows, :length])  # cut on the host: on the device, each shape compiles


def _output(
    model: MaskedLM, head: bool, params: dict, tokens: Array, segment_ids: Array | None, token_types: Array | None
) -> Array:
    states = encode(model, params, tokens, segment_ids, token_types=token_types)
    return predict(model, params, states) if head else states.astype(jnp.float32)


# JAX accepts XLA's options in the outermost jit only.
_outermost = jit(_output, static_argnames=("model", "head"))
_nested = jax.jit(_output, static_argnames=("model", "head"))


def _checked(
    trained: Trained, library: Any, tokens: ArrayLike, segment_ids: ArrayLike | None, token_types: ArrayLike | None
) -> tuple[Any, Any, Any]:
    """Returns the arguments as arrays of a library (NumPy or jax.numpy); what a trace hides is not checked."""
    config, longest = trained.encoder, trained.longest
    ids = _integers(library, "tokens", tokens, config.vocab_size)
    segments = types = None
    if segment_ids is None and ids.shape[1] > longest:
        raise UserError(f"rows of {ids.shape[1]} tokens exceed the model's maximum length of {longest}")
    if segment_ids is not None:
        segments = _integers(library, "segment_ids", segment_ids, 2**31 - 2**16, ids.shape)
        if not isinstance(segments, jax.core.Tracer) and (most := _longest_run(np.asarray(segments))) > longest:
            raise UserError(f"a segment or padding of {most} tokens exceeds the model's maximum length of {longest}")
    if token_types is not None:
        if not config.token_types:
            raise UserError("token_types are given, but the model has none; leave them out")
        types = _integers(library, "token_types", token_types, config.token_types, ids.shape)
    return ids, segments, types


def _integers(library: Any, name: str, values: ArrayLike, end: int, shape: tuple[int, ...] | None = None) -> Any:
    """Returns values from 0 to `end` (exclusive) as an int32 array [B, L], of the given shape."""
    try:
        array = library.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:  # lists of different lengths, or no numbers
        raise UserError(f"{name} must be integers of shape [B, L], in rows of equal length") from error
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UserError(f"{name} must be integers of shape [B, L], not {array.dtype} {list(array.shape)}")
    if shape is not None and array.shape != shape:
        raise UserError(f"{name} must have the shape of tokens {list(shape)}, not {list(array.shape)}")
    if isinstance(array, jax.core.Tracer):
        return array
    if array.size and not 0 <= array.min() <= array.max() < end:
        raise UserError(f"{name} contain ids {array.min()} to {array.max()}, but the model has 0 to {end - 1}")
    return array.astype(np.int32)


def _longest_run(segment_ids: np.ndarray) -> int:
    """Returns the length of the longest run of equal ids in a row of segment_ids [B, L]."""
    changes = np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    starts = np.flatnonzero(changes)
    return int(np.diff(np.append(starts, segment_ids.size)).max(initial=0))


def _padded(
    trained: Trained, tokens: np.ndarray, segment_ids: np.ndarray | None, token_types: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns the arrays padded to powers of two. Padding is in segments of its own, no longer than a text may be."""
    rows, length = tokens.shape
    more = padded_size(rows) - rows, padded_size(length, SHORTEST_ROW) - length
    segments = np.ones_like(tokens) if segment_ids is None else segment_ids
    extra = segments.max(initial=0) + 1 + np.arange(length + more[1], dtype=np.int32) // trained.longest
    padded_segments = np.tile(extra, (rows + more[0], 1))
    padded_segments[:rows, :length] = segments
    widths = ((0, more[0]), (0, more[1]))
    types = None if token_types is None else np.pad(token_types, widths)
    return np.pad(tokens, widths, constant_values=trained.tokenizer.pad_id), padded_segments, types


def _check_params(params: Mapping[str, Any], expected: dict[str, Any]) -> None:
    """Raises UserError unless the parameters given have the names and the shapes of the expected ones."""
    found = _shapes(params)
    for path, shape in _shapes(expected).items():
        if path not in found:
            raise UserError(f"params lack {path}; pass a tree like Model.params")
        if found[path] != shape:
            raise UserError(f"params: {path} has the shape {list(found[path])}, but the model's is {list(shape)}")


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {param_path(path): np.shape(leaf) for path, leaf in leaves}
