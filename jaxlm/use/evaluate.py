"""`jaxlm evaluate`: the held-out loss of a model, on its own held-out sets or on any text."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.config import apply_override, config_from_dict, config_to_dict, find_setting, split_overrides
from jaxlm.data.prepare import prepare
from jaxlm.data.prepared import open_prepared
from jaxlm.data.table import CorpusData
from jaxlm.data.token_store import TokenStore
from jaxlm.errors import UserError
from jaxlm.evaluation.evaluator import Metrics
from jaxlm.evaluation.held_out import describe, held_out_evaluators
from jaxlm.runtime import sharding
from jaxlm.step import Assembly, assemble
from jaxlm.storage import read_json
from jaxlm.typed import Record
from jaxlm.use.loading import Trained, load_trained


def evaluate(trained: Trained, stores: dict[str, TokenStore], rows: int = 0) -> dict[str, Metrics]:
    """Returns the metrics of `evaluate_held_out` for each store by its name, on the first `rows` of each, 0 for all.

    The rows are split over all devices of this machine. The unigram baseline is that of the training text, or for a
    checkpoint from elsewhere that of the evaluated text. Raises UserError for a model without a masked-LM head, or with
    fewer positions than the rows are long.
    """
    config = config_from_dict(config_to_dict(trained.config), "config")
    length = config.data.sequence_length
    _require_masked_lm(trained)
    if trained.encoder.positions == "learned" and length > trained.longest:
        raise UserError(f"data.sequence_length={length} exceeds the {trained.longest} tokens that the model can read")
    counts = trained.counts
    if not counts.any():
        counts = np.sum([store.counts for store in stores.values()], axis=0)
    data = CorpusData(trained.directory, "", trained.tokenizer, [], stores, counts)
    config.evaluation.rows = rows
    assembly = _assembly(config, trained, data)
    params = jax.device_put(trained.params, assembly.state_shardings["params"])
    last = len(assembly.phases) - 1
    return {e.name: e.run(params, last) for e in held_out_evaluators(assembly, data)}


def _require_masked_lm(trained: Trained) -> None:
    if not trained.has_head:
        raise UserError(f"{trained.directory} has no masked-LM head, so it has no masked-LM loss")


def _assembly(config: Any, trained: Trained, data: CorpusData) -> Assembly:
    """Returns the assembly of a trained model for this machine's devices, whatever mesh trained it."""
    config.train.update(
        objective="masked", phases=(), attention="auto", rematerialise="none",
        compute_dtype=trained.execution.compute_dtype,
    )  # fmt: skip
    config.model.rotary_base = trained.encoder.rotary_base
    config.optimizer.update(freeze=(), rate_multipliers=())
    config.mesh.update(slices=0, data=-1, fsdp=1, tensor=1)
    mesh, size = sharding.make_mesh(config.mesh), config.evaluation.batch_size or config.train.batch_size
    parts = sharding.batch_parts(mesh)
    config.evaluation.batch_size = parts * -(-size // parts)
    return assemble(config, trained.encoder, data.facts, mesh, jax.devices()[0].platform)


def main(argv: Sequence[str]) -> int:
    """`jaxlm evaluate --model=DIR [--data.path=PATH ...] [--rows=N] [--json]`."""
    overrides, rest = split_overrides([a.replace("--data.", "--config.data.", 1) for a in argv])
    parser = argparse.ArgumentParser(
        prog="jaxlm evaluate",
        description="Evaluate a model on its held-out sets, or on any text: --data.path=PATH and the other settings of "
        "section data choose what is read. The masks are the same for every model.",
        epilog="example: jaxlm evaluate --model=runs/mini --data.path='notes/*.txt' --data.document=paragraph",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="a work directory or a Hugging Face directory")
    parser.add_argument("--rows", type=int, default=0, help="number of rows of each set, from its start (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(rest)
    if args.rows < 0:
        raise UserError(f"--rows={args.rows}: it cannot be negative")
    for override in overrides:
        find_setting(override.partition("=")[0])
    if other := [override for override in overrides if not override.startswith("data.")]:
        raise UserError(f"--config.{other[0]}: only settings of section data can be given here")
    trained = load_trained(args.model)
    _require_masked_lm(trained)
    if any(override.startswith("data.path=") for override in overrides):
        stores = _stores_of_text(trained, overrides)
    elif overrides:
        raise UserError(f"--data.path is needed beside --{overrides[0]}")
    else:
        record = trained.directory / "data.json"
        stores = open_prepared(Record(record, read_json(record)).text("directory")).held_out if record.is_file() else {}
        if not stores:
            raise UserError(f"{args.model} has no held-out sets; give a text with --data.path")
    results = evaluate(trained, stores, args.rows)
    if args.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            print(describe(name, result))
    return 0


def _stores_of_text(trained: Trained, overrides: Sequence[str]) -> dict[str, TokenStore]:
    """Returns the token stores of a text, one for each path, made with the model's own tokenizer."""
    config = config_from_dict(config_to_dict(trained.config), "config")
    config.data.update(held_out=(), held_out_fraction=0.0, weights=())
    config.tokenizer.path, config.tokenizer.add = str(trained.directory / ("" if trained.source else "tokenizer")), ""
    for override in overrides:
        apply_override(config, override)
    trained.config.data.sequence_length = config.data.sequence_length
    prepared = prepare(config)
    return dict(zip(config.data.path, prepared.train, strict=True))
