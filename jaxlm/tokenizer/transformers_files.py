"""Writes a tokenizer for Hugging Face Transformers, and verifies that it gives the same ids."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tokenizer.added_tokens import decoder_with_spaces
from jaxlm.tokenizer.sentencepiece_model import SPACE, SentencePieceModel
from jaxlm.tokenizer.sentencepiece_to_json import sentencepiece_definition
from jaxlm.tokenizer.tokenizer_json import TokenizerJson, without_dropout

# Texts on which both tokenizers must agree; {} is replaced by the mask.
TEST_TEXTS = (
    "", " ", "the {} of France", "the{} of", "the {}", "{} the", "{}", "{}{} and {}", "  two  spaces  {}  here ",
    "\ttabs\tand\nlines\r\n{}\n", "Zoe\u0308 cafe\u0301 naïve Été e\u0301\u0323 A\u030a", "🦙👩‍👩‍👧 🇩🇪 {} 👍🏽",
    "我们喜欢{}学习中文。", "ＦＵＬＬ　ｗｉｄｔｈ １２",
    "ﬁne ½ … ㎏ Ĳ İ ß ǆ", "a\0b\x07c\x7fd\x85e\u200bf\u200dg\xadh\ufeffi", "한글 각 ガ が ｶﾞ", "ꙮ 𐍈 𝒳 \ue000 \ufffd",
    "<0x41> don't 3.14 e.g. x_y (z) \"q\" C++ #1", "-------- ...... !!!! aaaaaaa", "ก็ำ ກຳ हिन्दी עִבְרִית العَرَبِيَّة",
)  # fmt: skip


def transformers_files(
    backend: SentencePieceModel | TokenizerJson,
    encode: Callable[[str], np.ndarray],
    max_length: int,
    token_types: bool,
    separators: int,
) -> dict[str, bytes]:
    """Returns the content of tokenizer.json and tokenizer_config.json, by file name.

    Args:
        backend: The backend of a `Tokenizer`.
        encode: Returns the ids that the exported tokenizer must give for a text, masks in it recognized.
        max_length: The `model_max_length` of the config.
        token_types: Whether the second text of a pair has type 1 instead of 0.
        separators: How many end tokens there are between the texts of a pair, if a tokenizer.json does not say.

    Raises:
        UserError: If a tokenizer.json cannot express the tokenizer; the message names the feature, token or text.
    """
    if isinstance(backend, SentencePieceModel):
        definition = sentencepiece_definition(backend)
        if backend.added:
            definition["decoder"] = decoder_with_spaces(definition["decoder"], backend.added, SPACE)
    else:
        definition = _with_mask(backend)
    if not definition.get("post_processor"):
        definition["post_processor"] = _begin_and_end(backend, token_types, separators)
    _verify(definition, backend, encode)
    roles = {"pad": "pad", "unk": "unk", "begin": "cls", "end": "sep", "mask": "mask"}
    config: dict[str, Any] = {
        f"{name}_token": backend.pieces[backend.role_ids[role]] for role, name in roles.items()
    } | {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
    }  # fmt: skip
    return {
        "tokenizer.json": (json.dumps(definition, ensure_ascii=False, indent=1) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, ensure_ascii=False, indent=1) + "\n").encode(),
    }


def _with_mask(backend: TokenizerJson) -> dict[str, Any]:
    """Returns the definition with the mask recognized in text before normalization, and without a fixed length."""
    definition = backend.definition_with_added() | {"truncation": None, "padding": None}
    definition.setdefault("version", "1.0")
    mask = backend.role_ids["mask"]
    entries = definition.get("added_tokens") or []
    if mask not in [entry["id"] for entry in entries]:
        entries.append({"id": mask, "content": backend.pieces[mask], "single_word": False, "lstrip": False,
                        "rstrip": False})  # fmt: skip
    for entry in entries:
        if entry["id"] == mask:
            entry |= {"special": True, "normalized": False}
    definition["added_tokens"] = sorted(entries, key=lambda entry: entry["id"])
    return definition


def _begin_and_end(backend: SentencePieceModel | TokenizerJson, token_types: bool, separators: int) -> dict[str, Any]:
    """Returns the post-processor that makes [CLS] A [SEP] of one text and [CLS] A [SEP] B [SEP] of two."""
    begin, end = (backend.pieces[backend.role_ids[role]] for role in ("begin", "end"))
    second = int(token_types)

    def special(name: str, type_id: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    def text(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    single = [special(begin), text("A", 0), special(end)]
    ids = {name: backend.role_ids[role] for name, role in ((begin, "begin"), (end, "end"))}
    return {
        "type": "TemplateProcessing", "single": single,
        "pair": [*single, *[special(end)] * (separators - 1), text("B", second), special(end, second)],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in ids.items()},
    }  # fmt: skip


def _verify(
    definition: dict[str, Any], backend: SentencePieceModel | TokenizerJson, encode: Callable[[str], np.ndarray]
) -> None:
    """Raises UserError if the exported definition has other ids for a token or encodes a test text differently."""
    import tokenizers

    theirs = tokenizers.Tokenizer.from_str(json.dumps(without_dropout(definition), ensure_ascii=False))
    for id, piece in enumerate(backend.pieces):
        if piece and theirs.token_to_id(piece) != id:
            raise UserError(
                f"cannot export the tokenizer: in a tokenizer.json its token {piece!r} would not have the id {id};"
                " use the tokenizer with jaxlm only"
            )
    mask = backend.pieces[backend.role_ids["mask"]]
    words = [f"the {word} of ({word}), {word}s" for word in backend.added[:100]]
    for text in [template.replace("{}", mask) for template in TEST_TEXTS] + words:
        if theirs.encode(text, add_special_tokens=False).ids != encode(text).tolist():
            raise UserError(
                f"cannot export the tokenizer: a tokenizer.json would encode {text!r} differently;"
                " use the tokenizer with jaxlm only"
            )
