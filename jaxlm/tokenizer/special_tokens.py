"""The five roles of special tokens, and how the tokens that play them are found in a vocabulary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.storage import read_json

ROLES = ("pad", "unk", "begin", "end", "mask")
_USUAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "begin": ("[CLS]", "<s>"),
    "end": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_CONFIG_KEYS = {  # in tokenizer_config.json and special_tokens_map.json
    "pad": ("pad_token",),
    "unk": ("unk_token",),
    "begin": ("cls_token", "bos_token"),
    "end": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
HIDDEN = "\U0010ffff"  # a noncharacter, which does not occur in text; the internal names of special tokens contain it


def find_role_ids(file: Path, vocabulary: dict[str, int], unknown: Sequence[str] = ()) -> dict[str, int]:
    """Returns the token id of each role.

    The token of a role is the one that tokenizer_config.json or special_tokens_map.json beside `file` names, or else
    one of the usual names that is in the vocabulary. `unknown` holds the names of the unknown token in the model
    itself, which take precedence. Raises UserError if a role has no token, or two roles have the same one.
    """
    configs = [config_beside(file, name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    role_ids, missing = {}, []
    for role in ROLES:
        values = [config.get(key) for key in _CONFIG_KEYS[role] for config in configs]
        values = [value.get("content") if isinstance(value, dict) else value for value in values]
        names = [value for value in values if isinstance(value, str) and value]
        names = [*unknown, *names] if role == "unk" else names
        known = [name for name in (*names, *_USUAL_NAMES[role]) if name in vocabulary]
        if known:
            role_ids[role] = vocabulary[known[0]]
        else:
            missing.append(f"{role} ({', '.join(dict.fromkeys((*names, *_USUAL_NAMES[role])))})")
    if missing:
        raise UserError(
            f"{file} has no special token for {', '.join(missing)}; name one that is in the vocabulary in a "
            "tokenizer_config.json beside the file"
        )
    if len(set(role_ids.values())) < len(ROLES):
        shown = ", ".join(f"{role} {id}" for role, id in role_ids.items())
        raise UserError(
            f"{file} has one special token for several roles (ids: {shown}); name different ones in a "
            "tokenizer_config.json beside the file"
        )
    return role_ids


def check_role_ids(role_ids: dict[str, int], vocab_size: int, file: Path) -> None:
    """Raises UserError if the id of a role, which was read from a file, is not one of the vocabulary in `file`."""
    for role, id in role_ids.items():
        if id >= vocab_size:
            raise UserError(
                f"{file} has {vocab_size:,} tokens, but the {role} token saved for it has the id {id:,}; copy the"
                " tokenizer again from where it was saved"
            )


def config_beside(file: Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in the file `name` in the folder of `file`, or {} if there is no such file."""
    return read_json(file.with_name(name)) if file.with_name(name).exists() else {}
