"""What a run starts from where `init_from` names a directory: its architecture, tokenizer and weights, grown to fit."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config import config_from_dict, config_to_dict, load_config, phases_of
from jaxlm.errors import UserError
from jaxlm.huggingface import conversion
from jaxlm.huggingface.weights import some_of, tensor_names
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.heads import abstract_params
from jaxlm.runtime.checkpoint import restore_params
from jaxlm.storage import read_json
from jaxlm.tokenizer.tokenizer import Tokenizer, check_ids

# Settings of section `model` that say how weights begin or are trained, so a run may have its own.
_OWN = ("initialization", "initialization_std", "output_bias_from_frequencies", "init_from", "extend_positions")
_FREE = (*_OWN, "dropout", "attention_dropout", "rotary_base", "local_rotary_base", "vocab_size", "max_positions")
_HEAD = ("tied_output", "output_bias", "head_transform", "head_bias", "head_activation")
_log = logging.getLogger("jaxlm")


def start_settings(name: str, workdir: Path | None = None) -> dict[str, dict[str, Any]]:
    """Returns the settings that a run takes from a work directory or a Hugging Face directory, by section.

    Where `workdir` holds a run that started from it, they are as they were: the weights are in its checkpoints.
    """
    if workdir and (workdir / "config.json").is_file():
        before = config_to_dict(load_config(str(workdir / "config.json")))
        if before["model"]["init_from"] == name:
            return {"model": before["model"], "tokenizer": {"path": before["tokenizer"]["path"]}}
    directory = conversion.locate(name)
    if conversion.is_checkpoint(directory):
        model = conversion.model_settings(conversion.read_source(directory))
        tensor_names(directory)  # weights that are missing or damaged are told before any text is read
        tokenizer = {"path": str(directory.absolute())}
    elif (directory / "config.json").is_file():
        config = load_config(str(directory / "config.json"))
        model = config_to_dict(config)["model"] | {"rotary_base": phases_of(config)[-1]["rotary_base"]}
        tokenizer = {"path": str((directory / "tokenizer").absolute()), "words": config.tokenizer.words}
    else:
        raise UserError(f"init_from={name} holds no config.json; a work directory or a Hugging Face directory is meant")
    return {"model": {key: value for key, value in model.items() if key not in _OWN}, "tokenizer": tokenizer}


def source_config(name: str) -> dict[str, Any] | None:
    """Returns config.json, as it stands, of the Hugging Face directory that `name` is or once began with, if any."""
    directory = conversion.locate(name)
    file = directory / ("config.json" if conversion.is_checkpoint(directory) else conversion.SOURCE_CONFIG)
    return read_json(file, dict) if file.is_file() else None


def check_start(name: str, encoder: EncoderConfig, extend_positions: str) -> None:
    """Raises UserError that names the settings of an encoder which do not fit the weights of a directory."""
    directory, theirs = conversion.locate(name), _encoder_of(name)
    fresh_head = False
    if conversion.is_checkpoint(directory):
        fresh_head = not conversion.has_head(conversion.read_source(directory), theirs)
    free = {*_FREE, *(_HEAD if fresh_head else ())}
    for field in dataclasses.fields(EncoderConfig):
        ours, given = getattr(encoder, field.name), getattr(theirs, field.name)
        if ours != given and field.name not in free:
            raise UserError(f"model.{field.name}={ours} is not that of {name}, which has {given}; leave it away")
    if encoder.positions == "learned" and encoder.max_positions < theirs.max_positions:
        raise UserError(f"model.max_positions={encoder.max_positions} would cut the {theirs.max_positions} of {name}")
    if encoder.positions == "learned" and encoder.max_positions > theirs.max_positions and extend_positions == "refuse":
        raise UserError(
            f"model.max_positions={encoder.max_positions} is beyond the {theirs.max_positions} rows of {name}; set "
            "model.extend_positions to repeat or interpolate"
        )


def _encoder_of(name: str) -> EncoderConfig:
    return encoder_config(config_from_dict({"model": start_settings(name)["model"]}, name).model)


def start_params(
    name: str, encoder: EncoderConfig, before: Tokenizer, tokenizer: Tokenizer, extend_positions: str
) -> dict[str, Any]:
    """Returns the weights of a directory, float32 on the host, grown to `encoder`; a head that it lacks is left out.

    `tokenizer` is `before`, the directory's own, with tokens added: the row of each is the mean of those of the pieces
    that it was before. Raises UserError that names the settings which do not fit the weights.
    """
    directory, theirs = conversion.locate(name), _encoder_of(name)
    check_start(name, encoder, extend_positions)
    check_ids(before, theirs.vocab_size, directory)
    if conversion.is_checkpoint(directory):
        loaded = conversion.read_params(conversion.read_source(directory), theirs)
        params = loaded.params
        if loaded.unused:
            _log.warning("%s: left out, as masked language models have none: %s", name, some_of(loaded.unused, 3))
        if loaded.fresh:
            params.pop("head", None)
            _log.warning("%s has no masked-LM head: a fresh one is trained", name)
        params.pop("discriminator", None)
    else:
        params = jax.tree.map(np.asarray, restore_params(directory / "checkpoints", abstract_params(theirs)).state)
    _grow_vocabulary(params, theirs, encoder, before, tokenizer)
    if encoder.positions == "learned" and encoder.max_positions != theirs.max_positions:
        _extend_positions(params, theirs, encoder, extend_positions)
    return params


def _grow_vocabulary(
    params: dict[str, Any], theirs: EncoderConfig, encoder: EncoderConfig, before: Tokenizer, tokenizer: Tokenizer
) -> None:
    """Gives each new token the mean of its old pieces, in the table and, where there are any, in output and bias."""
    if encoder.vocab_size < theirs.vocab_size:
        raise UserError(f"model.vocab_size={encoder.vocab_size} would cut the {theirs.vocab_size} rows of the weights")
    new = range(before.vocab_size, tokenizer.vocab_size)
    pieces = [before.encode(tokenizer.text_of(id)).ids for id in new]

    def grown(array: np.ndarray) -> np.ndarray:
        """The array with rows for the new tokens; spare rows of the table start at the mean of all."""
        spare = np.repeat(array.mean(0, keepdims=True), encoder.vocab_size - len(array), axis=0)
        result = np.concatenate([array, spare.astype(array.dtype)])
        for id, old in zip(new, pieces, strict=True):
            result[id] = array[old].mean(0) if len(old) else array.mean(0)
        return result

    token, head = params["encoder"]["embeddings"]["token"], params.get("head", {})
    token["embedding"] = grown(token["embedding"])
    if "bias" in head:
        head["bias"] = grown(head["bias"])
    if "kernel" in head:
        head["kernel"] = np.ascontiguousarray(grown(head["kernel"].T).T)


def _extend_positions(params: dict[str, Any], theirs: EncoderConfig, encoder: EncoderConfig, how: str) -> None:
    """Lengthens the position table by repeating its rows (as arXiv 2004.05150), or by stretching them on lines."""
    table, offset = params["encoder"]["embeddings"]["position"], theirs.position_offset
    rows, wanted = theirs.max_positions - offset, encoder.max_positions - offset
    first, known = table["embedding"][:offset], table["embedding"][offset:]
    if how == "repeat":
        longer = known[np.arange(wanted) % rows]
    else:
        places = np.linspace(0, rows - 1, wanted)
        below = np.minimum(places.astype(int), rows - 2)
        share = (places - below)[:, None].astype(known.dtype)
        longer = known[below] * (1 - share) + known[below + 1] * share
    table["embedding"] = np.concatenate([first, longer.astype(known.dtype)])
