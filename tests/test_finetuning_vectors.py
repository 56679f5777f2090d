"""Embedding models, rerankers and multiple choice by the training loop: files in, metrics and predictions out."""

import itertools
import json
import random

import numpy as np
import pytest

import jaxlm
from jaxlm import cli
from jaxlm.config import load_config
from jaxlm.errors import UserError
from jaxlm.init_from import start_settings
from jaxlm.trainer import train
from tests.conftest import OBJECTS, PLACES, ROOT, SUBJECTS, VERBS

pytestmark = pytest.mark.slow

SETTINGS = (
    "data.sequence_length=32", "train.batch_size=16", "train.epochs=none", "evaluation.per_epoch=0",
    "evaluation.every=0", "evaluation.select=none", "checkpoint.every=5", "optimizer.learning_rate=0.003",
    "logging.tensorboard=false", "logging.curve=false", "train.compute_dtype=float32", "schedule.name=constant",
    "schedule.warmup=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(mini, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("encoder")
    train(mini("train.steps=2", "model.dropout=0", "model.attention_dropout=0"), workdir)
    return workdir


def make_config(encoder, kind, *overrides):
    recipe = f"{ROOT / 'configs' / 'finetune.py'}:{kind}"
    return load_config(recipe, [f"init_from={encoder}", *SETTINGS, *overrides], start_settings)


def write_table(path, header, rows):
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    return path


def facts(count, seed):
    """Returns (verb and object, the same with a subject and a place): what belongs together shares its words."""
    draw = random.Random(seed)
    pairs = [(draw.choice(VERBS), draw.choice(OBJECTS)) for _ in range(count)]
    return [
        (f"{verb} {thing}", f"{draw.choice(SUBJECTS)} {verb} {thing} {draw.choice(PLACES)}") for verb, thing in pairs
    ]


def predictions(workdir, name):
    return [json.loads(line) for line in (workdir / "predictions" / f"{name}.jsonl").read_text().splitlines()]


def test_an_embedding_model_learns_resumes_and_embeds(encoder, tmp_path, capsys):
    write_table(tmp_path / "train.tsv", ["anchor", "positive"], facts(200, 0))
    write_table(tmp_path / "dev.tsv", ["anchor", "positive"], facts(30, 1))
    settings = (
        f"task.data={tmp_path}", "task.train=train.tsv", "task.evaluation=dev=dev.tsv", "train.accumulate=2",
        "task.dimensions=16", "task.query_prompt=the house ",
    )  # fmt: skip
    whole = train(make_config(encoder, "embedding", "train.steps=20", *settings), tmp_path / "whole")
    shown = capsys.readouterr().out
    first, last = (float(line.split("mrr ")[1].split()[0]) for line in shown.splitlines() if "held-out dev" in line)
    assert last > first + 0.1
    assert "without its head" not in shown
    found = predictions(tmp_path / "whole", "dev")
    assert len(found) == 30
    assert min(one["rank"] for one in found) == 1
    train(make_config(encoder, "embedding", "train.steps=8", *settings), tmp_path / "parts")
    parts = train(make_config(encoder, "embedding", "train.steps=20", *settings), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]

    # Embedding uses what the model was trained with.
    model = jaxlm.load(tmp_path / "whole")
    with pytest.raises(UserError, match=r"was trained with prompts .* set prompt to query or document"):
        model.embed(["the cat"])
    queries = model.embed(["sees the house"], prompt="query")
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(queries, model.embed(["the house sees the house"], prompt="document"), atol=1e-5)
    rows = [line.split("\t") for line in (tmp_path / "dev.tsv").read_text().splitlines()[1:]]
    q, d = (model.embed([row[n] for row in rows], prompt=p) for n, p in enumerate(["query", "document"]))
    np.testing.assert_allclose((q * d).sum(1), [one["cosine"] for one in found], atol=1e-4)
    # Another run may start from it.
    again = make_config(tmp_path / "whole", "embedding", "train.steps=1", *settings)
    assert train(again, tmp_path / "again")["step"] == 1


def test_a_reranker_and_a_chooser_learn_from_their_files(encoder, tmp_path, capsys):
    pairs = facts(100, 2)
    rows = [
        (query, passage, str(int(query in passage)))
        for number, (query, _) in enumerate(pairs)
        for _, passage in (pairs[number], pairs[number - 1], pairs[number - 2])
    ]
    write_table(tmp_path / "rank.tsv", ["query", "passage", "label"], rows)
    settings = (f"task.data={tmp_path}", "task.train=rank.tsv", "task.evaluation=dev=rank.tsv")
    train(make_config(encoder, "reranking", "train.steps=10", *settings), tmp_path / "rank")
    results = json.loads((tmp_path / "rank" / "results.json").read_text())["evaluation"]["dev"]
    assert 0 < results["map"] <= 1
    assert results["passages"] == len(rows) == len(predictions(tmp_path / "rank", "dev"))

    rows = [(query, passage, other, "0") for (query, passage), (_, other) in itertools.pairwise(pairs)]
    rows += [(query, other, passage, "1") for query, passage, other, _ in rows]
    write_table(tmp_path / "choice.tsv", ["context", "first", "second", "label"], rows)
    settings = (
        f"task.data={tmp_path}", "task.train=choice.tsv", "task.evaluation=dev=choice.tsv",
        "task.choices=first,second", "train.accumulate=2",
    )  # fmt: skip
    train(make_config(encoder, "choice", "train.steps=10", *settings), tmp_path / "choice")
    results = json.loads((tmp_path / "choice" / "results.json").read_text())["evaluation"]["dev"]
    assert results["n"] == len(rows)
    assert results["chance"] == 0.5
    assert {one["label"] for one in predictions(tmp_path / "choice", "dev")} <= {"first", "second"}
    again = train(make_config(encoder, "choice", "train.steps=12", *settings), tmp_path / "choice")
    assert again["step"] == 12


def test_bad_settings_are_one_sentence(encoder, tmp_path, capsys):
    write_table(tmp_path / "a.tsv", ["anchor", "positive"], facts(10, 0))
    command = [
        "train", f"--config={ROOT / 'configs' / 'finetune.py'}:embedding", f"--config.init_from={encoder}",
        f"--config.task.train={tmp_path / 'a.tsv'}", f"--workdir={tmp_path / 'run'}", "--config.evaluation.select=none",
    ]  # fmt: skip
    for setting, message in [
        ("task.dimensions=64", "task.dimensions=64: must be from 1 to 32, the width of the model"),
        ("task.temperature=0", "task.temperature=0.0: must be above 0"),
        ("task.loss=triplet", "task.loss=triplet is not one of contrastive, cosent, cosine_mse"),
        ("task.metric=spearman", "task.metric=spearman is not a metric of train.objective=embedding; it has ndcg"),
    ]:
        assert cli.main([*command, f"--config.{setting}"]) == 1
        assert message in capsys.readouterr().err
