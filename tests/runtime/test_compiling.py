"""XLA's options for each platform, and the jit that applies them."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxlm.runtime.compiling import compiler_options, initial_options, jit


def test_each_platform_has_its_options():
    assert compiler_options("cpu") == {"xla_disable_hlo_passes": "cse_barrier_expander"}
    assert compiler_options("gpu") == {"xla_gpu_enable_triton_gemm": False}
    assert initial_options("gpu") == {"xla_disable_hlo_passes": "multi_output_fusion"}
    assert compiler_options("tpu") == initial_options("tpu") == initial_options("cpu") == {}


def test_jit_is_jax_jit_with_these_options(monkeypatch):
    given = []
    monkeypatch.setattr(jax, "jit", lambda function, **options: given.append(options) or function)

    @partial(jit, static_argnames=("power",))
    def raised(x, power):
        return x**power

    assert not given, "the platform is looked up before the first call"
    assert raised(jnp.array(3), power=2) == raised(jnp.array(-3), power=2) == 9
    assert given == [{"compiler_options": compiler_options("cpu"), "static_argnames": ("power",)}]
    assert raised.__name__ == "raised"


def test_compilation_keeps_barriers():
    def twice(x):
        return jax.lax.optimization_barrier(jnp.sin(x)) * 2

    assert "opt-barrier" in jit(twice).program.lower(jnp.ones(4)).compile().as_text()
