"""scripts/task_baselines: simple baselines over the rows and with the metrics of a run."""

import json
import random

import numpy as np
import pytest

from tests.conftest import OBJECTS, PLACES, SUBJECTS, VERBS
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("task_baselines")


def write_rows(path, header, rows):
    path.write_text("\n".join("\t".join(map(str, row)) for row in [header, *rows]) + "\n")


def phrases(count, seed):
    draw = random.Random(seed)
    return [tuple(draw.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, PLACES)) for _ in range(count)]


def run(script, capsys, kind, folder, *settings, status=0):
    options = [f"--config.task.{setting}" for setting in (f"data={folder}", "train=train.tsv", *settings)]
    assert script.main([f"--config=finetune:{kind}", *options, "--json"]) == status
    shown = capsys.readouterr()
    return json.loads(shown.out) if status == 0 else shown.err


def test_a_classifier_of_words_beats_the_majority(script, tmp_path, capsys):
    for name, count in (("train", 200), ("dev", 60)):
        rows = [(" ".join(p), "calm" if p[1] in VERBS[:3] else "busy") for p in phrases(count, count)]
        write_rows(tmp_path / f"{name}.tsv", ["sentence", "label"], rows)
    found = run(script, capsys, "classification", tmp_path, "evaluation=dev=dev.tsv")
    majority, words = (found["evaluation"]["dev"][name] for name in ("majority", "tfidf_logistic"))
    assert majority["n"] == words["n"] == 60
    assert majority["accuracy"] == majority["majority_accuracy"] < 0.9 < words["accuracy"]
    assert majority["mcc"] == 0
    assert words["accuracy_error"] == pytest.approx((words["accuracy"] * (1 - words["accuracy"]) / 60) ** 0.5)
    assert found["protocol"]["tfidf_logistic"].endswith("by accuracy on selection")
    # What is reported has no part in the choice: other labels there change nothing else.
    write_rows(tmp_path / "dev.tsv", ["sentence", "label"], [(text, "calm") for text, _ in rows])
    again = run(script, capsys, "classification", tmp_path, "evaluation=dev=dev.tsv")
    assert again["protocol"] == found["protocol"]


def test_pairs_have_numbers(script, tmp_path, capsys):
    for name, count in (("train", 200), ("dev", 60)):
        draw = random.Random(count)
        pairs = [(p, tuple(word if draw.random() < 0.5 else q[n] for n, word in enumerate(p)))
                 for p, q in zip(phrases(count, count), phrases(count, count + 1), strict=True)]  # fmt: skip
        rows = [(" ".join(p), " ".join(q), sum(a == b for a, b in zip(p, q, strict=True))) for p, q in pairs]
        write_rows(tmp_path / f"{name}.tsv", ["sentence1", "sentence2", "label"], rows)
    found = run(script, capsys, "regression", tmp_path, "evaluation=dev=dev.tsv", "text=sentence1,sentence2")
    mean, cosine, ridge = (found["evaluation"]["dev"][name] for name in ("mean", "tfidf_cosine", "tfidf_ridge"))
    assert mean["pearson"] == 0
    assert min(cosine["pearson"], ridge["pearson"]) > 0.7
    assert max(cosine["loss"], ridge["loss"]) < mean["loss"]
    assert found["protocol"]["tfidf_ridge"].endswith("by pearson on selection")


def test_passages_and_documents_are_ranked_by_their_words(script, tmp_path, capsys):
    for name, count in (("train", 60), ("dev", 40)):
        texts = phrases(count, count)
        rows = [(f"{p[1]} {p[2]}", " ".join(q), int(p == q)) for n, p in enumerate(texts) for q in texts[n - 2 : n + 1]]
        write_rows(tmp_path / f"{name}.tsv", ["query", "passage", "label"], rows)
        write_rows(
            tmp_path / f"pairs-{name}.tsv", ["anchor", "positive"], [(f"{p[1]} {p[2]}", " ".join(p)) for p in texts]
        )
    found = run(script, capsys, "reranking", tmp_path, "evaluation=dev=dev.tsv")["evaluation"]["dev"]["bm25"]
    assert found["map"] > 0.9
    assert found["passages"] == len((tmp_path / "dev.tsv").read_text().splitlines()) - 1
    assert "loss" not in found
    found = run(script, capsys, "embedding", tmp_path, "train=pairs-train.tsv", "evaluation=dev=pairs-dev.tsv")
    for name in ("bm25", "tfidf_cosine"):
        metrics = found["evaluation"]["dev"][name]
        assert metrics["recall_at_10"] > 0.9
        assert metrics["documents"] <= 40


def test_the_weights_of_words_are_those_of_bm25s(script):
    bm25s = pytest.importorskip("bm25s", reason="the oracles extra is not installed")
    documents, queries = ([" ".join(p) for p in phrases(30, seed)] for seed in (1, 2))
    documents += ["the the the house", "a cat"]
    queries += ["the the house", "unknown"]
    index = bm25s.BM25(k1=script.K1, b=script.B, method="lucene")
    words = lambda text: text.lower().split()  # noqa: E731
    index.index([words(text) for text in documents], show_progress=False)
    expected = np.stack([index.get_scores(words(text)) for text in queries])
    ours = script.BM25(documents)
    np.testing.assert_allclose(ours.scores(queries), expected, atol=1e-5)
    numbers = np.arange(len(queries)) % len(documents)
    pairs = ours.score_pairs(queries, numbers)
    np.testing.assert_allclose(pairs, expected[np.arange(len(queries)), numbers], atol=1e-5)


def test_wrong_input_is_one_sentence(script, tmp_path, capsys):
    error = run(script, capsys, "tagging", tmp_path, status=1)
    assert error.startswith("task_baselines: there are no baselines for train.objective=tagging; there are some for ")
    assert "train.tsv does not exist" in run(script, capsys, "classification", tmp_path, status=1)
