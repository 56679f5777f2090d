"""Text and a config that the tests of `data/` share."""

import json
import random

import pytest

from jaxlm.config import default_config
from jaxlm.tokenizer.tokenizer import train_tokenizer

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
