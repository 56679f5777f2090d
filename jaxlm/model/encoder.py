"""The Transformer encoder in Flax Linen; BERT, RoBERTa, MosaicBERT and ModernBERT differ only in settings.

Shapes: B batch, L sequence length, D model width, N heads, H head width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlm.model import attention
from jaxlm.model.attention import ATTENDED, AttentionMask
from jaxlm.model.config import EncoderConfig
from jaxlm.model.execution import Execution
from jaxlm.model.kernels import dispatch as kernels
from jaxlm.model.kernels import flash
from jaxlm.model.layers import Dense, Norm, activate, dropout, kernel_init, multiply, split_rows, whole_rows


class Table(nn.Module):
    """An embedding table [rows, width]; returns the rows [..., width] of ids [...]."""

    rows: int
    width: int
    config: EncoderConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        # The other schemes change projections only; tables start as BERT's.
        plain = dataclasses.replace(self.config, initialization="normal")
        self.embedding = self.param("embedding", kernel_init(plain), (self.rows, self.width))

    def __call__(self, ids: Array) -> Array:
        return jnp.take(whole_rows(self.embedding, self.execution), ids, axis=0)


class Embeddings(nn.Module):
    """Returns embeddings [B, L, D] of tokens [B, L]: token, position and token-type rows, summed, normed, projected."""

    config: EncoderConfig
    execution: Execution

    def setup(self) -> None:
        config = self.config
        self.token = Table(config.vocab_size, config.embedding_width, config, self.execution)
        if config.positions == "learned":
            self.position = Table(config.max_positions, config.embedding_width, config, self.execution)
        if config.token_types:
            self.token_type = Table(config.token_types, config.embedding_width, config, self.execution)
        if config.embedding_norm:
            self.norm = Norm(config, self.execution)
        if config.embedding_width != config.width:
            self.projection = Dense(config.width, config.attention_bias, config, self.execution)

    def __call__(
        self, tokens: Array, positions: Array, token_types: Array | None, dropout_seeds: Array | None
    ) -> Array:
        config = self.config
        x = self.token(tokens)
        if config.positions == "learned":
            x += self.position(positions + config.position_offset)
        if config.token_types:  # the gradient of looking up one row everywhere is slow on GPU
            x += self.token_type.embedding[0] if token_types is None else self.token_type(token_types)
        if config.embedding_norm:
            x = self.norm(x)
        x = dropout(x, config.dropout, dropout_seeds, site=0).astype(self.execution.activation_dtype)
        return self.projection(x) if config.embedding_width != config.width else x


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762) of x [B, L, D].

    Returns the output [B, L, D] and the values [B, L, N, H]. `first_value` [B, L, N, H], the values of the first layer,
    are mixed into those of this layer (arXiv 2410.17897). `rotary` is the table of this layer's rotary base.
    """

    config: EncoderConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, x: Array, first_value: Array | None, mask: kernels.Mask, bias: Array | None, rotary, seeds: Array | None,
        site: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        config, share = self.config, self.config.value_residual

        def mixed(value: Array) -> Array:
            return value if first_value is None else (1 - share) * value + share * first_value

        def dense(name: str) -> Dense:
            return Dense(config.attention_width, config.attention_bias, config, self.execution, name=name)

        names, shape = ("query", "key", "value"), (*x.shape[:2], config.heads, config.head_width)
        dropped = config.attention_dropout, seeds, site
        if self.execution.attention == "flash" and bias is None:  # one product for all three, as the kernel takes it
            weights, biases = zip(*(dense(name).parameters(x.shape[-1]) for name in names), strict=True)
            parts = [kernel.astype(self.execution.compute_dtype) for kernel in weights]
            # An axis of its own keeps heads split over devices; otherwise a flat product is faster.
            join = jnp.stack if self.execution.splits_heads else jnp.concatenate
            of_all = join(biases, 0) if config.attention_bias else None
            joined_blpnh = multiply(x, join(parts, 1), self.execution, of_all).reshape(*shape[:2], 3, *shape[2:])
            value_blnh = joined_blpnh[:, :, 2]
            if rotary is not None or first_value is not None:
                turned = [joined_blpnh[:, :, part] for part in range(2)]
                turned = turned if rotary is None else [attention.rotate(part, rotary) for part in turned]
                joined_blpnh = jnp.stack([*turned, mixed(value_blnh)], 2)
            out_blnh = flash.flash_attend(joined_blpnh, mask, self.execution, *dropped)
        else:
            query_blnh, key_blnh, value_blnh = (dense(name)(x).reshape(shape) for name in names)
            if rotary is not None:
                query_blnh, key_blnh = attention.rotate(query_blnh, rotary), attention.rotate(key_blnh, rotary)
            out_blnh = kernels.attend(query_blnh, key_blnh, mixed(value_blnh), mask, self.execution, bias, *dropped)
        output = Dense(config.width, config.attention_bias, config, self.execution, "residual", name="output")
        return output(out_blnh.reshape(*x.shape[:2], config.attention_width)), value_blnh


class FeedForward(nn.Module):
    """Returns down(activation(up(x))) of x [B, L, D]; gated (arXiv 2002.05202): down(activation(gate(x)) * up(x))."""

    config: EncoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config

        def dense(name: str, width: int, role: str = "inner") -> Dense:
            return Dense(width, config.feed_forward_bias, config, self.execution, role, name=name)

        up = dense("up", config.feed_forward_width)(x)
        if config.gated:
            hidden = activate(config.activation, dense("gate", config.feed_forward_width)(x)) * up
        else:
            hidden = activate(config.activation, up)
        return dense("down", config.width, "residual")(hidden)


class Layer(nn.Module):
    """Attention and feed-forward network, each added to the residual stream, normalized before (pre) or after (post).

    Returns x [B, L, D] and, in the first layer of a model with value_residual, its values [B, L, N, H], else None.
    """

    config: EncoderConfig
    execution: Execution
    index: int

    @nn.compact
    def __call__(
        self, x: Array, first_value: Array | None, mask: kernels.Mask, bias: Array | None, rotary, seeds: Array | None
    ) -> tuple[Array, Array | None]:
        config, site = self.config, 1 + 3 * self.index  # dropout site 0 belongs to the embeddings
        pre = config.norm_position == "pre"

        def norm(name: str) -> Norm:
            return Norm(config, self.execution, name=name)

        without = pre and self.index == 0 and not config.first_norm
        attention_norm = (lambda x: x) if without else norm("attention_norm")
        feed_forward_norm = norm("feed_forward_norm")

        attended, value = Attention(config, self.execution, name="attention")(
            attention_norm(x) if pre else x, first_value, mask, bias, rotary, seeds, site
        )
        x = self.keep(x + dropout(attended, config.dropout, seeds, site + 1))
        x = x if pre else attention_norm(x)
        fed = FeedForward(config, self.execution, name="feed_forward")(feed_forward_norm(x) if pre else x)
        x = self.keep(x + dropout(fed, config.dropout, seeds, site + 2))
        mixed_in = config.value_residual and self.index == 0  # only the first layer's values are reused
        return x if pre else feed_forward_norm(x), value if mixed_in else None

    def keep(self, x: Array) -> Array:
        """Returns x; with execution.keep_sums, XLA computes x and its gradient once instead of in each use."""
        return lax.optimization_barrier(x) if self.execution.keep_sums else x


def rematerialised(layer: type[nn.Module], execution: Execution) -> Any:
    """Returns the module class `layer` with the rematerialisation of the execution applied to it."""
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


class Encoder(nn.Module):
    """Returns contextual states [B, L, D] in the activation dtype.

    tokens, segment_ids and token_types are int32 [B, L]; without segment_ids, each row is one segment without padding.
    Positions restart and attention stays within each segment, so that a packed document has the same states as alone.
    dropout_seeds uint32 [B, 2] enable dropout. For causal and prefix int32 [B], see `AttentionMask`.
    """

    config: EncoderConfig
    execution: Execution

    def setup(self) -> None:
        config = self.config
        self.embeddings = Embeddings(config, self.execution)
        kind = rematerialised(Layer, self.execution)
        self.layers = [kind(config, self.execution, index) for index in range(config.layers)]
        if config.norm_position == "pre":
            self.final_norm = Norm(config, self.execution)

    def __call__(
        self,
        tokens: Array,
        segment_ids: Array | None = None,
        token_types: Array | None = None,
        dropout_seeds: Array | None = None,
        causal: bool = False,
        prefix: Array | None = None,
    ) -> Array:
        config, length = self.config, tokens.shape[1]
        if token_types is not None and not config.token_types:
            raise ValueError("token_types are given, but the model has none: model.token_types is 0")
        if segment_ids is None:
            positions = jnp.arange(length, dtype=jnp.int32)[None]
        else:
            positions = attention.positions_in_segments(segment_ids)
        x = split_rows(self.embeddings(tokens, positions, token_types, dropout_seeds), self.execution)

        # All local layers share their mask, rotary table and bias, and so do all global layers.
        masks, rotaries, biases = {}, {}, {}
        for local in {config.is_local(index) for index in range(config.layers)}:
            mask = AttentionMask(segment_ids, prefix, config.window if local else None, causal)
            masks[local] = kernels.mask_for(mask, length, self.execution)
            base = config.local_rotary_base if local else config.rotary_base
            if config.positions == "rotary":
                table = attention.rotary_table(positions, config.head_width, base)
                # Without the barrier, each rotation recomputes the sines for every head.
                rotaries[local] = lax.optimization_barrier(table) if self.execution.keep_sums else table
            if config.positions == "alibi":
                biases[local] = kernels.alibi_bias_for(masks[local], config.heads, length)

        first_value = None
        for index, layer in enumerate(self.layers):
            local = config.is_local(index)
            x, value = layer(x, first_value, masks[local], biases.get(local), rotaries.get(local), dropout_seeds)
            first_value = value if index == 0 else first_value
            x = split_rows(x, self.execution)
        return self.final_norm(x) if config.norm_position == "pre" else x
