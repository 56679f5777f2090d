"""Which code computes attention: XLA over a masked square or over blocks, or a fused kernel, behind one signature."""

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

Mask = Any  # what a kernel wants to know about who sees whom: an array, LocalBlocks, AttentionMask, FlashMask or None


def choose_attention(
    wanted: str, config: EncoderConfig, compute_dtype: str, platform: str, mesh: Any = None
) -> tuple[str, str]:
    """Returns the attention kernel that train.attention=`wanted` means here, and a clause that says why it is that one.

    Raises UserError where a kernel cannot do what is asked of it.
    """
    if wanted == "xla":
        return "xla", "as train.attention says"
    if wanted != "auto":
        if lack := _lacks(wanted, config, compute_dtype, platform, mesh):
            raise UserError(f"train.attention={wanted}: {lack}; train.attention=auto takes a kernel that is right")
        return wanted, "as train.attention says"
    if platform == "tpu":
        lack = _lacks("splash", config, compute_dtype, platform, mesh)
        return ("xla", f"for splash: {lack}") if lack else ("splash", "the TPU's own, exact for packed rows")
    if platform == "gpu":
        lack = _lacks("flash", config, compute_dtype, platform, mesh)
        return ("xla", f"for flash: {lack}") if lack else ("flash", "jaxlm's own kernel, exact for packed rows")
    return "xla", "the only one for this platform"


def _lacks(kernel: str, config: EncoderConfig, compute_dtype: str, platform: str, mesh: Any) -> str:
    """Returns what an attention kernel cannot do of what is asked, in a clause; empty where it can do all."""
    home = {"splash": "tpu", "flash": "gpu"}[kernel]
    tensor = mesh.shape["tensor"] if mesh is not None else 1
    rules = [
        (platform == home, f"it runs on {home.upper()}s, and this is a {platform.upper()}"),
        (compute_dtype == "bfloat16", f"it computes in bfloat16, and train.compute_dtype is {compute_dtype}"),
        (kernel == "flash" or not config.attention_dropout,
         f"it cannot drop attention weights, and model.attention_dropout is {config.attention_dropout}"),
        (config.positions != "alibi", "it cannot add ALiBi's bias exactly, and model.positions is alibi"),
        (config.heads % tensor == 0, f"mesh.tensor={tensor} does not divide model.heads={config.heads}"),
        (kernel != "flash" or config.head_width in (16, 32, 64, 128),
         f"its head width is 16, 32, 64 or 128, not {config.head_width}"),
    ]  # fmt: skip
    return next((lack for holds, lack in rules if not holds), "")


def mask_for(mask: AttentionMask, length: int, execution: Execution) -> Mask:
    """Returns the mask of rows of `length` tokens as the kernel of `execution` takes it, once for layers of a kind."""
    if execution.attention == "splash":
        return mask
    if execution.attention == "flash":
        return flash.flash_mask(mask, length)
    if mask.window is not None and (size := local_attention.block_size(length, mask.window)):
        return local_attention.local_blocks(mask, length, size)
    return mask.materialise(length)


def alibi_bias_for(mask: Mask, heads: int, length: int) -> Array:
    """Returns ALiBi's bias over what `mask` spans: the square, or a block and the keys that it sees."""
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
    """Returns what `attention.attend` does, by the kernel of `execution`; mask and bias are of `mask_for`.

    Raises ValueError where a fused kernel is asked for what it cannot do; `choose_attention` refuses it before.
    """
    if execution.attention != "xla":
        dropped = execution.attention != "flash" and dropout_rate > 0 and dropout_seeds is not None
        prefixed = getattr(mask, "prefix", None) is not None
        if bias is not None or dropped or prefixed:
            what = "a bias" if bias is not None else "dropout" if dropped else "a prefix"
            raise ValueError(f"{execution.attention} attention cannot do {what}; xla can")
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
