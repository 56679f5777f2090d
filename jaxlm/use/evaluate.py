"""`jaxlm evaluate`: the held-out loss of a model, on its own held-out sets or on any text."""

import argparse
import json
from collections.abc import Sequence

import numpy as np

from jaxlm.config import apply_override, config_from_dict, config_to_dict, find_setting, split_overrides
from jaxlm.data.prepare import prepare
from jaxlm.data.prepared import open_prepared
from jaxlm.data.rows import held_out_batches
from jaxlm.data.token_store import TokenStore
from jaxlm.errors import UserError
from jaxlm.evaluation.held_out import describe, evaluate_held_out, make_evaluation_step
from jaxlm.objectives.masking import (
    make_masking,
)
from jaxlm.use.loading import Trained, load_trained


def evaluate(trained: Trained, stores: dict[str, TokenStore], rows: int = 0) -> dict[str, dict[str, float]]:
    """Returns the figures of `evaluate_held_out` for each store by its name; the first `rows` of each, 0 for all.

    The unigram baseline is that of the training text; of a checkpoint from elsewhere, that of the text judged. Raises
    UserError for a model without a masked-LM head, or with fewer positions than the rows are long.
    """
    config, tokenizer, length = trained.config, trained.tokenizer, trained.config.data.sequence_length
    if not trained.has_head:
        raise UserError(f"{trained.directory} has no masked-LM head, so there is no loss to measure")
    if trained.encoder.positions == "learned" and length > trained.longest:
        raise UserError(f"data.sequence_length={length} is beyond the {trained.longest} tokens that the model takes")
    counts = trained.counts
    if not counts.any():
        counts = np.sum([store.counts for store in stores.values()], axis=0)
    masking = make_masking(config.masking, trained.encoder.vocab_size, tokenizer.mask_id, tokenizer.special_ids)
    step = make_evaluation_step(trained.model, masking, counts, tokenizer.piece_bytes(), length)
    size = config.evaluation.batch_size or config.train.batch_size
    results = {}
    for name, store in stores.items():
        batches = held_out_batches(
            store, length, size, rows, config.data.prepend_begin, tokenizer.begin_id, tokenizer.pad_id
        )
        results[name] = evaluate_held_out(step, trained.params, batches)
    return results


def main(argv: Sequence[str]) -> int:
    """`jaxlm evaluate --model=DIR [--data.path=PATH ...] [--rows=N] [--json]`."""
    overrides, rest = split_overrides([a.replace("--data.", "--config.data.", 1) for a in argv])
    parser = argparse.ArgumentParser(
        prog="jaxlm evaluate",
        description="Judge a model by its held-out sets, or by any text: --data.path=PATH and the other settings of "
        "section data say what is read. The blanks are the same for every model.",
        epilog="example: jaxlm evaluate --model=runs/mini --data.path='notes/*.txt' --data.document=paragraph",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="a work directory or a Hugging Face directory")
    parser.add_argument("--rows", type=int, default=0, help="rows of each set, the first ones (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(rest)
    if args.rows < 0:
        raise UserError(f"--rows={args.rows}: it cannot be negative")
    for override in overrides:
        find_setting(override.partition("=")[0])
    if other := [override for override in overrides if not override.startswith("data.")]:
        raise UserError(f"--config.{other[0]}: only settings of section data can be given here")
    trained = load_trained(args.model)
    if any(override.startswith("data.path=") for override in overrides):
        stores = _stores_of_text(trained, overrides)
    elif overrides:
        raise UserError(f"--data.path is needed beside --{overrides[0]}")
    else:
        record = trained.directory / "data.json"
        stores = open_prepared(json.loads(record.read_text())["directory"]).held_out if record.is_file() else {}
        if not stores:
            raise UserError(f"{args.model} has no held-out sets; name a text with --data.path")
    results = evaluate(trained, stores, args.rows)
    if args.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            print(describe(name, result))
    return 0


def _stores_of_text(trained: Trained, overrides: Sequence[str]) -> dict[str, TokenStore]:
    """The token stores of a text, with the model's own tokenizer; one for each path."""
    config = config_from_dict(config_to_dict(trained.config), "config")
    config.data.update(held_out=(), held_out_fraction=0.0, weights=())
    config.tokenizer.path, config.tokenizer.add = str(trained.directory / ("" if trained.source else "tokenizer")), ""
    for override in overrides:
        apply_override(config, override)
    trained.config.data.sequence_length = config.data.sequence_length
    prepared = prepare(config)
    return dict(zip(config.data.path, prepared.train, strict=True))
