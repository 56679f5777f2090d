"""Using a trained model: filled-in blanks."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxlm.errors import UserError
from jaxlm.loading import Trained, load_trained
from jaxlm.model.heads import encode, gather_positions, predict


class Candidate(NamedTuple):
    """One proposal for a blank."""

    word: str  # as it stands in the text
    probability: float
    token: str  # as the vocabulary spells it
    text: str  # the text with the word in this blank


class Model:
    """A trained model: `load(DIR).fill_mask("The capital of France is [MASK].")`."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.tokenizer, self.params, self.config = trained.tokenizer, trained.params, trained.config

    @cached_property
    def _logits(self):
        model = self.trained.model

        def logits(params, tokens, segment_ids, positions):
            states = encode(model, params, tokens, segment_ids)
            return predict(model, params, gather_positions(states, positions))

        return jax.jit(logits)

    @cached_property
    def _silent(self) -> np.ndarray:
        """Ids that put no word into a text: special tokens, lone spaces, spare rows of the table."""
        ids = range(self.trained.encoder.vocab_size)
        size = self.tokenizer.vocab_size
        return np.array([i for i in ids if i >= size or not self.tokenizer.text_of(i).strip()])

    def fill_mask(self, text: str, top: int = 5) -> list[list[Candidate]]:
        """Returns for each mask in the text its `top` most probable tokens, special tokens left out.

        A text longer than the rows that the model was trained on is read in a window round each mask. Raises UserError
        for a text without a mask.
        """
        tokenizer, mask = self.tokenizer, self.tokenizer.mask_token
        ids = np.asarray(tokenizer.encode(text, find_mask=True).ids)
        blanks = np.flatnonzero(ids == tokenizer.mask_id)
        if not len(blanks):
            raise UserError(f"no mask in {text!r}: write {mask} where a word is to be filled in")
        rows, places = _windows(ids, blanks, self.trained.longest, tokenizer.begin_id, tokenizer.end_id)
        length = _bucket(max(len(row) for row in rows))
        tokens = np.full((_bucket(len(rows), 1), length), tokenizer.pad_id, np.int32)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
        segment_ids = (
            np.arange(length) < np.array([len(row) for row in rows] + [0] * (len(tokens) - len(rows)))[:, None]
        )
        positions = np.zeros((len(tokens), _bucket(max(map(len, places)), 1)), np.int32)
        for number, place in enumerate(places):
            positions[number, : len(place)] = place
        logits = np.array(self._logits(self.params, tokens, segment_ids.astype(np.int32), positions))
        logits[:, :, self._silent] = -np.inf

        answers: list[list[Candidate]] = []
        starts = _occurrences(text, mask)
        for number, place in enumerate(places):
            for slot in range(len(place)):
                scores = logits[number, slot]
                probabilities = np.exp(scores - scores.max())
                probabilities /= probabilities.sum()
                best = np.argsort(-scores, kind="stable")[:top]
                start = starts[len(answers)]
                answers.append([self._candidate(text, start, int(i), float(probabilities[i])) for i in best])
        return answers

    def _candidate(self, text: str, start: int, token: int, probability: float) -> Candidate:
        word = self.tokenizer.text_of(token)
        filled = text[:start] + word + text[start + len(self.tokenizer.mask_token) :]
        return Candidate(word, probability, self.tokenizer.token(token), filled)


def load(directory: str | Path) -> Model:
    """Returns the trained model of a work directory. Raises UserError."""
    return Model(load_trained(directory))


def _windows(ids, blanks, longest: int, begin: int, end: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns rows of at most `longest` tokens that hold every blank, and each row's blanks' places."""
    if len(ids) + 2 <= longest:
        return [np.concatenate([[begin], ids, [end]])], [blanks + 1]
    rows, places, room = [], [], longest - 2
    for blank in blanks:
        first = int(np.clip(blank - room // 2, 0, max(len(ids) - room, 0)))
        piece = ids[first : first + room]
        rows.append(np.concatenate([[begin], piece, [end] if first + room >= len(ids) else []]).astype(ids.dtype))
        places.append(np.array([blank - first + 1]))
    return rows, places


def _bucket(size: int, least: int = 16) -> int:
    """Returns the next power of two, so that few shapes are compiled."""
    return max(least, 1 << (size - 1).bit_length())


def _occurrences(text: str, mask: str) -> list[int]:
    starts, at = [], text.find(mask)
    while at >= 0:
        starts.append(at)
        at = text.find(mask, at + len(mask))
    return starts


def main(argv: Sequence[str]) -> int:
    """`jaxlm fill-mask --model=DIR TEXT ...`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm fill-mask", description="Fill in the blanks of a text with a trained model.",
        epilog="example: jaxlm fill-mask --model=runs/quickstart 'Return the [MASK] of the list.'",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="a work directory of `jaxlm train`")
    parser.add_argument("--top", type=int, default=5, help="words for each blank (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a text")
    parser.add_argument("text", nargs="*", help="texts with [MASK]; without any, lines of standard input")
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UserError(f"--top={args.top}: at least 1 is needed")
    texts = args.text or [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise UserError("no text was given, as an argument or on standard input")
    model = load(args.model)
    for text in texts:
        blanks = model.fill_mask(text, args.top)
        if args.json:
            print(
                json.dumps(
                    {"text": text, "blanks": [[c._asdict() for c in blank] for blank in blanks]}, ensure_ascii=False
                )
            )
            continue
        print(text)
        for number, blank in enumerate(blanks, 1):
            if len(blanks) > 1:
                print(f" blank {number}")
            for candidate in blank:
                print(f"  {candidate.probability:6.1%}  {candidate.word:<16} {candidate.text}")
    return 0
