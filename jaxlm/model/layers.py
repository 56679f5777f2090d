"""The pieces that every layer is made of: products, norms, activations, dropout, and the initial weights."""

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
    """Returns x @ kernel + bias, or x @ kernel.T + bias if transposed: x [..., D], kernel [D, F] ([F, D]) -> [..., F].

    F may be several axes, of kernel and bias, where it is not transposed.
    Products are in the compute dtype and accumulate in float32; the result is in the activation dtype, or if
    `unrounded` the float32 that was accumulated.
    """
    dtype = jnp.dtype(execution.compute_dtype)
    if execution.activation_dtype == "float32" or unrounded:
        flat = x.reshape(-1, x.shape[-1])  # XLA's CPU kernels run stacked products at half the speed of flat ones
        features = kernel.shape[:1] if transposed else kernel.shape[1:]
        kernel, bias = kernel.reshape(len(kernel), -1), None if bias is None else bias.reshape(-1)
        product = _multiply(flat.astype(jnp.float32), kernel, bias, dtype, execution.transpose_gradients, transposed)
        return product.reshape(*x.shape[:-1], *features)
    dimensions = (((x.ndim - 1,), (1 if transposed else 0,)), ((), ()))
    y = lax.dot_general(x.astype(dtype), kernel.astype(dtype), dimensions, preferred_element_type=dtype)
    return y if bias is None else y + bias.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _multiply(x, kernel, bias, dtype: jnp.dtype, transpose_gradients: bool, transposed: bool) -> Array:
    """The product with operands cast to `dtype` and a float32 result, in the backward pass as well."""
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
        # XLA's fast CPU kernels take A B and A B^T but not A^T B, and would undo any transpose that is not in memory.
        grad_kernel = _dot(with_layout_constraint(left.T, Layout(major_to_minor=(0, 1))), right, 1, 0)
    else:
        grad_kernel = _dot(left, right, 0, 0)
    return grad_x, grad_kernel, None if bias is None else column_sums(gradient)


def column_sums(x: Array) -> Array:
    """Returns the sums of x [M, F] over its rows, float32 [F]; on CPU by a product where XLA's sum is slow."""

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
    """Returns the precision of a product of this dtype: accelerators would round float32 to TF32 or bfloat16."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def kernel_init(config: EncoderConfig, role: str = "inner") -> nn.initializers.Initializer:
    """Returns how a kernel starts; `role` is "inner", "residual" (its product is added to the stream) or "logits"."""
    std = config.initialization_std
    if config.initialization == "zero_output" and role != "inner":
        return nn.initializers.zeros_init()
    if config.initialization == "depth_scaled" and role == "residual":
        std /= (2 * config.layers) ** 0.5
    # BERT draws from a normal cut at two deviations and does not correct the deviation for the cut.
    return nn.initializers.truncated_normal(std)


class Dense(nn.Module):
    """x @ kernel + bias; x [..., D] -> [..., features]."""

    features: int
    use_bias: bool
    config: EncoderConfig
    execution: Execution
    role: str = "inner"

    @nn.compact
    def parameters(self, width: int) -> tuple[Array, Array | None]:
        """Returns the kernel [width, features] and the bias [features], for who multiplies several at once."""
        kernel = self.param("kernel", kernel_init(self.config, self.role), (width, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
        return kernel, bias

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.parameters(x.shape[-1])
        return multiply(x, kernel, self.execution, bias)


class Norm(nn.Module):
    """LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467) over the last axis, computed in float32."""

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
    """Returns rows of x float32 [M, D] at mean 0 (if `centre`) and mean square 1; the gradient needs only these."""
    return _normalise_forward(x, epsilon, centre)[0]


def _normalise_forward(x, epsilon, centre):
    mean = x.mean(-1, keepdims=True) if centre else jnp.zeros((x.shape[0], 1))
    inverse = lax.rsqrt(jnp.square(x - mean if centre else x).mean(-1, keepdims=True) + epsilon)
    # XLA would sum each row again in every kernel that reads it: on CPU for every entry, where few rows are taken.
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
    """Returns x [B, ...] with its rows split over the devices as the batch's are, and nothing else of it.

    Without a word XLA splits activations as it finds parameters split, and sums every product over the devices.
    """
    return x if execution.rows is None else lax.with_sharding_constraint(x, execution.rows)


def whole_rows(table: Array, execution: Execution) -> Array:
    """Returns a table [rows, D] whose rows are whole on every device, to be looked up where the ids are.

    Looked up in a table that is split along D, the states of the whole batch would travel in place of the table.
    """
    if execution.rows is None:
        return table
    spec = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
    return lax.with_sharding_constraint(table, NamedSharding(execution.rows.mesh, spec))


def activate(name: str, x: Array) -> Array:
    """Returns the activation by its name in section `model`; for geglu, swiglu and reglu that of the gate."""
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
    """Returns x times the normal distribution's share below x (arXiv 1606.08415), exact, by erf."""
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    share = 0.5 * (1 + lax.erf(x * 0.5**0.5))
    return x * share, x


def _gelu_backward(x, gradient):
    density = jnp.exp(-0.5 * jnp.square(x)) * (2 * jnp.pi) ** -0.5
    return (gradient * (0.5 * (1 + lax.erf(x * 0.5**0.5)) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.named_scope("dropout")
def dropout(x: Array, rate: float, seeds: Array | None, site: int) -> Array:
    """Zeroes a share `rate` of x [B, ...] and scales the rest up; without seeds (uint32 [B, 2]) returns x.

    `site` must differ between the places where a model drops.
    """
    if seeds is None or rate == 0:
        return x
    kept = dropout_kept(x.shape, rate, seeds, site)
    return jnp.where(kept, x * (1 / (1 - rate)), 0).astype(x.dtype)


def dropout_kept(shape: tuple[int, ...], rate: float, seeds: Array, site: int) -> Array:
    """Returns bool [B, ...] of this shape, False for a share `rate`; seeds are uint32 [B, 2].

    The bits are a hash of (the row's seed, the site in the model, the position within the row), so they are the same on
    any mesh and in any micro-batch, and cost a fraction of what a cryptographic generator does. Where the shape
    [B, N, S, K] is cut out of [N, L, L], the seeds are [B, 3]: the last is the first query's position, and as many keys
    stand before it as after the last query.
    """
    of_rows, of_columns = dropout_hashes(shape, seeds, site)
    return dropout_kept_by(of_rows + of_columns, rate)


def dropout_hashes(shape: tuple[int, ...], seeds: Array, site: int) -> tuple[Array, Array]:
    """Returns uint32 [B, ..., 1] and [B, 1..., K] for dropout of this shape [B, ..., K].

    Their sum goes to `dropout_kept_by`: so the work of an entry is little, and kernels that make their own entries drop
    the same ones.
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
    if len(shape) == 4:  # a head's rows are its own
        row = row * jnp.uint32(shape[1]) + lax.broadcasted_iota(jnp.uint32, (1, shape[1], 1, 1), 1)
    of_rows = _mix(_mix(row * jnp.uint32(0x9E3779B1) + first) ^ second)
    return of_rows, _mix(_mix(column * jnp.uint32(0x85EBCA6B) + second) ^ first)


def dropout_kept_by(hashes: Array, rate: float) -> Array:
    """Returns bool like the sums of hashes, False for a share `rate`."""
    x = (hashes ^ (hashes >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)  # only the high bits decide: a last shift would not change them
    return x >= jnp.uint32(round(rate * 2**32))


def _mix(x: Array) -> Array:
    """A 32-bit finaliser: two rounds of xor-shift and odd multiplication, each output bit depends on each input bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)
