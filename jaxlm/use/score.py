"""Pseudo-log-likelihood of texts under a masked language model, for ranking sentences; and the verb `jaxlm score`."""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.data.packing import Batch, batch_tokens_for, pack
from jaxlm.data.unknown import Spelling, check_spelling, spelling_of_ids
from jaxlm.errors import NotFinite, UserError
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.predictions import map_predictions
from jaxlm.runtime.compiling import jit
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json_list
from jaxlm.storage import check_named, standard_input_lines
from jaxlm.text.filters import Tally
from jaxlm.text.records import FORMATS, RecordSettings, check_options, read_records
from jaxlm.use.loading import Trained, add_model_options, load_named, require_head

VARIANTS = {
    "within-word": "masks a token and those that follow in its word, as tokenizer.words finds words",
    "within_word_l2r": "masks a token and those that follow in its word, as the tokenizer splits text (Kauf and "
    "Ivanova, arXiv 2305.10588)",
    "original": "masks one token at a time (Salazar et al., arXiv 1910.14659)",
}
GROUP_TOKENS = 2**20  # tokens of masked copies that are packed together
LOGIT_ROWS = 256  # predictions whose vocabulary logits exist at the same time


class Score(NamedTuple):
    """The pseudo-log-likelihood of a text, in nats."""

    text: str
    total: float  # sum over the tokens
    per_token: float
    tokens: tuple[str, ...]  # in the vocabulary's spelling
    log_probabilities: tuple[float, ...]  # of each token when it is masked and the rest of the text is visible


class _Text(NamedTuple):
    text: str
    ids: np.ndarray  # int32 [n]
    copies: list[np.ndarray]  # n arrays int32 [n + 2], with begin and end; token i is masked in copy i


def score(
    trained: Trained, texts: Iterable[str], variant: str = "within-word", batch_tokens: int = 0,
    names: Iterable[str] | None = None,
) -> Iterator[Score]:  # fmt: skip
    """Yields the pseudo-log-likelihood of each text, in order.

    "original" masks one token at a time (Salazar et al. 2020, arXiv 1910.14659). It overestimates words of several
    tokens, because the other tokens of the word reveal the masked one. The others also mask the tokens that follow in
    the same word (Kauf and Ivanova 2023, arXiv 2305.10588). In "within_word_l2r", as in their program and in minicons,
    words are the pretokens of the tokenizer, so that "hasn't" is three words for BERT; in "within-word" they are those
    of tokenizer.words, in which it is one. Other special tokens in a text, such as [SEP], are ordinary text.

    Raises UserError if a text has no token that the vocabulary knows, contains the mask or exceeds the model's maximum
    length, or if the model has no masked-LM head; the message names the text by its number, or by its entry in `names`.
    """
    require_head(trained)
    if variant not in VARIANTS:
        raise UserError(f"variant={variant} is not one of {', '.join(VARIANTS)}")
    group: list[_Text] = []
    size = 0
    spelling = Spelling(0, 0, 0)
    numbered = (f"text {number}" for number in itertools.count(1))
    for name, text in zip(numbered if names is None else names, texts, strict=False):
        group.append(_masked_copies(trained, text, name, variant))
        spelling += spelling_of_ids(group[-1].ids, trained.tokenizer)
        size += sum(map(len, group[-1].copies))
        if size >= GROUP_TOKENS:
            yield from _scores(trained, group, batch_tokens)
            group, size = [], 0
    check_spelling({"the texts": spelling}, trained.tokenizer)
    yield from _scores(trained, group, batch_tokens)


def _masked_copies(trained: Trained, text: str, name: str, variant: str) -> _Text:
    tokenizer = trained.tokenizer
    if tokenizer.mask_token in text:
        raise UserError(
            f"{name} contains the mask {tokenizer.mask_token}, which has no probability ({text[:40]!r}...): put"
            " a word in its place, or use fill-mask to compare words"
        )
    encoding = tokenizer.encode(text)
    size = len(encoding.ids)
    if not text.strip() or not size:
        raise UserError(f"{name} is empty and has no probability: remove it")
    if not any(tokenizer.text_of(id).strip() for id in encoding.ids.tolist()):
        raise UserError(
            f"{name} has only characters that are not in the vocabulary ({text[:40]!r}), so its score would be "
            f"that of {tokenizer.token(tokenizer.unk_id)}: remove it, or use a model of its language"
        )
    if size + 2 > trained.longest:
        raise UserError(
            f"{name} has {size} tokens, but the model reads at most {trained.longest - 2} besides begin and end "
            f"({text[:40]!r}...): shorten it, or score its sentences one by one"
        )
    whole = np.concatenate([[tokenizer.begin_id], encoding.ids, [tokenizer.end_id]]).astype(np.int32)
    ends = np.arange(1, size + 1)
    if variant != "original":
        words = encoding.word_starts if variant == "within-word" else tokenizer.pretoken_starts(text)
        starts = np.append(np.flatnonzero(words), size)
        ends = starts[np.searchsorted(starts, np.arange(size), "right")]
    copies = []
    for first, end in enumerate(ends.tolist()):
        copy = whole.copy()
        copy[first + 1 : end + 1] = tokenizer.mask_id
        copies.append(copy)
    return _Text(text, encoding.ids, copies)


def _scores(trained: Trained, texts: Sequence[_Text], batch_tokens: int) -> Iterator[Score]:
    if not texts:
        return
    copies = [copy for text in texts for copy in text.copies]
    labels = np.concatenate([text.ids for text in texts])
    masked = np.concatenate([np.arange(1, len(text.ids) + 1) for text in texts])  # the position in each copy
    found = predict_masked(trained, copies, masked, labels, _log_probability, batch_tokens).astype(np.float64)
    start = 0
    for text in texts:
        values = found[start : start + len(text.ids)].tolist()
        start += len(text.ids)
        if not np.isfinite(values).all():
            raise NotFinite(f"the score of {text.text[:40]!r}")
        tokens = tuple(trained.tokenizer.token(int(id)) for id in text.ids)
        yield Score(text.text, sum(values), sum(values) / len(values), tokens, tuple(values))


def predict_masked(
    trained: Trained, copies: Sequence[np.ndarray], masked: np.ndarray, labels: np.ndarray,
    function: Callable[[Array, Array], Array], batch_tokens: int = 0,
) -> np.ndarray:  # fmt: skip
    """Returns `function` of the vocabulary logits at one position of each of n sequences, float32 [n, ...].

    `copies` are n arrays of token ids, masked int [n] the position in each, and labels int [n] the token that is to be
    predicted there. `function` takes logits float32 [M, V] and labels int32 [M] and returns an array [M, ...]; it must
    be a function of a module, because programs are compiled for each one.
    """
    found: np.ndarray | None = None
    batch_tokens = batch_tokens or batch_tokens_for(jax.devices()[0].platform)
    for batch in pack(copies, batch_tokens, trained.longest, trained.tokenizer.pad_id):
        values = _predict_batch(trained, batch, masked[batch.sequences], labels[batch.sequences], function)
        if found is None:
            found = np.zeros((len(copies), *values.shape[1:]), np.float32)
        found[batch.sequences] = values
    assert found is not None, "no sequences"
    return found


def _predict_batch(
    trained: Trained, batch: Batch, masked: np.ndarray, labels: np.ndarray, function: Callable[[Array, Array], Array]
) -> np.ndarray:
    """Returns `function` of the logits of each of a batch's n sequences at its masked position, float32 [n, ...]."""
    most = 1 << (int(batch.segments.max()) - 1).bit_length()  # segments in a row, rounded up so that shapes are few
    slots = np.zeros((2, len(batch.tokens), most), np.int32)  # unused slots have position 0 and are ignored
    slots[:, batch.rows, batch.segments - 1] = batch.starts + masked, labels
    positions, labels = slots
    found = _predict(trained.model, trained.params, batch.tokens, batch.segment_ids, positions, labels, function)
    return np.asarray(found)[batch.rows, batch.segments - 1]


@partial(jit, static_argnames=("model", "function"))
def _predict(
    model: MaskedLM, params: dict, tokens: Array, segment_ids: Array, positions: Array, labels: Array,
    function: Callable[[Array, Array], Array],
) -> Array:  # fmt: skip
    """Returns function(logits, labels) [B, S, ...] at positions int32 [B, S], whose labels are int32 [B, S]."""
    logits_bytes = LOGIT_ROWS * model.config.vocab_size * 4
    return map_predictions(model, params, tokens, segment_ids, positions, (labels,), function, logits_bytes)


def _log_probability(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm score --model=DIR TEXT ... | --input=FILE`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm score",
        description="Print for each text its pseudo-log-likelihood in nats, the mean per token, and the text. It is the"
        " sum of the log-probabilities of the tokens, each masked in turn while the rest is visible; higher is more"
        " probable. Compare sums for sentences that differ in one word, and means for sentences of different lengths;"
        " compare scores of the same model only.",
        formatter_class=HelpFormatter,
        epilog="example:\n  jaxlm score --model=runs/mini 'The values is sorted.' 'The values are sorted.'",
    )  # fmt: skip
    add_model_options(parser)
    variants = "; ".join(f"{name} {meaning}" for name, meaning in VARIANTS.items())
    parser.add_argument("--variant", choices=VARIANTS, default="within-word", help=f"{variants}. Words of several "
                        "tokens are overestimated by original (default: within-word)")  # fmt: skip
    parser.add_argument("--input", metavar="FILE", help="read texts from a file: .txt (one per line), .jsonl, .csv, "
                        ".tsv, .parquet")  # fmt: skip
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="format of the file (default: by "
                        "its name)")  # fmt: skip
    parser.add_argument("--field", default="text", help="field or column with the text (default text)")
    parser.add_argument("--encoding", default="utf-8", help="encoding of the file (default utf-8)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: a list of the texts, with their tokens"
    )
    parser.add_argument("text", nargs="*", help="texts (default: the lines of --input or of standard input)")
    args = parser.parse_args(argv)
    if args.input is not None:
        check_named("--input", args.input)
    if args.input and args.text:
        raise UserError("give either texts or --input, not both")
    for option in ("format", "field", "encoding"):
        if not args.input and getattr(args, option) != parser.get_default(option):
            raise UserError(f"--{option}={getattr(args, option)} applies to the file of --input, which is not given")
    records = RecordSettings(args.format, args.field, args.encoding)
    texts: Iterable[str] = args.text or standard_input_lines()
    if args.input:
        check_options(args.input, records)
        texts = read_records(args.input, records, Tally())
    trained = load_named(args)
    nothing = "no text given: pass it as an argument, with --input, or on standard input"
    results = _checked(score(trained, texts, args.variant), f"{args.input} contains no text" if args.input else nothing)
    if args.json:
        print_json_list("texts", (result._asdict() for result in results))
        return 0
    for result in results:
        print(f"{result.total:10.3f}  {result.per_token:8.3f}  {result.text}")
    return 0


def _checked(results: Iterable[Score], nothing: str) -> Iterator[Score]:
    """Yields the results; raises UserError with the sentence `nothing` if there are none."""
    empty = True
    for result in results:
        empty = False
        yield result
    if empty:
        raise UserError(nothing)
