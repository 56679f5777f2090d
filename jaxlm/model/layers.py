"""Building blocks of layers: matrix products, norms, activations, dropout, and initializers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.fused_norm import fits, fused_norm


def multiply(
    x: Array,
    kernel: Array,
    execution: Execution,
    bias: Array | None = None,
    transposed: bool = False,
    unrounded: bool = False,
) -> Array:
    """Returns x @ kernel + bias [..., F] of x [..., D] and kernel [D, F]; if transposed, the kernel is [F, D].

    If it is not transposed, F may stand for several axes of kernel and bias. Operands are in the compute dtype,
    accumulation is in float32; the result is in the activation dtype, or in float32 if `unrounded`.
    """
    dtype = jnp.dtype(execution.compute_dtype)
    if execution.activation_dtype == "float32" or unrounded:
        flat = x.reshape(-1, x.shape[-1])  # on CPU, batched products run at half the speed of flat ones
        features = kernel.shape[:1] if transposed else kernel.shape[1:]
        kernel, bias = kernel.reshape(len(kernel), -1), None if bias is None else bias.reshape(-1)
        product = _multiply(flat.astype(jnp.float32), kernel, bias, dtype, execution.transpose_gradients, transposed)
        return product.reshape(*x.shape[:-1], *features)
    dimensions = (((x.ndim - 1,), (1 if transposed else 0,)), ((), ()))
    y = lax.dot_general(x.astype(dtype), kernel.astype(dtype), dimensions, preferred_element_type=dtype)
    return y if bias is None else y + bias.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _multiply(x, kernel, bias, dtype: jnp.dtype, transpose_gradients: bool, transposed: bool) -> Array:
    """Returns the float32 product of operands cast to `dtype`; the same holds for the backward products."""
    return _multiply_forward(x, kernel, bias, dtype, transpose_gradients, transposed)[0]


def _multiply_forward(x, kernel, bias, dtype, transpose_gradients, transposed):
    x, cast_kernel = x.astype(dtype), kernel.astype(dtype)
    y = _dot(x, cast_kernel, 1, 1 if transposed else 0)
    return y if bias is None else y + bias, (x, cast_kernel, bias)


def _multiply_backward(dtype, transpose_gradients, transposed, saved, gradient):
    x, kernel, bias = saved
    gradient = gradient.astype(dtype)
    grad_x = _dot(gradient, kernel, 1, 0 if transposed else 1)
    left, right = (gradient, x) if transposed else (x, gradient)
    if transpose_gradients:
        # XLA's fast CPU kernels compute A B and A B^T, not A^T B; the constraint keeps XLA from removing the transpose.
        grad_kernel = _dot(with_layout_constraint(left.T, Layout(major_to_minor=(0, 1))), right, 1, 0)
    else:
        grad_kernel = _dot(left, right, 0, 0)
    return grad_x, grad_kernel, None if bias is None else column_sums(gradient)


def column_sums(x: Array) -> Array:
    """Returns the sum of x [M, F] over its rows, float32 [F]; on CPU as a product where XLA's sum is slow."""

    def as_product(x: Array) -> Array:
        return _dot(jnp.ones((1, x.shape[0]), x.dtype), x, 1, 0)[0]

    def as_sum(x: Array) -> Array:
        return x.sum(0, dtype=jnp.float32)

    return lax.platform_dependent(x, cpu=as_sum if len(x) > x.shape[1] else as_product, default=as_sum)


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    precision = precision_of(left.dtype)
    return lax.dot_general(left, right, dimensions, precision, preferred_element_type=jnp.float32)


def precision_of(dtype: jnp.dtype) -> lax.Precision | None:
    """Returns the precision of products of a dtype; by default, accelerators round float32 to TF32 or bfloat16."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def kernel_init(config: EncoderConfig, role: str = "inner") -> nn.initializers.Initializer:
    """Returns a kernel's initializer; `role` is "inner", "residual" (added to the residual stream) or "logits"."""
    std = config.initialization_std
    if config.initialization == "zero_output" and role != "inner":
        return nn.initializers.zeros_init()
    if config.initialization == "depth_scaled" and role == "residual":
        std /= (2 * config.layers) ** 0.5
    # As BERT: truncated at two standard deviations, without correcting the deviation for the truncation.
    return nn.initializers.truncated_normal(std)


class Dense(nn.Module):
    """Returns x @ kernel + bias [..., features] of x [..., D]."""

    features: int
    use_bias: bool
    config: EncoderConfig
    execution: Execution
    role: str = "inner"

    @nn.compact
    def parameters(self, width: int) -> tuple[Array, Array | None]:
        """Returns the kernel [width, features] and the bias [features], to join several kernels into one product."""
        kernel = self.param("kernel", kernel_init(self.config, self.role), (width, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
        return kernel, bias

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.parameters(x.shape[-1])
        return multiply(x, kernel, self.execution, bias)


class Norm(nn.Module):
    """LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467) over the last axis, in float32; keeps x's dtype."""

    config: EncoderConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, width = self.config, x.shape[-1]
        centre = config.norm == "layer_norm"
        scale = self.param("scale", nn.initializers.ones_init(), (width,))
        has_bias = centre and config.norm_bias
        bias = self.param("bias", nn.initializers.zeros_init(), (width,)) if has_bias else None
        flat = x.reshape(-1, width)
        if self.execution.fused_norm and fits(len(flat)):
            bias = jnp.zeros(width) if bias is None else bias
            y = fused_norm(flat, scale, bias, config.norm_epsilon, centre, self.execution.interpret)
        else:
            y = _scale_rows(normalise(flat.astype(jnp.float32), config.norm_epsilon, centre), scale)
            y = y if bias is None else _add_row(y, bias)
        return y.reshape(x.shape).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def normalise(x: Array, epsilon: float, centre: bool) -> Array:
    """Returns the rows of x, float32 [M, D], scaled to mean square 1, and if `centre` first shifted to mean 0.

    The custom gradient saves only the result and the scale of each row.
    """
    return _normalise_forward(x, epsilon, centre)[0]


def _normalise_forward(x, epsilon, centre):
    mean = x.mean(-1, keepdims=True) if centre else jnp.zeros((x.shape[0], 1))
    inverse = lax.rsqrt(jnp.square(x - mean if centre else x).mean(-1, keepdims=True) + epsilon)
    # Without the barrier, XLA recomputes the sums in each kernel that reads them; on CPU, with few rows, per entry.
    mean, inverse = lax.optimization_barrier((mean, inverse))
    y = (x - mean if centre else x) * inverse
    return y, (y, inverse)


def _normalise_backward(epsilon, centre, saved, gradient):
    y, inverse = saved
    along = (gradient * y).mean(-1, keepdims=True)
    across = gradient.mean(-1, keepdims=True) if centre else 0.0
    return (inverse * (gradient - across - y * along),)


normalise.defvjp(_normalise_forward, _normalise_backward)


@jax.custom_vjp
def _scale_rows(x: Array, scale: Array) -> Array:
    return x * scale


_scale_rows.defvjp(lambda x, s: (x * s, (x, s)), lambda saved, g: (g * saved[1], column_sums(g * saved[0])))


@jax.custom_vjp
def _add_row(x: Array, row: Array) -> Array:
    return x + row


_add_row.defvjp(lambda x, row: (x + row, None), lambda _, g: (g, column_sums(g)))


def split_rows(x: Array, execution: Execution) -> Array:
    """Returns x [B, ...] constrained to have its rows, and no other axis, split over devices like the batch.

    Without the constraint, XLA splits activations like the parameters, and sums every product over the devices.
    """
    return x if execution.rows is None else lax.with_sharding_constraint(x, execution.rows)


def whole_rows(table: Array, execution: Execution) -> Array:
    """Returns a table [rows, D] constrained not to be split along D, so that each device looks up its own ids.

    With a table split along D, the devices would exchange the states of the whole batch instead of the table.
    """
    if execution.rows is None:
        return table
    spec = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
    return lax.with_sharding_constraint(table, NamedSharding(execution.rows.mesh, spec))


def activate(name: str, x: Array) -> Array:
    """Returns the activation `name` of section `model` applied to x; for geglu, swiglu and reglu, x is the gate."""
    if name == "none":
        return x
    if name in ("gelu", "geglu"):
        return gelu(x)
    if name == "gelu_tanh":
        return jax.nn.gelu(x, approximate=True)
    if name in ("silu", "swiglu"):
        return jax.nn.silu(x)
    x = jax.nn.relu(x)
    return x * x if name == "relu_squared" else x


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Returns the exact GELU of x, x times the normal cumulative distribution at x (arXiv 1606.08415)."""
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    cumulative = 0.5 * (1 + lax.erf(x * 0.5**0.5))
    return x * cumulative, x


def _gelu_backward(x, gradient):
    density = jnp.exp(-0.5 * jnp.square(x)) * (2 * jnp.pi) ** -0.5
    return (gradient * (0.5 * (1 + lax.erf(x * 0.5**0.5)) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.named_scope("dropout")
def dropout(x: Array, rate: float, seeds: Array | None, site: int) -> Array:
    """Returns x [B, ...] after dropout at `rate`; unchanged if there are no seeds, uint32 [B, 2].

    `site` numbers the dropout layers of a model, so that their bits differ.
    """
    if seeds is None or rate == 0:
        return x
    kept = dropout_kept(x.shape, rate, seeds, site)
    return jnp.where(kept, x * (1 / (1 - rate)), 0).astype(x.dtype)


def dropout_kept(shape: tuple[int, ...], rate: float, seeds: Array, site: int) -> Array:
    """Returns bool [B, ...] of the given shape, False with probability `rate`; seeds are uint32 [B, 2].

    The bits are a hash of (the row's seed, the site, the position within the row): they do not depend on the mesh or
    the micro-batch, and cost a fraction of a cryptographic generator's. If the shape [B, N, S, K] is cut out of
    [B, N, L, L], seeds are [B, 3]: the last is the position of the first query, and as many keys precede it as follow
    the last query.
    """
    of_rows, of_columns = dropout_hashes(shape, seeds, site)
    return dropout_kept_by(of_rows + of_columns, rate)


def dropout_hashes(shape: tuple[int, ...], seeds: Array, site: int) -> tuple[Array, Array]:
    """Returns hashes uint32 [B, ..., 1] of rows and [B, 1..., K] of columns for dropout of shape [B, ..., K].

    Their sum is the argument of `dropout_kept_by`. So little is computed per entry, and kernels that compute single
    blocks drop the same entries.
    """
    ones = (1,) * (len(shape) - 1)
    first, second = seeds[:, 0] ^ jnp.uint32(site * 0x9E3779B9 & 0xFFFFFFFF), seeds[:, 1]
    first, second = (_mix(x).reshape(-1, *ones) for x in (first, second + jnp.uint32(site * 0x85EBCA77 & 0xFFFFFFFF)))
    row = lax.broadcasted_iota(jnp.uint32, (1, *shape[1:-1], 1), max(len(shape) - 2, 0))
    column = lax.broadcasted_iota(jnp.uint32, (1, *ones[1:], shape[-1]), len(shape) - 1)
    if seeds.shape[1] == 3:
        start = seeds[:, 2].reshape(-1, *ones)
        row += start
        column += start - jnp.uint32((shape[-1] - shape[-2]) // 2)
    if len(shape) == 4:  # rows of different heads differ
        row = row * jnp.uint32(shape[1]) + lax.broadcasted_iota(jnp.uint32, (1, shape[1], 1, 1), 1)
    of_rows = _mix(_mix(row * jnp.uint32(0x9E3779B1) + first) ^ second)
    return of_rows, _mix(_mix(column * jnp.uint32(0x85EBCA6B) + second) ^ first)


def dropout_kept_by(hashes: Array, rate: float) -> Array:
    """Returns bool of the shape of `hashes`, the sums of row and column hashes; False with probability `rate`."""
    x = (hashes ^ (hashes >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)  # no last shift: the comparison depends on the high bits
    return x >= jnp.uint32(round(rate * 2**32))


def _mix(x: Array) -> Array:
    """Returns a 32-bit hash of x, in which each output bit depends on each input bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)
