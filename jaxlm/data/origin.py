"""What a prepared directory is made of: the settings, with the files and the tokenizer by their fingerprints."""

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

NOT_PREPARED = ("cache", "workers", "prefetch", "weights", "sequence_length", "prepend_begin")  # of the data section
UPLOADING = "uploading"  # a file that is in a folder of an object store for as long as it is being written


def origin_of(config: ConfigDict, given: Tokenizer | None) -> dict[str, Any]:
    """Returns all that decides the content, as JSON; `given` is None where the tokenizer is to be trained."""
    settings = config_to_dict(config)
    data, tokenizer = settings["data"], settings["tokenizer"]
    origin = {f"data.{name}": value for name, value in data.items() if name not in NOT_PREPARED}
    origin["data.path"] = [source_fingerprint(path, config.data) for path in data["path"]]
    origin["data.held_out"] = {
        name: source_fingerprint(path, config.data) for name, path in held_out_paths(config).items()
    }
    if data["held_out"]:
        del origin["data.held_out_fraction"]
    if given:
        return origin | {"tokenizer.path": given.fingerprint, "tokenizer.words": tokenizer["words"]}
    return origin | {f"tokenizer.{name}": value for name, value in tokenizer.items()}


def held_out_paths(config: ConfigDict) -> dict[str, str]:
    """Returns the path of each held-out set that data.held_out names."""
    return dict(entry.split("=", 1) for entry in config.data.held_out)


def is_prepared(target: Folder, config: ConfigDict, origin: dict[str, Any]) -> bool:
    """Returns whether the prepared directory is there; raises UserError where it was made of something else."""
    if isinstance(target, Path):
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return False
        if not (target / PREPARED).is_file():
            raise UserError(f"{target} is there and holds other files: name a new folder")
    elif read_file(file_in(target, PREPARED)) is None:
        if list_files(target)[1] and read_file(file_in(target, UPLOADING)) is None:
            raise UserError(f"{target} is there and holds other files: name a new folder")
        return False
    record = read_record(target)
    settings, differences = config_to_dict(config), []
    files = {"data.path", "data.held_out"}
    if origin.get("tokenizer.words") == record["origin"].get("tokenizer.words"):  # which is in the fingerprint
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
            f"{target} was prepared with other settings ({'; '.join(differences)}): name another, or remove this one"
        )
    return True
