"""Text to token ids and back: SentencePiece models, trained here or elsewhere, and Hugging Face tokenizers.

Inside the libraries every special token bears a name that no text can hold, so that `[SEP]` in a training text stays
text. The mask's is a run of one such character, as long as the mask that users type: with `find_mask` it is put in its
place, and offsets go on counting the characters of the original text.
"""

import copy
import functools
import hashlib
import importlib
import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import write_text
from jaxlm.data.words import check_rule, code_points, is_space, unicode_boundaries, word_boundaries
from jaxlm.errors import UserError

ROLES = ("pad", "unk", "begin", "end", "mask")
SPECIAL_PIECES = dict(
    zip(ROLES, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True)
)  # of what is trained here
USUAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "begin": ("[CLS]", "<s>"),
    "end": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
CONFIG_KEYS = {  # of tokenizer_config.json and special_tokens_map.json
    "pad": ("pad_token",),
    "unk": ("unk_token",),
    "begin": ("cls_token", "bos_token"),
    "end": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
RECORD = "jaxlm_tokenizer.json"
FORMAT_VERSION = 1
SENTENCE_BYTES = 4192  # SentencePiece leaves out longer lines
LEAST_COVERAGE = 0.98
TRAINING_THREADS = 4  # a unigram vocabulary depends on it, so it must not be the machine's
HIDDEN = "\U0010ffff"  # a noncharacter: no text of any use holds it
_SPACE = "▁"
_CUT = "\ue000"  # of private use: where the trainer must end a piece
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE_TYPE = 1, 2, 3, 4, 5, 6  # SentencePiece's types of pieces


class Encoding(NamedTuple):
    """The tokens of one text."""

    ids: np.ndarray  # int32 [n]
    word_starts: np.ndarray  # bool [n]


class Tokenizer:
    """A vocabulary and its rules. `special_ids` are never masked, never a random replacement and never proposed.

    `fingerprint` is the same wherever the same text gives the same ids and word starts: it is a hash of the pieces,
    scores, normalisation, special tokens and word rule, not of any file.
    """

    def __init__(self, library: "_SentencePiece | _HuggingFace", specials: dict[str, int], words: str) -> None:
        check_rule(words)
        self._library, self.words = library, words
        self.vocab_size: int = len(library.pieces)
        self.pad_id, self.unk_id, self.begin_id, self.end_id, self.mask_id = (specials[role] for role in ROLES)
        self.special_ids: tuple[int, ...] = library.special_ids
        self.mask_token: str = library.pieces[self.mask_id]
        self._specials = {role: specials[role] for role in ROLES}
        content = [library.identity, self._specials, self.special_ids, words]
        self.fingerprint: str = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def with_words(self, words: str) -> "Tokenizer":
        """Returns the same tokenizer with another word rule."""
        return Tokenizer(self._library, self._specials, words)

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
        ids, firsts = self._library.encode(texts, codes, text_starts)
        if self.words == "unicode":
            boundaries = unicode_boundaries(joined, codes)
        elif self.words == "spaces":
            boundaries = word_boundaries(joined, "spaces")
        else:
            boundaries = np.concatenate([word_boundaries(text, self.words) for text in texts])
        boundaries[text_starts[1:] - 1] = True  # the ends of texts
        edges = np.cumsum([len(tokens) for tokens in ids])[:-1]
        starts = _word_starts(boundaries, firsts)
        return [Encoding(tokens, part) for tokens, part in zip(ids, np.split(starts, edges), strict=True)]

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
        return self._library.decode([int(i) for i in ids if int(i) not in special])

    def token(self, id: int) -> str:
        """Returns the token as the vocabulary spells it."""
        return self._library.pieces[id]

    def text_of(self, id: int) -> str:
        """Returns what the token alone adds to a text, without the space or joint in front; "" for special tokens."""
        return "" if id in self.special_ids else self._library.text_of(id)

    def starts_word(self, id: int) -> bool:
        """Returns whether the token is spelled as the beginning of a word: with a space in front, or without ##."""
        return self._library.starts_word(id)

    def piece_bytes(self) -> np.ndarray:
        """Returns int32 [V], the bytes of UTF-8 that a token stands for, its space counted; 0 for special tokens."""
        sizes = np.array([self._library.bytes_of(id) for id in range(self.vocab_size)], np.int32)
        sizes[list(self.special_ids)] = 0
        return sizes

    def save(self, directory: str | Path) -> None:
        """Writes files from which `load_tokenizer(directory)` makes this tokenizer again, each under its final name
        only when it is whole."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        _write_bytes(directory / self._library.file_name, self._library.content)
        record = {"format_version": FORMAT_VERSION, "kind": self._library.kind, "file": self._library.file_name}
        record |= {"words": self.words, "special_ids": self._specials, "fingerprint": self.fingerprint}
        write_text(directory / RECORD, json.dumps(record, indent=1) + "\n")

    def _spans(self, text: str, find_mask: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids, each token's first visible character, its end, and the text's word boundaries."""
        (text,), _, codes = _without_hidden([text])
        hidden = text.replace(self.mask_token, HIDDEN * len(self.mask_token)) if find_mask else text
        ids, begins, ends = self._library.encode_spans(hidden, self.mask_id)
        invisible = self._library.is_invisible(codes)
        firsts = _first_visible(begins, invisible)
        ends = np.maximum(_after_visible(ends, invisible), firsts)
        # Tokens of one character end where it ends.
        groups = np.flatnonzero(np.diff(firsts, prepend=-1))
        if len(ids):
            latest = np.maximum.reduceat(ends, groups)
            ends = np.where(self._library.is_marker(ids), firsts, np.repeat(latest, np.diff([*groups, len(ids)])))
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


def _first_visible(begins: np.ndarray, invisible: np.ndarray) -> np.ndarray:
    """Returns for each begin the first visible character at or after it, int64 [n]."""
    visible = np.append(np.flatnonzero(~invisible), len(invisible))
    return visible[np.searchsorted(visible, begins)]


def _after_visible(ends: np.ndarray, invisible: np.ndarray) -> np.ndarray:
    """Returns for each end the place behind the last visible character before it, int64 [n]."""
    behind = np.append(0, np.flatnonzero(~invisible) + 1)
    return behind[np.searchsorted(behind, ends, "right") - 1]


def _word_starts(boundaries: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Returns bool [n]: whether a word begins at a token's first visible character, and no token before it had that.

    So a marker for a space that stands alone begins the word behind it.
    """
    starts = boundaries[firsts]
    starts[1:] &= firsts[1:] != firsts[:-1]
    return starts


# SentencePiece


class _SentencePiece:
    """A SentencePiece model, with the special tokens renamed."""

    kind, file_name = "sentencepiece", "tokenizer.model"

    def __init__(self, content: bytes, model: Any, specials: dict[str, int]) -> None:
        import sentencepiece

        self.content, self.unk_id = content, specials["unk"]
        pieces = model.pieces
        self.pieces = [piece.piece for piece in pieces]
        special = set(specials.values())
        special |= {id for id, piece in enumerate(pieces) if piece.type in (_UNKNOWN, _CONTROL, _UNUSED)}
        self.special_ids = tuple(sorted(special))
        normalizer = model.normalizer_spec
        self.identity = [
            self.kind, model.trainer_spec.model_type, model.trainer_spec.treat_whitespace_as_suffix,
            [[piece.piece, float(piece.score), piece.type] for piece in pieces],
            hashlib.sha256(normalizer.precompiled_charsmap).hexdigest(), normalizer.add_dummy_prefix,
            normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces,
        ]  # fmt: skip

        self._bytes = np.array([piece.type == _BYTE_TYPE for piece in pieces])
        values = [int(match[1], 16) if (match := _BYTE.fullmatch(piece)) else 0 for piece in self.pieces]
        self._continues = self._bytes & (np.array(values) & 0xC0 == 0x80)
        spelled = [not b and id not in special for id, b in enumerate(self._bytes)]
        self._visible = [piece.replace(_SPACE, "") if s else "" for piece, s in zip(self.pieces, spelled, strict=True)]
        self._visible_lengths = np.array([len(text) for text in self._visible])
        self._markers = np.array([set(piece) == {_SPACE} for piece in self.pieces])
        self._single = np.zeros(0x110000, bool)  # characters that are pieces
        self._single[[ord(text) for text in self._visible if len(text) == 1]] = True
        self._normal = np.full(0x110000, _UNSEEN, np.int32)

        for id in special - {self.unk_id}:
            pieces[id].piece, pieces[id].type = f"{HIDDEN}{id}", _CONTROL
        # SentencePiece keeps user-defined pieces whole, whatever its normalisation.
        mask = pieces[specials["mask"]]
        mask.piece, mask.type = HIDDEN * len(self.pieces[specials["mask"]]), _USER_DEFINED
        pieces[self.unk_id].piece, pieces[self.unk_id].type = f"{HIDDEN}{self.unk_id}", _UNKNOWN
        for field in ("unk", "bos", "eos", "pad"):
            id = getattr(model.trainer_spec, f"{field}_id")
            if 0 <= id < len(pieces):
                setattr(model.trainer_spec, f"{field}_piece", pieces[id].piece)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode(self, texts: Sequence[str], codes: np.ndarray, text_starts: np.ndarray):
        """Returns each text's ids, and for all tokens together the first visible character in the joined texts.

        The library's own offsets are slow. Pieces, spaces left out, mostly spell the text's visible characters after
        normalising each by itself; where they do, places follow from lengths.
        """
        ids = self._processor.encode(list(texts), return_type="numpy", num_threads=1)
        tokens = np.concatenate(ids)
        token_edges = np.cumsum([0, *map(len, ids)])
        characters = self._normalised(codes)
        visible = np.flatnonzero(characters != _INVISIBLE)
        characters = characters[visible]
        visible_edges = np.append(np.searchsorted(visible, text_starts), len(visible))

        lengths, plain = self._lengths(tokens, token_edges, characters, visible, visible_edges)
        self._compare(tokens, token_edges, characters, visible_edges, plain)

        before = np.cumsum(lengths) - lengths
        offsets = visible_edges[:-1] - np.append(before, 0)[token_edges[:-1]]
        ordinals = before + np.repeat(offsets, np.diff(token_edges))
        text_ends = np.append(text_starts[1:] - 1, len(codes))
        last = np.repeat(visible_edges[1:], np.diff(token_edges))
        firsts = np.append(visible, 0)[np.minimum(ordinals, len(visible))]
        firsts = np.where(ordinals < last, firsts, np.repeat(text_ends, np.diff(token_edges)))
        for number in np.flatnonzero(~plain).tolist():
            start, end = text_starts[number], text_ends[number]
            _, begins, _ = self.encode_spans(texts[number], -1)
            invisible = self.is_invisible(codes[start:end])
            firsts[token_edges[number] : token_edges[number + 1]] = start + _first_visible(begins, invisible)
        return ids, firsts

    def _lengths(self, tokens, token_edges, characters, visible, visible_edges) -> tuple[np.ndarray, np.ndarray]:
        """Returns how many visible characters each token stands for, and for which texts that may be right.

        An unknown token stands for a run of characters that are no pieces, and of the bytes that spell a character the
        last one stands for it.
        """
        lengths = self._visible_lengths[tokens]
        in_bytes = self._bytes[tokens]
        if in_bytes.any():
            lengths[in_bytes & ~np.append(self._continues[tokens][1:], False)] = 1
        plain = np.ones(len(token_edges) - 1, bool)
        plain[np.searchsorted(visible_edges, np.flatnonzero(characters == _IRREGULAR), "right") - 1] = False
        unknown = np.flatnonzero(tokens == self.unk_id)
        if len(unknown):
            strange = np.flatnonzero(~self._single[np.maximum(characters, 0)])
            together = (np.diff(strange, prepend=-2) == 1) & (np.diff(visible[strange], prepend=-2) == 1)
            runs = np.flatnonzero(~together)
            run_lengths = np.diff(np.append(runs, len(strange)))
            texts_of_unknown = np.searchsorted(token_edges, unknown, "right") - 1
            texts_of_runs = np.searchsorted(visible_edges, strange[runs], "right") - 1
            count = len(plain)
            plain &= np.bincount(texts_of_unknown, minlength=count) == np.bincount(texts_of_runs, minlength=count)
            lengths[unknown[plain[texts_of_unknown]]] = run_lengths[plain[texts_of_runs]]
        plain &= _sums(lengths, token_edges) == np.diff(visible_edges)
        return lengths, plain

    def _compare(self, tokens, token_edges, characters, visible_edges, plain) -> None:
        """Takes the texts out of `plain` of which the pieces do not spell the visible characters."""
        spelled = self._single[np.maximum(characters, 0)]
        plain &= _sums(self._visible_lengths[tokens], token_edges) == _sums(spelled, visible_edges)
        own = np.repeat(plain, np.diff(token_edges))
        text = "".join(map(self._visible.__getitem__, tokens[own].tolist()))
        expected = np.flatnonzero(spelled & np.repeat(plain, np.diff(visible_edges)))
        wrong = expected[characters[expected] != code_points(text)]
        plain[np.searchsorted(visible_edges, wrong, "right") - 1] = False

    def encode_spans(self, text: str, mask_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids, and the begin and end of each token's span; hidden masks are `mask_id`."""
        mapping = self._processor.encode(text, return_type="offset_mapping")
        ids = np.array(mapping["ids"], np.int32)
        offsets = np.array(mapping["offsets"], np.int64).reshape(-1, 2)
        # A word in the mask's place would have taken the space before it as its own.
        lone = np.array([piece == _SPACE for piece in mapping["pieces"]], bool)
        keep = ~(lone & np.append(ids[1:] == mask_id, False))
        return ids[keep], offsets[keep, 0], offsets[keep, 1]

    def _normalised(self, codes: np.ndarray) -> np.ndarray:
        """Returns what the model's normalisation makes of each character alone, int32 [n]: a character, or
        _INVISIBLE for a space or nothing, or _IRREGULAR."""
        found = self._normal[codes]
        if (found == _UNSEEN).any():
            for code in np.unique(codes[found == _UNSEEN]).tolist():
                normal = self._processor.normalize(f"x{chr(code)}x")
                core = re.fullmatch(f"{_SPACE}*x(.*)x{_SPACE}*", normal, re.DOTALL)
                text = core[1] if core else "??"
                if text.strip(_SPACE + " "):
                    self._normal[code] = ord(text) if len(text) == 1 else _IRREGULAR
                else:
                    self._normal[code] = _INVISIBLE
            found = self._normal[codes]
        return found

    def is_invisible(self, codes: np.ndarray) -> np.ndarray:
        """Returns bool [n]: characters that are white space to this tokenizer, or nothing."""
        return self._normalised(codes) == _INVISIBLE

    def is_marker(self, ids: np.ndarray) -> np.ndarray:
        """Returns bool [n]: tokens that are nothing but space markers."""
        return self._markers[ids]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def text_of(self, id: int) -> str:
        if self._bytes[id]:
            return _byte_text([int(_BYTE.fullmatch(self.pieces[id])[1], 16)])  # type: ignore[index]
        return self.pieces[id].removeprefix(_SPACE).replace(_SPACE, " ")

    def starts_word(self, id: int) -> bool:
        return self.pieces[id].startswith(_SPACE)

    def bytes_of(self, id: int) -> int:
        return 1 if self._bytes[id] else len(self.pieces[id].replace(_SPACE, " ").encode())


def _sums(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns the sum of the values between each two edges, int64."""
    return np.diff(np.append(0, np.cumsum(values, dtype=np.int64))[edges])


_UNSEEN, _INVISIBLE, _IRREGULAR = -3, -2, -1  # in the table of normalised characters


def _byte_text(values: Sequence[int]) -> str:
    return bytes(values).decode("utf-8", "replace")


# Hugging Face


class _HuggingFace:
    """A tokenizer.json, with the special tokens renamed."""

    kind, file_name = "huggingface", "tokenizer.json"

    def __init__(self, definition: dict[str, Any], specials: dict[str, int], where: Path) -> None:
        import tokenizers

        self.content = json.dumps(definition, ensure_ascii=False).encode()
        model, added = definition["model"], definition.get("added_tokens") or []
        parts = {
            key: definition.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
        }
        self.identity = [self.kind, parts]
        vocabulary = _vocabulary(definition)
        self.pieces = [""] * (max(vocabulary.values()) + 1)
        for piece, id in vocabulary.items():
            self.pieces[id] = piece
        special = {entry["id"] for entry in added if entry.get("special")} | set(specials.values())
        self.special_ids = tuple(sorted(special))

        text = json.dumps([definition.get("pre_tokenizer"), definition.get("decoder"), definition.get("normalizer")])
        self._byte_level = '"ByteLevel"' in text
        self._joint = model.get("continuing_subword_prefix") or "" if model.get("type") == "WordPiece" else ""
        self._in_bytes = bool(model.get("byte_fallback"))
        space = "Ġ" if self._byte_level else _SPACE
        self._markers = np.array([set(piece) == {space} for piece in self.pieces])

        hidden = _renamed(definition, specials, special, self.pieces)
        try:
            self._library = tokenizers.Tokenizer.from_str(json.dumps(hidden, ensure_ascii=False))
        except Exception as error:  # the library raises nothing more particular
            raise UserError(f"{where} is no tokenizer that the `tokenizers` library reads: {error}") from error

    def encode(self, texts: Sequence[str], codes: np.ndarray, text_starts: np.ndarray):
        """Returns each text's ids, and for all tokens together the first visible character in the joined texts."""
        found = self._library.encode_batch(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in found]
        begins = np.fromiter(
            (start + begin for start, e in zip(text_starts.tolist(), found, strict=True) for begin, _ in e.offsets),
            np.int64,
        )
        invisible = self.is_invisible(codes)
        invisible[text_starts[1:] - 1] = False  # no token reaches into the next text
        return ids, _first_visible(begins, invisible)

    def encode_spans(self, text: str, mask_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids, and the begin and end of each token's span; hidden masks are `mask_id`."""
        found = self._library.encode(text, add_special_tokens=False)
        offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
        begins, ends = offsets[:, 0], offsets[:, 1]
        if not text.isascii():
            # The library leaves out an accent at the end of a word.
            limits = [*np.maximum(begins[1:], ends[:-1]).tolist(), len(text)][: len(begins)]
            for number, limit in enumerate(limits):
                while ends[number] < limit and _is_mark(text[ends[number]]):
                    ends[number] += 1
        return np.array(found.ids, np.int32), begins, ends

    def is_invisible(self, codes: np.ndarray) -> np.ndarray:
        """Returns bool [n]: white space."""
        return is_space(codes)

    def is_marker(self, ids: np.ndarray) -> np.ndarray:
        """Returns bool [n]: tokens that are nothing but space markers."""
        return self._markers[ids]

    def decode(self, ids: list[int]) -> str:
        return self._library.decode(ids)

    def text_of(self, id: int) -> str:
        piece = self.pieces[id]
        if self._byte_level and (values := _byte_values(piece)) is not None:
            return _byte_text(values).removeprefix(" ")
        if self._in_bytes and (match := _BYTE.fullmatch(piece)):
            return _byte_text([int(match[1], 16)])
        return piece.removeprefix(self._joint) if self._joint else piece.removeprefix(_SPACE).replace(_SPACE, " ")

    def starts_word(self, id: int) -> bool:
        if self._joint:
            return not self.pieces[id].startswith(self._joint)
        return self.pieces[id].startswith("Ġ" if self._byte_level else _SPACE)

    def bytes_of(self, id: int) -> int:
        piece = self.pieces[id]
        if self._byte_level and (values := _byte_values(piece)) is not None:
            return len(values)
        if self._in_bytes and _BYTE.fullmatch(piece):
            return 1
        return len(piece.removeprefix(self._joint).replace(_SPACE, " ").encode())


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Returns the byte that each letter of a byte-level vocabulary stands for (GPT-2, Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_values(piece: str) -> list[int] | None:
    """Returns the bytes of a byte-level token, or None for an added token, which is plain text."""
    alphabet = _byte_alphabet()
    return [alphabet[letter] for letter in piece] if all(letter in alphabet for letter in piece) else None


def _vocabulary(definition: dict[str, Any]) -> dict[str, int]:
    entries = definition["model"]["vocab"]
    own = entries.items() if isinstance(entries, dict) else ((entry[0], id) for id, entry in enumerate(entries))
    return dict(own) | {entry["content"]: entry["id"] for entry in definition.get("added_tokens") or []}


def _renamed(definition: dict, specials: dict[str, int], special: set[int], pieces: list[str]) -> dict:
    """Returns the definition with special tokens that no text can hold; the mask's is found in any text as it is."""
    # What these three add (begin and end, a fixed length) is added elsewhere.
    definition = copy.deepcopy(definition) | {"truncation": None, "padding": None, "post_processor": None}
    mask = specials["mask"]
    names = {pieces[id]: f"{HIDDEN}{id}" for id in special} | {pieces[mask]: HIDDEN * len(pieces[mask])}
    model = definition["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(entry[0], entry[0]), entry[1]] for entry in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    added = definition.get("added_tokens") or []
    if mask not in [entry["id"] for entry in added]:
        added.append({"id": mask, "content": pieces[mask], "single_word": False, "lstrip": False, "rstrip": False})
    for entry in added:
        entry["content"] = names.get(entry["content"], entry["content"])
        if entry["id"] in special:
            entry |= {"special": True, "normalized": False}
    definition["added_tokens"] = sorted(added, key=lambda entry: entry["id"])
    return definition


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
    record = _read_json(path / RECORD)
    try:
        version, file, specials = record["format_version"], path / record["file"], record["special_ids"]
        specials = {role: int(specials[role]) for role in ROLES}
        saved_words, fingerprint = str(record["words"]), record["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / RECORD} is damaged ({error!r}): take the tokenizer from where it was made") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path / RECORD} has format {version}, this jaxlm reads {FORMAT_VERSION}")
    if not file.is_file():
        raise UserError(f"{path} lacks {file.name}, which {RECORD} names: take the tokenizer from where it was made")
    tokenizer = _load_file(file, specials, saved_words)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{file} is not the tokenizer that was saved with {path / RECORD}: it is damaged or replaced")
    return tokenizer if words in (None, saved_words) else tokenizer.with_words(words)


def _load_file(file: Path, specials: dict[str, int] | None, rule: str) -> Tokenizer:
    if file.suffix == ".model":
        return _load_sentencepiece(_read_bytes(file), file, specials, rule)
    if file.suffix == ".txt":
        definition = _word_piece(file)
    else:
        definition = _read_json(file)
        model = definition.get("model")
        if not isinstance(model, dict) or not model.get("vocab"):
            raise UserError(f"{file} holds no tokenizer: a tokenizer.json of the `tokenizers` library is meant")
    try:
        vocabulary = _vocabulary(definition)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} holds no vocabulary that can be read ({error!r})") from error
    specials = specials or _find_specials(file, vocabulary)
    return Tokenizer(_HuggingFace(definition, specials, file), specials, rule)


def _find_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in (".model", ".json", ".txt"):
            raise UserError(f"{path} is no tokenizer that is known: a .model, tokenizer.json or vocab.txt is meant")
        return path
    models = sorted(path.glob("*.model"))
    for file in (path / "tokenizer.json", *models[:1], path / "vocab.txt"):
        if file.is_file():
            if file in models and len(models) > 1:
                raise UserError(f"{path} holds several models ({', '.join(m.name for m in models)}): name one of them")
            return file
    raise UserError(f"{path} holds no tokenizer: no tokenizer.json, no .model and no vocab.txt")


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def _read_text(file: Path) -> str:
    content = _read_bytes(file)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}, byte {error.start}: not UTF-8; convert the file") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(file))
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON ({error}): it is damaged, or no tokenizer") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object: it is damaged, or no tokenizer")
    return content


def _find_specials(file: Path, vocabulary: dict[str, int], unknown: Sequence[str] = ()) -> dict[str, int]:
    """Returns the id of each role, by the config beside the file or by the usual names. Raises UserError.

    `unknown` is what the model itself calls its unknown token.
    """
    configs = [_config_beside(file, name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    specials, missing = {}, []
    for role in ROLES:
        said = [config.get(key) for key in CONFIG_KEYS[role] for config in configs]
        names = [value["content"] if isinstance(value, dict) else value for value in said if value]
        names = [*unknown, *names] if role == "unk" else names
        known = [name for name in (*names, *USUAL_NAMES[role]) if name in vocabulary]
        if known:
            specials[role] = vocabulary[known[0]]
        else:
            missing.append(f"{role} ({', '.join(dict.fromkeys((*names, *USUAL_NAMES[role])))})")
    if missing:
        raise UserError(f"{file} has no special token for {', '.join(missing)}; masked language models need all five")
    if len(set(specials.values())) < len(ROLES):
        raise UserError(f"{file} has one special token for several of {specials}; they must differ")
    return specials


def _config_beside(file: Path, name: str) -> dict[str, Any]:
    return _read_json(file.with_name(name)) if file.with_name(name).exists() else {}


def _load_sentencepiece(content: bytes, file: Path, specials: dict[str, int] | None, words: str) -> Tokenizer:
    protobuf: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    try:
        model = protobuf.ModelProto.FromString(content)
    except Exception as error:  # protobuf's own class has moved between its versions
        raise UserError(f"{file} is no SentencePiece model, or it is damaged ({error})") from error
    if not model.pieces or not model.HasField("normalizer_spec"):
        raise UserError(f"{file} is no SentencePiece model, or it is damaged: it holds no pieces")
    vocabulary = {piece.piece: id for id, piece in enumerate(model.pieces)}
    unknown = [piece.piece for piece in model.pieces if piece.type == _UNKNOWN]
    specials = specials or _find_specials(file, vocabulary, unknown)
    try:
        return Tokenizer(_SentencePiece(content, model, specials), specials, words)
    except RuntimeError as error:
        raise UserError(f"{file} is no SentencePiece model that its library loads: {error}") from error


def _word_piece(file: Path) -> dict[str, Any]:
    """Returns the tokenizer.json of a BERT vocab.txt, with the settings of the tokenizer_config.json beside it."""
    lines = re.split(r"\r?\n", _read_text(file).rstrip("\r\n"))
    vocabulary = {line: id for id, line in enumerate(lines)}
    config = _config_beside(file, "tokenizer_config.json")
    name = str(config.get("tokenizer_class", ""))
    if name.startswith(("BertJapanese", "Bertweet", "Phobert")):
        raise UserError(f"{file} is the vocabulary of a {name}, which is not supported; give a tokenizer.json")
    lower_case = config.get("do_lower_case")
    if lower_case is None:
        cased = any(line != line.lower() and not re.fullmatch(r"\[.*\]|<.*>", line) for line in lines)
        lower_case = not cased
        logging.getLogger("jaxlm").warning(
            "%s: no tokenizer_config.json beside it has do_lower_case; as the vocabulary has %s, text is %s",
            file, "upper case" if cased else "no upper case",
            "taken as it is" if cased else "lower-cased, and accents are stripped",
        )  # fmt: skip
    specials = _find_specials(file, vocabulary)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": id, "content": lines[id], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for id in sorted(specials.values())
        ],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "lowercase": bool(lower_case),
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
            "strip_accents": config.get("strip_accents"),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing", "sep": [lines[specials["end"]], specials["end"]],
            "cls": [lines[specials["begin"]], specials["begin"]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": lines[specials["unk"]], "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }  # fmt: skip


def _write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


# Training


def train_tokenizer(texts: Iterable[str], settings: Any, directory: str | Path) -> Tokenizer:
    """Trains SentencePiece on all of the texts, and saves the tokenizer in `directory`.

    `settings` is the config's `tokenizer` section. The result depends on nothing else. Raises UserError where the text
    does not allow the vocabulary.
    """
    import sentencepiece

    check_rule(settings.words)
    if settings.character_coverage < LEAST_COVERAGE:
        raise UserError(
            f"tokenizer.character_coverage={settings.character_coverage}: SentencePiece takes {LEAST_COVERAGE} to 1"
        )
    names = {"pad": "pad", "unk": "unk", "begin": "bos", "end": "eos"}
    specials: dict[str, Any] = {f"{name}_id": ROLES.index(role) for role, name in names.items()}
    specials |= {f"{name}_piece": SPECIAL_PIECES[role] for role, name in names.items()}
    content, sentences = io.BytesIO(), _sentences(texts)
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
            num_threads=TRAINING_THREADS, minloglevel=2, **specials,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(_training_error(str(error), settings)) from error
    file = Path(directory) / _SentencePiece.file_name
    tokenizer = _load_sentencepiece(
        content.getvalue(), file, {role: id for id, role in enumerate(ROLES)}, settings.words
    )
    tokenizer.save(directory)
    return tokenizer


def _sentences(texts: Iterable[str]) -> Iterator[str]:
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
