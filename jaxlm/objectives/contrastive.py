"""Losses of vectors: which texts belong together, and how similar two texts are."""

import jax
import jax.numpy as jnp
from jax import Array


def unit(vectors: Array) -> Array:
    """Returns vectors [..., D] scaled to length 1; zero vectors, which no text has, remain zero."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-12))


def _products(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right.T, precision="highest")


def negatives_mask(texts: Array, exists: Array) -> Array:
    """Returns bool [U, U, K - 1]: which texts of the batch are negatives for the anchor of each example.

    texts int32 [U, K] number the texts of each example, anchor and positive first; equal texts have equal numbers. A
    text is no negative for an anchor if it is the same text, or the positive of any example with the same anchor.
    """
    anchors, positives, candidates = texts[:, 0], texts[:, 1], texts[:, 1:].reshape(-1)
    same_anchor = (anchors[:, None] == anchors[None]) & exists[:, 0][None]
    is_positive = (positives[:, None] == candidates[None]) & exists[:, 1][:, None]
    belongs = _products(same_anchor.astype(jnp.float32), is_positive.astype(jnp.float32).T) > 0
    mask = ~belongs & (anchors[:, None] != candidates[None]) & exists[:, 1:].reshape(-1)[None]
    return mask.reshape(len(texts), *texts[:, 1:].shape)


def contrastive_losses(
    vectors: Array, texts: Array, exists: Array, temperature: float, symmetric: bool
) -> tuple[Array, Array]:
    """Returns the loss of each example in nats, float32 [U], and whether its positive is nearest, bool [U].

    vectors are [U, K, D]: anchor, positive, hard negatives; `exists` is bool [U, K]. The loss is the cross entropy of
    the positive among all positives and hard negatives of the batch that are negatives by `negatives_mask`, with cosine
    / temperature as logits (arXiv 1807.03748). If `symmetric`, it is the mean of that and the cross entropy of the
    anchor among the anchors.
    """
    vectors = unit(vectors)
    count, width = len(vectors), vectors.shape[-1]
    logits = _products(vectors[:, 0], vectors[:, 1:].reshape(-1, width)).reshape(count, count, -1) / temperature
    own = jnp.eye(count, dtype=bool)
    mask = negatives_mask(texts, exists)
    positive = jnp.diagonal(logits[:, :, 0])
    among = jnp.where(mask.at[:, :, 0].set(mask[:, :, 0] | own), logits, -jnp.inf)
    losses = jax.nn.logsumexp(among, axis=(1, 2)) - positive
    nearest = positive >= among.max((1, 2))
    if symmetric:
        backward = jnp.where((mask[:, :, 0] & exists[:, :1]) | own, logits[:, :, 0], -jnp.inf)
        losses = (losses + jax.nn.logsumexp(backward, axis=0) - positive) / 2
    return losses, nearest


def cosines(vectors: Array) -> Array:
    """Returns the cosine of the first two of vectors [U, K, D], [U]."""
    vectors = unit(vectors)
    return (vectors[:, 0] * vectors[:, 1]).sum(-1)


def cosent_loss(found: Array, wanted: Array, known: Array, temperature: float) -> Array:
    """Returns log(1 + sum of exp((cosine_j - cosine_i) / temperature) over pairs with wanted_i > wanted_j), a scalar.

    Cosines, the wanted similarities and which of these are known are [U] (CoSENT, https://kexue.fm/archives/8847).
    """
    differences = (found[None] - found[:, None]) / temperature
    wrong_order = (wanted[:, None] > wanted[None]) & known[:, None] & known[None]
    terms = jnp.where(wrong_order, differences, -jnp.inf).reshape(-1)
    return jax.nn.logsumexp(jnp.concatenate([jnp.zeros(1), terms]))
