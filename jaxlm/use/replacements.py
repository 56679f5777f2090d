"""Words that a masked language model predicts in place of others: the part of augmentation that is computed once.

Each copy of a text has some of its words masked, all at once; each is replaced by one of the most probable other words,
drawn by its probability (arXiv 1805.06201). The model sees the text but not its label, unlike that of arXiv 1812.06705.
One device computes them, so that they do not depend on how many there are, and the work directory keeps them.
"""

import dataclasses
import functools
import hashlib
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm import init_from
from jaxlm.data.augmentation import Augmentation, replaced, words_of
from jaxlm.data.packing import padded_size
from jaxlm.data.permutation import uniforms
from jaxlm.data.task_data import TaskData
from jaxlm.errors import UserError
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.predictions import map_predictions
from jaxlm.runtime import distributed
from jaxlm.runtime.compiling import jit
from jaxlm.storage import atomic_path
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.typed import counted
from jaxlm.use.loading import Trained, load_trained
from jaxlm.use.parts import clear_line, show_rate

FILE = "replacements.npz"  # in the work directory
CANDIDATES = 10  # the most probable words, of which one is drawn
ROWS = 32  # texts in a batch
EXCLUDED = -1e9


def check_replacements(config: Any, workdir: Path) -> None:
    """Raises UserError if words are to be replaced and no masked-LM head can predict them, before any data is read."""
    if not config.task.replace_words or (workdir / FILE).is_file():
        return
    name = config.task.replace_model or config.model.init_from
    wanted = f"task.replace_words={config.task.replace_words:g} needs a model with a masked-LM head"
    remedy = "set task.replace_model to one with the same vocabulary, or task.replace_words=0"
    if not name:
        raise UserError(f"{wanted}, and there is no init_from: {remedy}")
    if not init_from.resolve(name).has_head:
        raise UserError(f"{wanted}, and {name} has none: {remedy}")


def with_augmentation(data: TaskData, config: Any, seed: int, workdir: Path) -> TaskData:
    """Returns the data with the changes of training texts that section `task` asks for."""
    task = config.task
    words, fingerprint = words_of(data.train, data.tokenizer), data.fingerprint
    found: list[np.ndarray] = []
    if task.replace_words:
        found = _replacements(data, words, config, seed, workdir)
        fingerprint = _digest(fingerprint, *found)
    augmentation = Augmentation(
        data.train, words, task.augmented_share, task.delete_words, task.swap_words, tuple(found)
    )
    return dataclasses.replace(data, augmentation=augmentation, fingerprint=fingerprint)


def _digest(text: str, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _replacements(data: TaskData, words: list[np.ndarray], config: Any, seed: int, workdir: Path) -> list[np.ndarray]:
    """Returns the token in place of each word, int32 [copies, words] of each segment, or -1: stored ones or new."""
    task, file = config.task, workdir / FILE
    name = task.replace_model or config.model.init_from
    identity = _digest(repr((data.fingerprint, name, task.replace_words, task.replace_copies, seed)))
    sizes = [int(numbers.max(initial=-1)) + 1 for numbers in words]

    def make() -> list[list[int]]:
        stored = _read(file, identity, (task.replace_copies, sum(sizes)))
        if stored is None:
            stored = np.concatenate(_compute(data, words, sizes, config, seed, name), axis=1)
            with atomic_path(file) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, identity=np.array(identity), tokens=stored)
        return stored.tolist()

    tokens = np.array(distributed.from_first(make), np.int32).reshape(task.replace_copies, sum(sizes))
    return np.split(tokens, np.cumsum(sizes)[:-1], axis=1)


def _read(file: Path, identity: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Returns what the work directory has of this data and these settings; None if it is missing or damaged."""
    try:
        if not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as content:
            tokens = content["tokens"]
            fits = str(content["identity"]) == identity and tokens.shape == shape and tokens.dtype == np.int32
        return tokens if fits else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _compute(
    data: TaskData, words: list[np.ndarray], sizes: list[int], config: Any, seed: int, name: str
) -> list[np.ndarray]:
    """Returns the token in place of each word, int32 [copies, words] of each segment; -1 where it stays."""
    trained = load_trained(name)
    _check_vocabulary(trained, data.tokenizer, name)
    rate, copies = config.task.replace_words, config.task.replace_copies
    result = [np.full((copies, size), -1, np.int32) for size in sizes]
    begin, done = time.monotonic(), 0
    masked = [
        found
        for copy in range(copies)
        for segment, size in enumerate(sizes)
        if size and (found := _mask(data, words[segment], segment, copy, rate, trained, seed))
    ]
    predict = _predictor(trained)
    for batch in _batches(masked, trained, data.tokenizer):
        values, ids = predict(*batch.arrays)
        for number, one in enumerate(batch.texts):
            key = (seed, one.copy, one.segment, 3)
            tokens = _drawn(values[number], ids[number], one.originals, uniforms(len(one.chosen), key))
            result[one.segment][one.copy, one.chosen[: len(tokens)]] = tokens
        done += len(batch.texts)
        show_rate("texts with replaced words", done, done / (time.monotonic() - begin))
    clear_line()
    count = sum(int((found >= 0).sum()) for found in result)
    print(
        f"{name}: predicted {counted(count, 'word', 'words')} in {counted(copies, 'copy', 'copies')} of"
        f" {counted(len(sizes), 'text', 'texts')}"
        f" ({time.monotonic() - begin:,.1f} s)", file=sys.stderr,
    )  # fmt: skip
    return result


def _check_vocabulary(trained: Trained, tokenizer: Tokenizer, name: str) -> None:
    """Raises UserError unless the model's tokens are the first of this run's; others may have been added."""
    theirs = trained.tokenizer
    ids = range(theirs.vocab_size)
    same = theirs.vocab_size <= tokenizer.vocab_size and all(theirs.token(id) == tokenizer.token(id) for id in ids)
    if not same or theirs.mask_id != tokenizer.mask_id:
        raise UserError(
            f"task.replace_model={name} has another vocabulary than this run; name a model with the same one, or set"
            " task.replace_words=0"
        )


class _Masked(NamedTuple):
    """A copy of a segment with words masked."""

    segment: int
    copy: int
    tokens: np.ndarray  # int32 [n]
    positions: np.ndarray  # int64 [m]: the masks in it
    chosen: np.ndarray  # int64 [m]: which words they stand for
    first_pieces: np.ndarray  # int32 [m]: the first token of each word
    originals: np.ndarray  # int32 [m]: the token of each word, -1 if there are several


def _mask(
    data: TaskData, words: np.ndarray, segment: int, copy: int, rate: float, trained: Trained, seed: int
) -> _Masked | None:
    """Returns a copy with some words masked, at least one; None if none is within the length of the model."""
    tokens, count = data.train.tokens[segment], int(words.max()) + 1
    numbers = uniforms(count, (seed, copy, segment, 2))
    chosen = (numbers < rate) | (numbers == numbers.min())
    mask_id = data.tokenizer.mask_id
    masked = replaced(tokens, words, np.where(chosen, mask_id, -1)).tokens[: trained.longest]
    positions = np.flatnonzero(masked == mask_id)
    if not len(positions):
        return None
    which = np.flatnonzero(chosen)[: len(positions)]
    firsts = np.array([int(np.argmax(words == word)) for word in which])
    alone = np.bincount(words[words >= 0], minlength=count)[which] == 1
    first_pieces = tokens[firsts]
    return _Masked(segment, copy, masked, positions, which, first_pieces, np.where(alone, first_pieces, -1))


class _Batch(NamedTuple):
    """Masked copies, and what the model sees of them: tokens, segment_ids [B, L], positions, starts [B, P]."""

    texts: list[_Masked]
    arrays: tuple[np.ndarray, ...]


def _batches(masked: list[_Masked], trained: Trained, tokenizer: Tokenizer) -> Iterator[_Batch]:
    """Yields batches of texts of similar lengths, in few shapes."""
    most = padded_size(max((len(one.positions) for one in masked), default=1))
    starts_word = np.array([tokenizer.starts_word(id) for id in range(tokenizer.vocab_size)])
    order = sorted(masked, key=lambda one: len(one.tokens))
    for first in range(0, len(order), ROWS):
        texts = order[first : first + ROWS]
        length = padded_size(len(texts[-1].tokens), 16)
        tokens = np.full((ROWS, length), tokenizer.pad_id, np.int32)
        segment_ids, positions = np.zeros((ROWS, length), np.int32), np.zeros((ROWS, most), np.int32)
        starts = np.zeros((ROWS, most), bool)
        for row, one in enumerate(texts):
            known = one.tokens < trained.encoder.vocab_size
            tokens[row, : len(known)] = np.where(known, one.tokens, tokenizer.unk_id)
            segment_ids[row, : len(known)] = 1
            positions[row, : len(one.positions)] = one.positions
            starts[row, : len(one.positions)] = starts_word[one.first_pieces]
        yield _Batch(texts, (tokens, segment_ids, positions, starts))


def _predictor(trained: Trained) -> Any:
    """Returns a function from the arrays of a batch to the logits and ids [B, P, CANDIDATES + 1] of the best words."""
    tokenizer, size = trained.tokenizer, trained.encoder.vocab_size
    is_word = [any(map(str.isalnum, tokenizer.text_of(id))) for id in range(tokenizer.vocab_size)]
    starts = [tokenizer.starts_word(id) for id in range(tokenizer.vocab_size)]
    penalties = np.full((2, size), EXCLUDED, np.float32)  # of tokens that continue words, and that start them
    for id, (word, start) in enumerate(zip(is_word, starts, strict=True)):
        penalties[int(start), id] = 0 if word else EXCLUDED

    def predict(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = np.asarray(_best(trained.model, trained.params, penalties, *arrays))
        return found[..., 0], found[..., 1].astype(np.int32)

    return predict


@functools.partial(jit, static_argnames=("model",))
def _best(
    model: MaskedLM, params: dict, penalties: Array, tokens: Array, segment_ids: Array, positions: Array, starts: Array
) -> Array:
    """Returns logits and ids of the best candidates, float32 [B, P, CANDIDATES + 1, 2]."""

    def top(logits: Array, starts: Array) -> Array:
        allowed = logits + penalties[starts.astype(jnp.int32)]
        values, ids = jax.lax.top_k(allowed, min(CANDIDATES + 1, logits.shape[-1]))
        return jnp.stack([values, ids.astype(jnp.float32)], -1)  # exact: ids are below 2^24

    return map_predictions(model, params, tokens, segment_ids, positions, (starts,), top)


def _drawn(values: np.ndarray, ids: np.ndarray, originals: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns a token for each word, int32 [m], drawn by its probability; -1 where no word is allowed.

    Logits and ids are those of the best words, [P, K]; the original is not allowed.
    """
    values, ids = values[: len(originals)].astype(np.float64), ids[: len(originals)]
    allowed = (ids != originals[:, None]) & (values > EXCLUDED / 2)
    allowed &= np.cumsum(allowed, 1) <= CANDIDATES
    weights = np.where(allowed, np.exp(values - values.max(1, keepdims=True)), 0)
    total = weights.sum(1)
    which = (np.cumsum(weights, 1) > (numbers[: len(originals)] * total)[:, None]).argmax(1)
    return np.where(total > 0, ids[np.arange(len(ids)), which], -1).astype(np.int32)
