"""Trains a new vocabulary with SentencePiece."""

import io
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from jaxlm.errors import UserError
from jaxlm.settings import MAX_CHOSEN_VOCABULARY
from jaxlm.tokenizer.sentencepiece_schema import parse_model
from jaxlm.tokenizer.special_tokens import ROLES

_SPECIAL_PIECES = dict(zip(ROLES, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True))
_SENTENCE_BYTES = 4192  # SentencePiece skips longer lines
_MIN_COVERAGE = 0.98
_BYTES_PER_ENTRY = 200  # of text, at least, in a vocabulary whose size is chosen: 8,192 entries need 1.6 MB
_ALPHABET_SHARE = 4  # the alphabet may fill a quarter of the vocabulary before character_coverage limits it
_SHOWN = 20  # characters left out that are named
_SCORE_STEPS = 64  # per nat
_THREADS = 4  # fixed, because a unigram vocabulary depends on the number of threads
_CUT = "\ue000"  # a private-use character that marks where the trainer must end a piece
_log = logging.getLogger("jaxlm")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class VocabularySizeError(UserError):
    """A vocabulary size that does not suit the text, and the nearest one that does."""

    def __init__(self, message: str, nearest: int, too_large: bool) -> None:
        self.nearest, self.too_large = nearest, too_large
        super().__init__(message)


def train_sentencepiece(texts: Iterable[str], settings: Any) -> bytes:
    """Returns the content of a .model file that SentencePiece trains on all of the texts.

    `settings` is the `tokenizer` section of a config. The result depends only on the texts and the settings. If
    `vocab_size` is 0, the size is chosen by the text and printed. Without byte fallback, the most frequent characters
    of the text are in the vocabulary whatever the coverage is, as long as they fill at most a quarter of it; the
    characters that are left out are logged with their frequencies. Raises UserError if the size does not suit the text.
    """
    if settings.vocab_size:
        return _train(texts, settings, settings.vocab_size)
    texts = list(texts)
    text_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    content, size = _train_to_fit(texts, settings, chosen_size(text_bytes))
    print(
        f"vocabulary: {size:,} entries, chosen for {text_bytes / 1e6:,.2f} MB of text by tokenizer.vocab_size=0",
        file=sys.stderr,
    )
    return content


def chosen_size(text_bytes: int) -> int:
    """Returns the power of two that a vocabulary has by default for a text of this size."""
    size = MAX_CHOSEN_VOCABULARY
    while size > 256 and size * _BYTES_PER_ENTRY > text_bytes:
        size //= 2
    return size


def _train_to_fit(texts: list[str], settings: Any, size: int) -> tuple[bytes, int]:
    """Returns the model and its size: `size`, more if the text has many characters, or less if it has few words."""
    wanted = size
    for _ in range(2):
        try:
            return _train(texts, settings, size), size
        except VocabularySizeError as error:
            size = error.nearest if error.too_large else error.nearest + wanted
    return _train(texts, settings, size), size


def _train(texts: Iterable[str], settings: Any, size: int) -> bytes:
    import sentencepiece

    if settings.character_coverage < _MIN_COVERAGE:
        raise UserError(
            f"tokenizer.character_coverage={settings.character_coverage}: must be between {_MIN_COVERAGE} and 1"
        )
    names = {"pad": "pad", "unk": "unk", "begin": "bos", "end": "eos"}
    special_tokens: dict[str, Any] = {f"{name}_id": ROLES.index(role) for role, name in names.items()}
    special_tokens |= {f"{name}_piece": _SPECIAL_PIECES[role] for role, name in names.items()}
    rule = "nmt_nfkc_cf" if settings.lower_case else "nmt_nfkc"
    content, sentences = io.BytesIO(), list(sentences_of(texts))
    alphabet = Counter() if settings.byte_fallback else _alphabet(sentences, rule)
    kept = [character for character, _ in _by_frequency(alphabet)[: size // _ALPHABET_SHARE]]
    if settings.split_han:
        sentences = [_HAN.sub(f"{_CUT}\\g<0>{_CUT}", sentence) for sentence in sentences]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), required_chars="".join(kept), model_writer=content,
            model_type=settings.algorithm, vocab_size=size,
            character_coverage=settings.character_coverage, byte_fallback=settings.byte_fallback,
            normalization_rule_name=rule,
            control_symbols=[_SPECIAL_PIECES["mask"]], max_sentence_length=3 * _SENTENCE_BYTES,
            pretokenization_delimiter=_CUT if settings.split_han else "",
            num_threads=_THREADS, minloglevel=2, **special_tokens,
        )  # fmt: skip
    except RuntimeError as error:
        raise _training_error(str(error), size) from error
    _log_left_out(alphabet, content.getvalue(), settings)
    return _rounded(content.getvalue()) if settings.algorithm == "unigram" else content.getvalue()


def _alphabet(sentences: Iterable[str], rule: str) -> Counter[str]:
    """Returns how often each character occurs in the sentences after normalization, without white space."""
    import sentencepiece

    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule)
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(sentence if sentence.isascii() and sentence.isprintable() else normalizer.normalize(sentence))
    if rule.endswith("_cf"):
        for character in [c for c in counts if c.isascii() and c.isupper()]:
            counts[character.lower()] += counts.pop(character)
    return Counter({c: n for c, n in counts.items() if c != "▁" and not c.isspace() and c.isprintable()})


def _by_frequency(alphabet: Counter[str]) -> list[tuple[str, int]]:
    return sorted(alphabet.items(), key=lambda item: (-item[1], item[0]))


def _log_left_out(alphabet: Counter[str], content: bytes, settings: Any) -> None:
    """Logs the characters of the text that the trained vocabulary lacks, and how often they occur."""
    pieces = {piece.piece for piece in parse_model(content).pieces}
    left_out = [(character, count) for character, count in _by_frequency(alphabet) if character not in pieces]
    if left_out:
        occurrences = sum(count for _, count in left_out)
        shown = ", ".join(f"{character!r} {count:,}" for character, count in left_out[:_SHOWN])
        _log.warning(
            "the vocabulary leaves out %s rare characters of the text, %.3f%% of all: %s%s; set"
            " tokenizer.byte_fallback=true to encode them as bytes",
            f"{len(left_out):,}", 100 * occurrences / alphabet.total(), shown, ", ..." * (len(left_out) > _SHOWN),
        )  # fmt: skip


def _rounded(content: bytes) -> bytes:
    """Returns the model with scores rounded so that float32 sums of up to 40,000 of them are exact.

    Otherwise the segmentation of a run such as "-----" depends on rounding errors, and therefore on all the text before
    it, and no other library reproduces it.
    """
    model = parse_model(content)
    for piece in model.pieces:
        piece.score = round(piece.score * _SCORE_STEPS) / _SCORE_STEPS
    return model.SerializeToString()


def sentences_of(texts: Iterable[str]) -> Iterator[str]:
    """Yields the lines of the texts; long ones in pieces, cut at a space, that SentencePiece does not skip."""
    for text in texts:
        # SentencePiece skips lines with this character, which it uses as a separator.
        for line in text.replace("▅", " ").splitlines():
            rest = line.strip().encode("utf-8", "replace")
            while len(rest) > _SENTENCE_BYTES:
                cut = rest.rfind(b" ", 1, _SENTENCE_BYTES + 1)
                if cut < 0:
                    cut = _SENTENCE_BYTES
                    while rest[cut] & 0xC0 == 0x80:  # not the first byte of a character
                        cut -= 1
                yield rest[:cut].decode()
                rest = rest[cut:].lstrip(b" ")
            if rest:
                yield rest.decode()


def _training_error(message: str, entries: int) -> UserError:
    size = f"tokenizer.vocab_size={entries}"
    if match := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        sentence = f"{size} is too large for this text; set it to at most {match[1]}, or provide more text"
        return VocabularySizeError(sentence, int(match[1]), too_large=True)
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return VocabularySizeError(
            f"{size} is too small for the characters of this text; set it to at least {match[1]}, or lower"
            " tokenizer.character_coverage",
            int(match[1]), too_large=False,
        )  # fmt: skip
    if "insert_id" in message:
        return UserError(f"{size} is too small; set it to more than {len(ROLES)}, the number of special tokens")
    if "!sentences_.empty()" in message or "all_chars_count" in message:
        return UserError("there is no text to train the tokenizer on; check data.path and tokenizer.training_megabytes")
    return UserError(f"SentencePiece could not train the tokenizer: {message}")
