import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import default_config
from jaxlm.data import corpus as prepare_module
from jaxlm.data.corpus import prepare
from jaxlm.data.prepare import main
from jaxlm.data.prepared import open_prepared
from jaxlm.data.sampling import Hashes, Sample, hashes_of
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
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
    monkeypatch.setattr(prepare_module, "CHUNK_CHARACTERS", 5000)
    again = prepare(config, tmp_path / "two")
    config.data.workers = 2
    parallel = prepare(config, tmp_path / "three")
    assert first.fingerprint == again.fingerprint == parallel.fingerprint
    stores = [prepared.train[0] for prepared in (first, again, parallel)]
    assert len({store.fingerprint for store in stores}) == 1
    assert stores[0].documents > 200


def test_chunks_hold_about_as_much_and_keep_the_order_of_each_store(monkeypatch):
    monkeypatch.setattr(prepare_module, "CHUNK_CHARACTERS", 10)
    routed = [("ab"[number % 3 == 0], f"{number:04}", 0) for number in range(20)]
    chunks = list(prepare_module._chunks(routed))
    for store in "ab":
        assert [text for name, texts in chunks if name == store for text in texts] == [
            text for name, text, _ in routed if name == store
        ]
    assert sorted(len(texts) for _, texts in chunks) == [1, 1, 3, 3, 3, 3, 3, 3]


def test_a_tokenizer_is_trained_on_the_way_and_the_same_each_time(tmp_path, config):
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


def test_prepared_json_says_what_was_made_of_what(tmp_path, config):
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
    said = capsys.readouterr().out
    assert "train/0: dropped 2 duplicates" in said
    assert "train/1: dropped 3 duplicates" in said
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


def test_a_share_is_held_out_by_the_text_alone(tmp_path, config):
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


def test_copies_stay_on_one_side_without_deduplication(tmp_path, config):
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
    original = prepare_module.train_tokenizer

    def watched(texts, *rest):
        seen.extend(texts)
        return original(iter(seen), *rest)

    monkeypatch.setattr(prepare_module, "train_tokenizer", watched)
    prepare(config, tmp_path / "out")
    assert seen == sentences(300, 2)


def test_no_held_out_document_is_said(tmp_path, config, capsys):
    config.data.path = (str(write_lines(tmp_path / "a.jsonl", sentences(2, 0))),)
    assert prepare(config, tmp_path / "out").held_out == {}
    assert "no held-out set" in capsys.readouterr().out


# The sample and the set of hashes


@given(
    texts=st.lists(st.text("ab é", min_size=1, max_size=30), unique=True, min_size=1, max_size=30),
    size=st.integers(1, 400),
    shuffle=st.randoms(),
)
@settings(deadline=None)
def test_the_sample_fits_and_does_not_depend_on_the_order(texts, size, shuffle):
    def sample_of(order):
        sample = Sample(size)
        for text in order:
            sample.offer(text, hashes_of(text)[2])
        return list(sample.texts()), sample.bytes

    chosen, count = sample_of(texts)
    assert count == sum(len(text.encode()) for text in chosen)
    assert count <= size or len(chosen) == 1
    assert chosen == [text for text in texts if text in chosen]
    if sum(len(text.encode()) for text in texts) <= size:
        assert chosen == texts
    shuffled = list(texts)
    shuffle.shuffle(shuffled)
    assert sorted(sample_of(shuffled)[0]) == sorted(chosen)


def test_the_sample_takes_pieces_of_long_documents_from_all_over():
    sample = Sample(200_000)
    for number in range(10):
        sample.offer(f"{number} " * 100_000, number * 2**60)
    pieces = list(sample.texts())
    assert sample.bytes > 180_000
    assert max(map(len, pieces)) <= 10_000
    assert len({piece.split()[0] for piece in pieces}) > 5


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=200))
@settings(deadline=None)
def test_hashes_are_a_set(keys):
    hashes, plain = Hashes(), {0}
    assert hashes.add(0)
    for key in keys:
        key = 0 if key == 1 else key  # zero is kept as one
        assert (key in hashes) == (key in plain)
        assert hashes.add(key) == (key not in plain)
        plain.add(key)


def test_hashes_stay_a_set_as_they_grow():
    hashes, keys = Hashes(), [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(1, 20_000)]
    assert all(hashes.add(key) for key in keys)
    assert not any(hashes.add(key) for key in keys)
    assert hashes.count == len(keys)
    assert 8 * len(hashes.table) <= 24 * len(keys)


# Reuse


def test_the_cache_is_reused_and_said_so(config, capsys):
    first = prepare(config)
    assert first.directory.parent == Path(config.data.cache)
    assert "token store: reused" not in capsys.readouterr().out
    config.data.sequence_length, config.data.prefetch, config.data.workers = 64, 1, 3
    again = prepare(config)
    assert f"token store: reused {first.directory}" in capsys.readouterr().out
    assert (again.directory, again.fingerprint) == (first.directory, first.fingerprint)
    config.data.deduplicate = False
    assert prepare(config).directory != first.directory
    config.data.deduplicate = True
    config.data.held_out = (f"valid={config.data.path[0]}.valid.jsonl",)
    write_lines(Path(f"{config.data.path[0]}.valid.jsonl"), sentences(3, 11))
    with_set = prepare(config).directory
    config.data.held_out_fraction = 0.2  # of no matter where sets are named
    assert prepare(config).directory == with_set != first.directory
    config.data.held_out, config.data.held_out_fraction = (), 0.01
    os.utime(config.data.path[0], (1, 1))
    assert prepare(config).directory != first.directory
    assert not [path for path in first.directory.parent.iterdir() if path.name.startswith(".")]


def test_the_cache_is_where_the_settings_say(config, monkeypatch, tmp_path):
    config.data.cache = ""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepare_module.cache_directory(config) == tmp_path / "xdg" / "jaxlm" / "stores"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepare_module.cache_directory(config) == tmp_path / "home" / ".cache" / "jaxlm" / "stores"


def test_a_finished_directory_is_complete_or_refused_by_the_settings_that_differ(tmp_path, config, capsys):
    (tmp_path / "out").mkdir()
    first = prepare(config, tmp_path / "out")
    assert prepare(config, tmp_path / "out").fingerprint == first.fingerprint
    assert f"{tmp_path / 'out'} is complete already" in capsys.readouterr().out
    config.data.held_out_fraction = 0.2
    config.tokenizer.words = "spaces"
    with pytest.raises(UserError, match=r'fraction: 0.01 -> 0.2; tokenizer.words: "unicode" -> "spaces"\)'):
        prepare(config, tmp_path / "out")
    config.data.held_out_fraction, config.tokenizer.words = 0.01, "unicode"
    write_lines(Path(config.data.path[0]), sentences(10, 3))
    with pytest.raises(UserError, match=r"\(data.path: its files have changed\)"):
        prepare(config, tmp_path / "out")
    config.data.path = (str(write_lines(tmp_path / "b.jsonl", sentences(10, 3))),)
    with pytest.raises(UserError, match=r"\(data.path: \[.*a.jsonl\"\] -> \[.*b.jsonl\"\]\)"):
        prepare(config, tmp_path / "out")


def test_another_tokenizer_is_refused_for_a_finished_directory(tmp_path, config):
    prepare(config, tmp_path / "out")
    other = default_config()
    other.tokenizer.vocab_size = 80
    train_tokenizer(sentences(400, 1), other.tokenizer, tmp_path / "other")
    config.tokenizer.path = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"other settings \(tokenizer.path: "):
        prepare(config, tmp_path / "out")
    config.tokenizer.path = ""
    with pytest.raises(UserError, match=r"other settings \(tokenizer.path: "):
        prepare(config, tmp_path / "out")


def test_a_folder_with_other_files_is_left_alone(tmp_path, config):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="out is there and holds other files"):
        prepare(config, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_opening_checks_tokenizer_and_stores(tmp_path, config):
    with pytest.raises(UserError, match="was not made by `jaxlm prepare`"):
        open_prepared(tmp_path)
    first = prepare(config, tmp_path / "out")
    assert open_prepared(tmp_path / "out").fingerprint == first.fingerprint
    config.data.path = (str(write_lines(tmp_path / "b.jsonl", sentences(10, 3))),)
    prepare(config, tmp_path / "other")
    (tmp_path / "out" / "train" / "0").rename(tmp_path / "aside")
    (tmp_path / "other" / "train" / "0").rename(tmp_path / "out" / "train" / "0")
    with pytest.raises(UserError, match="0 is not the store that was prepared here"):
        open_prepared(tmp_path / "out")
    with pytest.raises(UserError, match="0 holds no token store"):
        open_prepared(tmp_path / "other")
    (tmp_path / "out" / "prepared.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="has format 99"):
        open_prepared(tmp_path / "out")
    (tmp_path / "out" / "prepared.json").write_text('{"format')
    with pytest.raises(UserError, match="is damaged"):
        open_prepared(tmp_path / "out")


# Errors, kills, and others at work


def test_no_text_and_no_document_are_said_in_a_sentence(tmp_path, config):
    config.data.path = ()
    with pytest.raises(UserError, match=r"data.path is empty"):
        prepare(config)
    file = write_lines(tmp_path / "a.jsonl", ["", " "])
    config.data.path = (str(file),)
    for path in (config.tokenizer.path, ""):
        config.tokenizer.path = path
        with pytest.raises(UserError, match=rf"no document for training in {file} \(2 empty documents\)"):
            prepare(config)
    config.data.path = (str(write_lines(tmp_path / "b.jsonl", ["text"])),)
    config.data.held_out = (f"valid={file}",)
    with pytest.raises(UserError, match=rf"no document for the held-out set valid in {file}"):
        prepare(config)


def test_a_failed_preparation_leaves_nothing(tmp_path, config):
    file = Path(config.data.path[0])
    file.write_bytes(file.read_bytes() + b'{"text": "\xff"}\n')
    for path in (config.tokenizer.path, ""):
        config.tokenizer.path = path
        with pytest.raises(UserError, match=r"line 301, byte .*: 0xff is not valid utf-8"):
            prepare(config)
        assert list(Path(config.data.cache).iterdir()) == []
    config.data.path = (str(write_lines(tmp_path / "few.jsonl", ["one", "two", "three"])),)
    with pytest.raises(UserError):
        prepare(config)
    assert list(Path(config.data.cache).iterdir()) == []


RUN = """
    import sys, time
    from jaxlm.config import config_from_dict
    from jaxlm.data import corpus as prepare_module
    import json
    if __name__ == "__main__":
        config = config_from_dict(json.load(open(sys.argv[1])), "test")
        if sys.argv[2] == "slow":
            original = prepare_module._encode
            def slow(chunk):
                print("encoding", flush=True)
                time.sleep(60)
            prepare_module._encode = slow
        prepared = prepare_module.prepare(config)
        heavy = sorted({"jax", "tensorflow", "flax", "orbax"} & set(sys.modules))
        print("heavy", heavy, "fingerprint", prepared.fingerprint)
"""


def start(tmp_path, config, mode):
    from jaxlm.config import config_to_dict

    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(config)))
    (tmp_path / "run.py").write_text(textwrap.dedent(RUN))
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "config.json"), mode],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_runs_at_once_prepare_once_and_import_neither_jax_nor_tensorflow(tmp_path, config):
    runs = [start(tmp_path, config, "fast") for _ in range(2)]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert all(run.returncode == 0 for run in runs), outputs
    lines = [next(line for line in out.splitlines() if line.startswith("heavy")) for out, _ in outputs]
    assert lines[0] == lines[1]
    assert lines[0].startswith("heavy [] fingerprint ")
    assert sorted("reused" in out for out, _ in outputs) == [False, True]
    assert len(list(Path(config.data.cache).iterdir())) == 1


def test_a_killed_preparation_leaves_nothing_that_looks_whole_and_the_next_removes_it(tmp_path, config):
    run = start(tmp_path, config, "slow")
    assert run.stdout is not None
    assert run.stdout.readline() == "encoding\n"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    left = {path.name for path in Path(config.data.cache).iterdir()}
    assert left
    assert all(name.startswith(".") for name in left)
    config.data.deduplicate = False  # another store
    prepared = prepare(config)
    assert [path for path in Path(config.data.cache).iterdir() if path.suffix != ".lock"] == [prepared.directory]


def test_a_live_preparation_is_not_disturbed_by_another(tmp_path, config):
    run = start(tmp_path, config, "slow")
    assert run.stdout is not None
    assert run.stdout.readline() == "encoding\n"
    config.data.deduplicate = False
    prepare(config)
    assert len(list(Path(config.data.cache).glob(".*.partial"))) == 1
    run.send_signal(signal.SIGINT)
    run.communicate()
    assert not list(Path(config.data.cache).glob(".*"))


def test_workers_end_when_their_parent_is_killed(tmp_path):
    program = """
        import os, time
        from jaxlm.runtime.processes import map_in_processes
        def work(item):
            print(os.getpid(), flush=True)
            time.sleep(60)
        if __name__ == "__main__":
            list(map_in_processes(work, [1, 2], 2))
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(program))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    workers = [int(run.stdout.readline()) for _ in range(2)]
    run.kill()
    run.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.stdout.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


# The command


def test_the_command_writes_a_directory_with_the_table_on_stdout_and_progress_on_stderr(tmp_path, config, capsys):
    (tmp_path / "c.py").write_text(
        "from jaxlm.config import default_config\n\n\ndef get_config():\n    return default_config()\n"
    )
    arguments = [
        f"--config={tmp_path / 'c.py'}", f"--output={tmp_path / 'out'}", f"--config.data.path={config.data.path[0]}",
        f"--config.tokenizer.path={config.tokenizer.path}", "--config.data.workers=1",
    ]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr()
    header, *rows = said.out.splitlines()
    assert header.split() == ["store", "documents", "bytes", "tokens", "bytes/token", "from"]
    row = next(row.split() for row in rows if row.startswith("train/0"))
    store = open_prepared(tmp_path / "out").train[0]
    assert row[1:4] == [f"{store.documents:,}", f"{store.text_bytes:,}", f"{store.tokens:,}"]
    assert row[4] == f"{store.text_bytes / store.tokens:.2f}"
    assert said.err.splitlines() == ["read and tokenize"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"token store: {tmp_path / 'out'} is complete already\n"
