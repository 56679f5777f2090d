"""The largest errors of the GPU kernels against XLA in float32, beside XLA's own errors in bfloat16.

An error is the largest absolute difference divided by the largest absolute value of the float32 reference. All three
computations start from the same inputs, which bfloat16 represents exactly.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.config import default_config
from jaxlm.model.attention import AttentionMask
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.kernels.dispatch import attend, mask_for
from jaxlm.model.layers import Norm
from jaxlm.storage import reason

BFLOAT16_ROUNDING = 2.0**-9
TOLERANCE = 2.0  # times XLA's own error

FLOAT32, BFLOAT16 = Execution(), Execution("bfloat16", "bfloat16")


class AttentionCase(NamedTuple):
    """One comparison of flash attention: packed rows of random documents that end with padding."""

    length: int
    documents: int  # per row
    window: int | None = None
    causal: bool = False
    dropout: float = 0.0
    rows: int = 8
    heads: int = 12
    head_width: int = 64

    @property
    def kernel(self) -> str:
        return "flash attention"

    def __str__(self) -> str:
        parts = [f"{self.length:,} tokens", f"{self.documents} documents"]
        parts += [f"window {self.window}"] if self.window else []
        parts += ["causal"] if self.causal else []
        return ", ".join([*parts, f"dropout {self.dropout:g}"])


class NormCase(NamedTuple):
    """One comparison of the fused norm."""

    norm: str
    bias: bool
    width: int
    rows: int = 4096

    @property
    def kernel(self) -> str:
        return "fused norm"

    def __str__(self) -> str:
        return f"{self.norm}{' with bias' if self.bias else ''}, width {self.width:,}"


class KernelError(NamedTuple):
    """The errors of one kernel in one case; `values` are of the outputs, `gradients` the largest of all inputs'.

    `problem` is why the case could not be computed, in one sentence; its errors are then infinite.
    """

    kernel: str
    case: str
    values: float = math.inf
    xla_values: float = math.inf
    gradients: float = math.inf
    xla_gradients: float = math.inf
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Returns whether both errors are at most TOLERANCE times XLA's in bfloat16, or bfloat16's rounding."""
        pairs = ((self.values, self.xla_values), (self.gradients, self.xla_gradients))
        return all(error <= TOLERANCE * max(xla, BFLOAT16_ROUNDING) and error < math.inf for error, xla in pairs)


ATTENTION_CASES = (
    AttentionCase(128, 2),
    AttentionCase(128, 2, dropout=0.1),
    AttentionCase(512, 4, window=128),
    AttentionCase(512, 4, dropout=0.1),
    AttentionCase(1024, 8),
    AttentionCase(1024, 8, window=128, dropout=0.1),
    AttentionCase(1000, 5, causal=True, dropout=0.1),  # not a multiple of the kernel's block
)
NORM_CASES = (
    NormCase("layer_norm", True, 768),
    NormCase("layer_norm", False, 768),
    NormCase("layer_norm", True, 1024),
    NormCase("rms_norm", False, 768),
)
TINY_CASES = (
    AttentionCase(64, 2, rows=2, heads=2, head_width=16),
    AttentionCase(40, 3, window=16, dropout=0.1, rows=2, heads=2, head_width=16),
    NormCase("layer_norm", True, 24, 64),
)


def kernel_errors(tiny: bool = False, threads: int = 8) -> Iterator[KernelError]:
    """Yields the errors of each case; with `tiny`, of small shapes by Pallas's interpreter, which runs on CPU.

    Nearly all the time goes to compiling, which the threads do in parallel. A case that raises has a `problem`.
    """

    def error_of(case: AttentionCase | NormCase) -> KernelError:
        try:
            return attention_error(case, tiny) if isinstance(case, AttentionCase) else norm_error(case, tiny)
        except Exception as error:
            return KernelError(case.kernel, str(case), problem=f"{type(error).__name__}: {reason(error)}")

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(error_of, TINY_CASES if tiny else (*ATTENTION_CASES, *NORM_CASES))


def attention_error(case: AttentionCase, interpret: bool = False) -> KernelError:
    """Returns the errors of flash attention in bfloat16."""
    shape = (case.rows, case.length, case.heads, case.head_width)
    rng = np.random.default_rng(0)
    inputs = [_normal(rng, shape) for _ in range(3)]  # query, key, value
    gradient = _normal(rng, shape)
    seeds = jnp.asarray(rng.integers(0, 2**32, (case.rows, 2), np.uint32))
    segment_ids = random_documents(rng, case.rows, case.length, case.documents)

    def run(execution: Execution, query: Array, key: Array, value: Array) -> Array:
        mask = mask_for(AttentionMask(segment_ids, None, case.window, case.causal), case.length, execution)
        return attend(query, key, value, mask, execution, None, case.dropout, seeds, 1)

    flash = Execution("bfloat16", "bfloat16", attention="flash", interpret=interpret)
    return _compare(case.kernel, str(case), run, flash, inputs, gradient)


def norm_error(case: NormCase, interpret: bool = False) -> KernelError:
    """Returns the errors of the fused norm in bfloat16."""
    config = default_config()
    config.model.update(norm=case.norm, norm_bias=case.bias, width=case.width, heads=1, vocab_size=50)
    encoder = encoder_config(config.model)
    rng = np.random.default_rng(0)
    x, gradient = (_normal(rng, (case.rows, case.width), mean, 2.0) for mean in (1.0, 0.0))
    params = Norm(encoder).init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + _normal(rng, leaf.shape), params)

    def run(execution: Execution, params: Any, x: Array) -> Array:
        return Norm(encoder, execution).apply(params, x.astype(execution.activation_dtype))  # type: ignore[return-value]

    fused = Execution("bfloat16", "bfloat16", fused_norm=True, interpret=interpret)
    return _compare(case.kernel, str(case), run, fused, [params, x], gradient)


def random_documents(rng: np.random.Generator, rows: int, length: int, documents: int) -> Array:
    """Returns segment ids int32 [rows, length]: `documents` of random lengths in each row, then padding, segment 0."""
    table = np.zeros((rows, length), np.int32)
    for row in table:
        ends = np.sort(rng.choice(np.arange(1, length), documents, replace=False))
        for segment, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            row[start:end] = segment
    return jnp.asarray(table)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], mean: float = 0.0, deviation: float = 1.0) -> Array:
    """Returns normal numbers in float32 that bfloat16 represents exactly."""
    return jnp.asarray(rng.normal(mean, deviation, shape), jnp.bfloat16).astype(jnp.float32)


def _compare(
    kernel: str, case: str, run: Callable[..., Array], fused: Execution, inputs: list[Any], gradient: Array
) -> KernelError:
    """Returns the errors of `run(fused, *inputs)` and of its gradients."""

    # The interpreter's programs are large: on CPU nearly all the time is that of optimising them.
    options = {"xla_backend_optimization_level": 0} if fused.interpret else None

    @partial(jax.jit, static_argnums=0, compiler_options=options)
    def results(execution: Execution, inputs: list[Any], gradient: Array) -> tuple[Array, list[Array]]:
        out, pull = jax.vjp(partial(run, execution), *inputs)
        return out, jax.tree.leaves(pull(gradient.astype(out.dtype)))

    ours, xla, reference = (results(execution, inputs, gradient) for execution in (fused, BFLOAT16, FLOAT32))

    def errors(found: tuple[Array, list[Array]]) -> tuple[float, float]:
        return _error(found[0], reference[0]), max(map(_error, found[1], reference[1]))

    (values, gradients), (xla_values, xla_gradients) = errors(ours), errors(xla)
    return KernelError(kernel, case, values, xla_values, gradients, xla_gradients)


def _error(found: Array, reference: Array) -> float:
    """Returns the error of an array, infinite if it has values that are not finite."""
    difference = np.abs(np.asarray(found, np.float32) - np.asarray(reference, np.float32)).max()
    error = float(difference / np.abs(np.asarray(reference, np.float32)).max())
    return error if math.isfinite(error) else math.inf
