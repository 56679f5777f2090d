"""How good a model is: held-out loss on blanks that are the same for every model, run and masking."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.model.heads import MaskedLM, encode, gather_positions, predict
from jaxlm.objectives.masked_lm import prediction_sums, sum_in_pieces
from jaxlm.objectives.masking import (
    EVALUATION_RATE,
    Masking,
    evaluation_masking,
    mask_tokens,
    prediction_slots,
)
from jaxlm.runtime.compiling import jit

EVALUATION_SEED = 0  # never the run's: every run is judged by the same blanks


class EvaluationSums(NamedTuple):
    """Sums over blanks: float32 scalars of a batch, numbers of a whole set."""

    loss: Any  # nats
    correct: Any
    correct_top5: Any
    predictions: Any
    bytes: Any  # of the text under the blanks
    unigram_loss: Any  # nats, of a model that knows only how often each token occurs in the training text
    unigram_top5: Any


def make_evaluation_step(
    model: MaskedLM,
    masking: Masking,
    counts: np.ndarray,
    piece_bytes: np.ndarray,
    length: int,
    logits_bytes: int = 2**28,
) -> Callable[[dict, dict], EvaluationSums]:
    """Returns a jitted function of (params, batch) that judges a batch at 15% of its tokens, 80/10/10.

    The blanks depend on each row's index alone. counts int64 [V] are those of the training text (plus one each).
    Logits above `logits_bytes` are made in pieces.
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

    def judge(params: dict, states: Array, labels: Array, weights: Array) -> EvaluationSums:
        logits = predict(model, params, states)
        sums = prediction_sums(logits, labels, weights)
        rank = (logits > jnp.take_along_axis(logits, labels[:, None], axis=-1)).sum(-1)
        return EvaluationSums(
            sums.loss, sums.correct, ((rank < 5) * weights).sum(), sums.predictions, (bytes_of[labels] * weights).sum(),
            -(unigram[labels] * weights).sum(), (top5[labels] * weights).sum(),
        )  # fmt: skip

    @jit
    def evaluation_step(params: dict, batch: dict) -> EvaluationSums:
        root = jax.random.key(EVALUATION_SEED)
        keys = jax.vmap(lambda row: jax.random.fold_in(root, row))(batch["row_index"])
        masked = mask_tokens(
            keys, batch["tokens"], batch["segment_ids"], batch["word_starts"], EVALUATION_RATE, slots, masking
        )
        states = encode(model, params, masked.inputs, batch["segment_ids"])
        states = gather_positions(states, masked.masked_positions)
        rows = (states.reshape(-1, states.shape[-1]), masked.labels.reshape(-1), masked.weights.reshape(-1))
        parts = model.execution.batch_parts
        return sum_in_pieces(lambda piece: judge(params, *piece), rows, 4 * size, logits_bytes, parts)

    return evaluation_step


def evaluate_held_out(
    step: Callable, params: dict, batches: Iterable[dict], put: Callable = lambda x: x
) -> dict[str, float]:
    """Returns the means over a held-out set's batches; `put` places a batch on the mesh.

    loss (nats per blank), perplexity, accuracy, accuracy_top5, nats_per_byte (of the text under the blanks, which
    compares tokenizers), unigram_loss, unigram_top5; nan where there is no blank; blanks.
    """
    columns = np.zeros(len(EvaluationSums._fields))
    for batch in batches:
        columns += np.array(step(params, put(batch)), float)
    total = EvaluationSums(*columns.tolist())
    blanks = total.predictions or math.nan
    loss = total.loss / blanks
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "accuracy": total.correct / blanks,
        "accuracy_top5": total.correct_top5 / blanks,
        "nats_per_byte": total.loss / (total.bytes or math.nan),
        "unigram_loss": total.unigram_loss / blanks,
        "unigram_top5": total.unigram_top5 / blanks,
        "blanks": int(total.predictions),
    }


def describe(name: str, result: dict[str, float]) -> str:
    """Returns the figures of a held-out set as a line."""
    return (
        f"{name}: {result['loss']:.3f} nats a blank, perplexity {result['perplexity']:,.1f}, "
        f"accuracy {result['accuracy']:.1%}, top-5 {result['accuracy_top5']:.1%}, "
        f"{result['nats_per_byte']:.3f} nats a byte; unigram baseline {result['unigram_loss']:.3f} nats, "
        f"top-5 {result['unigram_top5']:.1%}; {result['blanks']:,} blanks"
    )


def before_and_after(events: list[dict[str, Any]], results: dict[str, dict[str, float]]) -> str:
    """Returns a table of each held-out set's figures before the first update, by the run's events, and at the end."""
    first = {event["name"]: event for event in events if event["kind"] == "evaluation" and event["step"] == 0}
    lines = [f"{'held-out set':<16}{'loss before':>14}{'after':>9}{'accuracy before':>18}{'after':>9}"]
    for name, after in results.items():
        known = first.get(name, {})
        loss, accuracy = (math.nan if known.get(key) is None else known[key] for key in ("loss", "accuracy"))
        lines.append(f"{name:<16}{loss:>14.3f}{after['loss']:>9.3f}{accuracy:>18.1%}{after['accuracy']:>9.1%}")
    return "\n".join(lines)
