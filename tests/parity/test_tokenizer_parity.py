"""Compares exported tokenizers, as Transformers loads them, with the originals."""

import warnings

import pytest

transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
from jaxlm.tokenizer.tokenizer import (  # noqa: E402
    load_tokenizer,
    train_tokenizer,
)
from tests.tokenizer.examples import (  # noqa: E402
    byte_level,
    metaspace,
    saved,
    sentences,
    tokenizer_settings,
    wordpiece,
)

KINDS = {
    "unigram": {},
    "bpe": {"algorithm": "bpe", "lower_case": True},
    "bytes": {"byte_fallback": True, "vocab_size": 420},
}
TEXTS = (
    "the [MASK] of France", "x[MASK] y", "[MASK] x", "x [MASK]", "[MASK][MASK]  [MASK] the", " two  spaces ", "",
    "Zoe\u0308 🦙\t½ ﬁ", "the zebrafish (C++) of New York, zebrafishes", "机器学习\x01字",
)  # fmt: skip


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("name", [*KINDS, "wordpiece", "byte_level", "metaspace"])
def test_transformers_gives_the_same_ids(tmp_path, name, grown):
    if name in KINDS:
        ours = train_tokenizer(sentences(), tokenizer_settings(**KINDS[name]), tmp_path / "own")
    else:
        made = {"wordpiece": wordpiece, "byte_level": byte_level, "metaspace": metaspace}[name]()
        ours = load_tokenizer(saved(made, tmp_path / "own"))
    if grown:
        ours = ours.with_added(["zebrafish", "New York", "C++"])
    (tmp_path / "out").mkdir()
    for file, content in ours.transformers_files(64, token_types=True).items():
        (tmp_path / "out" / file).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for _ in range(2):
        assert theirs.is_fast
        assert (theirs.mask_token, theirs.mask_token_id) == (ours.mask_token, ours.mask_id)
        assert (theirs.cls_token_id, theirs.sep_token_id) == (ours.begin_id, ours.end_id)
        assert (theirs.pad_token_id, theirs.unk_token_id) == (ours.pad_id, ours.unk_id)
        assert theirs.model_max_length == 64
        assert len(theirs) == ours.vocab_size
        for text in TEXTS:
            literal = text.replace("[MASK]", ours.mask_token)
            ids = ours.encode(literal, find_mask=True).ids.tolist()
            assert theirs(literal)["input_ids"] == [ours.begin_id, *ids, ours.end_id]
            if name in KINDS:
                assert theirs.decode(theirs(literal)["input_ids"], skip_special_tokens=True) == ours.decode(ids)
        if name in KINDS:
            plain = theirs("a <s> [SEP] the", add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert plain == ours.encode("a <s> [SEP] the").ids.tolist()
        pair = theirs("the", "of")
        assert pair["token_type_ids"][0] == 0
        assert pair["token_type_ids"][-1] == 1
        theirs.save_pretrained(tmp_path / "again")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
