"""How good a model is: held-out loss on blanks that are the same for every model, run and masking."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.masking import EVALUATION_RATE, Masking, evaluation_masking, mask_tokens, prediction_slots
from jaxlm.model.heads import MaskedLM, gather_positions
from jaxlm.objectives import prediction_sums

EVALUATION_SEED = 0  # never the run's: every run is judged by the same blanks


class EvaluationSums(NamedTuple):
    """Sums over blanks, float32 scalars."""

    loss: Array  # nats
    correct: Array
    correct_top5: Array
    predictions: Array
    bytes: Array  # of the text under the blanks
    unigram_loss: Array  # nats, of a model that knows only how often each token occurs in the training text
    unigram_top5: Array


def make_evaluation_step(
    model: MaskedLM, masking: Masking, counts: np.ndarray, piece_bytes: np.ndarray, length: int
) -> Callable[[dict, dict], EvaluationSums]:
    """Returns a jitted function of (params, batch) that judges a batch at 15% of its tokens, 80/10/10.

    The blanks depend on each row's index alone. counts int64 [V] are those of the training text (plus one each).
    """
    masking = evaluation_masking(masking)
    slots = prediction_slots(masking.scheme, EVALUATION_RATE, length)
    size = model.config.vocab_size
    frequency = np.ones(size)
    frequency[: len(counts)] += counts
    unigram = jnp.asarray(np.log(frequency / frequency.sum()), jnp.float32)
    frequency[list(masking.special_ids)] = 0
    top5 = jnp.zeros(size, bool).at[np.argsort(-frequency, kind="stable")[:5]].set(True)
    bytes_of = jnp.zeros(size, jnp.float32).at[: len(piece_bytes)].set(piece_bytes)

    @jax.jit
    def evaluation_step(params: dict, batch: dict) -> EvaluationSums:
        root = jax.random.key(EVALUATION_SEED)
        keys = jax.vmap(lambda row: jax.random.fold_in(root, row))(batch["row_index"])
        masked = mask_tokens(
            keys, batch["tokens"], batch["segment_ids"], batch["word_starts"], EVALUATION_RATE, slots, masking
        )
        states = model.apply({"params": params}, masked.inputs, batch["segment_ids"], method="encode")
        logits = model.apply({"params": params}, gather_positions(states, masked.masked_positions), method="predict")
        logits, labels = logits.reshape(-1, size), masked.labels.reshape(-1)
        weights = masked.weights.reshape(-1)
        sums = prediction_sums(logits, labels, weights)
        rank = (logits > jnp.take_along_axis(logits, labels[:, None], axis=-1)).sum(-1)
        return EvaluationSums(
            sums.loss, sums.correct, ((rank < 5) * weights).sum(), sums.predictions, (bytes_of[labels] * weights).sum(),
            -(unigram[labels] * weights).sum(), (top5[labels] * weights).sum(),
        )  # fmt: skip

    return evaluation_step


def evaluate_held_out(
    step: Callable, params: dict, batches: Iterable[dict], put: Callable = lambda x: x
) -> dict[str, float]:
    """Returns the means over a held-out set's batches; `put` places a batch on the mesh.

    loss (nats per blank), perplexity, accuracy, accuracy_top5, nats_per_byte (of the text under the blanks, which
    compares tokenizers), unigram_loss, unigram_top5, blanks.
    """
    total = None
    for batch in batches:
        sums = jax.tree.map(float, step(params, put(batch)))
        total = sums if total is None else EvaluationSums(*map(sum, zip(total, sums, strict=True)))
    if total is None:
        total = EvaluationSums(*[0.0] * len(EvaluationSums._fields))
    blanks = max(total.predictions, 1)
    loss = total.loss / blanks
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "accuracy": total.correct / blanks,
        "accuracy_top5": total.correct_top5 / blanks,
        "nats_per_byte": total.loss / max(total.bytes, 1),
        "unigram_loss": total.unigram_loss / blanks,
        "unigram_top5": total.unigram_top5 / blanks,
        "blanks": int(total.predictions),
    }
