"""Attention on GPU by cuDNN's fused kernel, which takes the mask as a bias of the rows' square (or of a block's)."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.model.config import Execution


def cudnn_attend(
    query_blnh: Array,
    key_blnh: Array,
    value_blnh: Array,
    mask: Array | None,
    execution: Execution,
    bias: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_seeds: Array | None = None,
    site: int = 0,
    square: int | None = None,
) -> Array:
    """Returns what `attention.attend` does under a materialised mask, [B, L, N, H], without bias and dropout.

    What is not seen gets a bias of -2**41, beside which its weight is exactly zero.
    """
    dtype = jnp.dtype(execution.compute_dtype)
    query, key, value = (x.astype(dtype) for x in (query_blnh, key_blnh, value_blnh))
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    return out.astype(execution.activation_dtype)
