"""XLA's options for compiling models, which depend on the platform."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def compiler_options(platform: str) -> dict[str, bool | str]:
    """Returns XLA's options for compiling a model on a platform ("cpu", "gpu" or "tpu").

    On CPU, optimization barriers are kept. By default XLA removes them before it fuses and orders operations. It then
    fuses the elementwise operations of a layer with those of all earlier layers and computes these again in each layer,
    and rematerialises all layers at once. On GPU, products are left to cuBLAS: tuning Triton kernels for each of them
    takes minutes.
    """
    if platform == "cpu":
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return {"xla_gpu_enable_triton_gemm": False} if platform == "gpu" else {}


def initial_options(platform: str) -> dict[str, bool | str]:
    """Returns XLA's options for compiling the initialisation of parameters on a platform.

    On GPU, XLA must not draw all parameters of one shape in one kernel, which takes minutes to assemble.
    """
    return {"xla_disable_hlo_passes": "multi_output_fusion"} if platform == "gpu" else {}


class jit:
    """`jax.jit` with `compiler_options` of the default platform, which is looked up at the first call."""

    def __init__(self, function: Callable, **options: Any) -> None:
        self.function, self.options = function, options
        functools.update_wrapper(self, function)

    @functools.cached_property
    def program(self) -> Any:
        return jax.jit(self.function, compiler_options=compiler_options(jax.default_backend()), **self.options)

    def __call__(self, *args: Any, **more: Any) -> Any:
        return self.program(*args, **more)
