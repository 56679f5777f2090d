"""The origin of a prepared directory: the settings that determine it, with fingerprints of its files and tokenizer."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxlm.config import config_to_dict
from jaxlm.data.prepared import PREPARED, read_record
from jaxlm.errors import UserError
from jaxlm.text.files import Folder, file_in, list_files, read_file
from jaxlm.text.sources import source_fingerprint
from jaxlm.tokenizer.tokenizer import Tokenizer

# The settings of the section `data` that do not change what is prepared.
NOT_PREPARED = ("cache", "workers", "prefetch", "weights", "sequence_length", "prepend_begin", "packing")
TRAINING_VERSION = 2  # increased where the same text and settings train another vocabulary
UPLOADING = "uploading"  # a file that exists in a remote folder while that folder is being written


def origin_of(config: ConfigDict, existing: Tokenizer | None) -> dict[str, Any]:
    """Returns everything that determines the content, as JSON; `existing` is None if the tokenizer is to be trained."""
    settings = config_to_dict(config)
    data, tokenizer = settings["data"], settings["tokenizer"]
    origin = {f"data.{name}": value for name, value in data.items() if name not in NOT_PREPARED}
    origin["data.path"] = [source_fingerprint(path, config.data) for path in data["path"]]
    origin["data.held_out"] = {
        name: source_fingerprint(path, config.data) for name, path in held_out_paths(config).items()
    }
    if data["held_out"]:
        del origin["data.held_out_fraction"]
    if existing:
        return origin | {"tokenizer.path": existing.fingerprint, "tokenizer.words": tokenizer["words"]}
    origin["tokenizer.training"] = TRAINING_VERSION
    return origin | {f"tokenizer.{name}": value for name, value in tokenizer.items()}


def held_out_paths(config: ConfigDict) -> dict[str, str]:
    """Returns the held-out sets of data.held_out as name -> path."""
    return dict(entry.split("=", 1) for entry in config.data.held_out)


def is_prepared(target: Folder, config: ConfigDict, origin: dict[str, Any]) -> bool:
    """Returns whether the prepared directory `target` exists.

    Raises UserError if it has another origin, contains other files, or cannot be read.
    """
    if isinstance(target, Path):
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return False
        if not (target / PREPARED).is_file():
            raise UserError(f"{target} already exists and contains other files: choose a new directory")
    elif read_file(file_in(target, PREPARED)) is None:
        if list_files(target)[1] and read_file(file_in(target, UPLOADING)) is None:
            raise UserError(f"{target} already exists and contains other files: choose a new directory")
        return False
    record = read_record(target)
    settings, differences = config_to_dict(config), []
    files = {"data.path", "data.held_out"}
    # The tokenizer's fingerprint also covers tokenizer.words: only if that is unchanged have its files changed.
    if origin.get("tokenizer.words") == record["origin"].get("tokenizer.words"):
        files.add("tokenizer.path")
    for key in sorted(origin.keys() | record["origin"].keys()):
        if origin.get(key) != record["origin"].get(key):
            section, _, name = key.partition(".")
            old, new = (json.dumps(content[section].get(name)) for content in (record["settings"], settings))
            if old != new:
                differences.append(f"{key}: {old} -> {new}")
            elif key in files:
                differences.append(f"{key}: its files have changed")
    if differences:
        raise UserError(
            f"{target} was prepared with other settings ({'; '.join(differences)}): choose another directory"
            " or remove this one"
        )
    return True
