"""Muon: updates of the layers' matrices, orthogonalised (arXiv 2502.16982)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array


def is_layer_matrix(path: str, leaf: Any) -> bool:
    """Whether Muon turns this parameter: the matrices of the layers, not tables, heads, norms or biases."""
    return "/layers_" in path and path.endswith("/kernel") and leaf.ndim == 2


def muon(settings: Any, compute_dtype: str) -> optax.GradientTransformation:
    def turn(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda update: widen(orthogonalise(update, compute_dtype)), updates)

    def widen(
        update: Array,
    ) -> Array:  # a kernel [in, out] that widens gets more, to keep its output's size
        return update * max(1.0, update.shape[1] / update.shape[0]) ** 0.5

    return optax.chain(optax.trace(settings.muon_momentum, nesterov=True), optax.stateless(turn))


def orthogonalise(x: Array, compute_dtype: str = "float32") -> Array:
    """Returns the matrix float32 [M, N] with its singular values all near 1: five steps of a Newton-Schulz iteration.

    Coefficients and number of steps are those of Muon (https://kellerjordan.github.io/posts/muon/), which bring values
    to between 0.7 and 1.2 and no nearer. Products are in the compute dtype: the iteration mends what they round.
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
