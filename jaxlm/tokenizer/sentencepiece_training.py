"""SentencePiece's training of a new vocabulary."""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tokenizer.sentencepiece_schema import parse_model
from jaxlm.tokenizer.special_tokens import ROLES

SPECIAL_PIECES = dict(
    zip(ROLES, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True)
)  # of what is trained here
SENTENCE_BYTES = 4192  # SentencePiece leaves out longer lines
LEAST_COVERAGE = 0.98
SCORE_STEPS = 64  # a nat
TRAINING_THREADS = 4  # a unigram vocabulary depends on it, so it must not be the machine's
_CUT = "\ue000"  # of private use: where the trainer must end a piece
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def train_sentencepiece(texts: Iterable[str], settings: Any) -> bytes:
    """Returns the model that SentencePiece trains on all of the texts by the config's `tokenizer` section.

    The result depends on nothing else. Raises UserError where the text does not allow the vocabulary.
    """
    import sentencepiece

    if settings.character_coverage < LEAST_COVERAGE:
        raise UserError(
            f"tokenizer.character_coverage={settings.character_coverage}: SentencePiece takes {LEAST_COVERAGE} to 1"
        )
    names = {"pad": "pad", "unk": "unk", "begin": "bos", "end": "eos"}
    special_tokens: dict[str, Any] = {f"{name}_id": ROLES.index(role) for role, name in names.items()}
    special_tokens |= {f"{name}_piece": SPECIAL_PIECES[role] for role, name in names.items()}
    content, sentences = io.BytesIO(), sentences_of(texts)
    if settings.split_han:
        sentences = (_HAN.sub(f"{_CUT}\\g<0>{_CUT}", sentence) for sentence in sentences)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=content,
            model_type=settings.algorithm, vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage, byte_fallback=settings.byte_fallback,
            normalization_rule_name="nmt_nfkc_cf" if settings.lower_case else "nmt_nfkc",
            control_symbols=[SPECIAL_PIECES["mask"]], max_sentence_length=3 * SENTENCE_BYTES,
            pretokenization_delimiter=_CUT if settings.split_han else "",
            num_threads=TRAINING_THREADS, minloglevel=2, **special_tokens,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(_training_error(str(error), settings)) from error
    return _rounded(content.getvalue()) if settings.algorithm == "unigram" else content.getvalue()


def _rounded(content: bytes) -> bytes:
    """Returns the model with its scores on a grid on which float32 adds without error, up to 40,000 tokens.

    Else the split of a run such as "-----" depends on rounding and so on all the text before it, and no other library
    gives the same.
    """
    model = parse_model(content)
    for piece in model.pieces:
        piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS
    return model.SerializeToString()


def sentences_of(texts: Iterable[str]) -> Iterator[str]:
    """Yields the lines of the texts, long ones in pieces that SentencePiece does not leave out, cut at a space."""
    for text in texts:
        # SentencePiece leaves out a line with this character, its own separator.
        for line in text.replace("▅", " ").splitlines():
            rest = line.strip().encode("utf-8", "replace")
            while len(rest) > SENTENCE_BYTES:
                cut = rest.rfind(b" ", 1, SENTENCE_BYTES + 1)
                if cut < 0:
                    cut = SENTENCE_BYTES
                    while rest[cut] & 0xC0 == 0x80:  # inside a character
                        cut -= 1
                yield rest[:cut].decode()
                rest = rest[cut:].lstrip(b" ")
            if rest:
                yield rest.decode()


def _training_error(message: str, settings: Any) -> str:
    size = f"tokenizer.vocab_size={settings.vocab_size}"
    if match := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        return f"{size} is too large for this text: at most {match[1]}, or give more text"
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"{size} is too small for the characters of this text: at least {match[1]}, or lower"
            " tokenizer.character_coverage"
        )
    if "insert_id" in message:
        return f"{size} is too small: the special tokens alone are {len(ROLES)}"
    if "!sentences_.empty()" in message or "all_chars_count" in message:
        return "there is no text to train the tokenizer on: see data.path and tokenizer.training_megabytes"
    return f"SentencePiece could not train the tokenizer: {message}"
