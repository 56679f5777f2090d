"""The five roles of special tokens, how the tokens that play them are found, and added tokens beside a vocabulary."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.storage import read_json
from jaxlm.typed import Record

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
_PLANE = 0xF0000  # private-use plane 15


def hidden_names(pieces: Sequence[str], special_ids: Sequence[int], mask_id: int) -> dict[int, str]:
    """Returns the internal name of each special token by its id: different ones, as long as the tokens.

    A token of one character has a longer name, and is therefore never found in text.
    """
    names = {}
    for number, id in enumerate(special_ids):
        length = len(pieces[id])
        names[id] = f"{HIDDEN}{chr(_PLANE + number) * (length - 1)}" if length > 1 else f"{HIDDEN}{id}"
    return names | {mask_id: HIDDEN * len(pieces[mask_id])}


def find_role_ids(file: Path, vocabulary: dict[str, int], unknown: Sequence[str] = ()) -> dict[str, int]:
    """Returns the token id of each role.

    The token of a role is the one that special_tokens_map.json or tokenizer_config.json beside `file` names, or else
    one of the usual names that is in the vocabulary. `unknown` holds the names of the unknown token in the model
    itself, which take precedence. Raises UserError if a role has no token, if its token is not in the vocabulary, so
    that Transformers would add it, or if two roles have the same one.
    """
    configs = _configs_with_names(file)
    role_ids, missing = {}, []
    for role in ROLES:
        key = _CONFIG_KEYS[role][0]
        for name in [name for config in configs for name in _named(config, key)][:1]:
            if name not in vocabulary:
                raise UserError(
                    f"{file}: the {key} {name!r}, which a file beside it names, is not in the vocabulary; name one that"
                    " is there"
                )
        names = [name for key in _CONFIG_KEYS[role] for config in configs for name in _named(config, key)]
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


def _configs_with_names(file: Path) -> list[Record]:
    """Returns the configs beside a file that name special tokens, in the order of precedence of Transformers."""
    config, names = (config_beside(file, name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    return [config, names] if "added_tokens_decoder" in config.content else [names, config]


def _named(config: Record, key: str) -> list[str]:
    """Returns the tokens that a key of a config names: one, or those of a list. Raises UserError for other values.

    An object without a `content` maps further roles, which jaxlm does not use, to tokens.
    """
    value = config.content.get(key)
    tokens = []
    for token in value if isinstance(value, list) else [value]:
        content = token.get("content", "") if isinstance(token, dict) else "" if token is None else token
        if not isinstance(content, str):
            raise config.error(key, "expected a token, which is text or an object with a text as its content")
        tokens.append(content)
    return [token for token in tokens if token]


def added_entries(
    file: Path, own: list[dict[str, Any]], vocabulary: dict[str, int], keep: bool = True
) -> list[dict[str, Any]]:
    """Returns the entries of added tokens for a tokenizer.json, as Transformers collects them from the files.

    Args:
        file: The vocabulary; the other files are beside it.
        own: The entries in `file` itself.
        vocabulary: The id of each token of the model, without added tokens.
        keep: Whether `own` is kept where tokenizer_config.json has a list of added tokens, `added_tokens_decoder`.

    Raises:
        UserError: If a list of added tokens is not valid.
    """
    decoder = config_beside(file, "tokenizer_config.json").content.get("added_tokens_decoder")
    keys = [*itertools.chain(*_CONFIG_KEYS.values()), "extra_special_tokens", "additional_special_tokens"]
    special = [word for config in _configs_with_names(file) for key in keys for word in _named(config, key)]
    try:
        if decoder is not None:
            listed = [entry_of(entry["content"], int(id)) | _known(entry) for id, entry in decoder.items()]
            entries = [*(own if keep else []), *listed]
        else:
            plain = config_beside(file, "added_tokens.json").content.items()
            listed = [entry_of(word, int(id), special=word in special) for word, id in plain]
            entries = [*listed, *own]
        by_content = {entry["content"]: entry for entry in entries}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = "added_tokens.json" if decoder is None else "added_tokens_decoder in tokenizer_config.json"
        raise UserError(
            f"{where} beside {file} is not a valid list of added tokens ({error!r}); fetch it again"
        ) from error
    for word in special:
        if word in vocabulary and word not in by_content:
            by_content[word] = entry_of(word, vocabulary[word], special=True)
    return sorted(by_content.values(), key=lambda entry: entry["id"])


def entry_of(content: str, id: int, special: bool = False) -> dict[str, Any]:
    """Returns the entry of an added token in a tokenizer.json."""
    return {
        "id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": not special, "special": special,
    }  # fmt: skip


def _known(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name in entry_of("", 0) and name != "id"}


def check_role_ids(role_ids: dict[str, int], vocab_size: int, file: Path) -> None:
    """Raises UserError if the id of a role, which was read from a file, is not one of the vocabulary in `file`."""
    for role, id in role_ids.items():
        if id >= vocab_size:
            raise UserError(
                f"{file} has {vocab_size:,} tokens, but the {role} token saved for it has the id {id:,}; copy the"
                " tokenizer again from where it was saved"
            )


def config_beside(file: Path, name: str) -> Record:
    """Returns the JSON object in the file `name` in the folder of `file`, or an empty one if there is no such file."""
    path = file.with_name(name)
    return Record(path, read_json(path) if path.exists() else {})
