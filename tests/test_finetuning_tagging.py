"""A tagger from an encoder by the command: its results, its predictions, resumed training, and bad files."""

import json
import random

import pytest

from jaxlm import cli
from jaxlm.config import load_config
from jaxlm.init_from import start_settings
from jaxlm.trainer import train
from tests.conftest import OBJECTS, ROOT, SUBJECTS, VERBS

FINETUNE = str(ROOT / "configs" / "finetune.py") + ":tagging"


def write_sentences(path, count, seed, long=False):
    """Writes sentences whose objects are entities: a rule that a small model learns in seconds."""
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        for _ in range(12 if long and number == 1 else 1):
            lines += [f"{word}\tO" for word in [*rng.choice(SUBJECTS).split(), rng.choice(VERBS)]]
            words = rng.choice(OBJECTS).split()
            lines += [f"{word}\t{'I' if place else 'B'}-thing" for place, word in enumerate(words)]
        lines += ["\u00a0\tO", ""]
    path.write_text("\n".join(lines))
    return path


def sentences_of(path):
    blocks = path.read_text().strip().split("\n\n")
    return [[line.split("\t") for line in block.split("\n")] for block in blocks]


@pytest.fixture(scope="module")
def encoder(mini, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("encoder")
    train(mini("train.steps=3", "model.dropout=0", "model.attention_dropout=0"), workdir)
    return workdir


@pytest.fixture
def tag(encoder, tmp_path):
    """Returns the config of finetune.py:tagging from the encoder on made-up sentences, with overrides."""
    train_file = write_sentences(tmp_path / "train.conll", 200, 0, long=True)
    dev = write_sentences(tmp_path / "dev.conll", 40, 1, long=True)
    unseen = tmp_path / "unseen.txt"
    unseen.write_text("\n\n".join("\n".join(word for word, _ in one) for one in sentences_of(dev)[:3]))

    def make(*overrides):
        settings = [
            f"init_from={encoder}", f"task.train={train_file}", f"task.evaluation=dev={dev}",
            f"task.test=unseen={unseen}", "model.dropout=0", "model.attention_dropout=0", "data.sequence_length=32",
            "train.batch_size=16", "train.epochs=none", "train.steps=60", "evaluation.every=20", "checkpoint.every=20",
            "evaluation.per_epoch=0", "optimizer.learning_rate=0.005", "logging.tensorboard=false",
            "logging.curve=false", "logging.every=10", "train.compute_dtype=float32", "schedule.name=constant",
            "schedule.warmup=0",
        ]  # fmt: skip
        return load_config(FINETUNE, [*settings, *overrides], start_settings)

    return make


@pytest.mark.slow
def test_a_tagger_learns_and_gives_each_word_of_each_sentence_one_tag(tag, tmp_path, capsys):
    result = train(tag(), tmp_path / "run")
    dev = result["evaluation"]["dev"]
    assert dev["f1"] > 0.8
    assert (dev["n"], dev["scheme"]) == (40, "BIO, seqeval's default mode")
    assert "with the highest f1 on selection" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["evaluation"]["dev"] == dev
    assert results["evaluation"]["dev"]["types"]["thing"]["f1"] == dev["f1"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"]["labels"] == ["B-thing", "I-thing", "O"]
    predictions = {
        name: [json.loads(line) for line in (tmp_path / "run" / "predictions" / f"{name}.jsonl").open()]
        for name in ("dev", "unseen")
    }
    wanted = sentences_of(tmp_path / "dev.conll")
    assert max(map(len, wanted)) > 40
    assert [one["words"] for one in predictions["dev"]] == [[word for word, _ in sentence] for sentence in wanted]
    right = total = 0
    for one, sentence in zip(predictions["dev"], wanted, strict=True):
        assert len(one["tags"]) == len(sentence)
        assert one["tags"][-1] == "O"
        right += sum(tag == known for tag, (_, known) in zip(one["tags"], sentence, strict=True))
        total += len(sentence)
    assert right / total == pytest.approx(dev["accuracy"])
    # Without a tag beside it, a line with only white space is no word but the end of a sentence.
    known = [{"words": one["words"][:-1], "tags": one["tags"][:-1]} for one in predictions["dev"][:3]]
    assert predictions["unseen"] == known


@pytest.mark.slow
def test_a_resumed_tagger_ends_with_the_same_bits(tag, tmp_path):
    settings = ("model.dropout=0.1", "model.attention_dropout=0.1", "evaluation.every=0", "checkpoint.every=5")
    whole = train(tag("train.steps=8", *settings), tmp_path / "whole")
    train(tag("train.steps=5", *settings), tmp_path / "parts")
    parts = train(tag("train.steps=8", *settings), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]


@pytest.mark.slow
def test_bad_tags_are_one_sentence_and_leave_no_work_directory(encoder, tmp_path, capsys):
    (tmp_path / "a.conll").write_text("the\tO\ncat\nsees\tB-thing\n")
    command = [
        "train", f"--config={FINETUNE}", f"--config.init_from={encoder}", f"--config.task.train={tmp_path / 'a.conll'}",
        f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert cli.main(command) == 1
    assert "a.conll: 1 line does not have 2 columns, as most do (line 2); give each word one" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
