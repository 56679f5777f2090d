"""How well a masked language model predicts the targets of cloze texts: log-probability and rank in the vocabulary."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.errors import NotFinite, UserError
from jaxlm.evaluation.probes import Predictions
from jaxlm.text.probe_sets import Cloze
from jaxlm.use.loading import Trained
from jaxlm.use.score import predict_masked


class _Target(NamedTuple):
    """The tokens of a text whose target begins at `positions[0]`."""

    tokens: np.ndarray  # int32 [n], with begin and end
    positions: np.ndarray  # int64 [k], of the target's tokens


def predict_targets(trained: Trained, texts: Sequence[Cloze], variant: str) -> Predictions:
    """Returns the log-probability and the rank of the target of each text.

    The target's tokens are predicted from left to right, each with the later ones masked; with the variant "original",
    each with the others visible. The log-probability is the sum over them, the rank that of the worst one; so a rank of
    1 means that filling as many masks from left to right, with the most probable token each, spells the target. Of
    tokens with equal logits, the target has the last rank. Raises UserError for a target that the vocabulary cannot
    spell, and a text that is longer than the model's maximum.
    """
    targets = [_target(trained, text) for text in texts]
    copies = [_masked(target, first, variant, trained.tokenizer.mask_id)
              for target in targets for first in range(len(target.positions))]  # fmt: skip
    positions = np.concatenate([target.positions for target in targets])
    labels = np.concatenate([target.tokens[target.positions] for target in targets])
    found = predict_masked(trained, copies, positions, labels, _log_probability_and_rank).astype(np.float64)
    if not np.isfinite(found).all():
        raise NotFinite("the prediction of a target")
    starts = np.cumsum([0, *(len(target.positions) for target in targets[:-1])])
    return Predictions(np.add.reduceat(found[:, 0], starts), np.maximum.reduceat(found[:, 1], starts).astype(np.int64))


def _target(trained: Trained, cloze: Cloze) -> _Target:
    tokenizer = trained.tokenizer
    target = cloze.text[cloze.begin : cloze.end]
    ids, spans = tokenizer.encode_with_offsets(cloze.text)
    inside = np.flatnonzero((spans[:, 0] < cloze.end) & (spans[:, 1] > cloze.begin))
    if not len(inside) or (ids[inside] == tokenizer.unk_id).any():
        raise UserError(
            f"{cloze.place}: the vocabulary has no token for the target {target[:40]!r} or a part of it, so no model "
            "with this vocabulary predicts it: remove the row, or use a model of its language"
        )
    if len(ids) + 2 > trained.longest:
        raise UserError(
            f"{cloze.place} has {len(ids)} tokens, but the model reads at most {trained.longest - 2} besides begin and "
            f"end ({cloze.text[:40]!r}...): shorten it"
        )
    whole = np.concatenate([[tokenizer.begin_id], ids, [tokenizer.end_id]]).astype(np.int32)
    return _Target(whole, inside + 1)


def _masked(target: _Target, first: int, variant: str, mask_id: int) -> np.ndarray:
    """Returns the tokens in which token `first` of the target is masked, and those after it unless all are visible."""
    copy = target.tokens.copy()
    copy[target.positions[first : first + 1 if variant == "original" else None]] = mask_id
    return copy


def _log_probability_and_rank(logits: Array, labels: Array) -> Array:
    """Returns the log-probability of labels int32 [M] and their rank from 1, float32 [M, 2], for logits [M, V]."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    log_probability = own[:, 0] - jax.nn.logsumexp(logits, axis=-1)
    rank = (logits >= own).sum(-1)
    return jnp.stack([log_probability, rank.astype(logits.dtype)], -1)
