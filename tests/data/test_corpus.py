import json

import numpy as np

from jaxlm.data import corpus
from jaxlm.data.prepare import prepare
from tests.data.conftest import sentences, write_lines


def documents_of(store):
    """Returns each document's (ids, word starts) from the files of a store."""
    files = {path.name: path for path in store.directory.iterdir()}
    ids = np.fromfile(files["tokens-00000.bin"], "<u2")
    bits = np.unpackbits(np.fromfile(files["word_starts-00000.bin"], "u1"), bitorder="little")[: len(ids)].astype(bool)
    starts = np.fromfile(files["documents.bin"], "<i8")[1:]
    return list(zip(np.split(ids, starts), np.split(bits, starts), strict=True))


# What is written


def test_each_path_and_each_held_out_set_becomes_a_store_of_its_documents_in_order(tmp_path, config):
    other, valid = sentences(20, 3), sentences(10, 4)
    config.data.path = (*config.data.path, str(write_lines(tmp_path / "b.jsonl", other)))
    config.data.held_out = (f"valid={write_lines(tmp_path / 'v.jsonl', valid)}",)
    prepared = prepare(config, tmp_path / "out")
    assert [store.documents for store in prepared.train] == [300, 20]
    assert list(prepared.held_out) == ["valid"]
    for store, texts in ((prepared.train[1], other), (prepared.held_out["valid"], valid)):
        assert store.text_bytes == sum(map(len, texts))
        tokenizer = prepared.tokenizer
        for encoding, (ids, word_starts) in zip(tokenizer.encode_batch(texts), documents_of(store), strict=True):
            assert ids.tolist() == [tokenizer.begin_id, *encoding.ids.tolist(), tokenizer.end_id]
            assert word_starts.tolist() == [True, *encoding.word_starts.tolist(), True]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"prepared.json", "tokenizer", "train", "held_out"}


def test_the_result_does_not_depend_on_workers_or_chunks(tmp_path, config, monkeypatch):
    first = prepare(config, tmp_path / "one")
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", 5000)
    again = prepare(config, tmp_path / "two")
    config.data.workers = 2
    parallel = prepare(config, tmp_path / "three")
    assert first.fingerprint == again.fingerprint == parallel.fingerprint
    stores = [prepared.train[0] for prepared in (first, again, parallel)]
    assert len({store.fingerprint for store in stores}) == 1
    assert stores[0].documents > 200


def test_chunks_have_similar_sizes_and_keep_the_order_of_each_store(monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_CHARACTERS", 10)
    routed = [("ab"[number % 3 == 0], f"{number:04}", 0) for number in range(20)]
    chunks = list(corpus._chunks(routed))
    for store in "ab":
        assert [text for name, texts in chunks if name == store for text in texts] == [
            text for name, text, _ in routed if name == store
        ]
    assert sorted(len(texts) for _, texts in chunks) == [1, 1, 3, 3, 3, 3, 3, 3]


def test_a_trained_tokenizer_is_the_same_each_time_and_its_sample_is_recorded(tmp_path, config):
    config.tokenizer.path, config.tokenizer.vocab_size = "", 90
    first = prepare(config, tmp_path / "one")
    assert first.tokenizer.vocab_size == 90
    record = json.loads((tmp_path / "one" / "prepared.json").read_text())
    assert record["tokenizer"]["vocab_size"] == record["settings"]["tokenizer"]["vocab_size"] == 90
    assert record["tokenizer_sample"]["bytes"] == first.train[0].text_bytes
    assert not (tmp_path / "one" / "documents.zst").exists()
    assert set(record["seconds"]) == {"read", "train the tokenizer", "tokenize"}
    assert prepare(config, tmp_path / "two").fingerprint == first.fingerprint


def test_the_stores_are_the_same_whether_the_tokenizer_is_trained_or_given(tmp_path, config):
    config.tokenizer.path, config.tokenizer.vocab_size = "", 90
    trained = prepare(config, tmp_path / "one")
    config.tokenizer.path = str(tmp_path / "one" / "tokenizer")
    assert prepare(config, tmp_path / "two").fingerprint == trained.fingerprint


def test_prepared_json_records_settings_sources_and_stores(tmp_path, config):
    text = sentences(5, 5)
    config.data.path = (str(write_lines(tmp_path / "c.jsonl", [*text, "", text[0], "a\0b"])),)
    config.data.held_out_fraction = 0.0
    prepared = prepare(config, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["settings"]["data"]["path"] == list(config.data.path)
    (source,) = record["sources"]
    assert source["store"] == "train/0"
    assert source["documents"] == 7
    assert source["dropped"] == {"empty documents": 1, "duplicates": 1, "control characters": 1}
    store = prepared.train[0]
    assert record["stores"] == {
        "train/0": {
            "documents": 6, "bytes": sum(map(len, text)) + 2, "tokens": store.tokens, "fingerprint": store.fingerprint,
        }
    }  # fmt: skip
    assert record["fingerprint"] == prepared.fingerprint
    assert record["tokenizer"]["fingerprint"] == prepared.tokenizer.fingerprint
    assert record["jaxlm"]


# Duplicates and held-out text


def test_duplicates_are_dropped_within_and_across_paths(tmp_path, config, capsys):
    texts = sentences(10, 6)
    config.data.path = tuple(
        str(write_lines(tmp_path / name, content))
        for name, content in (("a.jsonl", texts[:6] + texts[:2]), ("b.jsonl", texts[4:] + texts[9:]))
    )
    config.data.held_out_fraction = 0.0
    assert [store.documents for store in prepare(config, tmp_path / "out").train] == [6, 4]
    output = capsys.readouterr().out
    assert "train/0: dropped 2 duplicates" in output
    assert "train/1: dropped 3 duplicates" in output
    config.data.deduplicate = False
    assert [store.documents for store in prepare(config, tmp_path / "all").train] == [8, 7]


def test_training_text_that_is_held_out_is_dropped(tmp_path, config, capsys):
    texts = sentences(10, 7)
    config.data.path = (str(write_lines(tmp_path / "a.jsonl", texts)),)
    valid, test = (write_lines(tmp_path / f"{n}.jsonl", texts[n : n + 2]) for n in (0, 1))
    config.data.held_out = (f"valid={valid}", f"test={test}")
    prepared = prepare(config, tmp_path / "out")
    assert prepared.train[0].documents == 7
    assert {name: store.documents for name, store in prepared.held_out.items()} == {"valid": 2, "test": 2}
    assert "train/0: dropped 3 documents of a held-out set" in capsys.readouterr().out


def test_a_fraction_is_held_out_by_the_text_alone(tmp_path, config):
    texts = sentences(2000, 8)
    config.data.held_out_fraction = 0.1
    sets = []
    for name, order in (("a", texts), ("b", texts[::-1])):
        config.data.path = (str(write_lines(tmp_path / f"{name}.jsonl", order)),)
        prepared = prepare(config, tmp_path / name)
        assert prepared.train[0].documents + prepared.held_out["held_out"].documents == 2000
        sets.append({ids.tobytes() for ids, _ in documents_of(prepared.held_out["held_out"])})
    assert sets[0] == sets[1]
    assert 140 < len(sets[0]) < 260


def test_all_copies_of_a_text_are_on_the_same_side_without_deduplication(tmp_path, config):
    config.data.deduplicate, config.data.held_out_fraction = False, 0.3
    config.data.path = (str(write_lines(tmp_path / "a.jsonl", sentences(50, 9) * 2)),)
    prepared = prepare(config, tmp_path / "out")
    sides = [{ids.tobytes() for ids, _ in documents_of(s)} for s in (*prepared.train, *prepared.held_out.values())]
    assert len(sides[0]) + len(sides[1]) == 50
    assert not sides[0] & sides[1]


def test_held_out_text_is_not_in_the_tokenizers_sample(tmp_path, config, monkeypatch):
    config.tokenizer.path, config.tokenizer.vocab_size = "", 90
    config.data.held_out = (f"valid={write_lines(tmp_path / 'v.jsonl', ['zebra ' * 50])}",)
    seen = []
    original = corpus.train_tokenizer

    def recording(texts, *rest):
        seen.extend(texts)
        return original(iter(seen), *rest)

    monkeypatch.setattr(corpus, "train_tokenizer", recording)
    prepare(config, tmp_path / "out")
    assert seen == sentences(300, 2)


def test_a_missing_held_out_set_is_reported(tmp_path, config, capsys):
    config.data.path = (str(write_lines(tmp_path / "a.jsonl", sentences(2, 0))),)
    assert prepare(config, tmp_path / "out").held_out == {}
    assert "no held-out set: data.held_out is empty, and data.held_out_fraction selected no document" in (
        capsys.readouterr().out
    )
