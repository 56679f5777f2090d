"""Held-out evaluation of whole documents: each is masked by itself and encoded as a segment of its own.

The loss of a document then depends on nothing but the document: not on its neighbours in the text, and not on the
length of the rows if it fits into one. Documents are packed, so that hardly any padding is computed.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from jaxlm.data.packing import SHORTEST_ROW, Batch, pack
from jaxlm.data.rows import Piece, document_pieces
from jaxlm.data.table import CorpusData
from jaxlm.data.token_store import TokenStore
from jaxlm.evaluation.evaluator import Evaluator, Metrics
from jaxlm.evaluation.held_out import EVALUATION_SEED, describe, evaluate_held_out, make_prediction_sums
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.masking import (
    EVALUATION_RATE,
    MaskedTokens,
    Masking,
    evaluation_masking,
    make_masking,
    mask_tokens,
    prediction_slots,
)
from jaxlm.runtime import sharding
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.hardware import logits_bytes
from jaxlm.step import Assembly

GROUP_TOKENS = 2**20  # tokens that are masked and packed together
MASKED_TOKENS = 2**14  # tokens in one call of the masking function
SLOT_MULTIPLE = 16  # the predictions of a row are rounded up to a multiple, so that few shapes are compiled


class _Masked(NamedTuple):
    """A piece of a document with its predictions."""

    inputs: np.ndarray  # int32 [T]: its tokens, of which some are masked
    positions: np.ndarray  # int32 [p]: those of the predictions in the piece
    labels: np.ndarray  # int32 [p]


def whole_document_evaluators(assembly: Assembly, data: CorpusData) -> list[Evaluator]:
    """Returns an evaluator for each token store: documents of at most data.sequence_length tokens are whole.

    evaluation.rows counts documents here.
    """
    config, tokenizer, facts = assembly.config, data.tokenizer, data.facts
    length = config.data.sequence_length
    rows = config.evaluation.batch_size or config.train.batch_size
    masking = evaluation_masking(make_masking(config.masking, facts, assembly.encoder.vocab_size))
    counts = np.zeros(0, np.int64) if facts.counts is None else facts.counts
    most = logits_bytes(config.train.logits_megabytes)
    model = MaskedLM(assembly.encoder, assembly.execution)
    sums = make_prediction_sums(model, masking, counts, tokenizer.piece_bytes(), most)

    step = jit(lambda params, batch: sums(params, **batch))

    def run(store: TokenStore, params: dict, number: int) -> Metrics:
        pieces = document_pieces(store, length, tokenizer.begin_id, config.evaluation.rows)
        batches = masked_batches(pieces, masking, length, rows, tokenizer.pad_id)
        metrics = evaluate_held_out(step, params, batches, functools.partial(sharding.shard_batch, assembly.mesh))
        lengths = store.document_lengths()[: config.evaluation.rows or None]
        cut = int((lengths > length).sum())
        described = "whole documents" + (f"; {cut:,} of {len(lengths):,} are cut after {length} tokens" if cut else "")
        return metrics | {
            "documents": len(lengths), "cut_documents": cut, "rows": described, "unigram_of": data.counts_of
        }  # fmt: skip

    return [Evaluator(name, 0, functools.partial(run, store), describe) for name, store in data.held_out.items()]


def masked_batches(
    pieces: Iterable[Piece], masking: Masking, length: int, rows: int, pad_id: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of `rows` rows of packed documents that are masked.

    A batch holds inputs and segment_ids int32 [B, L], masked_positions and labels int32 [B, P] and weights float32 [B,
    P]. The masks of a piece depend on its document and its number alone. L is at most `length`.
    """
    for group in _groups(pieces):
        masked = _masked(group, masking)
        row = min(length, max(SHORTEST_ROW, _power_of_two(max(len(piece.tokens) for piece in group))))
        batches = list(pack([piece.inputs for piece in masked], rows * row, row, pad_id, shortest=row, segments=row))
        most = max(int(_predictions(batch, masked).max()) for batch in batches)
        slots = min(row, -(-max(most, 1) // SLOT_MULTIPLE) * SLOT_MULTIPLE)
        for batch in batches:
            yield _with_predictions(batch, masked, rows, slots, pad_id)


def _groups(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.tokens)
        if size >= GROUP_TOKENS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _masked(group: Sequence[Piece], masking: Masking) -> list[_Masked]:
    lengths = np.array([max(SHORTEST_ROW, _power_of_two(len(piece.tokens))) for piece in group])
    found: dict[int, _Masked] = {}
    for length in np.unique(lengths).tolist():
        numbers = np.flatnonzero(lengths == length).tolist()
        count = max(1, MASKED_TOKENS // length)
        for first in range(0, len(numbers), count):
            part = numbers[first : first + count]
            tokens, segment_ids = np.zeros((2, count, length), np.int32)
            origins = np.zeros((2, count), np.int32)
            for row, number in enumerate(part):
                piece = group[number]
                tokens[row, : len(piece.tokens)], segment_ids[row, : len(piece.tokens)] = piece.tokens, 1
                origins[:, row] = piece.document, piece.number
            inputs, positions, labels, weights, _ = map(np.asarray, _mask(masking, *origins, tokens, segment_ids))
            for row, number in enumerate(part):
                used = weights[row] > 0
                size = len(group[number].tokens)
                found[number] = _Masked(inputs[row, :size], positions[row, used], labels[row, used])
    return [found[number] for number in range(len(group))]


@functools.partial(jit, static_argnames=("masking",))
def _mask(masking: Masking, documents: Array, pieces: Array, tokens: Array, segment_ids: Array) -> MaskedTokens:
    """Masks tokens int32 [B, L], the pieces int32 [B] of documents int32 [B]; the result does not depend on L."""
    root = jax.random.key(EVALUATION_SEED)
    keys = jax.vmap(lambda document, piece: jax.random.fold_in(jax.random.fold_in(root, document), piece))(
        documents, pieces
    )
    slots = prediction_slots(masking.scheme, EVALUATION_RATE, tokens.shape[1])
    return mask_tokens(keys, tokens, segment_ids, segment_ids > 0, EVALUATION_RATE, slots, masking)


def _predictions(batch: Batch, masked: Sequence[_Masked]) -> np.ndarray:
    """Returns the number of predictions in each row, int64 [B]."""
    sizes = [len(masked[sequence].positions) for sequence in batch.sequences.tolist()]
    return np.bincount(batch.rows, sizes, len(batch.tokens)).astype(np.int64)


def _with_predictions(
    batch: Batch, masked: Sequence[_Masked], rows: int, slots: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Returns a packed batch with its predictions, filled up to `rows` rows with padding."""
    positions, labels = np.zeros((2, rows, slots), np.int32)
    weights = np.zeros((rows, slots), np.float32)
    used = [0] * rows
    for sequence, row, start in zip(batch.sequences.tolist(), batch.rows.tolist(), batch.starts.tolist(), strict=True):
        piece = masked[sequence]
        here = slice(used[row], used[row] + len(piece.positions))
        positions[row, here], labels[row, here], weights[row, here] = start + piece.positions, piece.labels, 1
        used[row] = here.stop
    fill = ((0, rows - len(batch.tokens)), (0, 0))
    return {
        "inputs": np.pad(batch.tokens, fill, constant_values=pad_id), "segment_ids": np.pad(batch.segment_ids, fill),
        "masked_positions": positions, "labels": labels, "weights": weights,
    }  # fmt: skip


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
