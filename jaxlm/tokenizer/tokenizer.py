"""Text to token ids and back: SentencePiece models, trained here or elsewhere, and Hugging Face tokenizers.

Inside the libraries every special token bears a name that no text can hold, so that `[SEP]` in a training text stays
text. The mask's is a run of one such character, as long as the mask that users type: with `find_mask` it is put in its
place, and offsets go on counting the characters of the original text.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.errors import UserError
from jaxlm.storage import read_bytes, read_json, write_bytes, write_text
from jaxlm.tokenizer.characters import code_points, end_of_visible, first_visible
from jaxlm.tokenizer.sentencepiece_model import SentencePieceModel, load_sentencepiece
from jaxlm.tokenizer.sentencepiece_training import train_sentencepiece
from jaxlm.tokenizer.special_tokens import HIDDEN, ROLES, find_role_ids
from jaxlm.tokenizer.tokenizer_json import TokenizerJson, vocabulary_of
from jaxlm.tokenizer.transformers_files import transformers_files
from jaxlm.tokenizer.vocabularies import byte_level_definition, word_piece_definition
from jaxlm.tokenizer.words import check_rule, unicode_boundaries, word_boundaries

RECORD = "jaxlm_tokenizer.json"
FORMAT_VERSION = 1


class Encoding(NamedTuple):
    """The tokens of one text."""

    ids: np.ndarray  # int32 [n]
    word_starts: np.ndarray  # bool [n]


class Tokenizer:
    """A vocabulary and its rules. `special_ids` are never masked, never a random replacement and never proposed.

    `fingerprint` is the same wherever the same text gives the same ids and word starts: it is a hash of the pieces,
    scores, normalisation, special tokens and word rule, not of any file.
    """

    def __init__(
        self, backend: SentencePieceModel | TokenizerJson, words: str, before: "Tokenizer | None" = None
    ) -> None:
        check_rule(words)
        self._backend, self.words, self._before = backend, words, before
        role_ids = backend.role_ids
        self.vocab_size: int = len(backend.pieces)
        self.pad_id, self.unk_id, self.begin_id, self.end_id, self.mask_id = (role_ids[role] for role in ROLES)
        self.special_ids: tuple[int, ...] = backend.special_ids
        self.mask_token: str = backend.pieces[self.mask_id]
        self.added: tuple[str, ...] = backend.added
        self._role_ids = {role: role_ids[role] for role in ROLES}
        content = [backend.identity, self._role_ids, self.special_ids, words, *([self.added] if self.added else [])]
        self.fingerprint: str = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def with_words(self, words: str) -> "Tokenizer":
        """Returns the same tokenizer with another word rule."""
        return Tokenizer(self._backend, words, self._before and self._before.with_words(words))

    def with_added(self, words: Sequence[str]) -> "Tokenizer":
        """Returns the tokenizer with more entries, at the end of the vocabulary; `added` is which.

        Each is found in text as it is written, case included, as a whole word: no letter, mark, digit, "_" or joiner
        beside it, except in scripts without spaces. It is one token with the space before it, and `decode` puts one
        there. Left out are empty entries, repeated ones, and those that are one token of the vocabulary already.
        Raises UserError for one that holds a special token or a character that no text can hold.
        """
        before = self._before or self
        spelled = set(before._backend.pieces)
        added = dict.fromkeys(self.added)
        for word in (word.strip() for word in words):
            ids = before.encode(word).ids
            known = word in spelled or (len(ids) == 1 and ids[0] != before.unk_id)
            if word and not known:
                before._check_addable(word)
                added[word] = None
        return Tokenizer(before._backend.with_added(tuple(added)), self.words, before) if added else self

    def _check_addable(self, word: str) -> None:
        held = [self.token(id) for id in self.special_ids if self.token(id) and self.token(id) in word]
        if held:
            raise UserError(f"the token {word!r} cannot be added: it holds the special token {held[0]}")
        if re.search(f"[\ud800-\udfff\n\r\U00100000-{HIDDEN}]", word):
            raise UserError(f"the token {word!r} cannot be added: it holds a line end or a character of no use in text")

    def encode(self, text: str, find_mask: bool = False) -> Encoding:
        """Returns the text's tokens, without begin and end; a typed mask is the mask only with `find_mask`."""
        if not find_mask or self.mask_token not in text:
            return self.encode_batch([text])[0]
        ids, firsts, _, starts = self._spans(text, find_mask)
        return Encoding(ids, _word_starts(starts, firsts))

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Returns `encode` of each text, faster."""
        if not texts:
            return []
        texts, joined, codes = _without_hidden(texts)
        lengths = np.array([len(text) for text in texts])
        text_starts = np.cumsum(lengths + 1) - (lengths + 1)
        ids, firsts = self._backend.encode(texts, codes, text_starts)
        if self.words == "unicode":
            boundaries = unicode_boundaries(joined, codes)
        elif self.words == "spaces":
            boundaries = word_boundaries(joined, "spaces")
        else:
            boundaries = np.concatenate([word_boundaries(text, self.words) for text in texts])
        boundaries[text_starts[1:] - 1] = True  # the ends of texts
        starts = _word_starts(boundaries, firsts)
        ends = itertools.accumulate(len(tokens) for tokens in ids)
        return [Encoding(tokens, starts[end - len(tokens) : end]) for tokens, end in zip(ids, ends, strict=True)]

    def encode_with_offsets(self, text: str, find_mask: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32 [n] and offsets int32 [n, 2] into the text as given, in characters.

        A token's span holds no white space in front; tokens that share one character (bytes, parts of ½) share its
        span; the span of a marker for a space is empty.
        """
        ids, firsts, ends, _ = self._spans(text, find_mask)
        return ids, np.stack([firsts, ends], 1).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of the tokens; special tokens are left out."""
        special = set(self.special_ids)
        return self._backend.decode([int(i) for i in ids if int(i) not in special])

    def token(self, id: int) -> str:
        """Returns the token as the vocabulary spells it."""
        return self._backend.pieces[id]

    def text_of(self, id: int) -> str:
        """Returns what the token alone adds to a text, without the space or joint in front; "" for special tokens."""
        return "" if id in self.special_ids else self._backend.text_of(id)

    def starts_word(self, id: int) -> bool:
        """Returns whether the token is spelled as the beginning of a word: with a space in front, or without ##."""
        return self._backend.starts_word(id)

    def piece_bytes(self) -> np.ndarray:
        """Returns int32 [V], the bytes of UTF-8 that a token stands for, its space counted; 0 for special tokens."""
        sizes = np.array([self._backend.bytes_of(id) for id in range(self.vocab_size)], np.int32)
        sizes[list(self.special_ids)] = 0
        return sizes

    def transformers_files(self, longest: int, token_types: bool = False) -> dict[str, bytes]:
        """Returns by name the files from which Transformers makes a tokenizer with the same ids and at most `longest`
        tokens; with `token_types`, the second text of a pair is of type 1.

        Begin and end are added there, and typed masks are found, as with `find_mask`. Transformers finds other special
        tokens in a text too, a typed [SEP], unless called with `split_special_tokens=True`, which finds none, as
        `encode` does. Raises UserError that names what cannot be expressed.
        """
        return transformers_files(self._backend, lambda text: self.encode(text, True).ids, longest, token_types)

    def save(self, directory: str | Path) -> None:
        """Writes files from which `load_tokenizer(directory)` makes this tokenizer again, each under its final name
        only when it is whole."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / self._backend.file_name, self._backend.content)
        record = {"format_version": FORMAT_VERSION, "kind": self._backend.kind, "file": self._backend.file_name}
        record |= {"words": self.words, "special_ids": self._role_ids, "fingerprint": self.fingerprint}
        record |= {"added": self.added} if self.added else {}
        write_text(directory / RECORD, json.dumps(record, indent=1) + "\n")

    def _spans(self, text: str, find_mask: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids, each token's first visible character, its end, and the text's word boundaries."""
        (text,), _, codes = _without_hidden([text])
        hidden = text.replace(self.mask_token, HIDDEN * len(self.mask_token)) if find_mask else text
        ids, begins, ends = self._backend.encode_spans(hidden, self.mask_id)
        invisible = self._backend.is_invisible(codes)
        firsts = first_visible(begins, invisible)
        ends = np.maximum(end_of_visible(ends, invisible), firsts)
        # Tokens of one character end where it ends.
        groups = np.flatnonzero(np.diff(firsts, prepend=-1))
        if len(ids):
            latest = np.maximum.reduceat(ends, groups)
            ends = np.where(self._backend.is_marker(ids), firsts, np.repeat(latest, np.diff([*groups, len(ids)])))
        return ids, firsts, ends, word_boundaries(text, self.words)


def _without_hidden(texts: Sequence[str]) -> tuple[Sequence[str], str, np.ndarray]:
    """Returns the texts, the same joined by line ends, and the characters of that; surrogates, which UTF-8 cannot hold,
    and our own character are replaced."""
    joined = "\n".join(texts)
    codes = code_points(joined)
    if not joined.isascii() and ((codes == ord(HIDDEN)) | (codes >> 11 == 0xD800 >> 11)).any():
        texts = [re.sub(f"[\ud800-\udfff{HIDDEN}]", "\U0010fffe", text) for text in texts]
        joined = "\n".join(texts)
        codes = code_points(joined)
    return texts, joined, codes


def _word_starts(boundaries: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Returns bool [n]: whether a word begins at a token's first visible character, and no token before it had that.

    So a marker for a space that stands alone begins the word behind it.
    """
    starts = boundaries[firsts]
    starts[1:] &= firsts[1:] != firsts[:-1]
    return starts


# Loading


def load_tokenizer(path: str | Path, words: str | None = None) -> Tokenizer:
    """Returns the tokenizer of a .model, tokenizer.json or vocab.txt, or of a folder with one.

    `words` is the word rule; None takes the one that was saved with the tokenizer, else "unicode". Raises UserError.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"there is no tokenizer {path}: a .model, tokenizer.json or vocab.txt, or a folder with one")
    if not (path / RECORD).is_file():
        return _load_file(_find_file(path), None, words or "unicode")
    record = read_json(path / RECORD, remedy="copy the tokenizer again from where it was saved")
    try:
        version, file, role_ids = record["format_version"], path / record["file"], record["special_ids"]
        role_ids = {role: int(role_ids[role]) for role in ROLES}
        saved_words, fingerprint = str(record["words"]), record["fingerprint"]
        added = [str(word) for word in record.get("added", [])]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / RECORD} is damaged ({error!r}): take the tokenizer from where it was made") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path / RECORD} has format {version}, this jaxlm reads {FORMAT_VERSION}")
    if not file.is_file():
        raise UserError(f"{path} lacks {file.name}, which {RECORD} names: take the tokenizer from where it was made")
    tokenizer = _load_file(file, role_ids, saved_words).with_added(added)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{file} is not the tokenizer that was saved with {path / RECORD}: it is damaged or replaced")
    return tokenizer if words in (None, saved_words) else tokenizer.with_words(words)


def _load_file(file: Path, role_ids: dict[str, int] | None, rule: str) -> Tokenizer:
    if file.suffix == ".model":
        return Tokenizer(load_sentencepiece(read_bytes(file), file, role_ids), rule)
    if file.suffix == ".txt":
        definition = word_piece_definition(file)
    elif file.name == "vocab.json":
        definition = byte_level_definition(file)
    else:
        definition = read_json(file)
        model = definition.get("model")
        if not isinstance(model, dict) or not model.get("vocab"):
            raise UserError(f"{file} holds no tokenizer: a tokenizer.json of the `tokenizers` library is meant")
    try:
        vocabulary = vocabulary_of(definition)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} holds no vocabulary that can be read ({error!r})") from error
    role_ids = role_ids or find_role_ids(file, vocabulary)
    return Tokenizer(TokenizerJson(definition, role_ids, file), rule)


def _find_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in (".model", ".json", ".txt"):
            raise UserError(f"{path} is no tokenizer that is known: a .model, tokenizer.json or vocab.txt is meant")
        return path
    models = sorted(path.glob("*.model"))
    for file in (path / "tokenizer.json", *models[:1], path / "vocab.txt", path / "vocab.json"):
        if file.is_file():
            if file in models and len(models) > 1:
                raise UserError(f"{path} holds several models ({', '.join(m.name for m in models)}): name one of them")
            return file
    raise UserError(f"{path} holds no tokenizer: no tokenizer.json, no .model, no vocab.txt and no vocab.json")


# Training


def train_tokenizer(texts: Iterable[str], settings: Any, directory: str | Path) -> Tokenizer:
    """Trains SentencePiece on all of the texts, and saves the tokenizer in `directory`.

    `settings` is the config's `tokenizer` section. The result depends on nothing else. Raises UserError where the text
    does not allow the vocabulary.
    """
    check_rule(settings.words)
    content = train_sentencepiece(texts, settings)
    file = Path(directory) / SentencePieceModel.file_name
    role_ids = {role: id for id, role in enumerate(ROLES)}
    tokenizer = Tokenizer(load_sentencepiece(content, file, role_ids), settings.words)
    tokenizer.save(directory)
    return tokenizer


def check_ids(tokenizer: Tokenizer, rows: int, directory: Path) -> None:
    """Refuses a tokenizer whose ids are beyond the token table: JAX would read other rows and say nothing."""
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer of {directory} has ids up to {tokenizer.vocab_size - 1}, beyond the {rows} rows of its"
            " token table: they do not belong together"
        )
