"""Converts vocabulary files without a tokenizer.json, of BERT and RoBERTa, to the content of one."""

import logging
import re
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.storage import read_json, read_text
from jaxlm.tokenizer.definition import checked_ids
from jaxlm.tokenizer.special_tokens import added_entries, entry_of, find_role_ids
from jaxlm.tokenizer.transformers_classes import (
    BYTE_LEVEL,
    WORD_PIECE,
    bert_normalizer,
    byte_level_step,
    require_kind,
    setting,
)


def word_piece_definition(file: Path) -> dict[str, Any]:
    """Returns the content of a tokenizer.json for a BERT vocab.txt (WordPiece).

    A tokenizer_config.json beside the file sets case and accents. Raises UserError for an unsupported vocabulary.
    """
    lines = re.split(r"\r?\n", read_text(file).rstrip("\r\n"))
    vocabulary = {line: id for id, line in enumerate(lines)}
    require_kind(file, WORD_PIECE)
    lower_case = setting(file, "do_lower_case", None)
    if lower_case is None:
        cased = any(line != line.lower() and not re.fullmatch(r"\[.*\]|<.*>", line) for line in lines)
        lower_case = not cased
        logging.getLogger("jaxlm").warning(
            "%s: no tokenizer_config.json beside it sets do_lower_case; the vocabulary has %s, so %s",
            file, "upper-case letters" if cased else "no upper-case letters",
            "case and accents are kept" if cased else "text is lower-cased and accents are stripped",
        )  # fmt: skip
    role_ids, names = _roles(file, vocabulary)
    roles = [entry_of(names[id], id, special=True) for id in sorted(role_ids.values())]
    return {
        "version": "1.0",
        "added_tokens": added_entries(file, roles, vocabulary),
        "normalizer": bert_normalizer(file, bool(lower_case)),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing", "sep": [names[role_ids["end"]], role_ids["end"]],
            "cls": [names[role_ids["begin"]], role_ids["begin"]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": names[role_ids["unk"]], "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }  # fmt: skip


def byte_level_definition(file: Path) -> dict[str, Any]:
    """Returns the content of a tokenizer.json for a RoBERTa vocab.json and the merges.txt beside it.

    This is byte-level BPE (Radford et al. 2019). A tokenizer_config.json beside the files sets `add_prefix_space`.
    Raises UserError for an unsupported vocabulary and for invalid merges.
    """
    vocabulary = read_json(file)
    if not vocabulary:
        raise UserError(f"{file} is not a vocabulary: expected a JSON object that maps tokens to ids")
    checked_ids(vocabulary, file)
    require_kind(file, BYTE_LEVEL)
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise UserError(
            f"{file} has no merges.txt beside it; copy the merges.txt of the same vocabulary into its folder"
        )
    pairs = []
    for number, line in enumerate(re.split(r"\r?\n", read_text(merges)), 1):
        if line.startswith("#version") or not line:
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(part in vocabulary for part in (*pair, "".join(pair))):
            raise UserError(
                f"{merges}, line {number}: {line!r} is not a pair of tokens of {file.name} that form another token; "
                "fetch both files again"
            )
        pairs.append(pair)
    role_ids, names = _roles(file, vocabulary)
    roles = [entry_of(names[id], id, special=True) for id in sorted(role_ids.values())]
    for entry in roles:  # the mask includes the space before it, as words do
        entry["lstrip"] = entry["id"] == role_ids["mask"]
    byte_level = byte_level_step(file)
    return {
        "version": "1.0", "added_tokens": added_entries(file, roles, vocabulary), "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "RobertaProcessing", "sep": [names[role_ids["end"]], role_ids["end"]],
            "cls": [names[role_ids["begin"]], role_ids["begin"]], "trim_offsets": True,
            "add_prefix_space": byte_level["add_prefix_space"],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": pairs,
        },
    }  # fmt: skip


def _roles(file: Path, vocabulary: dict[str, int]) -> tuple[dict[str, int], dict[int, str]]:
    """Returns the token id of each role, and the token of each id, both with the added tokens beside the file."""
    ids = vocabulary | {entry["content"]: entry["id"] for entry in added_entries(file, [], vocabulary)}
    return find_role_ids(file, ids), {id: token for token, id in ids.items()}
