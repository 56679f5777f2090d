"""The tokenizer: text to token ids and back, with SentencePiece models and Hugging Face tokenizers as backends.

In the backends, special tokens are renamed to names that do not occur in text, so that a literal `[SEP]` in a training
text remains text. An internal name begins with a noncharacter (`HIDDEN`) and is as long as the token: with `find_mask`
or `find_special`, the mask or all special tokens in a text are replaced by these names, which leaves offsets unchanged.
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
from jaxlm.tokenizer.definition import check_definition
from jaxlm.tokenizer.sentencepiece_model import SentencePieceModel, load_sentencepiece
from jaxlm.tokenizer.sentencepiece_training import train_sentencepiece
from jaxlm.tokenizer.special_tokens import HIDDEN, ROLES, check_role_ids, find_role_ids
from jaxlm.tokenizer.tokenizer_json import TokenizerJson, vocabulary_of
from jaxlm.tokenizer.transformers_classes import as_transformers, require_sentencepiece
from jaxlm.tokenizer.transformers_files import transformers_files
from jaxlm.tokenizer.vocabularies import byte_level_definition, word_piece_definition
from jaxlm.tokenizer.words import check_rule, unicode_boundaries, word_boundaries
from jaxlm.typed import Record

RECORD = "jaxlm_tokenizer.json"
FORMAT_VERSION = 1
_REMEDY = "copy the tokenizer again from where it was saved"


class Encoding(NamedTuple):
    """The tokens of a text, without begin and end tokens."""

    ids: np.ndarray  # int32 [n]
    word_starts: np.ndarray  # bool [n]


class Tokenizer:
    """A vocabulary, the rules that split text into its tokens, and the rule that finds words.

    Attributes:
        words: The word rule, one of `words.RULES`.
        vocab_size: The number of tokens, V.
        pad_id, unk_id, begin_id, end_id, mask_id: The token id of each role.
        special_ids: The ids of all special tokens. They are never masked, drawn as replacements or predicted.
        mask_token: The mask as users write it, such as "[MASK]".
        added: The tokens added to the original vocabulary, at its end.
        fingerprint: A hash of everything that ids and word starts depend on: pieces, scores, normalization, special and
            added tokens, and the word rule. It does not depend on the bytes of any file.
    """

    def __init__(
        self, backend: SentencePieceModel | TokenizerJson, words: str, base: "Tokenizer | None" = None
    ) -> None:
        check_rule(words)
        self._backend, self.words, self._base = backend, words, base
        role_ids = backend.role_ids
        self.vocab_size: int = len(backend.pieces)
        self.pad_id, self.unk_id, self.begin_id, self.end_id, self.mask_id = (role_ids[role] for role in ROLES)
        self.special_ids: tuple[int, ...] = backend.special_ids
        self.mask_token: str = backend.pieces[self.mask_id]
        self.added: tuple[str, ...] = backend.added
        self._mask_name = {self.mask_token: backend.hidden[self.mask_id]}
        names = {backend.pieces[id]: backend.hidden[id] for id in backend.found_ids}
        self._special_names = {token: name for token, name in names.items() if len(token) == len(name)}
        self._role_ids = {role: role_ids[role] for role in ROLES}
        content = [backend.identity, self._role_ids, self.special_ids, words, *([self.added] if self.added else [])]
        self.fingerprint: str = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def with_words(self, words: str) -> "Tokenizer":
        """Returns the same tokenizer with another word rule. Raises UserError if it is not available."""
        return Tokenizer(self._backend, words, self._base and self._base.with_words(words))

    def with_added(self, words: Sequence[str]) -> "Tokenizer":
        """Returns the tokenizer with more tokens at the end of the vocabulary, listed in its `added`.

        An added token is found in text before normalization, with the same case, as a whole word: without a letter,
        mark, digit, "_" or joiner next to it, except in scripts that do not separate words. It includes the space
        before it, and `decode` writes one. Empty words, duplicates, and words that already are one token are skipped.
        Raises UserError for a word that contains a special token, a line end or a private-use character.
        """
        base = self._base or self
        spelled = set(base._backend.pieces)
        added = dict.fromkeys(self.added)
        for word in (word.strip() for word in words):
            ids = base.encode(word).ids
            known = word in spelled or (len(ids) == 1 and ids[0] != base.unk_id)
            if word and not known:
                base._check_addable(word)
                added[word] = None
        return Tokenizer(base._backend.with_added(tuple(added)), self.words, base) if added else self

    def _check_addable(self, word: str) -> None:
        held = [self.token(id) for id in self.special_ids if self.token(id) and self.token(id) in word]
        if held:
            raise UserError(
                f"cannot add the token {word!r}: it contains the special token {held[0]};"
                " remove it from the file of tokenizer.add"
            )
        if re.search(f"[\ud800-\udfff\n\r\U00100000-{HIDDEN}]", word):
            raise UserError(
                f"cannot add the token {word!r}: it contains a line end, a surrogate or a private-use character;"
                " remove it from the file of tokenizer.add"
            )

    def encode(self, text: str, find_mask: bool = False, find_special: bool = False) -> Encoding:
        """Returns the tokens of a text.

        A mask that is written in the text is the mask token only with `find_mask` or `find_special`. Other special
        tokens, such as [SEP], are text unless `find_special` is set; then ids are those of Transformers.
        """
        found = self._names_in(text, find_mask, find_special)
        if not found:
            return self._encode_plain([text])[0]
        ids, firsts, _, starts = self._spans(text, found)
        return Encoding(ids, _word_starts(starts, firsts))

    def encode_batch(self, texts: Sequence[str], find_special: bool = False) -> list[Encoding]:
        """Returns the tokens of each text, faster than by `encode`."""
        if not find_special:
            return self._encode_plain(texts)
        typed = [bool(self._names_in(text, True, True)) for text in texts]
        plain = iter(self._encode_plain([text for text, special in zip(texts, typed, strict=True) if not special]))
        return [
            self.encode(text, find_special=True) if special else next(plain)
            for text, special in zip(texts, typed, strict=True)
        ]

    def _encode_plain(self, texts: Sequence[str]) -> list[Encoding]:
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
        boundaries[text_starts[1:] - 1] = True  # the end of each text
        starts = _word_starts(boundaries, firsts)
        ends = itertools.accumulate(len(tokens) for tokens in ids)
        return [Encoding(tokens, starts[end - len(tokens) : end]) for tokens, end in zip(ids, ends, strict=True)]

    def encode_with_offsets(
        self, text: str, find_mask: bool = False, find_special: bool = False,
        within: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Returns the ids of a text, int32 [n], and the begin and end of each token in characters, int32 [n, 2].

        Offsets refer to the text as given. They exclude white space before a token. Tokens that share a character (its
        bytes, or the parts of ½) have the same offsets; a token that is only a space marker is empty. `find_mask` and
        `find_special` are those of `encode`; elsewhere than `within` these parts of the text, special tokens are text.
        """
        ids, firsts, ends, _ = self._spans(text, self._names_in(text, find_mask, find_special), within)
        return ids, np.stack([firsts, ends], 1).astype(np.int32)

    def pretoken_starts(self, text: str) -> np.ndarray:
        """Returns which tokens of `encode(text)` begin a pretoken, bool [n].

        Pretokens are the parts that a tokenizer splits a text into before it splits these into tokens (`word_ids` in
        Transformers): words at white space in SentencePiece, words and punctuation marks in BERT.
        """
        if isinstance(self._backend, SentencePieceModel):
            return self.with_words("spaces").encode(text).word_starts
        return self._backend.pretoken_starts(_without_hidden([text])[0][0])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of tokens, without special tokens."""
        special = set(self.special_ids)
        return self._backend.decode([int(i) for i in ids if int(i) not in special])

    def token(self, id: int) -> str:
        """Returns a token as the vocabulary spells it."""
        return self._backend.pieces[id]

    def text_of(self, id: int) -> str:
        """Returns the text of a token, without a space or "##" before it; "" for special tokens."""
        return "" if id in self.special_ids else self._backend.text_of(id)

    def starts_word(self, id: int) -> bool:
        """Returns whether a token is spelled like the start of a word: with a space, or in WordPiece without "##"."""
        return self._backend.starts_word(id)

    def piece_bytes(self) -> np.ndarray:
        """Returns the length of each token in UTF-8 bytes, its space included, int32 [V]; 0 for special tokens."""
        sizes = np.array([self._backend.bytes_of(id) for id in range(self.vocab_size)], np.int32)
        sizes[list(self.special_ids)] = 0
        return sizes

    def transformers_files(self, max_length: int, token_types: bool = False, separators: int = 1) -> dict[str, bytes]:
        """Returns the content of the files, by name, from which Transformers loads a tokenizer with the same ids.

        That tokenizer adds begin and end tokens and finds special tokens in a text, as with `find_special`. With
        `split_special_tokens=True` it finds none, like `encode`.

        Args:
            max_length: The largest number of tokens of a text.
            token_types: Whether the second text of a pair has type 1 instead of 0.
            separators: How many end tokens there are between the texts of a pair, if a tokenizer.json does not say.

        Raises:
            UserError: If the files cannot express the tokenizer.
        """
        return transformers_files(
            self._backend, lambda text: self.encode(text, find_special=True).ids, max_length, token_types, separators
        )

    def save(self, directory: str | Path) -> None:
        """Writes the files from which `load_tokenizer(directory)` restores this tokenizer. Raises UserError."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / self._backend.file_name, self._backend.content)
        record = {"format_version": FORMAT_VERSION, "kind": self._backend.kind, "file": self._backend.file_name}
        record |= {"words": self.words, "special_ids": self._role_ids, "fingerprint": self.fingerprint}
        record |= {"added": self.added} if self.added else {}
        write_text(directory / RECORD, json.dumps(record, indent=1) + "\n")

    def _names_in(self, text: str, find_mask: bool, find_special: bool) -> dict[str, str]:
        """Returns the internal names of the special tokens that are to be found in a text and are in it."""
        names = self._special_names if find_special else self._mask_name if find_mask else {}
        return {token: name for token, name in names.items() if token in text}

    def _spans(
        self, text: str, names: dict[str, str], within: Sequence[tuple[int, int]] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the ids of a text, the begin and the end of each token in it, and the word boundaries.

        `names` are the internal names of the special tokens to find, `within` parts of the text or all of it.
        """

        def named(match: re.Match[str]) -> str:
            inside = within is None or any(first <= match.start() and match.end() <= last for first, last in within)
            return names[match[0]] if inside else match[0]

        (text,), _, codes = _without_hidden([text])
        hidden = text
        if names:
            longest_first = sorted(names, key=len, reverse=True)
            hidden = re.sub("|".join(map(re.escape, longest_first)), named, text)
        ids, begins, ends = self._backend.encode_spans(hidden)
        invisible = self._backend.is_invisible(codes)
        firsts = first_visible(begins, invisible)
        ends = np.maximum(end_of_visible(ends, invisible), firsts)
        # Tokens that share a character end where it ends.
        groups = np.flatnonzero(np.diff(firsts, prepend=-1))
        if len(ids):
            latest = np.maximum.reduceat(ends, groups)
            ends = np.where(self._backend.is_marker(ids), firsts, np.repeat(latest, np.diff([*groups, len(ids)])))
        return ids, firsts, ends, word_boundaries(text, self.words)


def _without_hidden(texts: Sequence[str]) -> tuple[Sequence[str], str, np.ndarray]:
    """Returns the texts, the texts joined by line ends, and the code points of those.

    Surrogates, which UTF-8 cannot encode, and HIDDEN are replaced by another noncharacter.
    """
    joined = "\n".join(texts)
    codes = code_points(joined)
    if not joined.isascii() and ((codes == ord(HIDDEN)) | (codes >> 11 == 0xD800 >> 11)).any():
        texts = [re.sub(f"[\ud800-\udfff{HIDDEN}]", "\U0010fffe", text) for text in texts]
        joined = "\n".join(texts)
        codes = code_points(joined)
    return texts, joined, codes


def _word_starts(boundaries: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Returns which tokens start a word, bool [n], given the first visible character of each.

    A token starts a word if one begins at that character and no earlier token has the same first character. So a token
    that is only a space marker starts the word after it.
    """
    starts = boundaries[firsts]
    starts[1:] &= firsts[1:] != firsts[:-1]
    return starts


# Loading


def load_tokenizer(path: str | Path, words: str | None = None) -> Tokenizer:
    """Returns the tokenizer in a .model, tokenizer.json, vocab.txt or vocab.json file, or in a folder with one.

    `words` is the word rule; None for the one saved with the tokenizer, or "unicode" if there is none. Raises UserError
    if there is no such file, or it is damaged or not supported.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"there is no tokenizer {path}; give the path of a .model, tokenizer.json, vocab.txt or vocab.json file,"
            " or of a folder with one"
        )
    if not (path / RECORD).is_file():
        return _load_file(_find_file(path), None, words or "unicode")
    record = Record(path / RECORD, read_json(path / RECORD, remedy=_REMEDY), _REMEDY)
    version, file, ids = record.integer("format_version"), path / record.text("file"), record.record("special_ids")
    role_ids = {role: ids.integer(role) for role in ROLES}
    saved_words, fingerprint = record.text("words"), record.text("fingerprint")
    added = record.items("added", str, [])
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path / RECORD} has format {version}, but this version of jaxlm reads format {FORMAT_VERSION}; use the"
            " version of jaxlm that wrote it"
        )
    if not file.is_file():
        raise UserError(f"{path} lacks {file.name}, which {RECORD} names; {_REMEDY}")
    tokenizer = _load_file(file, role_ids, saved_words).with_added(added)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{file} is not the tokenizer that was saved with {path / RECORD}: it is damaged or was replaced; {_REMEDY}"
        )
    return tokenizer if words in (None, saved_words) else tokenizer.with_words(words)


def _load_file(file: Path, role_ids: dict[str, int] | None, rule: str) -> Tokenizer:
    if file.suffix == ".model":
        if role_ids is None:
            require_sentencepiece(file)
        return Tokenizer(load_sentencepiece(read_bytes(file), file, role_ids), rule)
    definition = _definition(file, as_written=role_ids is not None)
    vocabulary = vocabulary_of(definition)
    if role_ids:
        check_role_ids(role_ids, max(vocabulary.values()) + 1, file)
    role_ids = role_ids or find_role_ids(file, vocabulary)
    return Tokenizer(TokenizerJson(definition, role_ids, file), rule)


def _definition(file: Path, as_written: bool) -> dict[str, Any]:
    """Returns the content of a tokenizer.json for a vocabulary file of Transformers."""
    if file.suffix == ".txt":
        return word_piece_definition(file)
    if file.name == "vocab.json":
        return byte_level_definition(file)
    definition = read_json(file)
    check_definition(definition, file)
    return definition if as_written else as_transformers(file, definition)


def _find_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in (".model", ".json", ".txt"):
            raise UserError(
                f"{path} is not a supported tokenizer file; give a .model, tokenizer.json, vocab.txt or vocab.json file"
            )
        return path
    models = sorted(path.glob("*.model"))
    for file in (path / "tokenizer.json", *models[:1], path / "vocab.txt", path / "vocab.json"):
        if file.is_file():
            if file in models and len(models) > 1:
                raise UserError(
                    f"{path} contains several models ({', '.join(m.name for m in models)}); give the path of one"
                )
            return file
    raise UserError(
        f"{path} contains no tokenizer; give a folder with a tokenizer.json, .model, vocab.txt or vocab.json file"
    )


# Training


def train_tokenizer(texts: Iterable[str], settings: Any, directory: str | Path) -> Tokenizer:
    """Trains a SentencePiece model on all of the texts, saves the tokenizer in `directory`, and returns it.

    `settings` is the `tokenizer` section of a config. The result depends only on the texts and the settings. Raises
    UserError if the vocabulary size does not suit the text.
    """
    check_rule(settings.words)
    content = train_sentencepiece(texts, settings)
    file = Path(directory) / SentencePieceModel.file_name
    role_ids = {role: id for id, role in enumerate(ROLES)}
    tokenizer = Tokenizer(load_sentencepiece(content, file, role_ids), settings.words)
    tokenizer.save(directory)
    return tokenizer


def check_ids(tokenizer: Tokenizer, rows: int, directory: Path) -> None:
    """Raises UserError if the tokenizer has ids beyond the `rows` of the token embedding; JAX would not report it.

    `directory` holds both; it is named in the error.
    """
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer of {directory} has ids up to {tokenizer.vocab_size - 1}, but the token embedding has only"
            f" {rows} rows; use the tokenizer that the weights were trained with"
        )
