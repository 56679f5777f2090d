"""The most probable words at masked positions: `fill_mask`, and the verb `jaxlm fill-mask`."""

import argparse
import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from jaxlm.data.packing import padded_size
from jaxlm.data.unknown import check_spelling, spelling_of_ids
from jaxlm.errors import NotFinite, UserError
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.predictions import map_predictions
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json_list
from jaxlm.storage import standard_input_lines
from jaxlm.tokenizer.single_words import not_words, tokens_of_word
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.words import word_boundaries
from jaxlm.use.loading import Trained, add_model_options, load_named, require_head

_log = logging.getLogger("jaxlm")


class Candidate(NamedTuple):
    """A token proposed for a masked position."""

    word: str  # the token as text, without the space or ## in front
    probability: float
    token: str  # the vocabulary's spelling
    text: str  # the input text with the token in place of the mask; a token that continues a word is joined to it


def fill_mask(trained: Trained, text: str, top: int = 5, targets: Sequence[str] = ()) -> list[list[Candidate]]:
    """Returns the `top` most probable tokens for each mask in the text; special tokens are excluded.

    If `targets` are given, returns these words instead, the most probable first, with their probabilities among all
    tokens; a target that is not a single token is left out with a warning. If the text is longer than the model's
    maximum length, each mask is predicted from a window around it. Raises UserError if the text has no mask, no target
    is a single token, or the model has no masked-LM head.
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
    if not np.isfinite(logits).all():
        raise NotFinite(f"the prediction for {text!r}")
    logits[:, not_words(tokenizer, trained.encoder.vocab_size)] = -np.inf
    spans = offsets[masked].tolist()
    if targets:
        return [
            _target_candidates(text, span, scores, tokenizer, ids_of_targets)
            for span, scores, ids_of_targets in zip(
                spans, logits, _target_ids(tokenizer, text, spans, targets, logits.shape[1]), strict=True
            )
        ]
    joins = [_joins_word(tokenizer, ids, position) for position in masked.tolist()]
    return [
        _best_candidates(text, span, scores, tokenizer, top, joined)
        for span, scores, joined in zip(spans, logits, joins, strict=True)
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
    count, length = padded_size(len(rows)), padded_size(max(map(len, rows)), 16)
    predictions = padded_size(max(map(len, positions)))
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


def _probabilities(logits: np.ndarray) -> np.ndarray:
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    return probabilities / probabilities.sum()


def _best_candidates(
    text: str, span: tuple[int, int], logits: np.ndarray, tokenizer: Tokenizer, top: int, joins_word: bool
) -> list[Candidate]:
    """Returns the most probable tokens for the mask at text[start:end]. logits are float32 [V]."""
    probabilities, ids = _probabilities(logits), np.flatnonzero(np.isfinite(logits))
    best = ids[np.argsort(-logits[ids], kind="stable")][:top].tolist()
    return [
        Candidate(tokenizer.text_of(id), float(probabilities[id]), tokenizer.token(id),
                  _filled(tokenizer, text, span, id, joins_word))
        for id in best
    ]  # fmt: skip


def _joins_word(tokenizer: Tokenizer, ids: np.ndarray, position: int) -> bool:
    """Returns whether a token that continues a word belongs to the text before the mask at `position`.

    It does not if the space between them is a token of its own, as in some byte-level vocabularies.
    """
    before = int(ids[position - 1]) if position else -1
    return before in (-1, *tokenizer.special_ids) or bool(tokenizer.text_of(before).strip())


def _filled(tokenizer: Tokenizer, text: str, span: tuple[int, int], id: int, joins_word: bool) -> str:
    """Returns the text with a token in place of the mask at text[start:end], as the tokenizer spells both.

    A token that continues a word follows the text before it without a space. One that starts a word follows it after a
    space, if the text has one or the token includes one, or if both would otherwise form one word.
    """
    before, after, word = text[: span[0]], text[span[1] :], tokenizer.text_of(id)
    if not tokenizer.starts_word(id):
        return ((before.rstrip() if joins_word else "") or before) + word + after
    includes_space = tokenizer.token(id) != word
    if (
        before
        and not before[-1].isspace()
        and (includes_space or not word_boundaries(before[-1] + word[0], "unicode")[1])
    ):
        before += " "
    return before + word + after


def _target_candidates(
    text: str, span: tuple[int, int], logits: np.ndarray, tokenizer: Tokenizer, targets: dict[str, int]
) -> list[Candidate]:
    """Returns the targets, given with their ids, for the mask at text[start:end], the most probable first."""
    probabilities, (start, end) = _probabilities(logits), span
    return [
        Candidate(target, float(probabilities[id]), tokenizer.token(id), text[:start] + target + text[end:])
        for target, id in sorted(targets.items(), key=lambda entry: -logits[entry[1]])
    ]


def _target_ids(
    tokenizer: Tokenizer, text: str, spans: Sequence[tuple[int, int]], targets: Sequence[str], vocab_size: int
) -> list[dict[str, int]]:
    """Returns the ids of the targets at each mask. Targets without one are left out with a warning.

    Raises UserError if no target has an id at any mask.
    """
    found: list[dict[str, int]] = []
    problems: dict[str, None] = {}  # each once, in order
    for start, _ in spans:
        found.append({})
        for target in targets:
            try:
                found[-1][target] = _target_id(tokenizer, text[:start], target, vocab_size)
            except UserError as error:
                problems[str(error)] = None
    if not any(found):
        raise UserError("; ".join(problems))
    for problem in problems:
        _log.warning("%s", problem)
    return found


def _target_id(tokenizer: Tokenizer, before: str, target: str, vocab_size: int) -> int:
    """Returns the token of a word that follows the text `before`: the variant, with or without a leading space, that
    the tokenizer produces there. Raises UserError if that is not one token, or a token without visible text."""
    own = tokens_of_word(tokenizer, before, target)
    pieces = [tokenizer.token(id) for id in own]
    if len(own) != 1:
        raise UserError(
            f"the target {target!r} is not one token here but {' '.join(pieces) or 'nothing'}, and a mask stands for"
            " one token: use `jaxlm score` with whole sentences to compare such words"
        )
    if own[0] in not_words(tokenizer, vocab_size):
        raise UserError(f"the vocabulary has no word for the target {target!r}, only {pieces[0]}: remove it")
    return own[0]


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm fill-mask --model=DIR TEXT ...`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm fill-mask", description="Print the most probable words for each mask in a text.",
        formatter_class=HelpFormatter,
        epilog="example:\n  jaxlm fill-mask --model=runs/mini 'Return the [MASK] of the list.'",
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument("--top", type=int, help="number of words for each mask (default 5)")
    parser.add_argument("--targets", metavar="WORD,...", help="compare these words only; a word that is "
                        "not one token is left out with a warning")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object: a list of the texts")
    parser.add_argument("text", nargs="*", help="texts that contain the model's mask token, [MASK] or <mask> (default: "
                        "the lines of standard input)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.top is not None and args.top < 1:
        raise UserError(f"--top={args.top}: must be at least 1")
    targets = [word.strip() for word in (args.targets or "").split(",") if word.strip()]
    if args.targets is not None and not targets:
        raise UserError(f"--targets={args.targets}: expected words separated by commas, such as is,was")
    if targets and args.top is not None:
        raise UserError(f"--top={args.top} has no effect beside --targets, all of which are shown: remove one of them")
    texts = args.text or [line for line in standard_input_lines() if line.strip()]
    if not texts:
        raise UserError("no text given: pass it as an argument or on standard input")
    trained = load_named(args)
    results = ((text, fill_mask(trained, text, args.top or 5, targets)) for text in texts)
    if args.json:
        print_json_list("texts", (_content(text, masks) for text, masks in results))
        return 0
    for text, masks in results:
        _print_masks(text, masks)
    return 0


def _content(text: str, masks: list[list[Candidate]]) -> dict[str, Any]:
    return {"text": text, "masks": [[candidate._asdict() for candidate in mask] for mask in masks]}


def _print_masks(text: str, masks: list[list[Candidate]]) -> None:
    print(text)
    width = max((len(candidate.word) for mask in masks for candidate in mask), default=0)
    for number, mask in enumerate(masks, 1):
        if len(masks) > 1:
            print(f" mask {number}")
        for candidate in mask:
            print(f"  {candidate.probability:6.1%}  {candidate.word:<{width}}  {candidate.text}")
