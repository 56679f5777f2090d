"""Muon: orthogonalised momentum updates for the matrices of the layers (arXiv 2502.16982)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array


def is_layer_matrix(path: str, leaf: Any) -> bool:
    """Returns whether Muon updates this parameter: matrices of layers, not embeddings, heads, norms or biases."""
    return "/layers_" in path and path.endswith("/kernel") and leaf.ndim == 2


def muon(settings: Any, compute_dtype: str) -> optax.GradientTransformation:
    """Returns the transformation of matrices [in, out]: Nesterov momentum, then orthogonalisation."""

    def orthogonalise_all(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda update: scale(orthogonalise(update, compute_dtype)), updates)

    def scale(update: Array) -> Array:  # keeps the size of the output's change where the output is wider than the input
        return update * max(1.0, update.shape[1] / update.shape[0]) ** 0.5

    return optax.chain(optax.trace(settings.muon_momentum, nesterov=True), optax.stateless(orthogonalise_all))


def orthogonalise(x: Array, compute_dtype: str = "float32") -> Array:
    """Returns x, float32 [M, N], with all singular values close to 1, by five steps of a Newton-Schulz iteration.

    The coefficients and the number of steps are Muon's (https://kellerjordan.github.io/posts/muon/); the results
    lie between 0.7 and 1.2. Products are in the compute dtype: the iteration corrects their rounding errors.
    """
    dtype = jnp.dtype(compute_dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None

    def dot(left: Array, right: Array, right_axis: int = 0) -> Array:
        dimensions = (((1,), (right_axis,)), ((), ()))
        left, right = left.astype(dtype), right.astype(dtype)
        return jax.lax.dot_general(left, right, dimensions, precision, preferred_element_type=jnp.float32)

    def step(_: Any, x: Array) -> Array:
        square = dot(x, x, 1)
        return 3.4445 * x + dot(-4.7750 * square + 2.0315 * dot(square, square), x)

    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = jax.lax.fori_loop(0, 5, step, wide / (jnp.linalg.norm(wide) + 1e-8))
    return wide if x.shape[0] <= x.shape[1] else wide.T
