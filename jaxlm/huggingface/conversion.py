"""Import and export of Hugging Face Transformers checkpoints, from one table per family and without torch.

A directory contains config.json and safetensors, one file or several with an index (or pytorch_model.bin, which needs
torch). Imported and exported models have the same logits as in Transformers. Kernels are [out, in] there, [in, out]
here.
"""

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import wrong_value
from jaxlm.errors import UserError
from jaxlm.huggingface.families import FAMILIES, Family, Part
from jaxlm.huggingface.family_config import dotted
from jaxlm.huggingface.weights import (
    SHARD_BYTES,
    Reader,
    as_dtype,
    check_finite,
    some_of,
    tensor_names,
    write_tensors,
)
from jaxlm.model.config import EncoderConfig
from jaxlm.model.heads import abstract_discriminator, abstract_params
from jaxlm.storage import read_json, read_text
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.typed import KINDS, Record, records, shown

# In a work directory: config.json of the checkpoint that the run started from; export keeps its other keys.
SOURCE_CONFIG = "huggingface_config.json"
_TABLE = "encoder/embeddings/token/embedding"
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")  # part of the model, whose prefix they have
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # norms converted from TensorFlow
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_BUFFERS = re.compile(r"(position_ids|inv_freq|token_type_ids)$")
_log = logging.getLogger("jaxlm")


class Source(NamedTuple):
    """The config.json of a checkpoint in its family's current format, and the family."""

    directory: Path
    config: dict[str, Any]
    family: Family


class Tensor(NamedTuple):
    """One tensor of a checkpoint and our parameters that it contains, in order along its first axis."""

    name: str  # without the family's prefix
    paths: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool


class Loaded(NamedTuple):
    """The result of `read_params`."""

    params: dict[str, Any]  # float32, without the parameters in `fresh`
    fresh: list[str]  # head parameters that the checkpoint lacks
    unused: list[str]  # names in the file of tensors of other heads


# Finding a checkpoint


def locate(name: str | Path) -> Path:
    """Returns the directory of a checkpoint: `name` itself, or its newest snapshot in the local Hugging Face cache.

    For a sentence-transformers directory, returns that of its Transformer module. Raises UserError.
    """
    directory = Path(name).expanduser()
    if not directory.is_dir():
        directory = _cached(str(name))
    if not (directory / "config.json").is_file() and (directory / "modules.json").is_file():
        file = directory / "modules.json"
        modules = records(file, read_json(file, list))
        paths = [module.text("path", "") for module in modules if module.text("type", "").endswith("Transformer")]
        if paths and (directory / paths[0] / "config.json").is_file():
            return directory / paths[0]
    return directory


def _cached(name: str) -> Path:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    found = hub / f"models--{name.replace('/', '--')}"
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and found.is_dir():
        main = found / "refs" / "main"
        revision = read_text(main).strip() if main.is_file() else ""
        folders = [path for path in (found / "snapshots").glob("*") if path.is_dir()]
        snapshots = sorted(folders, key=lambda path: path.stat().st_mtime)
        named = [path for path in snapshots if path.name == revision] or snapshots
        if named:
            return named[-1]
    fetch = f"; if it is a model on the Hub, fetch it with `hf download {name}`" if "/" in name else ""
    raise UserError(f"there is no directory {name} and no model of this name in {hub}{fetch}")


def is_checkpoint(directory: Path) -> bool:
    """Returns whether a directory is a Transformers checkpoint and not a work directory of jaxlm."""
    try:
        return "model_type" in read_json(directory / "config.json")
    except UserError:
        weights = [*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]
        if weights and (directory / "config.json").exists():
            raise  # it is the damaged config.json of a checkpoint
        return False  # then it is read as the config of a run, with the same error


def read_source(directory: Path) -> Source:
    """Returns the config and family of a checkpoint. Raises UserError if the family is unknown or a file is damaged."""
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} has no config.json, so it is not a Transformers checkpoint")
    file = directory / "config.json"
    record = Record(file, read_json(file))
    name = record.text("model_type")
    if name not in FAMILIES:
        raise UserError(
            f"{directory} has the family {shown(name)}, which is not supported; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    record.items("architectures", str, [])
    return Source(directory, FAMILIES[name].modernise(record), FAMILIES[name])


# Config


def model_settings(source: Source) -> dict[str, Any]:
    """Returns the settings of section `model` for a checkpoint. Raises UserError that names an unsupported value."""
    family, config = source.family, source.config
    where = source.directory / "config.json"
    for path, allowed in family.allowed.items():
        value = dotted(config, path, None)
        if value is not None and value not in allowed:
            raise UserError(f"{where}: {path}={shown(value)} is not supported for the family {family.name}")
    settings = dict(family.fixed)
    for key in family.keys:
        value = dotted(config, key.theirs, key.default)
        try:
            settings[key.ours] = key.read(value)
        except TypeError as error:
            raise UserError(
                f"{where}: {key.theirs}={shown(value)}: expected {KINDS[key.kind]}; fetch the file again"
            ) from error
        except (KeyError, ValueError, OverflowError) as error:
            known = f"; supported are {', '.join(map(str, key.values))}" if key.values else ""
            raise UserError(f"{where}: {key.theirs}={shown(value)} is not supported{known}") from error
        if wrong := wrong_value(f"model.{key.ours}", settings[key.ours]):
            raise UserError(f"{where}: {key.theirs}={shown(value)}: {wrong}; fetch the file again")
    for name in ("vocab_size", "max_positions"):
        if settings.get(name) == 0:
            raise UserError(f"{where}: its {name} is 0: must be at least 1; fetch the file again")
    if settings["position_offset"] >= settings["max_positions"]:
        raise UserError(
            f"{where}: pad_token_id={settings['position_offset'] - 1}: its {settings['max_positions']} positions begin"
            " after this row, so none is left; fetch the file again"
        )
    if settings["width"] % settings["heads"]:
        raise UserError(
            f"{where}: its {settings['heads']} attention heads do not divide its width {settings['width']}; fetch the"
            " file again"
        )
    return settings


def check_padding(source: Source, tokenizer: Tokenizer) -> None:
    """Raises UserError if config.json names another token as padding than the tokenizer, in a family whose positions
    depend on it: Transformers would not count that token, wherever it is in a text."""
    if not any(key.ours == "position_offset" for key in source.family.keys):
        return
    pad = dotted(source.config, "pad_token_id", 1)
    if pad != tokenizer.pad_id and 0 <= pad < tokenizer.vocab_size:
        raise UserError(
            f"{source.directory / 'config.json'}: pad_token_id={pad} is the token {tokenizer.token(pad)!r}, but the"
            f" tokenizer pads with {tokenizer.token(tokenizer.pad_id)!r}, whose id is {tokenizer.pad_id}: Transformers"
            f" gives {tokenizer.token(pad)!r} no position of its own, which jaxlm does not support"
        )


def longest_text(source: Source, encoder: EncoderConfig) -> int:
    """Returns the maximum number of tokens in a row, including begin and end: the lower of the limits of the position
    table and of tokenizer_config.json."""
    longest = encoder.max_positions - encoder.position_offset
    file = source.directory / "tokenizer_config.json"
    limit = Record(file, read_json(file)).number("model_max_length", None, at_least=3) if file.is_file() else None
    return min(longest, int(limit)) if limit else longest


# Tensors


def tensors_of(family: Family, encoder: EncoderConfig) -> list[Tensor]:
    """Returns the tensors that contain the parameters of an encoder and its heads in a family's checkpoint."""
    parts: dict[str, list[tuple[int, str, tuple[int, ...], bool]]] = {}
    params = abstract_params(encoder)
    if "discriminator/score" in family.modules:
        params = params | {"discriminator": abstract_discriminator(encoder)}
    for path, leaf in _flatten(params):
        module, _, kind = path.rpartition("/")
        layer = re.search(r"layers_(\d+)", module)
        named = family.modules.get(re.sub(r"layers_\d+", "layers_*", module))
        if named is None:
            raise UserError(f"the family {family.name} has no tensor for the parameter {path}")
        part = named if isinstance(named, Part) else Part(named, 0)
        name = part.module.replace("*", layer[1] if layer else "") + "." + _LEAVES[kind]
        if path == "head/bias":
            name = family.output_bias
        shape = leaf.shape[::-1] if kind == "kernel" else leaf.shape
        parts.setdefault(name, []).append((part.number, path, shape, kind == "kernel"))
    tensors = []
    for name, found in parts.items():
        found.sort()
        rows = sum(shape[0] for _, _, shape, _ in found)
        shape = (rows, *found[0][2][1:])
        tensors.append(Tensor(name, tuple(path for _, path, _, _ in found), shape, found[0][3]))
    return tensors


def has_head(source: Source, encoder: EncoderConfig) -> bool:
    """Returns whether a checkpoint has a masked-LM head, according to the names of its tensors."""
    family = source.family
    names = {*_canonical(family, tensor_names(source.directory), source.directory)}
    head = {t.name for t in tensors_of(family, encoder) if t.paths[0].startswith("head/")} - {family.output_bias}
    return (
        _heads_are_for_tokens(family, names)
        and head <= names
        and (not encoder.output_bias or bool({family.output_bias, family.decoder_bias} & names))
    )


def _heads_are_for_tokens(family: Family, names: Collection[str]) -> bool:
    """Returns whether tensors under the names of the masked-LM head belong to it: in a ModernBERT that classifies,
    `head.dense` and `head.norm` belong to the classifier."""
    own = {family.decoder, family.output_bias, family.decoder_bias} & set(names)
    return bool(own) or not any(name.startswith("classifier.") for name in names)


def read_params(source: Source, encoder: EncoderConfig) -> Loaded:
    """Returns the parameters of a checkpoint, float32.

    Raises UserError that lists the encoder's tensors that are missing, unexpected or have another shape. Missing
    parameters of the masked-LM head are returned in `fresh`, tensors of other heads in `unused`, for the caller to
    report. Raises UserError too if a tensor holds NaN or infinity.
    """
    family, tied = source.family, encoder.tied_output
    names = _canonical(family, tensor_names(source.directory), source.directory)
    # Two names of one bias; if untied, Transformers adds the decoder's.
    biases = [name for name in (family.output_bias, family.decoder_bias) if name in names][:: 1 if tied else -1]
    problems: list[str] = []
    fresh: list[str] = []
    found: dict[Tensor, str] = {}
    for tensor in tensors_of(family, encoder):
        name = biases[0] if tensor.name == family.output_bias and biases else tensor.name
        if tied and tensor.paths == (_TABLE,) and name not in names:
            name = family.decoder  # a file may hold the one array under either name
        in_head = all(path.startswith("head/") for path in tensor.paths)
        if name in names and (not in_head or _heads_are_for_tokens(family, names)):
            found[tensor] = names[name]
        elif in_head:
            fresh += tensor.paths
        elif not tensor.paths[0].startswith("discriminator/"):
            problems.append(f"{tensor.name} is missing")
    copies = {*biases, *([family.decoder] if tied else [])}
    rest = {n: given for n, given in names.items() if given not in found.values() and not is_buffer(n)}
    if tied:
        _warn_of_copies(source, names, found)
    rest = {name: given for name, given in rest.items() if name not in copies}
    # For example a layer beyond those in config.json: without it, the encoder would compute something else.
    problems += [f"{given} is unexpected" for name, given in rest.items() if family.is_encoder(name)]
    flat: dict[str, np.ndarray] = {}
    with Reader(source.directory) as reader:
        for tensor, given in found.items():
            shape = reader.shape(given)
            if shape != tensor.shape:
                problems.append(f"{given} has the shape {list(shape)}, not {list(tensor.shape)}")
            elif not problems:
                array = reader.read_parameter(given)
                check_finite(given, array, str(source.directory))
                flat |= _split(tensor, array)
    if problems:
        raise UserError(f"the weights in {source.directory} do not match config.json: {some_of(problems)}")
    return Loaded(_unflatten(flat), fresh, sorted(rest.values()))


def read_pooler(source: Source, to: Family) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint's pooler, float32, by name without the family's prefix.

    Returns {} if the checkpoint or the family `to` has none.
    """
    return read_tensors(source, _POOLER) if source.family.has_pooler and to.has_pooler else {}


def read_tensors(source: Source, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns those of some tensors that a checkpoint has, float32, by name without the family's prefix."""
    names = _canonical(source.family, tensor_names(source.directory), source.directory)
    with Reader(source.directory) as reader:
        return {name: reader.read_parameter(names[name]) for name in wanted if name in names}


def pooler_params(source: Source, encoder: EncoderConfig) -> dict[str, np.ndarray] | None:
    """Returns kernel [D, D] and bias [D] of the dense layer on the first token that a BERT is pretrained with.

    None if the checkpoint has none. Raises UserError for another shape, or NaN or infinity.
    """
    tensors = read_pooler(source, source.family)
    if len(tensors) < len(_POOLER):
        return None
    for name, array in tensors.items():
        shape = (encoder.width,) * (2 if name.endswith("weight") else 1)
        if array.shape != shape:
            raise UserError(f"{source.directory}: {name} has the shape {list(array.shape)}, not {list(shape)}")
        check_finite(name, array, str(source.directory))
    weight, bias = (next(a for n, a in tensors.items() if n.endswith(leaf)) for leaf in ("weight", "bias"))
    return {"kernel": np.ascontiguousarray(weight.T), "bias": bias}


def is_buffer(name: str) -> bool:
    """Returns whether a tensor is no parameter: jaxlm and Transformers compute it."""
    return bool(_BUFFERS.search(name))


def _warn_of_copies(source: Source, names: dict[str, str], found: dict[Tensor, str]) -> None:
    """Warns if a checkpoint with tied embeddings has an output projection, or a bias for it, with values of its own."""
    table = next((given for tensor, given in found.items() if tensor.paths == (_TABLE,)), None)
    pairs = [(names.get(source.family.decoder), table, "the token embeddings")]
    pairs.append((names.get(source.family.decoder_bias), names.get(source.family.output_bias), "the output bias"))
    with Reader(source.directory) as reader:
        for copy, used, what in pairs:
            if copy and used and copy != used and not np.array_equal(reader.read(copy), reader.read(used)):
                _log.warning(
                    "%s: %s differs from %s, but config.json ties them: %s is used, as in Transformers 4; Transformers"
                    ' 5 uses both, and so does jaxlm if config.json has "tie_word_embeddings": false',
                    source.directory, copy, what, used,
                )  # fmt: skip


def _canonical(family: Family, names: list[str], directory: Path) -> dict[str, str]:
    """Returns a map from current names, without the family's prefix, to the names in the file."""
    result: dict[str, str] = {}
    for name in names:
        module, _, leaf = name.removeprefix(family.prefix).rpartition(".")
        plain = f"{module}.{_OLD_NAMES.get(leaf, leaf)}" if module else leaf
        if plain in result:
            raise UserError(f"{directory} contains both {result[plain]} and {name}, which are the same parameter")
        result[plain] = name
    return result


def _split(tensor: Tensor, array: np.ndarray) -> dict[str, np.ndarray]:
    pieces = np.split(array, len(tensor.paths))
    return {
        path: np.ascontiguousarray(piece.T if tensor.transposed else piece)
        for path, piece in zip(tensor.paths, pieces, strict=True)
    }


def _flatten(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield path, tree
        return
    for name, branch in tree.items():
        yield from _flatten(branch, f"{path}/{name}" if path else name)


def _unflatten(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *outer, last = path.split("/")
        branch = tree
        for name in outer:
            branch = branch.setdefault(name, {})
        branch[last] = leaf
    return tree


# Writing


def write_weights(
    directory: Path,
    family: Family,
    encoder: EncoderConfig,
    params: dict[str, Any],
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    more: dict[str, np.ndarray] | None = None,
) -> list[Path]:
    """Writes safetensors and returns the files; without a head they are those of the family's base model.

    `more` holds tensors by name without the family's prefix: those of `read_pooler`, or of the head of a task.

    Raises UserError if a tensor holds NaN, infinity or numbers too large for the dtype, if a file cannot be written, or
    if reading it back gives other values.
    """
    flat = dict(_flatten(params))
    more = more or {}
    has_head = params.keys() & {"head", "discriminator"} or more.keys() - set(_POOLER)
    prefix = family.prefix if has_head else ""  # a base model has none
    tensors: dict[str, np.ndarray] = {}
    for tensor in tensors_of(family, encoder):
        if not all(path in flat for path in tensor.paths):
            continue  # a head that params lacks
        parts = [np.asarray(flat[path]) for path in tensor.paths]
        array = np.concatenate([part.T if tensor.transposed else part for part in parts])
        name = (prefix if family.is_encoder(tensor.name) else "") + tensor.name
        tensors[name] = as_dtype(name, array, dtype)
    for name, array in more.items():
        name = (prefix if name in _POOLER else "") + name
        tensors[name] = as_dtype(name, array, dtype)
    if not encoder.tied_output and family.decoder_bias and family.output_bias in tensors:
        tensors[family.decoder_bias] = tensors[family.output_bias]
    return write_tensors(directory, tensors, shard_bytes)
