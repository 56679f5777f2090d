"""The most probable words at masked positions: `fill_mask`, and the verb `jaxlm fill-mask`."""

import argparse
import functools
import json
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import Array

from jaxlm.data.unknown import check_spelling, spelling_of_ids
from jaxlm.errors import UserError
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.predictions import map_predictions
from jaxlm.runtime.compiling import jit
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.use.loading import Trained, load_trained, require_head


class Candidate(NamedTuple):
    """A token proposed for a masked position."""

    word: str  # the token as text, without the space or ## in front
    probability: float
    token: str  # the vocabulary's spelling
    text: str  # the input text with the word in place of the mask


def fill_mask(trained: Trained, text: str, top: int = 5, targets: Sequence[str] = ()) -> list[list[Candidate]]:
    """Returns the `top` most probable tokens for each mask in the text; special tokens are excluded.

    If `targets` are given, returns these words instead, the most probable first, with their probabilities among all
    tokens. If the text is longer than the model's maximum length, each mask is predicted from a window around it.
    Raises UserError if the text has no mask, a target is not a single token, or the model has no masked-LM head.
    """
    require_head(trained)
    tokenizer = trained.tokenizer
    ids, offsets = tokenizer.encode_with_offsets(text, find_special=True)
    masked = np.flatnonzero(ids == tokenizer.mask_id)
    if not len(masked):
        raise UserError(f"no mask in {text!r}: write {tokenizer.mask_token} where a word is to be filled in")
    spelling = spelling_of_ids(ids, tokenizer)
    if spelling.unknown:
        check_spelling({repr(text): spelling._replace(words=1)}, tokenizer)
    rows, positions = _windows(ids, masked, trained.longest, tokenizer.begin_id, tokenizer.end_id)
    logits = _logits_at(trained, rows, positions)
    logits[:, _not_words(tokenizer, trained.encoder.vocab_size)] = -np.inf
    return [
        _candidates(tokenizer, text, (start, end), scores, top, targets)
        for (start, end), scores in zip(offsets[masked].tolist(), logits, strict=True)
    ]


def _windows(
    ids: np.ndarray, masked: np.ndarray, longest: int, begin: int, end: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns rows of at most `longest` tokens that cover every masked position, and the positions in each row."""
    if len(ids) + 2 <= longest:
        return [np.concatenate([[begin], ids, [end]])], [masked + 1]
    rows, positions, room = [], [], longest - 2
    for position in masked:
        first = int(np.clip(position - room // 2, 0, max(len(ids) - room, 0)))
        piece = ids[first : first + room]
        rows.append(np.concatenate([[begin], piece, [end] if first + room >= len(ids) else []]).astype(ids.dtype))
        positions.append(np.array([position - first + 1]))
    return rows, positions


def _logits_at(trained: Trained, rows: list[np.ndarray], positions: list[np.ndarray]) -> np.ndarray:
    """Returns the logits float32 [masks, V] at the positions of each row, in order."""
    count, length, predictions = _bucket(len(rows)), _bucket(max(map(len, rows)), 16), _bucket(max(map(len, positions)))
    tokens = np.full((count, length), trained.tokenizer.pad_id, np.int32)
    segment_ids = np.zeros((count, length), np.int32)
    masked_positions = np.zeros((count, predictions), np.int32)
    used = np.zeros((count, predictions), bool)
    for number, (row, places) in enumerate(zip(rows, positions, strict=True)):
        tokens[number, : len(row)], segment_ids[number, : len(row)] = row, 1
        masked_positions[number, : len(places)], used[number, : len(places)] = places, True
    return np.asarray(_logits(trained.model, trained.params, tokens, segment_ids, masked_positions))[used]


@functools.partial(jit, static_argnames=("model",))
def _logits(model: MaskedLM, params: dict, tokens: Array, segment_ids: Array, positions: Array) -> Array:
    """Returns the logits float32 [B, P, V] at positions int32 [B, P] of tokens int32 [B, L]."""
    return map_predictions(model, params, tokens, segment_ids, positions, (), lambda logits: logits)


def _bucket(size: int, least: int = 1) -> int:
    """Returns the next power of two, so that few shapes are compiled."""
    return max(least, 1 << (size - 1).bit_length())


@functools.lru_cache(maxsize=4)
def _not_words(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Returns the ids that add no visible text: special tokens, spaces, and unused rows of the token table."""
    return np.array([id for id in range(vocab_size) if id >= tokenizer.vocab_size or not tokenizer.text_of(id).strip()])


@functools.lru_cache(maxsize=4)
def _continuations(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the ids of the tokens that continue a word, by their text."""
    return {tokenizer.text_of(id): id for id in range(tokenizer.vocab_size) if not tokenizer.starts_word(id)}


def _candidates(
    tokenizer: Tokenizer, text: str, span: tuple[int, int], logits: np.ndarray, top: int, targets: Sequence[str]
) -> list[Candidate]:
    """Returns the candidates for the mask at text[start:end], the most probable first. logits are float32 [V]."""
    start, end = span
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    if targets:
        words = {_target_id(tokenizer, text[:start], target, len(logits)): target for target in targets}
        ids = np.array(list(words))
    else:
        words, ids = {}, np.flatnonzero(np.isfinite(logits))
    best = ids[np.argsort(-logits[ids], kind="stable")]
    found = []
    for id in best[: None if targets else top].tolist():
        word = words.get(id, tokenizer.text_of(id))
        filled = text[:start] + word + text[end:]
        found.append(Candidate(word, float(probabilities[id]), tokenizer.token(id), filled))
    return found


def _target_id(tokenizer: Tokenizer, before: str, target: str, vocab_size: int) -> int:
    """Returns the token of a word that follows the text `before`: the variant, with or without a leading space, that
    the tokenizer produces there. Raises UserError if that is not one token, or a token without visible text."""
    stem = before.rstrip()
    before = before[len(stem) - len(re.split(r"\s", stem)[-1]) :]  # the last word is enough context
    ids, offsets = tokenizer.encode_with_offsets(before + target, find_special=True)
    inside = offsets[:, 1] > len(before)
    own = ids[inside].tolist()
    if own and offsets[inside, 0].min() < len(before):  # the tokenizer would merge it with the text before it
        spelled = "".join(tokenizer.text_of(int(id)) for id in tokenizer.encode(target).ids)
        continuations = _continuations(tokenizer)
        own = [continuations[spelled]] if spelled in continuations else own
    pieces = [tokenizer.token(id) for id in own]
    if len(own) != 1:
        raise UserError(
            f"the target {target!r} is not one token here but {' '.join(pieces) or 'nothing'}, and a mask stands for"
            " one token: use `jaxlm score` with whole sentences to compare such words"
        )
    if own[0] in _not_words(tokenizer, vocab_size):
        raise UserError(f"the vocabulary has no word for the target {target!r}, only {pieces[0]}: remove it")
    return own[0]


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm fill-mask --model=DIR TEXT ...`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm fill-mask", description="Print the most probable words for each mask in a text.",
        epilog="example: jaxlm fill-mask --model=runs/quickstart 'Return the [MASK] of the list.'",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="a work directory of `jaxlm train` or a Hugging Face directory")
    parser.add_argument("--top", type=int, default=5, help="number of words for each mask (default 5)")
    parser.add_argument("--targets", default="", metavar="WORD,...", help="compare these words only; each must be one "
                        "token")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")
    parser.add_argument("text", nargs="*", help="texts that contain the model's mask token, [MASK] or <mask> (default: "
                        "the lines of standard input)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UserError(f"--top={args.top}: must be at least 1")
    targets = [word.strip() for word in args.targets.split(",") if word.strip()]
    if args.targets and not targets:
        raise UserError(f"--targets={args.targets}: expected words separated by commas, such as is,was")
    texts = args.text or [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise UserError("no text given: pass it as an argument or on standard input")
    trained = load_trained(args.model)
    for text in texts:
        masks = fill_mask(trained, text, args.top, targets)
        if args.json:
            content = {"text": text, "masks": [[candidate._asdict() for candidate in mask] for mask in masks]}
            print(json.dumps(content, ensure_ascii=False))
            continue
        print(text)
        for number, mask in enumerate(masks, 1):
            if len(masks) > 1:
                print(f" mask {number}")
            for candidate in mask:
                print(f"  {candidate.probability:6.1%}  {candidate.word:<16} {candidate.text}")
    return 0
