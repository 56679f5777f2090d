"""The backend of `Tokenizer` for SentencePiece models.

Special and added tokens are renamed inside the model (see `tokenizer.py`). Offsets of tokens are derived from the
lengths of the pieces where possible, because SentencePiece computes offsets slowly.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tokenizer.added_tokens import WordFinder
from jaxlm.tokenizer.characters import code_points, decode_bytes, first_visible
from jaxlm.tokenizer.sentencepiece_schema import parse_model
from jaxlm.tokenizer.special_tokens import check_role_ids, find_role_ids, hidden_names

SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_TYPE = 1, 2, 3, 4, 5, 6  # types of pieces in the model file
_FIRST_HIDDEN, _MAX_ADDED = 0x100000, 0xFFFE  # added tokens are renamed to characters of private-use plane 16
_UNSEEN, _INVISIBLE, _IRREGULAR = -3, -2, -1  # values in the table of normalized characters, beside code points


class SentencePieceModel:
    """A SentencePiece model in which special and added tokens are renamed.

    Attributes:
        content: The original .model file.
        role_ids: The token id of each role.
        special_ids: The ids of all special tokens: roles, control, unknown and unused pieces.
        pieces: The token of each id as the vocabulary spells it.
        hidden: The internal name of each special token, by its id.
        found_ids: The special tokens that can be found in a text.
        added: The added tokens, with ids from `first_added`.
        identity: Everything in the model that the ids depend on, for the fingerprint.
    """

    kind, file_name = "sentencepiece", "tokenizer.model"

    def __init__(self, content: bytes, role_ids: dict[str, int], added: Sequence[str] = ()) -> None:
        import sentencepiece

        self.content, self.role_ids, self.unk_id, self.added = content, role_ids, role_ids["unk"], tuple(added)
        model = parse_model(content)
        pieces = model.pieces
        special = set(role_ids.values())
        special |= {id for id, piece in enumerate(pieces) if piece.type in (UNKNOWN, CONTROL, UNUSED)}
        self.special_ids = tuple(sorted(special))
        self.identity = _identity(model)
        self.first_added = len(pieces)
        self._hidden = [chr(_FIRST_HIDDEN + number) * len(word) for number, word in enumerate(self.added)]
        self._finder = WordFinder(self.added)
        for name in self._hidden:
            pieces.add(piece=name, type=USER_DEFINED)
        self._describe(pieces, special)
        self.pieces[self.first_added :] = self.added
        self.hidden = hidden_names(self.pieces, self.special_ids, role_ids["mask"])
        self.found_ids = tuple(id for id in self.special_ids if id != self.unk_id)  # characters spell the unknown token
        _rename(model, role_ids, self.hidden)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def with_added(self, words: Sequence[str]) -> "SentencePieceModel":
        """Returns the model with these added tokens, in place of `added`. Raises UserError if there are too many."""
        if len(words) > _MAX_ADDED:
            raise UserError(f"cannot add {len(words):,} tokens; list at most {_MAX_ADDED:,} in tokenizer.add")
        return SentencePieceModel(self.content, self.role_ids, words)

    def _describe(self, pieces: Any, special: set[int]) -> None:
        """Builds the tables that describe what each piece stands for."""
        self.pieces = [piece.piece for piece in pieces]
        self._bytes = np.array([piece.type == BYTE_TYPE for piece in pieces])
        values = [int(match[1], 16) if (match := BYTE.fullmatch(piece)) else 0 for piece in self.pieces]
        self._continues = self._bytes & (np.array(values) & 0xC0 == 0x80)
        spelled = [not b and id not in special for id, b in enumerate(self._bytes)]
        self._visible = [piece.replace(SPACE, "") if s else "" for piece, s in zip(self.pieces, spelled, strict=True)]
        self._visible_lengths = np.array([len(text) for text in self._visible])
        self._spelling = code_points("".join(self._visible)).astype(np.int32)
        self._spelling_starts = np.cumsum(self._visible_lengths) - self._visible_lengths
        self._markers = np.array([set(piece) == {SPACE} for piece in self.pieces])
        self._lone = np.array([piece == SPACE for piece in self.pieces])
        self._takes_space = np.arange(len(self.pieces)) >= self.first_added
        self._takes_space[[id for id in special if id != self.unk_id]] = True
        self._single = np.zeros(0x110000, bool)  # whether a character is a piece
        self._single[[ord(text) for text in self._visible if len(text) == 1]] = True
        self._single[[ord(name[0]) for name in self._hidden]] = True
        self._normal = np.full(0x110000, _UNSEEN, np.int32)

    def encode(self, texts: Sequence[str], codes: np.ndarray, text_starts: np.ndarray):
        """Returns the ids of each text, and the first visible character of every token in the joined texts.

        Usually the concatenated pieces, without spaces, spell the visible characters of the text after each has been
        normalized by itself; then offsets follow from the lengths of the pieces. SentencePiece computes the offsets of
        the other texts.

        Args:
            texts: The texts, without surrogates.
            codes: The code points of the texts joined by line ends, uint32 [n].
            text_starts: The start of each text in `codes`, int64 [texts].

        Returns:
            A list of int32 ids per text, and the positions in `codes`, int64 [all tokens].
        """
        if self.added:
            texts = [self._hide(text) for text in texts]
            codes = code_points("\n".join(texts))
        ids = self._processor.encode(list(texts), return_type="numpy", num_threads=1)
        if self.added:
            ids = [tokens[self._kept(tokens)] for tokens in ids]
        tokens = np.concatenate(ids)
        token_edges = np.cumsum([0, *map(len, ids)])
        characters = self._normalized(codes)
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
        firsts = np.repeat(text_ends, np.diff(token_edges))
        inside = ordinals < last
        firsts[inside] = visible[ordinals[inside]]
        for number in np.flatnonzero(~plain).tolist():
            start, end = text_starts[number], text_ends[number]
            _, begins, _ = self.encode_spans(texts[number])
            invisible = self.is_invisible(codes[start:end])
            firsts[token_edges[number] : token_edges[number + 1]] = start + first_visible(begins, invisible)
        return ids, firsts

    def _lengths(self, tokens, token_edges, characters, visible, visible_edges) -> tuple[np.ndarray, np.ndarray]:
        """Returns the number of visible characters of each token, and for which texts the numbers may be right.

        An unknown token covers a run of characters that are not pieces. Of several byte tokens that encode one
        character, the last one counts it.
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
        """Sets `plain` to False for texts whose pieces do not spell their visible characters."""
        spelled = self._single[np.maximum(characters, 0)]
        plain &= _sums(self._visible_lengths[tokens], token_edges) == _sums(spelled, visible_edges)
        if not plain.all():
            tokens = tokens[np.repeat(plain, np.diff(token_edges))]
            spelled &= np.repeat(plain, np.diff(visible_edges))
        lengths = self._visible_lengths[tokens]
        positions = np.repeat(self._spelling_starts[tokens] - (np.cumsum(lengths) - lengths), lengths)
        positions += np.arange(len(positions))
        expected = np.flatnonzero(spelled)
        wrong = expected[characters[expected] != self._spelling[positions]]
        plain[np.searchsorted(visible_edges, wrong, "right") - 1] = False

    def encode_spans(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the ids of a text, and the begin and the end of each token in it, int64 [n].

        Special tokens are found in the text by their internal names (see `Tokenizer`).
        """
        mapping = self._processor.encode(self._hide(text), return_type="offset_mapping")
        ids = np.array(mapping["ids"], np.int32)
        offsets = np.array(mapping["offsets"], np.int64).reshape(-1, 2)
        keep = self._kept(ids)
        return ids[keep], offsets[keep, 0], offsets[keep, 1]

    def _kept(self, ids: np.ndarray) -> np.ndarray:
        """Returns which tokens to keep, bool [n]: all but a lone space before a special or an added token.

        A word in its position would have included the space.
        """
        return ~(self._lone[ids] & np.append(self._takes_space[ids][1:], False))

    def _hide(self, text: str) -> str:
        """Returns the text with each added token replaced by its internal name, which has the same length."""
        if not self.added:
            return text
        if not text.isascii():
            text = re.sub(f"[{chr(_FIRST_HIDDEN)}-{chr(_FIRST_HIDDEN + len(self.added) - 1)}]", "\U0010fffe", text)
        return self._finder.replace(text, self._hidden)

    def _normalized(self, codes: np.ndarray) -> np.ndarray:
        """Returns the normalized form of each character by itself, int32 [n].

        This is a code point, _INVISIBLE for a space or nothing, or _IRREGULAR for several characters.
        """
        found = self._normal[codes]
        if (found == _UNSEEN).any():
            for code in np.unique(codes[found == _UNSEEN]).tolist():
                normal = self._processor.normalize(f"x{chr(code)}x")
                core = re.fullmatch(f"{SPACE}*x(.*)x{SPACE}*", normal, re.DOTALL)
                text = core[1] if core else "??"
                if text.strip(SPACE + " "):
                    self._normal[code] = ord(text) if len(text) == 1 else _IRREGULAR
                else:
                    self._normal[code] = _INVISIBLE
            found = self._normal[codes]
        return found

    def normalize(self, text: str) -> str:
        """Returns the text as the model normalizes it, with spaces as "▁"."""
        return self._processor.normalize(text)

    def is_invisible(self, codes: np.ndarray) -> np.ndarray:
        """Returns which characters the tokenizer treats as white space or removes, bool [n]."""
        return self._normalized(codes) == _INVISIBLE

    def is_marker(self, ids: np.ndarray) -> np.ndarray:
        """Returns which tokens consist of space markers only, bool [n]."""
        return self._markers[ids]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of tokens, none of which is special."""
        if not self.added:
            return self._processor.decode(ids)
        words = {name: f" {word}" for name, word in zip(self._hidden, self.added, strict=True)}
        text = re.sub("|".join(words), lambda match: words[match[0]], self._processor.decode(ids))
        return text.removeprefix(" ") if ids and ids[0] >= self.first_added else text

    def text_of(self, id: int) -> str:
        """Returns the text of a token, without a space before it."""
        if id >= self.first_added:
            return self.pieces[id]
        if self._bytes[id]:
            return decode_bytes([int(BYTE.fullmatch(self.pieces[id])[1], 16)])  # type: ignore[index]
        return self.pieces[id].removeprefix(SPACE).replace(SPACE, " ")

    def starts_word(self, id: int) -> bool:
        """Returns whether the token includes a space before it."""
        return id >= self.first_added or self.pieces[id].startswith(SPACE)

    def bytes_of(self, id: int) -> int:
        """Returns the length of the token in UTF-8, its space included."""
        if id >= self.first_added:
            return len(f" {self.pieces[id]}".encode())
        return 1 if self._bytes[id] else len(self.pieces[id].replace(SPACE, " ").encode())


def _identity(model: Any) -> list[Any]:
    """Returns everything in a model that token ids depend on."""
    normalizer = model.normalizer_spec
    return [
        SentencePieceModel.kind, model.trainer_spec.model_type, model.trainer_spec.treat_whitespace_as_suffix,
        [[piece.piece, float(piece.score), piece.type] for piece in model.pieces],
        hashlib.sha256(normalizer.precompiled_charsmap).hexdigest(), normalizer.add_dummy_prefix,
        normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces,
    ]  # fmt: skip


def _rename(model: Any, role_ids: dict[str, int], names: dict[int, str]) -> None:
    """Renames special tokens so that they do not occur in text; all but the unknown one are symbols never split."""
    for id, name in names.items():
        model.pieces[id].piece, model.pieces[id].type = name, USER_DEFINED
    pieces, unknown = model.pieces, role_ids["unk"]
    pieces[unknown].type = UNKNOWN
    for field in ("unk", "bos", "eos", "pad"):
        id = getattr(model.trainer_spec, f"{field}_id")
        if 0 <= id < len(pieces):
            setattr(model.trainer_spec, f"{field}_piece", pieces[id].piece)


def _sums(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns the sums of the values between successive edges, int64 [len(edges) - 1]; edges run from 0 to the end."""
    sums = np.zeros(len(edges) - 1, np.int64)
    full = np.flatnonzero(np.diff(edges))
    if len(full):
        sums[full] = np.add.reduceat(values, edges[full], dtype=np.int64)
    return sums


def load_sentencepiece(content: bytes, file: Path, role_ids: dict[str, int] | None) -> SentencePieceModel:
    """Returns the SentencePiece model in the content of a .model file.

    `role_ids` are the ids of the special tokens; None to find them. `file` is the path for errors, and for the config
    files beside it. Raises UserError if the model is damaged or has no special token for a role.
    """
    try:
        model = parse_model(content)
    except Exception as error:  # the class of the exception depends on the version of protobuf
        raise UserError(f"{file} is damaged or not a SentencePiece model ({error}); fetch it again") from error
    if not model.pieces or not model.HasField("normalizer_spec"):
        raise UserError(f"{file} is damaged or not a SentencePiece model (it has no pieces); fetch it again")
    vocabulary = {piece.piece: id for id, piece in enumerate(model.pieces)}
    unknown = [piece.piece for piece in model.pieces if piece.type == UNKNOWN]
    if role_ids:
        check_role_ids(role_ids, len(model.pieces), file)
    try:
        return SentencePieceModel(content, role_ids or find_role_ids(file, vocabulary, unknown))
    except RuntimeError as error:
        raise UserError(f"SentencePiece cannot load {file}: {error}; fetch it again") from error
