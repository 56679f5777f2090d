"""Text and a config that the tests of `data/` share."""

import json
import random

import pytest

from jaxlm.config import default_config
from jaxlm.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from tests.conftest import sentences as made_up_sentences

WORDS = "the a of to and in is it that was he for on are with as his they be at one have this from"


def sentences(count, seed):
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS.split(), k=draw.randint(5, 25))) + f" {draw.randrange(10**6)}" for _ in range(count)
    ]


def write_lines(file, texts):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    config = default_config()
    config.tokenizer.vocab_size = 100
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(sentences(400, 1), config.tokenizer, directory)
    return directory


@pytest.fixture
def config(tmp_path, tokenizer_directory):
    config = default_config()
    config.data.path = (str(write_lines(tmp_path / "text" / "a.jsonl", sentences(300, 2))),)
    config.data.cache = str(tmp_path / "cache")
    config.data.workers = 1
    config.tokenizer.path = str(tokenizer_directory)
    return config


@pytest.fixture(scope="session")
def task_tokenizer_directory(tmp_path_factory):
    """A tokenizer with the words of `tests.conftest.sentences`."""
    config = default_config()
    config.tokenizer.vocab_size = 80
    directory = tmp_path_factory.mktemp("task") / "tokenizer"
    train_tokenizer(made_up_sentences(300), config.tokenizer, directory).save(directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer(task_tokenizer_directory):
    return load_tokenizer(str(task_tokenizer_directory), "unicode")


@pytest.fixture
def task_config(task_tokenizer_directory):
    """Returns a config of section `task` on a training file, without a selection set."""

    def make(train, objective="classification", **task):
        config = default_config()
        config.train.objective = objective
        config.tokenizer.path = str(task_tokenizer_directory)
        config.data.sequence_length = 32
        config.evaluation.select = "none"
        config.task.update(train=str(train), **task)
        return config

    return make
