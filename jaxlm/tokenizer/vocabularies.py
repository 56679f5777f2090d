"""Converts vocabulary files without a tokenizer.json, of BERT and RoBERTa, to the content of one."""

import logging
import re
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.storage import read_json, read_text
from jaxlm.tokenizer.definition import checked_ids
from jaxlm.tokenizer.special_tokens import config_beside, find_role_ids


def word_piece_definition(file: Path) -> dict[str, Any]:
    """Returns the content of a tokenizer.json for a BERT vocab.txt (WordPiece).

    A tokenizer_config.json beside the file sets case and accents. Raises UserError for an unsupported vocabulary.
    """
    lines = re.split(r"\r?\n", read_text(file).rstrip("\r\n"))
    vocabulary = {line: id for id, line in enumerate(lines)}
    config = config_beside(file, "tokenizer_config.json")
    name = str(config.get("tokenizer_class", ""))
    if name.startswith(("BertJapanese", "Bertweet", "Phobert")):
        raise UserError(f"{file} is the vocabulary of a {name}, which is not supported; use its tokenizer.json instead")
    lower_case = config.get("do_lower_case")
    if lower_case is None:
        cased = any(line != line.lower() and not re.fullmatch(r"\[.*\]|<.*>", line) for line in lines)
        lower_case = not cased
        logging.getLogger("jaxlm").warning(
            "%s: no tokenizer_config.json beside it sets do_lower_case; the vocabulary has %s, so %s",
            file, "upper-case letters" if cased else "no upper-case letters",
            "case and accents are kept" if cased else "text is lower-cased and accents are stripped",
        )  # fmt: skip
    role_ids = find_role_ids(file, vocabulary)
    return {
        "version": "1.0",
        "added_tokens": [
            _special_entry(lines[id], id) for id in sorted(role_ids.values())
        ],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "lowercase": bool(lower_case),
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
            "strip_accents": config.get("strip_accents"),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing", "sep": [lines[role_ids["end"]], role_ids["end"]],
            "cls": [lines[role_ids["begin"]], role_ids["begin"]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": lines[role_ids["unk"]], "continuing_subword_prefix": "##",
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
    config = config_beside(file, "tokenizer_config.json")
    name = str(config.get("tokenizer_class", "Roberta"))
    if not name.startswith(("Roberta", "Longformer", "Bart", "GPT2", "MPNet", "Deberta", "PreTrained")):
        raise UserError(f"{file} is the vocabulary of a {name}, which is not supported; use its tokenizer.json instead")
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
    role_ids = find_role_ids(file, vocabulary)
    names = {id: piece for piece, id in vocabulary.items()}
    prefix = bool(config.get("add_prefix_space", False))
    added = [_special_entry(names[id], id) for id in sorted(role_ids.values())]
    for entry in added:
        entry["lstrip"] = (
            entry["id"] == role_ids["mask"]
        )  # as in Transformers: the mask includes the space before it, as words do
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "RobertaProcessing", "sep": [names[role_ids["end"]], role_ids["end"]],
            "cls": [names[role_ids["begin"]], role_ids["begin"]], "trim_offsets": True, "add_prefix_space": prefix,
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": pairs,
        },
    }  # fmt: skip


def _special_entry(content: str, id: int) -> dict[str, Any]:
    return {
        "id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip
