"""Converts a SentencePiece model to a tokenizer.json that gives the same ids.

SentencePiece and the `tokenizers` library normalize by the same table, but in different ways. SentencePiece replaces
the longest entry at each position. The library looks up whole graphemes, of which it may lose a part, and then single
characters. Therefore the definition first separates every combining mark from its letter, so that both are looked up
alone; NFC then composes them again, which has the same result as the longer entries of the table.

Known differences: a compatibility letter with several marks; the mark U+0344 by itself; more than one literal "▁"
before a mask; and models trained elsewhere, whose scores are not rounded, if two segmentations are equal in float32.
"""

import base64
import functools
import re
import unicodedata
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tokenizer.added_tokens import added_entry
from jaxlm.tokenizer.sentencepiece_model import BYTE, BYTE_TYPE, NORMAL, SPACE, USER_DEFINED, SentencePieceModel
from jaxlm.tokenizer.sentencepiece_schema import parse_model
from jaxlm.tokenizer.special_tokens import HIDDEN

_RULES = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
_UNIGRAM, _BPE = 1, 2
_STRANGER = "\U0010fffe"  # `Tokenizer` replaces HIDDEN in a text by it
_NEVER = "\U000fffff"  # separates graphemes if there is no character that the table removes
# Characters that form one grapheme with the character before them.
_EXTENDS = (
    r"[\p{M}\x{200c}\x{200d}\x{e33}\x{eb3}\x{ff9e}\x{ff9f}\x{1160}-\x{11ff}\x{1f3fb}-\x{1f3ff}\x{e0020}-\x{e007f}]"
)


def sentencepiece_definition(backend: SentencePieceModel) -> dict[str, Any]:
    """Returns the content of a tokenizer.json without a post-processor.

    Raises UserError if the model uses a feature that a tokenizer.json does not support.
    """
    model = parse_model(backend.content)
    _check(model, backend)
    added = [
        {"id": id, "content": backend.pieces[id], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for id in backend.special_ids
    ]  # fmt: skip
    added += [added_entry(word, id) for id, word in enumerate(backend.added, backend.first_added)]
    steps = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1000, "stop": 0},
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model, backend)},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _pre_tokenizers(model, backend)},
        "post_processor": None, "decoder": {"type": "Sequence", "decoders": steps},
        "model": _unigram(model, backend) if model.trainer_spec.model_type == _UNIGRAM else _bpe(model, backend),
    }  # fmt: skip


def _check(model: Any, backend: SentencePieceModel) -> None:
    """Raises UserError with the first feature of the model that a tokenizer.json does not support."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    own = [p.piece for id, p in enumerate(model.pieces) if p.type == USER_DEFINED and id not in backend.special_ids]
    scores = [p.score for p in model.pieces if p.type == NORMAL]
    problems = {
        f"model type {trainer.model_type} (only unigram and BPE)": trainer.model_type not in (_UNIGRAM, _BPE),
        f"normalization {normalizer.name!r}": bool(normalizer.precompiled_charsmap) and normalizer.name not in _RULES,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "a model without add_dummy_prefix": not normalizer.add_dummy_prefix,
        "a model without remove_extra_whitespaces": not normalizer.remove_extra_whitespaces,
        "a model without escape_whitespaces": not normalizer.escape_whitespaces,
        f"user-defined symbols such as {''.join(own[:1])!r}": bool(own),
        "scores that are all positive": bool(scores) and min(scores) > 0,
        "two pieces with the same spelling": len({p.piece for p in model.pieces}) < len(model.pieces),
    }
    named = [name for name, present in problems.items() if present]
    if named:
        raise UserError(_unsupported(named[0]))


def _unsupported(feature: str) -> str:
    return (
        f"cannot convert the SentencePiece model to a tokenizer.json, which does not support {feature};"
        " distribute the .model file instead"
    )


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _normalizers(model: Any, backend: SentencePieceModel) -> list[dict[str, Any]]:
    charsmap = model.normalizer_spec.precompiled_charsmap
    steps = [_replace(HIDDEN, _STRANGER)]
    if charsmap:
        steps.append(_replace(_lone_marks(), HIDDEN))
        removed = _removed(backend)
        part = removed[0] if removed else _NEVER
        if removed:  # a removed character prevents a letter and a mark from being composed
            steps.append(_replace(rf"(?<=[{''.join(map(_escaped, removed))}])(?={_EXTENDS})", HIDDEN))
        steps += [
            _replace(f"(?={_EXTENDS})", part),
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
            _replace(_escaped(part), ""), {"type": "NFC"}, _replace(HIDDEN, ""),
        ]  # fmt: skip
    return [
        *steps, _replace(" {2,}", " "), _replace(f"[ {SPACE}]+\\z", ""),
        # A literal space marker at the beginning is not the one that is prepended.
        _replace(f"\\A(?={SPACE})", HIDDEN),
    ]  # fmt: skip


@functools.cache
def _lone_marks() -> str:
    """Returns a pattern for the positions before marks that NFC would reorder or compose, but the table does not.

    These are marks after another mark, after a letter with a mark, and after a character with several in its place.
    """
    joined: dict[tuple[str, str], set[str]] = {}
    several = set()
    for code in (*range(0xA0, 0x3400), *range(0xF900, 0x10000), *range(0x11000, 0x12000), *range(0x1F100, 0x1F300)):
        character = chr(code)
        letter, *marks = list(unicodedata.normalize("NFD", character))
        if marks and not unicodedata.category(marks[0]).startswith("M"):
            continue
        if marks and unicodedata.normalize("NFC", character) == character:
            several.add(character)
            for number in range(1, len(marks)):
                joined.setdefault(("".join(marks[:number]), marks[number]), set()).add(letter)
            first = chr(int(unicodedata.decomposition(character).split()[0], 16))
            joined.setdefault(("", marks[-1]), set()).update({first} - {letter})
        elif len(unicodedata.normalize("NFKC", character)) > 1:
            several.add(character)
    some = [f"(?<=[{_class(letters)}]{before}){after}" for (before, after), letters in joined.items() if letters]
    return rf"(?<=[\p{{M}}{_class(several)}])(?=\p{{M}})(?!{'|'.join(some)})"


def _class(characters: set[str]) -> str:
    return "".join(map(_escaped, sorted(characters)))


def _removed(backend: SentencePieceModel) -> list[str]:
    """Returns the control and format characters that the normalization removes."""
    candidates = [chr(code) for code in range(1, 0x10000) if unicodedata.category(chr(code)) in ("Cc", "Cf")]
    return [c for c in candidates if backend.normalize(f"x{c}x") == f"{SPACE}xx"]


def _escaped(character: str) -> str:
    return f"\\x{{{ord(character):x}}}"


def _pre_tokenizers(model: Any, backend: SentencePieceModel) -> list[dict[str, Any]]:
    normal = [piece.piece for piece in model.pieces if piece.type == NORMAL]
    words = SPACE in normal and not any(SPACE in piece[1:] for piece in normal)
    steps = [
        {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": words},
        {"type": "Split", "pattern": {"String": HIDDEN}, "behavior": "Removed", "invert": False},
    ]
    if model.trainer_spec.model_type == _UNIGRAM:
        pairs = {piece[at : at + 2] for piece in normal for at in range(len(piece) - 1)}
        cuts = _cuts(backend, [piece.type for piece in model.pieces], pairs)
        if cuts:
            pattern = {"Regex": "|".join(cuts)}
            steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    return steps


def _cuts(backend: SentencePieceModel, types: list[int], pairs: set[str]) -> list[str]:
    """Returns patterns of positions at which to split text that spells a special or byte piece, such as <0x41>.

    The unigram model of the library finds every entry of its vocabulary in text, these pieces included, unless the text
    is split inside them. No ordinary piece spans the positions, so the segmentation remains the best one. Raises
    UserError if there is no such position in the name of a byte piece.
    """
    cuts = []
    byte_names = {piece for piece, type in zip(backend.pieces, types, strict=False) if type == BYTE_TYPE}
    names = [backend.pieces[id] for id in backend.special_ids]
    single = {piece for piece in backend.pieces if len(piece) == 1}
    for name in [*names, *sorted(byte_names)[:1]]:
        if backend.normalize(name) != SPACE + name:
            continue  # it does not occur in normalized text
        limit = 3 if name in byte_names else len(name)  # all byte pieces begin with <0x
        # Two adjacent unknown characters are one unknown token, which a split would turn into two.
        positions = [
            at
            for at in range(1, limit)
            if name[at - 1 : at + 1] not in pairs and (byte_names or single & {*name[at - 1 : at + 1]})
        ]
        if not positions and name in byte_names:
            raise UserError(_unsupported("byte pieces beside these pieces: it would read the text <0x41> as a byte"))
        if not positions:
            continue
        before, after = re.escape(name[: positions[0]]), re.escape(name[positions[0] :])
        if name in byte_names:
            after = re.escape(name[positions[0] : 3]) + "[0-9A-F]{2}>"
        cuts.append(f"(?<={before})(?={after})")
    return cuts


def _unigram(model: Any, backend: SentencePieceModel) -> dict[str, Any]:
    # The score of unknown tokens is relative to the lowest score, which in SentencePiece is that of a normal piece.
    entries = [[piece.piece, float(piece.score) if piece.type == NORMAL else 0.0] for piece in model.pieces]
    in_bytes = any(BYTE.fullmatch(piece.piece) and piece.type == BYTE_TYPE for piece in model.pieces)
    return {"type": "Unigram", "unk_id": backend.unk_id, "vocab": entries, "byte_fallback": in_bytes}


def _bpe(model: Any, backend: SentencePieceModel) -> dict[str, Any]:
    """Returns the BPE model: SentencePiece merges the pair whose piece has the best score, so all pairs are merges."""
    ranked = sorted((-piece.score, piece.piece) for piece in model.pieces if piece.type == NORMAL)
    known = {piece for _, piece in ranked}
    merges = [
        [piece[:at], piece[at:]]
        for _, piece in ranked
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    return {
        "type": "BPE", "dropout": None, "unk_token": backend.pieces[backend.unk_id], "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True,
        "byte_fallback": any(piece.type == BYTE_TYPE for piece in model.pieces), "ignore_merges": False,
        "vocab": {piece.piece: id for id, piece in enumerate(model.pieces)}, "merges": merges,
    }  # fmt: skip
