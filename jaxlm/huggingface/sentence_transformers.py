"""sentence-transformers directories: their settings (pooling, normalisation, maximum length, prompt), and copies."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlm.errors import UserError
from jaxlm.huggingface.copying import copy_files
from jaxlm.storage import read_json
from jaxlm.typed import Record, cut, records

POOLINGS = ("mean", "cls", "max")


class EmbedSettings(NamedTuple):
    """How the vector of a text is computed."""

    pooling: str = "mean"  # over all tokens, including begin and end; "cls" is the state of the begin token
    normalise: bool = False  # scale to length 1
    layers: tuple[int, ...] = (-1,)  # whose states are averaged: 0 is the embeddings, 1 the first layer, -1 the last
    longest: int = 512  # maximum number of tokens, including begin and end
    prompt: str = ""  # prepended to each text


def embed_settings(
    directory: Path,
    longest: int,
    pooling: str | None = None,
    normalise: bool | None = None,
    layers: Sequence[int] = (-1,),
) -> EmbedSettings:
    """Returns the settings of a sentence-transformers directory, or the defaults for any other directory, replaced by
    the arguments that are given. Raises UserError if a setting of the directory is not supported."""
    settings = EmbedSettings(longest=longest)
    if root := sentence_transformers_root(directory):
        settings = _read_sentence_transformers(root, directory, settings, pooling)
    if pooling is not None:
        settings = settings._replace(pooling=pooling)
    if normalise is not None:
        settings = settings._replace(normalise=normalise)
    return settings._replace(layers=tuple(layers))


def sentence_transformers_root(directory: Path) -> Path | None:
    """Returns the directory with modules.json: the model's own, or its parent if the file there names the model."""
    if (directory / "modules.json").is_file():
        return directory
    above = directory.parent / "modules.json"
    named = above.is_file() and any(
        module.text("path", "") == directory.name for module in records(above, read_json(above, list))
    )
    return directory.parent if named else None


def copy_modules(root: Path, directory: Path, to: Path) -> None:
    """Copies a sentence-transformers directory except its Transformer module, which `directory` contains: modules.json,
    the other modules, and the settings of the Transformer module. Raises UserError."""
    transformer = to if directory == root else to / directory.name
    copy_files(root, to, ["modules.json", "config_sentence_transformers.json", "README.md"])
    copy_files(directory, transformer, [file.name for file in directory.glob("sentence_*_config.json")])
    for module in read_json(root / "modules.json", list):
        path = Path(str(module.get("path", "")))
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{root / 'modules.json'} has a module outside the directory: {path}")
        if (root / path).is_dir() and path.parts and root / path != directory:
            shutil.copytree(root / path, to / path)


def _read_sentence_transformers(
    root: Path, directory: Path, settings: EmbedSettings, pooling: str | None
) -> EmbedSettings:
    kinds = {}
    file = root / "modules.json"
    for module in records(file, read_json(file, list)):
        kind = module.text("type").rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UserError(f"{file} has a module {cut(kind)}, which jaxlm does not support")
        kinds[kind] = root / module.text("path", "")
    if os.path.normpath(kinds.get("Transformer", "")) != os.path.normpath(directory):
        raise UserError(f"{file} has no Transformer module in {directory}, which has the weights; fetch it again")
    if pooling is None:
        if "Pooling" not in kinds:
            raise UserError(f"{file} has no Pooling module; set the pooling with --pooling")
        settings = settings._replace(pooling=_read_pooling(kinds["Pooling"] / "config.json"))
    settings = settings._replace(normalise="Normalize" in kinds)

    own = directory / "sentence_bert_config.json"
    content = _optional(own)
    if content.boolean("do_lower_case", False):
        raise UserError(f"{own} sets do_lower_case, which jaxlm does not support: set it in the tokenizer")
    if limit := content.integer("max_seq_length", None, at_least=3):
        settings = settings._replace(longest=min(settings.longest, limit))

    more = _optional(root / "config_sentence_transformers.json")
    if name := more.text("default_prompt_name", ""):
        if not _optional(kinds.get("Pooling", root) / "config.json").boolean("include_prompt", True):
            raise UserError(
                f"{root} sets include_prompt=False (pooling without the prompt), which jaxlm does not support"
            )
        settings = settings._replace(prompt=more.record("prompts", {}).text(name))
    return settings


def _read_pooling(file: Path) -> str:
    """Returns the pooling set in 1_Pooling/config.json, in the older or the newer format."""
    content = Record(file, read_json(file))
    several = isinstance(content.content.get("pooling_mode"), list)
    modes = content.items("pooling_mode", str) if several else [content.text("pooling_mode", "")]
    modes += [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name in content.content
        if name.startswith("pooling_mode_") and content.boolean(name, False)
    ]
    modes = [mode for mode in modes if mode]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        given = " and ".join(map(cut, modes)) or "nothing"
        raise UserError(
            f"{file} sets the pooling to {given}; jaxlm supports {', '.join(POOLINGS)}: set one with --pooling"
        )
    return modes[0]


def _optional(file: Path) -> Record:
    return Record(file, read_json(file) if file.is_file() else {})
