"""How probable a sentence is to a masked language model: its pseudo-log-likelihood, for ranking sentences."""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlm.data.packing import Batch, batch_tokens_for, pack
from jaxlm.errors import UserError
from jaxlm.model.heads import MaskedLM, encode, predict
from jaxlm.runtime.compiling import jit
from jaxlm.text.records import FORMATS, RecordSettings, read_records
from jaxlm.text.sources import Tally
from jaxlm.use.loading import Trained, load_trained, require_head

VARIANTS = ("within-word", "original")
GROUP_TOKENS = 2**20  # of masked copies that are packed together
LOGIT_ROWS = 256  # of the vocabulary's width that exist at once


class Score(NamedTuple):
    """A text's pseudo-log-likelihood, in nats."""

    text: str
    total: float  # the sum over its tokens
    per_token: float
    tokens: tuple[str, ...]  # as the vocabulary spells them
    log_probabilities: tuple[float, ...]  # of each token, with it masked and the rest of the text in view


class _Text(NamedTuple):
    text: str
    ids: np.ndarray  # int32 [n]
    copies: list[np.ndarray]  # n of int32 [n + 2], with begin and end; in copy i token i is masked


def score(
    trained: Trained, texts: Iterable[str], variant: str = "within-word", batch_tokens: int = 0
) -> Iterator[Score]:
    """Yields each text's pseudo-log-likelihood, in order.

    "original" masks one token at a time (Salazar et al. 2020, arXiv 1910.14659). It over-rates words of many pieces,
    whose other pieces give the masked one away: "within-word" masks with a token also those that follow it in its word
    (Kauf and Ivanova 2023, arXiv 2305.10588, "within-word left-to-right"). Raises UserError for a text without tokens,
    or longer than the model.
    """
    require_head(trained)
    if variant not in VARIANTS:
        raise UserError(f"variant={variant} is not one of {', '.join(VARIANTS)}")
    held: list[_Text] = []
    size = 0
    for number, text in enumerate(texts, 1):
        held.append(_masked_copies(trained, text, number, variant))
        size += sum(map(len, held[-1].copies))
        if size >= GROUP_TOKENS:
            yield from _scores(trained, held, batch_tokens)
            held, size = [], 0
    yield from _scores(trained, held, batch_tokens)


def _masked_copies(trained: Trained, text: str, number: int, variant: str) -> _Text:
    tokenizer = trained.tokenizer
    encoding = tokenizer.encode(text)
    size = len(encoding.ids)
    if not size:
        raise UserError(f"text {number} is empty, and has no probability: leave it out")
    if size + 2 > trained.longest:
        raise UserError(
            f"text {number} has {size} tokens, and the model reads {trained.longest - 2} beside begin and end "
            f"({text[:40]!r}...): score its sentences one by one"
        )
    whole = np.concatenate([[tokenizer.begin_id], encoding.ids, [tokenizer.end_id]]).astype(np.int32)
    ends = np.arange(1, size + 1)
    if variant == "within-word":
        starts = np.append(np.flatnonzero(encoding.word_starts), size)
        ends = starts[np.searchsorted(starts, np.arange(size), "right")]
    copies = []
    for first, end in enumerate(ends.tolist()):
        copy = whole.copy()
        copy[first + 1 : end + 1] = tokenizer.mask_id
        copies.append(copy)
    return _Text(text, encoding.ids, copies)


def _scores(trained: Trained, texts: Sequence[_Text], batch_tokens: int) -> Iterator[Score]:
    copies = [copy for text in texts for copy in text.copies]
    labels = np.concatenate([text.ids for text in texts]) if texts else np.zeros(0, np.int32)
    places = np.concatenate([np.arange(1, len(text.ids) + 1) for text in texts]) if texts else labels
    found = np.zeros(len(copies))
    batch_tokens = batch_tokens or batch_tokens_for(jax.devices()[0].platform)
    for batch in pack(copies, batch_tokens, trained.longest, trained.tokenizer.pad_id):
        found[batch.sequences] = _judge(trained, batch, places[batch.sequences], labels[batch.sequences])
    start = 0
    for text in texts:
        values = found[start : start + len(text.ids)].tolist()
        start += len(text.ids)
        pieces = tuple(trained.tokenizer.token(int(id)) for id in text.ids)
        yield Score(text.text, sum(values), sum(values) / len(values), pieces, tuple(values))


def _judge(trained: Trained, batch: Batch, places: np.ndarray, labels: np.ndarray) -> np.ndarray:
    flat = batch.rows * batch.tokens.shape[1] + batch.starts + places
    room = max(16, 1 << (len(flat) - 1).bit_length())  # few shapes
    extra = (0, room - len(flat))
    found = _log_probabilities(
        trained.model, trained.params, batch.tokens, batch.segment_ids, np.pad(flat, extra), np.pad(labels, extra)
    )
    return np.asarray(found)[: len(flat)]


@partial(jit, static_argnames=("model",))
def _log_probabilities(
    model: MaskedLM, params: dict, tokens: Array, segment_ids: Array, places: Array, labels: Array
) -> Array:
    """Returns the log-probabilities float32 [P] of labels [P] at places [P] in the flattened tokens [B, L]."""
    states = encode(model, params, tokens, segment_ids)
    states = states.reshape(-1, states.shape[-1])[places]
    rows = min(len(labels), LOGIT_ROWS)

    def judge(some: tuple[Array, Array]) -> Array:
        logits = predict(model, params, some[0])
        return jnp.take_along_axis(jax.nn.log_softmax(logits), some[1][:, None], axis=-1)[:, 0]

    return lax.map(judge, (states.reshape(-1, rows, states.shape[-1]), labels.reshape(-1, rows))).reshape(-1)


def main(argv: Sequence[str]) -> int:
    """`jaxlm score --model=DIR TEXT ... | --input=FILE`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm score",
        description="Print the pseudo-log-likelihood of sentences in nats: the log-probability of each token, with it"
        " masked and the rest in view, summed; then the mean over tokens. Higher is more probable. Compare sums of"
        " sentences that differ in a word, means of sentences of other lengths, and only within one model.",
        epilog="example: jaxlm score --model=runs/quickstart 'The values is sorted.' 'The values are sorted.'",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="a work directory of `jaxlm train`, or a Hugging Face directory")
    parser.add_argument("--variant", choices=VARIANTS, default="within-word", help="original: one token is masked "
                        "(Salazar et al., arXiv 1910.14659); within-word: with it those that follow in its word, so "
                        "that words of many pieces are not over-rated (Kauf and Ivanova, arXiv 2305.10588; the "
                        "default)")  # fmt: skip
    parser.add_argument("--input", metavar="FILE", help="texts from a file: one a line, .jsonl, .csv, .tsv, .parquet")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="of the file (default: by name)")
    parser.add_argument("--field", default="text", help="of JSON Lines, CSV, TSV, Parquet (default text)")
    parser.add_argument("--encoding", default="utf-8", help="of the file (default utf-8)")
    parser.add_argument("--json", action="store_true", help="one JSON object a text, with its tokens")
    parser.add_argument("text", nargs="*", help="texts; without any and without --input, lines of standard input")
    args = parser.parse_args(argv)
    if args.input and args.text:
        raise UserError("give either texts or --input, not both")
    records = RecordSettings(args.format, args.field, args.encoding)
    texts: Iterable[str] = args.text or (line.rstrip("\r\n") for line in sys.stdin)
    if args.input:
        texts = read_records(args.input, records, Tally())
    trained = load_trained(args.model)
    unknown = trained.tokenizer.token(trained.tokenizer.unk_id)
    count = with_unknown = 0
    for count, result in enumerate(score(trained, texts, args.variant), 1):  # noqa: B007
        with_unknown += unknown in result.tokens
        if args.json:
            print(json.dumps(result._asdict(), ensure_ascii=False))
        else:
            print(f"{result.total:10.3f}  {result.per_token:8.3f}  {result.text}")
    if not count:
        raise UserError(f"{args.input} holds no text" if args.input else "no text was given, as an argument or on"
                        " standard input")  # fmt: skip
    if with_unknown:
        logging.getLogger("jaxlm").warning(
            "%s of %s texts hold what the vocabulary does not: %s is scored there", with_unknown, count, unknown
        )
    return 0
