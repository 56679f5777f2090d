"""Vectors and scores compared with sentence-transformers, for directories that it and jaxlm have written."""

import json
import warnings

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="the oracles extra is not installed")

from sentence_transformers import CrossEncoder, SentenceTransformer

from jaxlm.config import config_from_dict, config_to_dict
from jaxlm.huggingface.conversion import SOURCE_CONFIG
from jaxlm.huggingface.task_heads import TaskSettings
from jaxlm.use.embed import settings_for
from jaxlm.use.export import export, export_trained
from jaxlm.use.loading import load_trained
from jaxlm.use.model import Model, load
from tests.conftest import sentences, write_checkpoint
from tests.huggingface.test_sentence_transformers import write_settings

TEXTS = [*sentences(6, seed=3), "", "the [MASK] sees", "the cat sees the house " * 20, " a  river"]
ENCODE = {None: "encode", "query": "encode_query", "document": "encode_document"}
PROMPTS = {"query": "the ", "document": "every student "}


@pytest.fixture(scope="module", autouse=True)
def _offline():
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture
def checkpoint(tmp_path, text_file):
    return write_checkpoint(tmp_path / "bert", text_file, head=False)


def as_run(directory, objective, **task):
    """Returns the model of a Hugging Face directory as if a run with an objective had trained it."""
    trained = load_trained(directory)
    config = config_from_dict(config_to_dict(trained.config), "config")
    config.train.objective = objective
    config.task.update({"train": "train.tsv"} | task)
    (directory / SOURCE_CONFIG).write_text((directory / "config.json").read_text())
    (directory / "metrics.jsonl").write_text("")
    return trained._replace(source=None, config=config)


def assert_same_vectors(model, directory, names=tuple(ENCODE), **more):
    theirs = SentenceTransformer(str(directory), device="cpu")
    for name in names:
        expected = getattr(theirs, ENCODE[name])(TEXTS, **more)
        np.testing.assert_allclose(model.embed(TEXTS, prompt=name), expected, atol=1e-5)
    return theirs


@pytest.mark.parametrize("pooling", ["auto", "cls", "max", "lasttoken"])
def test_an_exported_embedding_model_gives_the_vectors_of_the_run(checkpoint, tmp_path, pooling):
    trained = as_run(checkpoint, "embedding", pooling=pooling, query_prompt="the ", document_prompt="every student ")
    out = export_trained(trained, tmp_path / "out")
    theirs = assert_same_vectors(Model(trained), out, ("query", "document"))
    assert (theirs.prompts, theirs.default_prompt_name, theirs.similarity_fn_name) == (PROMPTS, None, "cosine")
    assert theirs.max_seq_length == trained.longest
    assert_same_vectors(load(out), out)
    again = export(out, tmp_path / "again")
    for file in out.rglob("*.json"):
        assert file.read_bytes() == (again / file.relative_to(out)).read_bytes()


def test_the_dimensions_of_an_export_are_those_of_its_vectors(checkpoint, tmp_path):
    trained = as_run(checkpoint, "embedding", dimensions=(8,), query_prompt="the ", document_prompt="the ")
    out = export_trained(trained, tmp_path / "out", dimensions=8)
    theirs = assert_same_vectors(load(out), out)
    assert (theirs.truncate_dim, theirs.default_prompt_name) == (8, "document")
    vectors = theirs.encode(TEXTS)
    np.testing.assert_allclose(Model(trained).embed(TEXTS, dimensions=8), vectors, atol=1e-5)
    unit = theirs.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(Model(trained).embed(TEXTS, dimensions=8, normalise=True), unit, atol=1e-5)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": mode} for mode in ("cls", "max", "lasttoken")] + [{"pooling_mode_cls_token": True}, {}]
)
@pytest.mark.parametrize("kinds", [("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")])
def test_an_imported_directory_gives_its_vectors(checkpoint, pooling, kinds):
    write_settings(checkpoint, pooling={"word_embedding_dimension": 24} | pooling, kinds=kinds)
    assert_same_vectors(load(checkpoint), checkpoint, (None,))


@pytest.mark.parametrize(
    ("files", "longest"),
    [
        ({"sentence_bert_config": {"max_seq_length": 12}}, 12),
        ({"sentence_roberta_config": {"max_seq_length": 9}}, 9),
        ({"sentence_bert_config": {"max_seq_length": 30}, "limit": 20}, 30),
        ({"limit": 20}, 20),
        ({}, 40),
    ],
)
def test_limits_prompts_and_dimensions_are_imported(checkpoint, files, longest):
    files = dict(files)
    if limit := files.pop("limit", None):
        file = checkpoint / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": limit}))
    prompts = {"query": "the ", "corpus": "every ", "other": "a "}
    config = {"prompts": prompts, "default_prompt_name": "other", "truncate_dim": 10}
    write_settings(checkpoint, config_sentence_transformers=config, **files)
    theirs = assert_same_vectors(load(checkpoint), checkpoint)
    assert theirs.max_seq_length == settings_for(load_trained(checkpoint)).longest == longest


def test_a_sentence_transformers_model_is_read_as_it_saves_itself(checkpoint, tmp_path):
    write_settings(checkpoint, sentence_bert_config={"max_seq_length": 12})
    theirs = SentenceTransformer(str(checkpoint), device="cpu", prompts=PROMPTS, truncate_dim=9)
    theirs.save(str(tmp_path / "saved"))
    assert_same_vectors(load(tmp_path / "saved"), tmp_path / "saved")


def test_an_exported_reranker_gives_the_scores_of_the_run(checkpoint, tmp_path):
    head = {
        "transform": {"kernel": np.eye(24, dtype=np.float32), "bias": np.full(24, 0.1, np.float32)},
        "kernel": np.linspace(-1, 1, 24, dtype=np.float32)[:, None], "bias": np.array([0.5], np.float32),
    }  # fmt: skip
    trained = as_run(checkpoint, "reranking", text=("query", "passage"))
    trained.config.data.sequence_length = 24
    task = TaskSettings("reranking", (), "bert", "cls")
    trained = trained._replace(task=task, task_head=head, task_dtype="float32")
    out = export_trained(trained, tmp_path / "out")
    theirs = CrossEncoder(str(out), device="cpu")
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "LABEL_0"}
    passages = [text for text in TEXTS if "[MASK]" not in text]  # special tokens are ordinary text in tasks
    for query in ("who sees", "the old captain carries a letter " * 3):
        expected = theirs.predict([(query, text) for text in passages])
        found = Model(trained).rank(query, passages)
        np.testing.assert_allclose(
            [one["score"] for one in found], expected[[one["index"] for one in found]], atol=1e-4
        )
