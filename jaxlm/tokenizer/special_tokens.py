"""Which token of a vocabulary plays which role, and the small files that say so."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.storage import read_json

ROLES = ("pad", "unk", "begin", "end", "mask")
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
HIDDEN = "\U0010ffff"  # a noncharacter: no text of any use holds it


def find_role_ids(file: Path, vocabulary: dict[str, int], unknown: Sequence[str] = ()) -> dict[str, int]:
    """Returns the id of each role, by the config beside the file or by the usual names. Raises UserError.

    `unknown` is what the model itself calls its unknown token.
    """
    configs = [config_beside(file, name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    role_ids, missing = {}, []
    for role in ROLES:
        said = [config.get(key) for key in CONFIG_KEYS[role] for config in configs]
        names = [value["content"] if isinstance(value, dict) else value for value in said if value]
        names = [*unknown, *names] if role == "unk" else names
        known = [name for name in (*names, *USUAL_NAMES[role]) if name in vocabulary]
        if known:
            role_ids[role] = vocabulary[known[0]]
        else:
            missing.append(f"{role} ({', '.join(dict.fromkeys((*names, *USUAL_NAMES[role])))})")
    if missing:
        raise UserError(f"{file} has no special token for {', '.join(missing)}; masked language models need all five")
    if len(set(role_ids.values())) < len(ROLES):
        raise UserError(f"{file} has one special token for several of {role_ids}; they must differ")
    return role_ids


def config_beside(file: Path, name: str) -> dict[str, Any]:
    return read_json(file.with_name(name)) if file.with_name(name).exists() else {}
