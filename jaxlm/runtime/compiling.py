"""What XLA must be told to compile a model well, which differs with what it compiles for."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def compiler_options(platform: str) -> dict[str, bool | str]:
    """Returns what XLA must be told to compile a model.

    On CPU, to keep its barriers. It would drop them before it fuses and orders operations. Then the small operations of
    a layer, which no product absorbs on CPU, are fused with those of all layers before and computed again in each, and
    what is rematerialised is so at once for all layers. On GPU, to leave products to cuBLAS: trying kernels of its own
    for each of them takes minutes.
    """
    if platform == "cpu":
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return {"xla_gpu_enable_triton_gemm": False} if platform == "gpu" else {}


def initial_options(platform: str) -> dict[str, bool | str]:
    """Returns what XLA must be told to compile what draws the initial parameters: on GPU, not to draw all of one shape
    in one kernel, whose assembly takes minutes."""
    return {"xla_disable_hlo_passes": "multi_output_fusion"} if platform == "gpu" else {}


class jit:
    """`jax.jit` with `compiler_options` of the platform, which is looked up when it is called first, not before."""

    def __init__(self, function: Callable, **options: Any) -> None:
        self.function, self.options = function, options
        functools.update_wrapper(self, function)

    @functools.cached_property
    def program(self) -> Any:
        return jax.jit(self.function, compiler_options=compiler_options(jax.default_backend()), **self.options)

    def __call__(self, *args: Any, **more: Any) -> Any:
        return self.program(*args, **more)
