"""Chooses the attention kernel and calls it: XLA over whole rows or local blocks, flash, or splash."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.errors import UserError
from jaxlm.model import attention
from jaxlm.model.attention import ATTENDED, AttentionMask
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.kernels import flash, local_attention
from jaxlm.model.kernels.local_attention import LocalBlocks

Mask = Any  # the mask in the form that a kernel takes: an array, LocalBlocks, AttentionMask, FlashMask or None


def choose_attention(
    wanted: str, config: EncoderConfig, compute_dtype: str, platform: str, mesh: Any = None
) -> tuple[str, str]:
    """Returns the attention kernel for train.attention=`wanted` on this platform, and the reason in a few words.

    Raises UserError if the wanted kernel does not support the model or the platform.
    """
    if wanted == "xla":
        return "xla", "set by train.attention"
    if wanted != "auto":
        if lack := _lacks(wanted, config, compute_dtype, platform, mesh):
            raise UserError(f"train.attention={wanted}: {lack}; train.attention=auto selects a kernel that works")
        return wanted, "set by train.attention"
    if platform == "tpu":
        lack = _lacks("splash", config, compute_dtype, platform, mesh)
        return ("xla", f"not splash: {lack}") if lack else ("splash", "JAX's kernel for TPUs, exact for packed rows")
    if platform == "gpu":
        lack = _lacks("flash", config, compute_dtype, platform, mesh)
        return ("xla", f"not flash: {lack}") if lack else ("flash", "jaxlm's kernel for GPUs, exact for packed rows")
    return "xla", "the only one for this platform"


def _lacks(kernel: str, config: EncoderConfig, compute_dtype: str, platform: str, mesh: Any) -> str:
    """Returns the first requirement that a fused kernel does not meet, as a clause; empty if it meets all."""
    home = {"splash": "tpu", "flash": "gpu"}[kernel]
    tensor = mesh.shape["tensor"] if mesh is not None else 1
    rules = [
        (platform == home, f"it runs on a {home.upper()}, and this is a {platform.upper()}"),
        (compute_dtype == "bfloat16", f"it needs bfloat16, and train.compute_dtype is {compute_dtype}"),
        (kernel == "flash" or not config.attention_dropout,
         f"it does not support dropout, and model.attention_dropout is {config.attention_dropout}"),
        (config.positions != "alibi", "it does not support a bias, and model.positions is alibi"),
        (config.heads % tensor == 0, f"mesh.tensor={tensor} does not divide model.heads={config.heads}"),
        (kernel != "flash" or config.head_width in (16, 32, 64, 128),
         f"it supports head widths 16, 32, 64 and 128, not {config.head_width}"),
    ]  # fmt: skip
    return next((lack for holds, lack in rules if not holds), "")


def mask_for(mask: AttentionMask, length: int, execution: Execution) -> Mask:
    """Returns the mask of rows of `length` tokens in the form that the kernel of `execution` takes.

    Layers with the same window share it.
    """
    if execution.attention == "splash":
        return mask
    if execution.attention == "flash":
        return flash.flash_mask(mask, length)
    if mask.window is not None and (size := local_attention.block_size(length, mask.window)):
        return local_attention.local_blocks(mask, length, size)
    return mask.materialise(length)


def alibi_bias_for(mask: Mask, heads: int, length: int) -> Array:
    """Returns ALiBi's bias float32: [1, N, L, L], or for local blocks [1, N, S, K]."""
    if isinstance(mask, LocalBlocks):
        return local_attention.local_alibi_bias(heads, mask)
    return attention.alibi_bias(heads, length)


def attend(
    query_blnh: Array,
    key_blnh: Array,
    value_blnh: Array,
    mask: Mask,
    execution: Execution,
    bias: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_seeds: Array | None = None,
    site: int = 0,
) -> Array:
    """Returns `attention.attend`, computed by the kernel of `execution`; `mask` is made by `mask_for`.

    Raises ValueError for arguments that a fused kernel does not support; `choose_attention` avoids them.
    """
    if execution.attention != "xla":
        dropped = execution.attention != "flash" and dropout_rate > 0 and dropout_seeds is not None
        prefixed = getattr(mask, "prefix", None) is not None
        if bias is not None or dropped or prefixed:
            what = "a bias" if bias is not None else "dropout" if dropped else "a prefix"
            raise ValueError(f"{execution.attention} attention does not support {what}; use xla")
    if execution.attention == "flash":
        joined_blpnh = jnp.stack([query_blnh, key_blnh, value_blnh], 2)
        return flash.flash_attend(joined_blpnh, mask, execution, dropout_rate, dropout_seeds, site)
    if execution.attention == "splash":
        from jaxlm.model.kernels.splash import splash_attend

        assert isinstance(mask, AttentionMask)
        return splash_attend(query_blnh, key_blnh, value_blnh, mask, execution, ATTENDED)

    run: Any = local_attention.attend_in_blocks if isinstance(mask, LocalBlocks) else attention.attend
    run = partial(run, execution=execution, dropout_rate=dropout_rate, site=site)
    if execution.rematerialise == "attention":  # fused kernels keep no weights
        run = jax.checkpoint(run)
    return run(query_blnh, key_blnh, value_blnh, mask, bias=bias, dropout_seeds=dropout_seeds)
