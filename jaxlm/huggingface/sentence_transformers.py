"""Directories of sentence-transformers: the pooling, normalisation, length and prompt that they say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.huggingface.weights import read_json

POOLINGS = ("mean", "cls", "max")


class EmbedSettings(NamedTuple):
    """How a text becomes a vector."""

    pooling: str = "mean"  # over all tokens, begin and end included; "cls" is the begin token's state
    normalise: bool = False  # to length 1
    layers: tuple[int, ...] = (-1,)  # whose states are averaged: 0 the embeddings, 1 the first layer's, -1 the last's
    longest: int = 512  # tokens of a text, begin and end included
    prompt: str = ""  # put before each text


def embed_settings(
    directory: Path,
    longest: int,
    pooling: str | None = None,
    normalise: bool | None = None,
    layers: Sequence[int] = (-1,),
) -> EmbedSettings:
    """Returns the settings of the model's directory where sentence-transformers made it, else the defaults; then those
    that are given. Raises UserError for what is not supported there."""
    settings = EmbedSettings(longest=longest)
    if root := _sentence_transformers_root(directory):
        settings = _read_sentence_transformers(root, directory, settings, pooling)
    if pooling is not None:
        settings = settings._replace(pooling=pooling)
    if normalise is not None:
        settings = settings._replace(normalise=normalise)
    return settings._replace(layers=tuple(layers))


def _sentence_transformers_root(directory: Path) -> Path | None:
    """Returns the directory with modules.json: the model's own, or the one above that names it."""
    if (directory / "modules.json").is_file():
        return directory
    above = directory.parent / "modules.json"
    named = above.is_file() and any(module.get("path") == directory.name for module in read_json(above, list))
    return directory.parent if named else None


def _read_sentence_transformers(
    root: Path, directory: Path, settings: EmbedSettings, pooling: str | None
) -> EmbedSettings:
    kinds = {}
    for module in read_json(root / "modules.json", list):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UserError(f"{root / 'modules.json'} has a module {kind}, which jaxlm does not apply")
        kinds[kind] = root / str(module.get("path", ""))
    if "Pooling" in kinds and pooling is None:
        settings = settings._replace(pooling=_read_pooling(kinds["Pooling"] / "config.json"))
    settings = settings._replace(normalise="Normalize" in kinds)

    own = directory / "sentence_bert_config.json"
    content = read_json(own, dict) if own.is_file() else {}
    if content.get("do_lower_case"):
        raise UserError(f"{own} sets do_lower_case, which jaxlm does not apply: lower-case is the tokenizer's to do")
    if limit := content.get("max_seq_length"):
        settings = settings._replace(longest=min(settings.longest, int(limit)))

    more = _optional(root / "config_sentence_transformers.json")
    if name := more.get("default_prompt_name"):
        if not _optional(kinds.get("Pooling", root) / "config.json").get("include_prompt", True):
            raise UserError(f"{root} pools without its prompt (include_prompt), which jaxlm does not support")
        settings = settings._replace(prompt=str(more.get("prompts", {}).get(name, "")))
    return settings


def _read_pooling(file: Path) -> str:
    """Returns the pooling of 1_Pooling/config.json, in the older or the newer way of writing it."""
    content = read_json(file, dict)
    mode = content.get("pooling_mode")
    modes = list(mode) if isinstance(mode, list | tuple) else [mode] if mode else []
    modes += [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, value in content.items()
        if name.startswith("pooling_mode_") and value
    ]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"{file} pools by {' and '.join(modes) or 'nothing'}, where jaxlm knows {', '.join(POOLINGS)}: name one by"
            " --pooling"
        )
    return modes[0]


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file, dict) if file.is_file() else {}
