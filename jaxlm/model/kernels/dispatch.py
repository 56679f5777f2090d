"""Which code computes attention: XLA over a masked square or over blocks, or a fused kernel, behind one signature."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.model import attention
from jaxlm.model.attention import ATTENDED, AttentionMask
from jaxlm.model.execution import Execution
from jaxlm.model.kernels import flash, local_attention
from jaxlm.model.kernels.local_attention import LocalBlocks

Mask = Any  # what a kernel wants to know about who sees whom: an array, LocalBlocks, AttentionMask, FlashMask or None


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


def rematerialised(layer: type[nn.Module], execution: Execution) -> Any:
    """Returns the module class `layer`, told what of its forward pass to compute again in the backward pass."""
    if execution.rematerialise == "full":
        return nn.remat(layer)
    if execution.rematerialise == "dots":
        policies = jax.checkpoint_policies
        return nn.remat(
            layer,
            policy=policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(ATTENDED)
            ),
        )
    return layer
