"""Texts and small tokenizers of every kind that the tests of the tokenizer share."""

import json
import random
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxlm.config import default_config

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep", "mask", "zoe", "zoë", "ete", "été"]
WORDS = [
    "the", "of", "and", "to", "in", "is", "it", "that", "was", "he", "for", "on", "are", "with", "as", "his",
    "they", "be", "at", "one", "have", "this", "from", "Paris", "France", "London", "capital", "museum", "river's",
    "well-known", "history,", "(which)", "1889:", "3.14", "e.g.", "walking", "walked", "walks", "don't", "café",
    "naïve", "Zoë",
]  # fmt: skip
TYPED = ["[MASK]", "[SEP]", "[CLS]", "[PAD]", "[UNK]", "<s>", "</s>", "<mask>", "<pad>", "<unk>", "<extra>"]
STRANGE = "½ﬁ…e\u0301\u0308🦙日本　ＡBc\xa0\u200b\u200d\xad\0\x01▁\n\r\t ㎏ İßĲ\u0300ẍx\U0010ffff한각\u1100\u1161'’."


def sentences(count=300, seed=0):
    """Frequent words among rare ones, as in real text, so that frequent words become one token each."""
    draw = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkTE"
    texts = []
    for _ in range(count):
        rare = ["".join(draw.choices(letters, range(24, 0, -1), k=draw.randint(2, 7))) for _ in range(4)]
        words = [*draw.choices(WORDS, k=8), *draw.choices(["Paris", "the", "capital", "of", "is"], k=4), *rare]
        texts.append(" ".join(draw.sample(words, len(words))) + ".")
    return texts


def tokenizer_settings(**changes):
    config = default_config().tokenizer
    config.vocab_size = 225
    for name, value in changes.items():
        config[name] = value
    return config


def wordpiece(**normalization):
    pieces = [
        *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"],
        *"abcdefghijklmnopqrstuvwxyz.,'[]:x",
        "é",
        "字",
        "🦙",
    ]
    pieces += ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyzé"] + ["paris", "Paris", "the", "capital", "walk"]
    pieces += ["##ing", "##ed", "##s", "of", "is", "##s]"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**({"lowercase": True} | normalization))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def byte_level(lstrip=True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=lstrip, special=True), "<extra>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


def metaspace():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *sorted(set("".join(WORDS)) - {"x"}), "▁the", "▁Paris", "ing"]
    tokenizer = Tokenizer(models.Unigram([(p, -0.5 if len(p) > 1 else -1.0) for p in [*pieces, "<mask>"]], unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    return tokenizer


def saved(tokenizer, directory):
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def train_foreign(directory, **arguments):
    directory.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_prefix=str(directory / "spiece"), vocab_size=160, minloglevel=2,
        **arguments,
    )  # fmt: skip
    return directory / "spiece.model"


def vocab_file(directory, pieces, config=None, encoding="utf-8"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding=encoding)
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory / "vocab.txt"


def pieces(tokenizer, text, find_mask=True):
    return [tokenizer.token(id) for id in tokenizer.encode(text, find_mask).ids.tolist()]


def slices(tokenizer, text, find_mask=False):
    return [text[a:b] for a, b in tokenizer.encode_with_offsets(text, find_mask)[1].tolist()]
