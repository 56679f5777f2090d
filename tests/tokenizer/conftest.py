import pytest

from jaxlm.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from tests.tokenizer.examples import byte_level, metaspace, saved, sentences, tokenizer_settings, wordpiece


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """One tokenizer of each kind, by name."""
    folder = tmp_path_factory.mktemp("tokenizers")
    trained = {
        "unigram": tokenizer_settings(),
        "bpe": tokenizer_settings(algorithm="bpe"),
        "lower": tokenizer_settings(lower_case=True, vocab_size=210),
        "bytes": tokenizer_settings(algorithm="bpe", byte_fallback=True, vocab_size=400, character_coverage=0.98),
    }
    made = {name: train_tokenizer(sentences(), config, folder / name) for name, config in trained.items()}
    for name, tokenizer in (("wordpiece", wordpiece()), ("byte_level", byte_level()), ("metaspace", metaspace())):
        made[name] = load_tokenizer(saved(tokenizer, folder / name))
    return made
