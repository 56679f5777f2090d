"""LayerNorm and RMSNorm on GPU: one Pallas Triton kernel forward and one backward.

XLA needs two kernels, which both read the rows, and in the backward pass a third for the sums over columns.
Shapes: M rows, D width.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

ROWS = 4  # rows that a program holds in registers at a time
ROWS_OF_PROGRAM = 32  # rows per program in the backward pass; each program writes the sums over its rows


class _Static(NamedTuple):
    width: int
    epsilon: float
    centre: bool
    interpret: bool


def fits(rows: int) -> bool:
    """Returns whether the kernels support this number of rows."""
    return rows % ROWS_OF_PROGRAM == 0


def fused_norm(x: Array, scale: Array, bias: Array, epsilon: float, centre: bool, interpret: bool = False) -> Array:
    """Returns the normalized rows of x [M, D] times scale [D] plus bias [D], in x's dtype, as `Norm` does.

    With `centre` the rows are shifted to mean 0 first (LayerNorm). M must satisfy `fits`.
    """
    return _norm(x, scale, bias, _Static(x.shape[1], epsilon, centre, interpret))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _norm(x: Array, scale: Array, bias: Array, static: _Static) -> Array:
    return _forward(x, scale, bias, static)[0]


def _forward(x, scale, bias, static):
    padded = pl.next_power_of_2(static.width)
    rows = pl.BlockSpec((ROWS, padded), lambda i: (i, 0))
    row = pl.BlockSpec((padded,), lambda i: (0,))
    y = pl.pallas_call(
        partial(_forward_kernel, static),
        grid=(len(x) // ROWS,),
        in_specs=[rows, row, row],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        name="norm_forward",
        **_call(static),
    )(x, scale, bias)
    return y, (x, scale)


def _backward(static, saved, grad):
    x, scale = saved
    padded, programs = pl.next_power_of_2(static.width), len(x) // ROWS_OF_PROGRAM
    rows = pl.BlockSpec((ROWS_OF_PROGRAM, padded), lambda i: (i, 0))
    row, sums = pl.BlockSpec((padded,), lambda i: (0,)), pl.BlockSpec((None, padded), lambda i: (i, 0))
    partial_sums = jax.ShapeDtypeStruct((programs, static.width), jnp.float32)
    grad_x, grad_scale, grad_bias = pl.pallas_call(
        partial(_backward_kernel, static),
        grid=(programs,),
        in_specs=[rows, rows, row],
        out_specs=[rows, sums, sums],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), partial_sums, partial_sums],
        name="norm_backward",
        **_call(static),
    )(x, grad, scale)
    return grad_x, grad_scale.sum(0), grad_bias.sum(0)


_norm.defvjp(_forward, _backward)


def _forward_kernel(static, x_ref, scale_ref, bias_ref, y_ref):
    inside = _inside(static)
    y, _ = _normalise(static, _load(x_ref, inside[None, :]), inside)
    y = y * _load(scale_ref, inside)[None, :] + _load(bias_ref, inside)[None, :]
    triton.store(y_ref, y.astype(y_ref.dtype), mask=inside[None, :])


def _backward_kernel(static, x_ref, grad_ref, scale_ref, grad_x_ref, grad_scale_ref, grad_bias_ref):
    inside = _inside(static)
    scale = _load(scale_ref, inside)[None, :]

    def some_rows(number, carry):
        grad_scale, grad_bias = carry
        rows = pl.ds(number * ROWS, ROWS)
        grad = _load(grad_ref.at[rows, :], inside[None, :])
        y, inverse = _normalise(static, _load(x_ref.at[rows, :], inside[None, :]), inside)
        scaled = grad * scale
        grad_x = scaled - y * ((scaled * y).sum(1) / static.width)[:, None]
        if static.centre:
            grad_x -= (scaled.sum(1) / static.width)[:, None]
        grad_x = (grad_x * inverse).astype(grad_x_ref.dtype)
        triton.store(grad_x_ref.at[rows, :], grad_x, mask=inside[None, :])
        return grad_scale + grad * y, grad_bias + grad

    zeros = jnp.zeros((ROWS, len(inside)), jnp.float32)
    grad_scale, grad_bias = lax.fori_loop(0, ROWS_OF_PROGRAM // ROWS, some_rows, (zeros, zeros))
    triton.store(grad_scale_ref, grad_scale.sum(0), mask=inside)
    triton.store(grad_bias_ref, grad_bias.sum(0), mask=inside)


def _inside(static: _Static) -> Array:
    """Returns a mask of the entries within the width, in rows padded to a power of two."""
    return jnp.arange(pl.next_power_of_2(static.width)) < static.width


def _load(ref: Any, inside: Array) -> Array:
    return triton.load(ref, mask=inside, other=0.0).astype(jnp.float32)


def _normalise(static: _Static, x: Array, inside: Array) -> tuple[Array, Array]:
    """Returns the rows at mean 0 (if `centre`) and mean square 1, zero in the padding, and their inverse scales."""
    if static.centre:
        x = jnp.where(inside[None, :], x - (x.sum(1) / static.width)[:, None], 0.0)
    inverse = lax.rsqrt((x * x).sum(1) / static.width + static.epsilon)[:, None]
    return x * inverse, inverse


def _call(static: _Static) -> dict[str, Any]:
    return {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=1), "interpret": static.interpret}
