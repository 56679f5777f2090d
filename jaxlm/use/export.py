"""Export of a trained model to a directory that Transformers loads: weights, config, tokenizer and model card."""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.data.text_encoder import separators_of_pairs
from jaxlm.errors import UserError
from jaxlm.huggingface import conversion, family_config, task_heads
from jaxlm.huggingface.copying import copy_checkpoint, copy_files, with_dtype
from jaxlm.huggingface.refit import refit, refit_params
from jaxlm.huggingface.sentence_transformers import (
    copy_modules,
    sentence_transformers_root,
    write_dimensions,
    write_sentence_model,
)
from jaxlm.huggingface.task_heads import Target
from jaxlm.huggingface.weights import some_of
from jaxlm.objectives.causal_lm import EXPORT_NOTE
from jaxlm.runtime.help_format import HelpFormatter
from jaxlm.runtime.json_output import print_json
from jaxlm.storage import beside, local_path, read_json, reason, write_text
from jaxlm.typed import Record
from jaxlm.use.embed import sentence_model
from jaxlm.use.loading import Trained, add_model_options, load_named, load_trained
from jaxlm.use.model_card import is_causal, loading_call, model_card

DTYPES = ("float32", "bfloat16", "float16")
# In config.json: the scores of sentence-transformers' CrossEncoder are the logits, as those of `jaxlm rank`.
CROSS_ENCODER = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
_ACTIVATIONS = ("sentence_transformers", "sbert_ce_default_activation_function")  # the newer and the older form
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt")
_log = logging.getLogger("jaxlm")


def export(
    name: str | Path, to: str | Path, family: str | None = None, dtype: str | None = None,
    step: int | str | None = None, dimensions: int | None = None,
) -> Path:  # fmt: skip
    """Writes the model of a work directory or Hugging Face directory to the directory `to`, and returns it.

    A Hugging Face directory is copied whole, in the dtypes that it has, unless `family` or `dtype` is another. A work
    directory is written as the family of its original checkpoint, or else as the first that can express the model, in
    float32 by default; step is that of `jaxlm.load`. A model trained with train.objective=embedding becomes a
    sentence-transformers directory; `dimensions` is the number of dimensions that its vectors have when they are
    loaded from there, all by default. Raises UserError, with nothing written, if the family cannot express a setting,
    which is named, if a tensor holds values that the dtype cannot hold, or if `to` is not empty.
    """
    to = _target(to, dtype)
    return export_trained(load_trained(name, step=step), to, family, dtype, dimensions)


def _target(to: str | Path, dtype: str | None) -> Path:
    """Returns the absolute path of the directory to write. Raises UserError if it or the dtype cannot be used."""
    to = Path(os.path.abspath(local_path("--to", to)))
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to={to} exists and is not empty; set a new directory")
    if dtype not in (None, *DTYPES):
        raise UserError(f"--dtype={dtype} is not one of {', '.join(DTYPES)}")
    return to


def export_trained(
    trained: Trained, to: Path, family: str | None = None, dtype: str | None = None, dimensions: int | None = None
) -> Path:
    """Writes a model that has been loaded; otherwise as `export`."""
    if is_causal(trained):
        _log.warning(EXPORT_NOTE)
    source, root = trained.source, sentence_transformers_root(trained.directory) if trained.source else None
    whole = source is not None and family in (None, source.family.name)
    target = Target(source.family, [], "") if source and whole else _target_of(trained, family)
    vectors = None if source else sentence_model(trained)
    _check_dimensions(dimensions, trained, root is not None or vectors is not None)

    partial = beside(to, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    inside = partial / trained.directory.name if root and root != trained.directory else partial
    try:
        inside.mkdir(parents=True)
        if root:
            copy_modules(root, trained.directory, partial)
        if source and whole:
            copy_checkpoint(trained.directory, inside, dtype)
            copy_files(trained.directory, inside, ["README.md"])
            _write_tokenizer(trained, inside, token_types=trained.encoder.token_types > 1, copied=True)
        else:
            _convert(trained, target, inside, dtype or "float32")
        if vectors:
            write_sentence_model(vectors, trained.encoder.width, target.family.has_pooler, partial)
        if dimensions:
            write_dimensions(partial, dimensions)
        if not (partial / "README.md").is_file():
            write_text(partial / "README.md", model_card(trained, target.family, partial, inside, to.name))
        copy_files(trained.directory, partial, ["curve.png"])
        if to.exists():  # it is kept, since it may be the current folder of a shell
            for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == "config.json"):
                entry.rename(to / entry.name)
        else:
            partial.rename(to)
    except OSError as error:
        raise UserError(f"cannot write --to={to}: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _check_dimensions(dimensions: int | None, trained: Trained, embeds: bool) -> None:
    """Raises UserError if vectors cannot be cut to the first `dimensions`, or the model is not exported to embed."""
    width = trained.encoder.width
    if dimensions is not None and not embeds:
        raise UserError(
            f"--dimensions={dimensions}: {trained.directory} is not exported as a sentence-transformers directory; omit"
            " it, or train the model with train.objective=embedding"
        )
    if dimensions is not None and not 1 <= dimensions <= width:
        raise UserError(f"--dimensions={dimensions}: must be from 1 to {width}, the width of the model")


def _target_of(trained: Trained, wanted: str | None) -> Target:
    """Returns the family `wanted`, or else that of the original checkpoint, or else the first that fits.

    Raises UserError that names the settings of the encoder which the family cannot express.
    """
    base = (_base_config(trained) or {}).get("model_type")
    if not trained.task:
        return Target(family_config.choose_family(trained.encoder, wanted or base), [], "")
    family_config.check_family(wanted)
    target = task_heads.target_of(trained.encoder, trained.task, base, wanted)
    family_config.check_lacking(*target[:2], bool(wanted))
    return target


def _convert(trained: Trained, target: Target, to: Path, dtype: str) -> None:
    """Writes the encoder and its head, if any, in the form of a family, with config.json and tokenizer."""
    kind, task = target.family, trained.task
    base = _base_config(trained)
    base = base if base and base["model_type"] == kind.name else None
    params, before = jax.tree.map(np.asarray, trained.params), trained.encoder
    more = conversion.read_pooler(trained.source, kind) if trained.source else {}
    if task and target.headless:
        _log.warning("exported without its head: %s", target.headless)
    elif task:
        if note := task_heads.unwritten_dropout(target, before, task):
            _log.warning("%s", note)
        params.pop("head", None)
        before = task_heads.as_task_encoder(before)
        more = task_heads.head_tensors(kind, task, jax.tree.map(np.asarray, trained.task_head))
    encoder = refit(before, kind, trained.tokenizer.pad_id)
    params = refit_params(params, before, encoder)
    if (removed := encoder.heads - before.heads) > 0:
        _log.warning(
            "%s cannot have fewer heads of this width: in each layer, %s of %s are written as zeros; the outputs are"
            " the same, but size and speed are not those of this model", kind.base, removed, encoder.heads,
        )  # fmt: skip
    left_out = [name for name in trained.left_out if not name.endswith(tuple(more))]
    if "discriminator/score" not in kind.modules and params.pop("discriminator", None):
        left_out.append("discriminator_predictions")
    conversion.write_weights(to, kind, encoder, params, dtype, more=more)
    if left_out:
        _log.warning("not exported, since heads of this kind are not converted between families: %s", some_of(left_out))

    roles = {role: getattr(trained.tokenizer, f"{role}_id") for role in ("pad", "begin", "end")}
    config = family_config.config_for(encoder, kind, trained.longest, roles, base)
    config = with_dtype(config, dtype) | {"architectures": [kind.masked_lm if "head" in params else kind.base]}
    if task and not target.headless:
        config = task_heads.head_config(kind, encoder, task, config)
        if task.objective == "reranking":
            config |= CROSS_ENCODER
        elif trained.source:  # what CrossEncoder makes of the logits stays the same
            config |= {key: value for key, value in trained.source.config.items() if key in _ACTIVATIONS}
    write_text(to / "config.json", json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    _write_tokenizer(trained, to, token_types=encoder.token_types > 1, copied=False)


def _base_config(trained: Trained) -> dict[str, Any] | None:
    """Returns the config.json of the checkpoint that the model started from, if any."""
    if trained.source:
        return read_json(trained.directory / "config.json")
    file = trained.directory / conversion.SOURCE_CONFIG
    if not file.is_file():
        return None
    config = read_json(file)
    Record(file, config).text("model_type")
    return config


def _write_tokenizer(trained: Trained, to: Path, token_types: bool, copied: bool) -> None:
    names = [name for name in _TOKENIZER_FILES if (trained.directory / name).is_file()] if copied else []
    # Without a tokenizer.json, Transformers would choose its own settings, such as lower-casing, for a vocabulary.
    complete = "tokenizer.json" in names or not {"vocab.txt", "vocab.json"} & set(names)
    copy_files(trained.directory, to, [name for name in names if complete or name in _VOCABULARIES])
    if names and complete:
        return
    separators = separators_of_pairs(trained.config.model.position_offset)
    # CrossEncoder cuts pairs to this length, as the run did; other classes only if their user asks for it.
    ranks = not trained.source and trained.config.train.objective == "reranking"
    longest = trained.config.data.sequence_length if ranks else trained.longest
    files = trained.tokenizer.transformers_files(longest, token_types, separators)
    for name, content in files.items():
        (to / name).write_bytes(content)


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm export --model=DIR --to=DIR`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm export", description="Write a model as a directory that Hugging Face Transformers loads, or, if it"
        " was trained with train.objective=embedding, sentence-transformers.",
        formatter_class=HelpFormatter, epilog="example:\n  jaxlm export --model=runs/mini --to=runs/mini-exported",
    )  # fmt: skip
    add_model_options(parser, "--workdir")
    parser.add_argument("--to", required=True, help="the directory to write; new or empty")
    parser.add_argument(
        "--family", help="a family such as bert or modernbert (default: the first that can express the model)"
    )
    parser.add_argument(
        "--dtype",
        help=f"dtype of the weights: {', '.join(DTYPES)} (default: float32; a Hugging Face directory keeps its own)",
    )
    parser.add_argument(
        "--dimensions", type=int, metavar="N", help="a model that embeds texts: sentence-transformers keeps the first N"
        " dimensions of each vector (truncate_dim), such as one of task.dimensions (default: all)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args(argv)
    to = export_trained(load_named(args), _target(args.to, args.dtype), args.family, args.dtype, args.dimensions)
    files = {str(file.relative_to(to)): file.stat().st_size for file in sorted(to.rglob("*")) if file.is_file()}
    if args.json:
        config = next(file for file in (to / "config.json", *sorted(to.glob("*/config.json"))) if file.is_file())
        print_json({"directory": to, "family": read_json(config)["model_type"], "files": files})
        return 0
    for name, size in files.items():
        print(f"{size:>14,}  {name}")
    print(f"load it with {loading_call(to, os.path.expanduser(args.to))}")
    return 0
