"""Held-out evaluation of a masked language model, with masks that are the same for every model and run.

15% of single tokens are masked, 80/10/10, chosen by each row's index in the set alone. Beside nats per masked token it
gives nats per byte of the masked text, which compares tokenizers, and the unigram baseline.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.rows import held_out_batches, held_out_count
from jaxlm.data.table import CorpusData
from jaxlm.data.token_store import TokenStore
from jaxlm.evaluation.evaluator import Evaluator, Metrics
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.masking import (
    EVALUATION_RATE,
    Masking,
    evaluation_masking,
    make_masking,
    mask_tokens,
    prediction_slots,
)
from jaxlm.objectives.predictions import sum_predictions, weighted_sums
from jaxlm.runtime import sharding
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.hardware import logits_bytes
from jaxlm.step import Assembly

EVALUATION_SEED = 0  # never the run's: every run is evaluated with the same masks
FEW_TOKENS = 1000  # masked tokens: with fewer, the 95% interval of an accuracy of 40% is wider than ±3 points
Sums = dict[str, Any]


def make_prediction_sums(
    model: MaskedLM, masking: Masking, counts: np.ndarray, piece_bytes: np.ndarray, most_bytes: int = 2**28
) -> Callable[..., Sums]:
    """Returns a function that gives float32 sums over the masked tokens of a batch.

    Its arguments are params, int32 inputs and segment_ids [B, L], and the predictions: int32 masked_positions and
    labels, float32 weights [B, P]. counts int64 [V] are those of the unigram baseline's text (plus one for each);
    piece_bytes float32 [V] are the bytes of each token's text. Logits above `most_bytes` are computed in pieces.
    """
    size = model.config.vocab_size
    frequency = np.zeros(size)
    frequency[: masking.vocab_size] = 1
    frequency[: len(counts)] += counts
    with np.errstate(divide="ignore"):  # rows without a token have no probability
        unigram = jnp.asarray(np.log(frequency / frequency.sum()), jnp.float32)
    frequency[list(masking.special_ids)] = 0
    top5 = jnp.zeros(size, bool).at[np.argsort(-frequency, kind="stable")[:5]].set(True)
    bytes_of = jnp.zeros(size, jnp.float32).at[: len(piece_bytes)].set(piece_bytes)

    def sums_of(logits: Array, labels: Array, weights: Array) -> Sums:
        rank = (logits > jnp.take_along_axis(logits, labels[:, None], axis=-1)).sum(-1)
        return weighted_sums(logits, labels, weights) | {
            "correct_top5": ((rank < 5) * weights).sum(),
            "bytes": (bytes_of[labels] * weights).sum(),
            "unigram_loss": -(unigram[labels] * weights).sum(),
            "unigram_top5": (top5[labels] * weights).sum(),
        }

    def prediction_sums(
        params: dict, inputs: Array, segment_ids: Array, masked_positions: Array, labels: Array, weights: Array
    ) -> Sums:
        return sum_predictions(
            model, params, inputs, segment_ids, masked_positions, (labels, weights), sums_of, most_bytes
        )

    return prediction_sums


def make_evaluation_step(
    model: MaskedLM,
    masking: Masking,
    counts: np.ndarray,
    piece_bytes: np.ndarray,
    length: int,
    most_bytes: int = 2**28,
) -> Callable[[dict, dict], Sums]:
    """Returns a jitted function of (params, batch) that gives float32 sums over a batch's masked tokens.

    The batch holds int32 tokens and segment_ids and bool word_starts [B, L], and row_index int32 [B]. The other
    arguments are those of `make_prediction_sums`.
    """
    masking = evaluation_masking(masking)
    slots = prediction_slots(masking.scheme, EVALUATION_RATE, length)
    prediction_sums = make_prediction_sums(model, masking, counts, piece_bytes, most_bytes)

    @jit
    def evaluation_step(params: dict, batch: dict) -> Sums:
        root = jax.random.key(EVALUATION_SEED)
        keys = jax.vmap(lambda row: jax.random.fold_in(root, row))(batch["row_index"])
        masked = mask_tokens(
            keys, batch["tokens"], batch["segment_ids"], batch["word_starts"], EVALUATION_RATE, slots, masking
        )
        return prediction_sums(
            params, masked.inputs, batch["segment_ids"], masked.masked_positions, masked.labels, masked.weights
        )

    return evaluation_step


def evaluate_held_out(
    step: Callable, params: dict, batches: Iterable[dict], shard_batch: Callable = lambda batch: batch
) -> Metrics:
    """Returns the metrics of a held-out set; `shard_batch` places a batch on the mesh.

    loss (nats per masked token), perplexity, accuracy, accuracy_top5, nats_per_byte (of the masked text), unigram_loss
    and unigram_top5 (of the most frequent tokens), and n, the number of masked tokens. All but n are NaN if n is 0.
    """
    total: dict[str, float] = {}
    for batch in batches:
        for name, value in step(params, shard_batch(batch)).items():
            total[name] = total.get(name, 0.0) + float(value)
    count = total.get("predictions") or math.nan
    mean = {name: value / count for name, value in total.items()}
    loss = mean.get("loss", math.nan)
    return {
        "loss": loss,
        "perplexity": _perplexity(loss),
        "accuracy": mean.get("correct", math.nan),
        "accuracy_top5": mean.get("correct_top5", math.nan),
        "nats_per_byte": total.get("loss", math.nan) / (total.get("bytes") or math.nan),
        "unigram_loss": mean.get("unigram_loss", math.nan),
        "unigram_top5": mean.get("unigram_top5", math.nan),
        "n": int(total.get("predictions", 0)),
    }


def describe(name: str, metrics: Mapping[str, Any]) -> str:
    """Returns the metrics of a held-out set, and those of the unigram baseline, as a table; a line if it has none."""
    if not metrics["n"]:
        return f"{name}: no masked tokens"
    heading = f"{'':<9}{'loss (nats)':>13}{'perplexity':>12}{'accuracy':>10}{'top-5':>8}"
    model = (
        f"{'  model':<9}{_number(metrics['loss'], 3):>13}{_number(metrics['perplexity']):>12}"
        f"{metrics['accuracy']:>10.1%}{metrics['accuracy_top5']:>8.1%}"
    )
    unigram = metrics["unigram_loss"]
    perplexity = _number(_perplexity(unigram))
    baseline = f"{'  unigram':<9}{unigram:>13.3f}{perplexity:>12}{'':>10}{metrics['unigram_top5']:>8.1%}"
    if math.isfinite(metrics["nats_per_byte"]):
        heading, model = f"{heading}{'nats/byte':>11}", f"{model}{_number(metrics['nats_per_byte'], 3):>11}"
    lines = [
        f"{name}: {metrics['n']:,} masked tokens", heading, model, baseline,
        f"  masked: {EVALUATION_RATE:.0%} of the tokens of {metrics['rows']}",
        f"  unigram: token frequencies of the {metrics['unigram_of']}",
        *([f"  unknown: {metrics['unknown_share']:.2%} of the tokens"] if metrics.get("unknown_share") else []),
    ]  # fmt: skip
    return "\n".join(lines)


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf if loss >= 700 else math.nan


def _number(value: float, digits: int = 1) -> str:
    """Returns a number with so many decimals, in scientific notation if it is too long for its column."""
    return f"{value:,.{digits}f}" if value < 1e6 else f"{value:.2e}"


def remark(name: str, metrics: Mapping[str, float]) -> str:
    """Returns a warning about a loss that is no better than the unigram baseline, or about very few tokens; or ""."""
    n = metrics["n"]
    if not n:
        return (
            f"{name}: the text is too short to have a masked token, so it has no loss and cannot choose the best "
            "checkpoint; hold out more text"
        )
    if metrics["loss"] >= metrics["unigram_loss"]:
        return (
            f"{name}: the loss is not below the unigram baseline, so the model predicts no better than the frequencies "
            "of tokens do, whatever the context; train longer, or try another optimizer.learning_rate"
        )
    if n < FEW_TOKENS:
        error = 1.96 * math.sqrt(metrics["accuracy"] * (1 - metrics["accuracy"]) / n)
        return (
            f"{name}: only {n:,} masked tokens are evaluated, so the 95% interval of the accuracy is "
            f"±{100 * error:.1f} points or wider; evaluate more rows (evaluation.rows) or hold out more text"
        )
    return ""


def held_out_evaluators(assembly: Assembly, data: CorpusData, workdir: Path | None = None) -> list[Evaluator]:
    """Returns an evaluator for each held-out token store; the first chooses the best checkpoint by its loss.

    A phase is evaluated with its own rotary base, at data.sequence_length, whatever its own length.
    """
    config, tokenizer, facts = assembly.config, data.tokenizer, data.facts
    length = config.data.sequence_length
    size = config.evaluation.batch_size or config.train.batch_size
    masking = make_masking(config.masking, facts, assembly.encoder.vocab_size)
    counts = np.zeros(0, np.int64) if facts.counts is None else facts.counts

    def protocol(store: TokenStore) -> str:
        rows, count = config.evaluation.rows, held_out_count(store, length, config.data.prepend_begin)
        which = f"the first {rows:,} of {count:,}" if 0 < rows < count else f"all {count:,}"
        return f"{EVALUATION_RATE:.0%} of tokens masked, {which} rows"

    @functools.cache
    def step_of(rotary_base: float) -> Callable:
        model = MaskedLM(dataclasses.replace(assembly.encoder, rotary_base=rotary_base), assembly.execution)
        most = logits_bytes(config.train.logits_megabytes)
        return make_evaluation_step(model, masking, counts, tokenizer.piece_bytes(), length, most)

    def run(store: TokenStore, params: dict, number: int) -> Metrics:
        batches = held_out_batches(
            store, length, size, config.evaluation.rows, config.data.prepend_begin, tokenizer.begin_id,
            tokenizer.pad_id, *sharding.local_parts(assembly.mesh),
        )  # fmt: skip
        shard = functools.partial(sharding.shard_batch, assembly.mesh)
        metrics = evaluate_held_out(step_of(assembly.phases[number].rotary_base), params, batches, shard)
        return metrics | {"rows": f"rows of {length} tokens", "unigram_of": data.counts_of}

    return [
        Evaluator(
            name,
            config.evaluation.every,
            functools.partial(run, store),
            describe,
            selects="" if number else "loss",
            protocol=protocol(store),
            remark=functools.partial(remark, name),
        )
        for number, (name, store) in enumerate(data.held_out.items())
    ]
