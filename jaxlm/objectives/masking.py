"""Masking: which tokens a masked language model must predict, chosen on the accelerator inside the jitted step."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlm.data.facts import DataFacts


class Masking(NamedTuple):
    """How to mask; static. `ordinary_ids` are the ids that may be predicted or drawn as random replacements."""

    scheme: str  # "token", "whole_word" or "span"
    mask_share: float
    random_share: float
    span_p: float
    span_max: int
    mask_id: int
    vocab_size: int  # of the tokenizer: the rows of the token table beyond it have no token
    special_ids: tuple[int, ...]

    @property
    def ordinary_ids(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self.vocab_size, dtype=np.int32), np.asarray(self.special_ids, np.int32))


class MaskedTokens(NamedTuple):
    """A masked batch. An unused one of the P slots has position 0, the label of that position, and weight 0."""

    inputs: Array  # int32 [B, L]
    masked_positions: Array  # int32 [B, P], ascending
    labels: Array  # int32 [B, P]
    weights: Array  # float32 [B, P], 1 or 0
    dropped_words: Array  # int32 [B], words that were drawn but did not fit into the P slots


def make_masking(settings: Any, facts: DataFacts, rows: int) -> Masking:
    """Returns the masking of section `masking` for the vocabulary of the data; the token table has `rows` rows."""
    return Masking(settings.scheme, settings.mask_share, settings.random_share, settings.span_p, settings.span_max,
                   facts.mask_id, facts.vocab_size or rows, tuple(facts.special_ids))  # fmt: skip


def evaluation_masking(masking: Masking) -> Masking:
    """Returns the masking of held-out evaluation: single tokens, 80/10/10 (arXiv 1810.04805)."""
    return masking._replace(scheme="token", mask_share=0.8, random_share=0.1)


EVALUATION_RATE = 0.15


def next_tokens(tokens: Array, segment_ids: Array, masking: Masking) -> MaskedTokens:
    """Returns a batch in which no token is hidden and each position predicts the next token of its document.

    tokens and segment_ids are int32 [B, L]; P is L. As in `mask_tokens`, special tokens are not predicted. This is for
    causal language models, whose attention must not see later tokens.
    """
    labels, next_segment = (jnp.roll(x, -1, axis=1) for x in (tokens, segment_ids))
    special = jnp.isin(labels, jnp.asarray(masking.special_ids, jnp.int32))
    valid = (next_segment == segment_ids) & (segment_ids > 0) & ~special
    valid = valid.at[:, -1].set(False)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    nothing = jnp.zeros(len(tokens), jnp.int32)
    return MaskedTokens(tokens, positions, labels, valid.astype(jnp.float32), nothing)


def prediction_slots(scheme: str, rate: float, length: int) -> int:
    """Returns P, the predictions that a row has room for: its budget, plus room for the word that crosses it."""
    return min(length, math.ceil(rate * length) + (0 if scheme == "token" else 8))


def mask_tokens(
    keys: Array,
    tokens: Array,
    segment_ids: Array,
    word_starts: Array,
    rate: Array | float,
    slots: int,
    masking: Masking,
) -> MaskedTokens:
    """Returns a batch in which a fraction `rate` of each row's ordinary tokens is to be predicted and mostly hidden.

    keys are typed PRNG keys [B], one per row; tokens and segment_ids are int32 [B, L], word_starts bool [B, L]; slots
    is P. Special tokens and padding are never chosen. The scheme is "token" (single tokens), "whole_word" (all tokens
    of a word or none; a word that contains a special token such as [UNK] is never chosen) or "span" (spans of whole
    words with geometric lengths; SpanBERT, arXiv 1907.10529). A word or span is replaced as a unit by mask tokens, by
    random tokens, or not at all.
    """
    special = np.zeros(masking.vocab_size, bool)
    special[list(masking.special_ids)] = True
    row = functools.partial(
        _mask_row, rate=rate, slots=slots, masking=masking, special=jnp.asarray(special),
        ordinary_ids=jnp.asarray(masking.ordinary_ids),
    )  # fmt: skip
    return MaskedTokens(*jax.vmap(row)(keys, tokens, segment_ids, word_starts))


def _mask_row(key, tokens, segment_ids, word_starts, *, rate, slots, masking: Masking, special, ordinary_ids):
    (length,) = tokens.shape
    order_key, span_key, point_key, kind_key, replacement_key = jax.random.split(key, 5)
    index = jnp.arange(length)
    maskable = (segment_ids > 0) & ~special[tokens]

    # `unit` numbers the words, or the tokens, that are chosen as a whole; `draw` decides their random order.
    if masking.scheme == "token":
        unit = owner = index
    else:
        new_segment = segment_ids != jnp.roll(segment_ids, 1)
        unit = jnp.cumsum((word_starts | new_segment).at[0].set(True)) - 1
        maskable = jnp.ones(length, bool).at[unit].min(maskable)[unit]
        owner = unit
    draw = jax.random.uniform(order_key, (length,))
    if masking.scheme == "span":
        owner = _span_owners(span_key, draw, unit, segment_ids, masking)[unit]

    # Words are taken in random order as long as their first token is within the budget. A random point of the text
    # decides which word comes last, and the part of that word after the point counts as spent already. So every word
    # has the same chance, whatever its length, and the budget is met on average.
    count = jnp.cumsum(maskable)
    point = jax.random.uniform(point_key) * count[-1]
    cut = unit[jnp.searchsorted(count, point, side="right")]
    remainder = jnp.where(unit == cut, count, 0).max() - point
    order = jnp.argsort(jnp.where(unit == cut, jnp.inf, draw[owner]), stable=True)
    cost = maskable[order].astype(jnp.int32)
    spent = jnp.cumsum(cost)
    sorted_unit = unit[order]
    first = sorted_unit != jnp.concatenate([jnp.array([-1]), sorted_unit[:-1]])
    before = lax.cummax(jnp.where(first, spent - cost, 0))
    size = jnp.zeros(length, jnp.int32).at[sorted_unit].add(cost)[sorted_unit]
    drawn = (before + remainder < rate * count[-1]) & (cost > 0)
    fits = before + size <= slots
    chosen = jnp.zeros(length, bool).at[order].set(drawn & fits)
    dropped_words = (drawn & ~fits & first).sum()

    positions = jnp.argsort(~chosen, stable=True)[:slots]
    weights = chosen[positions].astype(jnp.float32)
    positions = jnp.where(weights > 0, positions, 0)

    kind = jax.random.uniform(kind_key, (length,))[owner]
    replacements = ordinary_ids[jax.random.randint(replacement_key, (length,), 0, ordinary_ids.shape[0])]
    hidden = jnp.where(kind < masking.mask_share, masking.mask_id, replacements)
    hidden = jnp.where(kind < masking.mask_share + masking.random_share, hidden, tokens)
    return jnp.where(chosen, hidden, tokens), positions, tokens[positions], weights, dropped_words


def _span_owners(key: Array, draw: Array, unit: Array, segment_ids: Array, masking: Masking) -> Array:
    """Returns for each word the word whose span it belongs to, int32 [L].

    Every word begins a span of clipped geometric length, and a word covered by several spans belongs to the one drawn
    first. Taking words in the order of their owners' draws is then SpanBERT's sampling, without its loop.
    """
    (length,) = draw.shape
    p, longest = masking.span_p, masking.span_max
    shares = np.array([(1 - p) ** i * p for i in range(longest)])
    cumulative = jnp.asarray(np.cumsum(shares / shares.sum()), jnp.float32)
    words = 1 + jnp.searchsorted(cumulative[:-1], jax.random.uniform(key, (length,)), side="right")
    segment = jnp.zeros(length, jnp.int32).at[unit].max(segment_ids)
    index = jnp.arange(length)
    best, owner = draw, index
    for shift in range(1, longest):
        start = index - shift
        covers = (start >= 0) & (words[start] > shift) & (segment[start] == segment) & (draw[start] < best)
        best, owner = jnp.where(covers, draw[start], best), jnp.where(covers, start, owner)
    return owner
