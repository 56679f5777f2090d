"""The backend of `Tokenizer` for a tokenizer.json of the `tokenizers` library.

A definition is the content of a tokenizer.json as Python objects.
"""

import copy
import functools
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tokenizer.added_tokens import added_entry, decoder_with_spaces
from jaxlm.tokenizer.characters import decode_bytes, first_visible, is_space
from jaxlm.tokenizer.sentencepiece_model import BYTE, SPACE
from jaxlm.tokenizer.special_tokens import entry_of, hidden_names


class TokenizerJson:
    """A tokenizer.json in which special tokens are renamed; attributes and methods as in `SentencePieceModel`.

    `definition` is the original one; `where` is the path of the file, for errors. BPE dropout in it is not applied,
    because the tokens of a text must always be the same; `definition` keeps its value.
    """

    kind, file_name = "huggingface", "tokenizer.json"

    def __init__(
        self, definition: dict[str, Any], role_ids: dict[str, int], where: Path, added: Sequence[str] = ()
    ) -> None:
        import tokenizers

        self.definition, self.role_ids, self.where, self.added = definition, role_ids, where, tuple(added)
        self.content = json.dumps(definition, ensure_ascii=False).encode()
        model, entries = definition["model"], definition.get("added_tokens") or []
        parts = {
            key: definition.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
        }
        self.identity = [self.kind, parts]
        vocabulary = vocabulary_of(definition)
        self.first_added = max(vocabulary.values()) + 1
        self.pieces = [""] * self.first_added
        for piece, id in vocabulary.items():
            self.pieces[id] = piece
        self.pieces += self.added
        special = {entry["id"] for entry in entries if entry.get("special")} | set(role_ids.values())
        self.special_ids = tuple(sorted(special))

        text = json.dumps([definition.get("pre_tokenizer"), definition.get("decoder"), definition.get("normalizer")])
        self._byte_level = '"ByteLevel"' in text
        self._prefix = model.get("continuing_subword_prefix") or "" if model.get("type") == "WordPiece" else ""
        self._in_bytes = bool(model.get("byte_fallback"))
        self._space = "Ġ" if self._byte_level else SPACE
        self._markers = np.array([set(piece) == {self._space} for piece in self.pieces])

        self.hidden = hidden_names(self.pieces, self.special_ids, role_ids["mask"])
        self.found_ids = self.special_ids
        hidden = _renamed(self.definition_with_added(), self.hidden, self.pieces)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(hidden, ensure_ascii=False))
        except Exception as error:  # the library raises no specific class
            raise UserError(f"the `tokenizers` library cannot load {where}: {error}; fetch the file again") from error
        for entry in hidden["added_tokens"]:
            found = self._tokenizer.token_to_id(entry["content"])
            if found != entry["id"]:
                raise UserError(
                    f"{where}: the added token {self.pieces[entry['id']]!r} has the id {entry['id']}, but the"
                    f" `tokenizers` library would give it {found}; fetch the file again"
                )

    def with_added(self, words: Sequence[str]) -> "TokenizerJson":
        """Returns the tokenizer with these added tokens, in place of `added`."""
        return TokenizerJson(self.definition, self.role_ids, self.where, words)

    def definition_with_added(self) -> dict[str, Any]:
        """Returns the definition with the added tokens; its decoder puts a space before each of them."""
        definition = copy.deepcopy(self.definition)
        if not self.added:
            return definition
        definition["added_tokens"] = [
            *(definition.get("added_tokens") or []),
            *(added_entry(word, id) for id, word in enumerate(self.added, self.first_added)),
        ]
        decoder = definition.get("decoder")
        if decoder and decoder["type"] != "WordPiece":  # a WordPiece decoder puts spaces between all words
            definition["decoder"] = decoder_with_spaces(
                decoder, self.added, self._space, _byte_spelling if self._byte_level else None
            )
        return definition

    def encode(self, texts: Sequence[str], codes: np.ndarray, text_starts: np.ndarray):
        """Returns the ids of each text, and the first visible character of every token in the joined texts.

        Arguments and results are those of `SentencePieceModel.encode`.
        """
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in found]
        begins = np.fromiter(
            (start + begin for start, e in zip(text_starts.tolist(), found, strict=True) for begin, _ in e.offsets),
            np.int64,
        )
        invisible = self.is_invisible(codes)
        invisible[text_starts[1:] - 1] = False  # so that no token reaches into the next text
        return ids, first_visible(begins, invisible)

    def encode_spans(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the ids of a text, and the begin and the end of each token in it, int64 [n].

        Special tokens are found in the text by their internal names (see `Tokenizer`).
        """
        found = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
        begins, ends = offsets[:, 0], offsets[:, 1]
        if not text.isascii():
            # The library omits a combining accent at the end of a word from the offsets.
            limits = [*np.maximum(begins[1:], ends[:-1]).tolist(), len(text)][: len(begins)]
            for number, limit in enumerate(limits):
                while ends[number] < limit and _is_mark(text[ends[number]]):
                    ends[number] += 1
        return np.array(found.ids, np.int32), begins, ends

    def pretoken_starts(self, text: str) -> np.ndarray:
        """Returns which tokens of a text begin a part that is split into tokens by itself, bool [n]."""
        parts = self._tokenizer.encode(text, add_special_tokens=False).word_ids
        starts = [part is None or part != before for part, before in zip(parts, [None, *parts], strict=False)]
        return np.array(starts, bool)

    def is_invisible(self, codes: np.ndarray) -> np.ndarray:
        """Returns which characters are white space, bool [n]."""
        return is_space(codes)

    def is_marker(self, ids: np.ndarray) -> np.ndarray:
        """Returns which tokens consist of space markers only, bool [n]."""
        return self._markers[ids]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of tokens, none of which is special."""
        text = self._tokenizer.decode(ids)
        return text.removeprefix(" ") if ids and ids[0] >= self.first_added else text

    def text_of(self, id: int) -> str:
        """Returns the text of a token, without a space or a continuation prefix before it."""
        piece = self.pieces[id]
        if id >= self.first_added:
            return piece
        if self._byte_level and (values := _byte_values(piece)) is not None:
            return decode_bytes(values).removeprefix(" ")
        if self._in_bytes and (match := BYTE.fullmatch(piece)):
            return decode_bytes([int(match[1], 16)])
        return piece.removeprefix(self._prefix) if self._prefix else piece.removeprefix(SPACE).replace(SPACE, " ")

    def starts_word(self, id: int) -> bool:
        """Returns whether the token includes a space before it, or in WordPiece has no continuation prefix."""
        if id >= self.first_added:
            return True
        if self._prefix:
            return not self.pieces[id].startswith(self._prefix)
        return self.pieces[id].startswith(self._space)

    def bytes_of(self, id: int) -> int:
        """Returns the length of the token in UTF-8, its space included."""
        piece = self.pieces[id]
        if id >= self.first_added:
            return len(piece.encode()) + (not self._prefix)
        if self._byte_level and (values := _byte_values(piece)) is not None:
            return len(values)
        if self._in_bytes and BYTE.fullmatch(piece):
            return 1
        return len(piece.removeprefix(self._prefix).replace(SPACE, " ").encode())


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Returns the byte for each character of a byte-level vocabulary (GPT-2, Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_values(piece: str) -> list[int] | None:
    """Returns the bytes of a byte-level token, or None for an added token, which is plain text."""
    alphabet = _byte_alphabet()
    return [alphabet[letter] for letter in piece] if all(letter in alphabet for letter in piece) else None


def _byte_spelling(text: str) -> str:
    """Returns the UTF-8 bytes of a text in the alphabet of a byte-level vocabulary."""
    letters = {byte: letter for letter, byte in _byte_alphabet().items()}
    return "".join(letters[byte] for byte in text.encode())


def vocabulary_of(definition: dict[str, Any]) -> dict[str, int]:
    """Returns the id of each token of a definition, its added tokens included."""
    entries = definition["model"]["vocab"]
    own = entries.items() if isinstance(entries, dict) else ((entry[0], id) for id, entry in enumerate(entries))
    return dict(own) | {entry["content"]: entry["id"] for entry in definition.get("added_tokens") or []}


def _renamed(definition: dict, names: dict[int, str], pieces: list[str]) -> dict:
    """Returns the definition with special tokens renamed so that they do not occur in text.

    `names` are the internal names of the special tokens, which are found in a text before normalization.
    """
    # These three add begin and end tokens and fix the length, which callers of `Tokenizer` do.
    definition = copy.deepcopy(definition) | {"truncation": None, "padding": None, "post_processor": None}
    renamed = {pieces[id]: name for id, name in names.items()}
    model = without_dropout(definition)["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(entry[0], entry[0]), entry[1]] for entry in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    added = definition.get("added_tokens") or []
    listed = {entry["id"] for entry in added}
    added += [entry_of(pieces[id], id, special=True) for id in names if id not in listed]
    for entry in added:
        entry["content"] = renamed.get(entry["content"], entry["content"])
        if entry["id"] in names:
            entry |= {"special": True, "normalized": False}
    return definition | {"added_tokens": sorted(added, key=lambda entry: entry["id"]), "model": model}


def without_dropout(definition: dict[str, Any]) -> dict[str, Any]:
    """Returns the definition without BPE dropout, so that a text always has the same tokens."""
    model = definition["model"]
    return definition | {"model": model | {"dropout": None}} if model.get("dropout") else definition
