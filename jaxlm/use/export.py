"""Export of a trained model to a directory that Transformers loads: weights, config, tokenizer and model card."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.errors import UserError
from jaxlm.huggingface import conversion
from jaxlm.huggingface.refit import refit, refit_params
from jaxlm.storage import read_json, reason, write_text
from jaxlm.typed import Record
from jaxlm.use.loading import Trained, load_trained
from jaxlm.use.model_card import model_card

DTYPES = ("float32", "bfloat16", "float16")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip


def export(name: str | Path, to: str | Path, family: str | None = None, dtype: str = "float32") -> Path:
    """Writes the model of a work directory or Hugging Face directory to the directory `to`, and returns it.

    The default family is that of the original checkpoint, or else the first that can express the model. Raises
    UserError, with nothing written, if the family cannot express a setting, which is named, or `to` is not empty.
    """
    to = Path(to).expanduser()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to={to} exists and is not empty; set a new directory")
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} is not one of {', '.join(DTYPES)}")
    trained = load_trained(name)
    base = _base_config(trained)
    kind = conversion.choose_family(trained.encoder, family or (base or {}).get("model_type"))
    base = base if base and base["model_type"] == kind.name else None
    encoder = refit(trained.encoder, kind, trained.tokenizer.pad_id)
    params = refit_params(jax.tree.map(np.asarray, trained.params), trained.encoder, encoder)
    roles = {role: getattr(trained.tokenizer, f"{role}_id") for role in ("pad", "begin", "end")}
    config = conversion.config_for(encoder, kind, trained.longest, roles, base)
    config |= {"dtype": dtype, "architectures": [kind.masked_lm if trained.has_head else kind.base]}

    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        more: dict[str, np.ndarray] = {}
        if trained.source:  # other heads are copied unchanged
            more = conversion.other_tensors(trained.source, conversion.read_params(trained.source, encoder).unused)
            if not trained.has_head:
                config["architectures"] = trained.source.config.get("architectures") or config["architectures"]
        conversion.write_weights(partial, kind, encoder, params, dtype, more=more)
        write_text(partial / "config.json", json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        _write_tokenizer(trained, partial, token_types=encoder.token_types > 1)
        write_text(partial / "README.md", model_card(trained, kind, encoder, to.name))
        if (trained.directory / "curve.png").is_file():
            shutil.copyfile(trained.directory / "curve.png", partial / "curve.png")
        if to.exists():
            to.rmdir()
        partial.rename(to)
    except OSError as error:
        raise UserError(f"cannot write --to={to}: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


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


def _write_tokenizer(trained: Trained, to: Path, token_types: bool) -> None:
    if trained.source:
        for name in _TOKENIZER_FILES:
            if (trained.directory / name).is_file():
                shutil.copyfile(trained.directory / name, to / name)
        return
    for name, content in trained.tokenizer.transformers_files(trained.longest, token_types).items():
        (to / name).write_bytes(content)


def main(argv: Sequence[str]) -> int:
    """Runs `jaxlm export --workdir=DIR --to=DIR`."""
    parser = argparse.ArgumentParser(
        prog="jaxlm export", description="Write a model as a directory that Hugging Face Transformers loads.",
        epilog="example: jaxlm export --workdir=runs/notes --to=notes-bert",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", required=True, help="a work directory of `jaxlm train` or a Hugging Face directory"
    )
    parser.add_argument("--to", required=True, help="the directory to write; new or empty")
    parser.add_argument(
        "--family", help="a family such as bert or modernbert (default: the first that can express the model)"
    )
    parser.add_argument(
        "--dtype", default="float32", help=f"dtype of the weights: {', '.join(DTYPES)} (default float32)"
    )
    args = parser.parse_args(argv)
    to = export(args.workdir, args.to, args.family, args.dtype)
    for file in sorted(to.iterdir()):
        print(f"{file.stat().st_size:>14,}  {file.name}")
    print(f"load it with AutoModelForMaskedLM.from_pretrained({str(to)!r})")
    return 0
