"""The README.md of an exported model: how to use it and how it was trained, from the records of the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import config_to_dict, default_config
from jaxlm.errors import UserError
from jaxlm.huggingface.families import Family
from jaxlm.model.config import EncoderConfig
from jaxlm.model.heads import parameter_count
from jaxlm.runtime.checksums import params_sha256
from jaxlm.runtime.run_log import read_metrics
from jaxlm.storage import read_json
from jaxlm.typed import Record
from jaxlm.use.loading import Trained
from jaxlm.version import __version__


def model_card(trained: Trained, family: Family, encoder: EncoderConfig, name: str) -> str:
    """Returns the model card as Markdown, with the front matter that the Hub reads."""
    mask = trained.tokenizer.mask_token
    head = [
        "---", "library_name: transformers", "pipeline_tag: fill-mask", "tags:", "- fill-mask", "- jaxlm", "---", "",
        f"# {name}", "",
        f"This is a masked language model with the `{family.name}` architecture: {encoder.layers} layers, width "
        f"{encoder.width}, {parameter_count(encoder):,} parameters, a vocabulary of {encoder.vocab_size:,} tokens, and "
        f"inputs of up to {trained.longest:,} tokens. It was exported by jaxlm {__version__}.", "",
        "```python", "from transformers import pipeline", "",
        f'fill = pipeline("fill-mask", model="{name}")', f'print(fill("The capital of France is {mask}."))', "```",
    ]  # fmt: skip
    return "\n".join([*head, *(_training(trained) if not trained.source else [])]) + "\n"


def _training(trained: Trained) -> list[str]:
    events = read_metrics(trained.directory)
    start: dict[str, Any] = next((event for event in reversed(events) if event["kind"] == "start"), {})
    lines = ["", "## Training", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _facts(trained, start).items()]
    scores = [e for e in events if e["kind"] == "evaluation" and e["step"] in (0, trained.step)]
    if scores:
        lines += [
            "", "## Evaluation on held-out text", "",
            "15% of the tokens are masked, the same tokens for every model.", "",
            "| set | step | loss (nats per masked token) | accuracy | top-5 accuracy | nats per byte | unigram loss |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {e['name']} | {e['step']:,} | {_number(e['loss'])} | {_share(e['accuracy'])} | "
            f"{_share(e['accuracy_top5'])} | {_number(e['nats_per_byte'])} | {_number(e['unigram_loss'])} |"
            for e in scores
        ]
    if (trained.directory / "curve.png").is_file():
        lines += ["", "![training and held-out loss](curve.png)"]
    return [*lines, "", "## Settings that differ from the defaults", "", "```", *_differences(trained), "```"]


def _facts(trained: Trained, start: dict[str, Any]) -> dict[str, str]:
    config = trained.config
    facts = {"text": ", ".join(_public(path) for path in config.data.path)}
    if counted := _documents(trained.directory):
        facts["size of the text"] = counted
    if config.model.init_from:
        facts["initialized from"] = _public(config.model.init_from)
    facts["steps"] = f"{trained.step:,}"
    facts["batch"] = f"{config.train.batch_size} rows of {config.data.sequence_length} tokens"
    if config.train.phases:
        facts["phases"] = "; ".join(", ".join(f"{k} {v}" for k, v in phase.items()) for phase in config.train.phases)
    facts["masking"] = f"{100 * config.masking.rate:g}% of the tokens, scheme {config.masking.scheme}"
    facts["optimizer"] = f"{config.optimizer.name}, peak learning rate {config.optimizer.learning_rate:g}"
    facts["schedule"] = f"{config.schedule.name}, warm-up {config.schedule.warmup:g}"
    facts["compute dtype"] = config.train.compute_dtype
    facts["hardware"] = (
        f"{start.get('devices', 1)} x {start.get('device_kind', 'unknown')}, {start.get('processor', '')}"
    )
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items())
    facts["jaxlm commit"] = str(start.get("commit") or "unknown")
    facts["parameters (sha256)"] = params_sha256(trained.params)
    return {name: value for name, value in facts.items() if value}


def _documents(workdir: Path) -> str:
    """Returns the size of the training text, or "" if the token store no longer exists."""
    try:
        file = workdir / "data.json"
        file = Path(Record(file, read_json(file)).text("directory")) / "prepared.json"
        stores = Record(file, read_json(file)).record("stores")
        training = [stores.record(name) for name in stores.content if name.startswith("train/")]
        totals = {key: sum(store.integer(key, at_most=2**63) for store in training)
                  for key in ("documents", "bytes", "tokens")}  # fmt: skip
    except UserError:  # a card without the size is better than none
        return ""
    return f"{totals['documents']:,} documents, {totals['bytes'] / 1e6:,.1f} MB, {totals['tokens']:,} tokens"


def _public(path: str) -> str:
    """Returns a path without the folders of the machine it was on."""
    return Path(path).name if Path(path).is_absolute() else path


def _differences(trained: Trained) -> list[str]:
    before, after = config_to_dict(default_config()), config_to_dict(trained.config)
    private = {"cache", "path", "init_from"}  # they may contain paths
    return [
        f"{section}.{name} = {json.dumps(value, ensure_ascii=False)}"
        for section, values in after.items()
        for name, value in values.items()
        if value != before[section][name] and name not in private
    ]


def _number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.1%}"
