"""Using a trained model from Python: filled-in blanks, vectors, scores, logits; and `jaxlm fill-mask`."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from jaxlm.errors import UserError
from jaxlm.huggingface.sentence_transformers import embed_settings
from jaxlm.model.heads import encode, gather_positions, predict
from jaxlm.runtime.compiling import jit
from jaxlm.use.embed import Embedder
from jaxlm.use.loading import Trained, load_trained
from jaxlm.use.score import Score, require_head, score


class Candidate(NamedTuple):
    """One proposal for a blank."""

    word: str  # as it stands in the text
    probability: float
    token: str  # as the vocabulary spells it
    text: str  # the text with the word in this blank


class Model:
    """A trained model: `load(DIR).fill_mask("The capital of France is [MASK].")`.

    `config` is the architecture (`EncoderConfig`), `params` nested dicts of float32 arrays, `longest` the tokens of the
    longest text, begin and end included. What cannot be done raises UserError.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.tokenizer, self.params, self.config = trained.tokenizer, trained.params, trained.encoder
        self.longest = trained.longest

    def tokenize(self, text: str) -> np.ndarray:
        """Returns the ids of begin, the text's tokens and end, int32 [n]; a typed mask is the mask."""
        ids = self.tokenizer.encode(text, find_mask=True).ids
        return np.concatenate([[self.tokenizer.begin_id], ids, [self.tokenizer.end_id]]).astype(np.int32)

    def apply(self, tokens: Any, segment_ids: Any = None) -> Array:
        """Returns vocabulary logits float32 [B, L, V] of tokens int32 [B, L].

        Tokens see their own segment only: int32 [B, L], several texts in a row or 0 for padding; without them each row
        is one text without padding. Raises UserError for ids or lengths that the model has no row for.
        """
        require_head(self.trained)
        tokens = np.asarray(tokens)
        size, longest = self.config.vocab_size, self.longest
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise UserError(f"tokens must be integers [B, L], and are {tokens.dtype} {list(tokens.shape)}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < size:
            raise UserError(f"tokens hold ids {tokens.min()} to {tokens.max()}, and the model knows 0 to {size - 1}")
        if segment_ids is None and tokens.shape[1] > longest:
            raise UserError(f"rows of {tokens.shape[1]} tokens are longer than the model's {longest}")
        if segment_ids is not None:
            segment_ids = np.asarray(segment_ids)
            if segment_ids.shape != tokens.shape:
                raise UserError(f"segment_ids are {list(segment_ids.shape)}, and tokens {list(tokens.shape)}")
            if (most := _longest_run(segment_ids)) > longest:
                raise UserError(f"a row holds a text of {most} tokens, or padding, longer than the model's {longest}")
        return self._all_logits(self.params, tokens, segment_ids)

    def embed(
        self, texts: Sequence[str], pooling: str | None = None, normalise: bool | None = None,
        layers: Sequence[int] = (-1,), too_long: str = "truncate", batch_tokens: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """Returns the texts' vectors, float32 [n, D], in order.

        Pooling ("mean", "cls" or "max") and normalisation are those of a sentence-transformers directory, else the mean
        over all tokens and none. The states of `layers` are averaged (0 the embeddings, -1 the last). A text longer
        than the model loses its end, or with too_long="refuse" raises UserError. An empty text gives the vector of
        begin and end alone.
        """
        _check_texts(texts)
        settings = embed_settings(self.trained.directory, self.trained.longest, pooling, normalise, layers)
        return Embedder(self.trained, settings, too_long, batch_tokens)(texts)

    def score(self, texts: Sequence[str], variant: str = "within-word", batch_tokens: int = 0) -> list[Score]:
        """Returns the texts' pseudo-log-likelihoods, as `jaxlm.use.score.score` does."""
        _check_texts(texts)
        return list(score(self.trained, texts, variant, batch_tokens))

    @cached_property
    def _all_logits(self):
        model = self.trained.model
        return jit(lambda params, tokens, segment_ids: model.apply({"params": params}, tokens, segment_ids))

    @cached_property
    def _logits(self):
        model = self.trained.model

        def logits(params, tokens, segment_ids, positions):
            states = encode(model, params, tokens, segment_ids)
            return predict(model, params, gather_positions(states, positions))

        return jit(logits)

    @cached_property
    def _silent(self) -> np.ndarray:
        """Ids that put no word into a text: special tokens, lone spaces, spare rows of the table."""
        ids = range(self.trained.encoder.vocab_size)
        size = self.tokenizer.vocab_size
        return np.array([i for i in ids if i >= size or not self.tokenizer.text_of(i).strip()])

    @cached_property
    def _inside_words(self) -> dict[str, int]:
        """Tokens that go on with a word, by their text."""
        tokenizer = self.tokenizer
        return {tokenizer.text_of(i): i for i in range(tokenizer.vocab_size) if not tokenizer.starts_word(i)}

    def fill_mask(self, text: str, top: int = 5, targets: Sequence[str] = ()) -> list[list[Candidate]]:
        """Returns for each mask in the text its `top` most probable tokens, special tokens left out.

        With `targets`, all of these words instead, the most probable first; their probabilities are those among all
        tokens. A text longer than the model is read in a window round each mask. Raises UserError for a text without a
        mask, and for a target that is not one token.
        """
        require_head(self.trained)
        _check_texts(targets)
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
                start = starts[len(answers)]
                words = {self._target(text[:start], target): target for target in targets}
                tokens_of = np.array(list(words)) if words else np.flatnonzero(np.isfinite(scores))
                best = tokens_of[np.argsort(-scores[tokens_of], kind="stable")][: None if words else top]
                answers.append(
                    [self._candidate(text, start, i, float(probabilities[i]), words.get(i)) for i in best.tolist()]
                )
        return answers

    def _target(self, before: str, target: str) -> int:
        """Returns the token that a word is behind the text `before`: with a space in it or without, as it would be
        tokenized there."""
        tokenizer = self.tokenizer
        stem = before.rstrip()
        before = before[len(stem) - len(re.split(r"\s", stem)[-1]) :]  # the last word tells all
        ids, offsets = tokenizer.encode_with_offsets(before + target, find_mask=True)
        inside = offsets[:, 1] > len(before)
        own = ids[inside].tolist()
        if own and offsets[inside, 0].min() < len(before):  # the tokenizer would join it with what stands before
            spelled = "".join(tokenizer.text_of(int(id)) for id in tokenizer.encode(target).ids)
            own = [self._inside_words[spelled]] if spelled in self._inside_words else own
        pieces = [tokenizer.token(id) for id in own]
        if len(own) != 1:
            parts = " ".join(pieces) or "nothing"
            raise UserError(
                f"the target {target!r} is not one token here but {parts}, and a blank holds one: compare such words by"
                " `jaxlm score` of whole sentences"
            )
        if own[0] in self._silent:
            raise UserError(f"the target {target!r} is {pieces[0]} to this vocabulary, which is no word: leave it out")
        return own[0]

    def _candidate(self, text: str, start: int, token: int, probability: float, word: str | None = None) -> Candidate:
        word = self.tokenizer.text_of(token) if word is None else word
        filled = text[:start] + word + text[start + len(self.tokenizer.mask_token) :]
        return Candidate(word, probability, self.tokenizer.token(token), filled)


def load(directory: str | Path, compute_dtype: str = "float32") -> Model:
    """Returns the trained model of a work directory or a Hugging Face directory. Raises UserError.

    compute_dtype is that of products: "float32", "bfloat16", or "auto", which is bfloat16 where it is fast.
    """
    return Model(load_trained(directory, compute_dtype))


def _longest_run(segment_ids: np.ndarray) -> int:
    """Returns the length of the longest run of equal ids in a row of segment_ids [B, L]."""
    changes = np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    starts = np.flatnonzero(changes)
    return int(np.diff(np.append(starts, segment_ids.size)).max(initial=0))


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError("texts must be a list of str, such as [text] for one")


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
    parser.add_argument("--model", required=True, help="a work directory of `jaxlm train`, or a Hugging Face directory")
    parser.add_argument("--top", type=int, default=5, help="words for each blank (default 5)")
    parser.add_argument("--targets", default="", metavar="WORD,...", help="these words instead, each of one token")
    parser.add_argument("--json", action="store_true", help="one JSON object a text")
    parser.add_argument("text", nargs="*", help="texts with the model's mask, [MASK] or <mask>; without any, "
                        "lines of standard input")  # fmt: skip
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UserError(f"--top={args.top}: at least 1 is needed")
    targets = [word.strip() for word in args.targets.split(",") if word.strip()]
    if args.targets and not targets:
        raise UserError(f"--targets={args.targets}: words with commas are meant, such as is,was")
    texts = args.text or [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise UserError("no text was given, as an argument or on standard input")
    model = load(args.model)
    for text in texts:
        blanks = model.fill_mask(text, args.top, targets)
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
