"""Which code computes attention: XLA over a masked square or over blocks, or a fused kernel, behind one signature."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxlm.model import attention, local_attention
from jaxlm.model.attention import ATTENDED, AttentionMask
from jaxlm.model.config import Execution
from jaxlm.model.local_attention import LocalBlocks

Mask = Array | LocalBlocks | AttentionMask | None  # what a kernel wants to know about who sees whom


def mask_for(mask: AttentionMask, length: int, execution: Execution) -> Mask:
    """Returns the mask of rows of `length` tokens as the kernel of `execution` takes it, once for layers of a kind."""
    if execution.attention == "splash":
        return mask
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
        dropped = dropout_rate > 0 and dropout_seeds is not None
        prefixed = isinstance(mask, AttentionMask) and mask.prefix is not None
        if bias is not None or dropped or prefixed:
            what = "a bias" if bias is not None else "dropout" if dropped else "a prefix"
            raise ValueError(f"{execution.attention} attention cannot do {what}; xla can")
    if execution.attention == "splash":
        from jaxlm.model.splash import splash_attend

        assert isinstance(mask, AttentionMask)
        return splash_attend(query_blnh, key_blnh, value_blnh, mask, execution, ATTENDED)

    product: Any = attention.attend
    if execution.attention == "cudnn":
        from jaxlm.model.cudnn import cudnn_attend

        product = cudnn_attend
    run: Any = product
    if isinstance(mask, LocalBlocks):
        run = partial(local_attention.attend_in_blocks, product=product)
    run = partial(run, execution=execution, dropout_rate=dropout_rate, site=site)
    if execution.rematerialise == "attention" and execution.attention == "xla":  # fused kernels keep no weights
        run = jax.checkpoint(run)
    out = run(query_blnh, key_blnh, value_blnh, mask, bias=bias, dropout_seeds=dropout_seeds)
    return out if execution.attention == "xla" else checkpoint_name(out, ATTENDED)


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
