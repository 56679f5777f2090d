"""The README.md of an exported model: how to use it and how it was trained, from the records of the run."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config import config_to_dict, default_config, phase_number, phases_of
from jaxlm.data.tasks.template import words_of_labels
from jaxlm.errors import UserError
from jaxlm.huggingface.conversion import is_buffer
from jaxlm.huggingface.families import Family
from jaxlm.huggingface.weights import Reader, tensor_names
from jaxlm.objectives.causal_lm import EXPORT_NOTE
from jaxlm.runtime.checksums import params_sha256
from jaxlm.runtime.run_log import read_metrics
from jaxlm.storage import read_json
from jaxlm.typed import Record
from jaxlm.use.loading import Trained
from jaxlm.version import __version__

# The end of a class in Transformers -> the Hub's name of the task, and what the model is called.
_TASKS = {
    "ForMaskedLM": ("fill-mask", "masked language model"),
    "ForSequenceClassification": ("text-classification", "classifier of texts"),
    "ForTokenClassification": ("token-classification", "classifier of tokens"),
    "ForQuestionAnswering": ("question-answering", "model for extractive question answering"),
    "ForMultipleChoice": ("multiple-choice", "model for multiple choice"),
}


def loading_call(directory: Path, name: str) -> str:
    """Returns the call, in Python, that loads an exported directory by its name."""
    if (directory / "modules.json").is_file():
        return f"SentenceTransformer({name!r})"
    return f"AutoModel{_task_of(directory)}.from_pretrained({name!r})"


def _task_of(directory: Path) -> str:
    """Returns the end of the class in config.json, such as ForMaskedLM; "" for an encoder without a head."""
    named = (read_json(directory / "config.json").get("architectures") or [""])[0]
    found = re.search(r"For[A-Z]\w+$", str(named))
    return found[0] if found else ""


def model_card(trained: Trained, family: Family, directory: Path, transformer: Path, name: str) -> str:
    """Returns the model card of an exported directory as Markdown, with the front matter that the Hub reads.

    `transformer` is the directory of the weights: `directory` itself, or in it for some sentence-transformers models.
    """
    encoder, mask = trained.encoder, trained.tokenizer.mask_token
    library = "transformers"
    tag, kind = _TASKS.get(_task_of(transformer), ("feature-extraction", "text encoder"))
    if (directory / "modules.json").is_file():
        library, tag, kind = "sentence-transformers", "sentence-similarity", "sentence encoder"
    causal = is_causal(trained)
    if causal:
        tag, kind = "feature-extraction", "language model trained causally,"
    call = loading_call(directory, name)
    if trained.config.train.objective == "reranking" and _task_of(transformer):
        library, tag, kind = "sentence-transformers", "text-ranking", "reranker"
        call = f"CrossEncoder({name!r})"
    use = [f"from {library.replace('-', '_')} import {call.partition('(')[0].partition('.')[0]}", "", f"model = {call}"]
    if tag == "fill-mask":
        use = [
            "from transformers import pipeline", "", f'fill = pipeline("fill-mask", model="{name}")',
            f'print(fill("The capital of France is {mask}."))',
        ]  # fmt: skip
    elif tag == "sentence-similarity":
        use += [
            'queries = model.encode_query(["When was the harbour built?"])',
            'documents = model.encode_document(["The harbour was built in 1904."])',
            "print(model.similarity(queries, documents))",
        ]
    elif tag == "text-ranking":
        use.append('print(model.predict([("When was the harbour built?", "The harbour was built in 1904.")]))')
    elif tag in ("text-classification", "token-classification"):
        use = ["from transformers import pipeline", "", f'classify = pipeline("{tag}", model="{name}")',
               'print(classify("The harbour was quiet."))']  # fmt: skip
    head = [
        "---", f"library_name: {library}", f"pipeline_tag: {tag}", "tags:", f"- {tag}", "- jaxlm", "---", "",
        f"# {name}", "",
        f"This is a {kind} with the `{family.name}` architecture: {encoder.layers} layers, width {encoder.width}, "
        f"{_parameters(trained, family, transformer)}, a vocabulary of {encoder.vocab_size:,} tokens, and inputs of up "
        f"to {trained.longest:,} tokens. It was exported by jaxlm {__version__}.", "",
        "```python", *use, "```",
        *(["", f"{EXPORT_NOTE[0].upper()}{EXPORT_NOTE[1:]}."] if causal else []),
    ]  # fmt: skip
    complete = not trained.task_head or bool(_task_of(transformer))
    return "\n".join([*head, *(_training(trained, complete) if not trained.source else [])]) + "\n"


def is_causal(trained: Trained) -> bool:
    """Returns whether the last update of a run trained the model to predict each token from those before it."""
    phases = phases_of(trained.config)
    return phases[phase_number(phases, max(trained.step - 1, 0))].objective == "causal"


def _parameters(trained: Trained, family: Family, directory: Path) -> str:
    """Returns the number of parameters: as trained, and as written if the family's form has more."""
    with Reader(directory) as reader:
        shapes = {name: reader.shape(name) for name in tensor_names(directory)}
    computed = {name for name in shapes if name == family.decoder_bias or is_buffer(name)}
    written = sum(math.prod(shape) for name, shape in shapes.items() if name not in computed)
    count = written if trained.source else sum(leaf.size for leaf in jax.tree.leaves(_all_params(trained)))
    more = f" ({written:,} in the form of this architecture, which computes the same)" if written != count else ""
    return f"{count:,} parameters{more}"


def _all_params(trained: Trained) -> dict[str, Any]:
    """Returns the parameters of a model as it was trained, with the head of its task."""
    return trained.params | ({"head": trained.task_head} if trained.task_head else {})


def _training(trained: Trained, complete: bool) -> list[str]:
    events = read_metrics(trained.directory)
    start: dict[str, Any] = next((event for event in reversed(events) if event["kind"] == "start"), {})
    lines = ["", "## Training", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _facts(trained, start).items()]
    scores = [e for e in events if e["kind"] == "evaluation" and e["step"] in (0, trained.step)]
    if trained.fine_tuned:
        lines += _task_results(trained, [e for e in scores if e["step"] == trained.step], complete)
    elif scores:
        lines += ["", *_held_out_table(scores)]
    if (trained.directory / "curve.png").is_file():
        lines += ["", "![training and held-out loss](curve.png)"]
    return [*lines, "", "## Settings that differ from the defaults", "", "```", *_differences(trained), "```"]


def _held_out_table(scores: list[dict[str, Any]]) -> list[str]:
    return [
        "## Evaluation on held-out text", "", "15% of the tokens are masked, the same tokens for every model.", "",
        "| set | step | masked tokens | loss (nats per masked token) | perplexity | accuracy | top-5 accuracy | "
        "nats per byte | unigram loss | unigram top-5 |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {e['name']} | {e['step']:,} | {e['n']:,} | {_number(e['loss'])} | {_number(e['perplexity'], 1)} | "
            f"{_share(e['accuracy'])} | {_share(e['accuracy_top5'])} | {_number(e['nats_per_byte'])} | "
            f"{_number(e['unigram_loss'])} | {_share(e['unigram_top5'])} |"
            for e in scores
        ),
    ]  # fmt: skip


def _task_results(trained: Trained, scores: list[dict[str, Any]], complete: bool) -> list[str]:
    """Returns the metrics of the reported sets with n and how the step was chosen, from results.json.

    If that is about another step, returns those of `scores`, the evaluations of the step that is exported.
    `complete` says whether the head of the task, if it has one, is exported with the encoder.
    """
    file = trained.directory / "results.json"
    results = Record(file, read_json(file)) if file.is_file() else Record(file, {})
    protocol = results.record("protocol", {}).content
    if protocol.get("step") == trained.step:
        sets = results.record("evaluation", {}).content
        how = f"The metrics are those of step {trained.step:,} of {protocol.get('last_step', trained.step):,}"
        chosen = protocol.get("selected_by")
        how += f", which was chosen by the {chosen}." if chosen else ", the last."
        if chosen and (selecting := sets.keys() & results.record("selection", {}).content.keys()):
            how += f" The metrics of {', '.join(sorted(selecting))}, by which it was chosen, are therefore optimistic."
    else:
        sets = {e["name"]: e for e in scores}
        how = f"The metrics are those of step {trained.step:,}, which is not the one that the run reports."
    rows = {name: {key: value for key, value in metrics.items() if _is_metric(key, value)}
            for name, metrics in sets.items()}  # fmt: skip
    names = list(dict.fromkeys(key for metrics in rows.values() for key in metrics))
    if not names:
        return []
    table = [
        f"| {name} | {sets[name]['n']:,} | {' | '.join(_number(metrics.get(key), 4) for key in names)} |"
        for name, metrics in rows.items()
    ]
    how += "" if complete else " They need the head of the task, which is not part of this directory."
    task = trained.config.task
    if task.template:
        found = words_of_labels(task, task.labels)
        words = ", ".join(f"{label} ({', '.join(of_label)})" for label, of_label in found.items())
        how += f" The labels are predicted by the word at the mask of the template `{task.template}`: {words}."
    columns = " | ".join(name.replace("_", " ") for name in names)
    return ["", "## Evaluation", "", how, "", f"| set | n | {columns} |", "|---" * (2 + len(names)) + "|", *table]


def _is_metric(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and name not in ("n", "step", "time", "elapsed_seconds")


def _facts(trained: Trained, start: dict[str, Any]) -> dict[str, str]:
    config = trained.config
    files = [config.task.train] if config.task.train else config.data.path
    facts = {"objective": config.train.objective, "text": ", ".join(_public(path) for path in files)}
    if counted := _documents(trained.directory):
        facts["size of the text"] = counted
    if config.model.init_from:
        facts["initialized from"] = _public(config.model.init_from)
    facts["steps"] = f"{trained.step:,}"
    of = "examples of up to" if config.task.train else "rows of"
    facts["batch"] = f"{config.train.batch_size} {of} {config.data.sequence_length} tokens"
    if config.train.phases:
        facts["phases"] = "; ".join(", ".join(f"{k} {v}" for k, v in phase.items()) for phase in config.train.phases)
    if "masked" in [phase.objective for phase in phases_of(config)]:
        facts["masking"] = _masking(config.masking)
    facts["optimizer"] = f"{config.optimizer.name}, peak learning rate {config.optimizer.learning_rate:g}"
    facts["schedule"] = f"{config.schedule.name}, warm-up {config.schedule.warmup:g}"
    facts["compute dtype"] = config.train.compute_dtype
    facts["hardware"] = (
        f"{start.get('devices', 1)} x {start.get('device_kind', 'unknown')}, {start.get('processor', '')}"
    )
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items())
    facts["jaxlm commit"] = str(start.get("commit") or "unknown")
    facts["parameters (sha256)"] = params_sha256(_all_params(trained))
    return {name: value for name, value in facts.items() if value}


def _masking(masking: Any) -> str:
    rate = f"{100 * masking.rate:g}% of the tokens"
    if masking.final_rate is not None:
        rate += f" at the beginning, changing linearly to {100 * masking.final_rate:g}% at the end"
    return f"{rate}, scheme {masking.scheme}"


def _documents(workdir: Path) -> str:
    """Returns the size of the training text, or "" if its token stores no longer exist."""
    try:
        file = workdir / "data.json"
        known = Record(file, read_json(file))
        file = Path(known.text("directory")) / "prepared.json"
        prepared = Record(file, read_json(file))
        if prepared.text("fingerprint") != known.text("fingerprint"):
            return ""
        stores = prepared.record("stores")
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
    files = {"data", "train", "evaluation", "test"}  # likewise, in section task
    return [
        f"{section}.{name} = {json.dumps(value, ensure_ascii=False)}"
        for section, values in after.items()
        for name, value in values.items()
        if value != before[section][name] and name not in (private | files if section == "task" else private)
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.1%}"
