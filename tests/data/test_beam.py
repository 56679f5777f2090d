import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxlm.data
from jaxlm.config import default_config
from jaxlm.data.prepare import main, prepare, prepare_with
from jaxlm.data.prepared import open_prepared
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import train_tokenizer

try:
    import apache_beam
except ImportError:
    apache_beam = None
else:
    from jaxlm.data import beam, beam_stores

with_beam = pytest.mark.skipif(apache_beam is None, reason="Apache Beam is not installed: pip install 'jaxlm[beam]'")
WORDS = ["the", "a", "of", "to", "and", "in", "is", "it", "that", "was", "he", "for", "on", "été", "½", "中"]


def texts(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) + f" {draw.randrange(10**4)}" for _ in range(count)]


def write_lines(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in content))
    return file


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    config = default_config()
    config.tokenizer.vocab_size = 120
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(texts(400, 1), config.tokenizer, directory)
    return directory


@pytest.fixture
def config(tmp_path, tokenizer_directory):
    """Text with all kinds of dropped and held-out documents, in a folder of several files and a file; small shards."""
    config = default_config()
    first = texts(150, 2)
    folder = tmp_path / "text"
    for number, name in enumerate(("d", "b", "c", "a", "below/e")):  # not in the order of their names
        part = first[number * 30 : number * 30 + 30] + first[:4] + ["", "a\0b"]
        write_lines(folder / f"{name}.jsonl", part)
    (folder / "table.tsv").write_text("text\tx\nin a table\t1\nshort\n" + "\n".join(f"row {n}\t1" for n in range(20)))
    other = write_lines(tmp_path / "other.jsonl", texts(40, 3) + first[100:110] + ["y " * 3000])
    valid = write_lines(tmp_path / "valid.jsonl", first[20:25] + ["only held out"] * 2)
    config.data.update(
        path=(str(folder), str(other)), held_out=(f"valid={valid}", f"test={valid}"), workers=1,
        cache=str(tmp_path / "cache"), shard_bytes=1600, max_document_characters=1000,
    )  # fmt: skip
    config.tokenizer.path = str(tokenizer_directory)
    return config


def contents(directory):
    files = {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    record = json.loads(files.pop("prepared.json"))
    del record["seconds"], record["crc32"]  # the durations, and the checksum that covers them
    return files, record


def by_beam(config, directory, *options):
    prepare_with(lambda *rest: beam.build(options, *rest), config, directory)


@with_beam
@pytest.mark.parametrize("case", ["held-out sets", "a fraction", "duplicates kept", "limited bytes"])
def test_beam_writes_the_same_bytes_as_the_local_runner(tmp_path, config, monkeypatch, case):
    monkeypatch.setattr(beam, "CHUNK_BYTES", 1500)
    if case == "a fraction":
        config.data.held_out, config.data.held_out_fraction = (), 0.1
    elif case == "duplicates kept":
        config.data.held_out, config.data.held_out_fraction, config.data.deduplicate = (), 0.1, False
    elif case == "limited bytes":
        config.data.max_megabytes = 0.009
    prepare(config, tmp_path / "local")
    by_beam(config, tmp_path / "beam")
    local, by_workers = contents(tmp_path / "local"), contents(tmp_path / "beam")
    assert by_workers == local
    assert len([name for name in local[0] if name.startswith("train/0/word_starts-")]) > 2
    dropped = local[1]["sources"][-2]["dropped"]
    assert {"empty documents", "rows with another number of fields", "control characters"} <= set(dropped) or (
        case == "limited bytes"
    )
    assert ("duplicates" in dropped) == (case != "duplicates kept")


@with_beam
def test_the_order_in_which_files_are_read_does_not_matter(tmp_path, config, monkeypatch):
    prepare(config, tmp_path / "local")
    original = beam._units

    def shuffled(*arguments):
        units = original(*arguments)
        random.Random(4).shuffle(units)
        return units

    monkeypatch.setattr(beam, "_units", shuffled)
    monkeypatch.setattr(beam, "CHUNK_BYTES", 700)
    by_beam(config, tmp_path / "beam")
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


@with_beam
@pytest.mark.parametrize("megabytes", [1, 0.004])
def test_beam_trains_the_same_tokenizer(tmp_path, config, monkeypatch, megabytes):
    monkeypatch.setattr(beam, "CHUNK_BYTES", 1500)
    config.tokenizer.path, config.tokenizer.vocab_size = "", 60
    config.tokenizer.training_megabytes = megabytes
    local = prepare(config, tmp_path / "local")
    by_beam(config, tmp_path / "beam", "--runner=DirectRunner", "--direct_running_mode=multi_threading")
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert open_prepared(tmp_path / "beam").fingerprint == local.fingerprint


@with_beam
def test_beam_prepares_in_an_object_store_where_training_finds_it(tmp_path, config, monkeypatch, capsys):
    prepare(config, tmp_path / "local")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    config.data.cache = "memory://bucket/stores"
    by_beam(config, None)
    assert "token store: memory://bucket/stores/" in capsys.readouterr().out
    found = prepare(config)
    assert "token store: reused memory://" in capsys.readouterr().out
    assert contents(found.directory)[0] == contents(tmp_path / "local")[0]
    assert found.directory.parent == tmp_path / "here" / "jaxlm" / "stores"


@with_beam
def test_errors_in_workers_are_reported_in_a_sentence_and_leave_no_files(tmp_path, config, monkeypatch):
    folder = Path(config.data.path[0])
    (folder / "b.jsonl").write_bytes(b'{"text": "\xff"}\n')
    (folder / "c.jsonl").write_text("[1]\n")  # a later file
    with pytest.raises(UserError, match=r"b.jsonl, line 1, byte 10: 0xff is not valid utf-8"):
        by_beam(config, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    config.data.path = (str(tmp_path / "other.jsonl"),)
    monkeypatch.setattr(beam_stores, "read_chunk", lambda *_: (_ for _ in ()).throw(UserError("the chunk is missing")))
    with pytest.raises(UserError, match=r"Beam pipeline to tokenize the text failed: the chunk is missing$"):
        by_beam(config, tmp_path / "out")
    config.data.path = ("pydocs",)
    with pytest.raises(UserError, match="without --runner=beam"):
        by_beam(config, tmp_path / "out")


# The command


def write_config(folder):
    file = folder / "c.py"
    file.write_text("from jaxlm.config import default_config\n\n\ndef get_config():\n    return default_config()\n")
    return file


@with_beam
def test_the_command_passes_options_to_beam(tmp_path, config, capsys):
    arguments = [
        f"--config={write_config(tmp_path)}", f"--config.data.path={config.data.path[1]}",
        f"--config.tokenizer.path={config.tokenizer.path}", "--runner=beam", f"--output={tmp_path / 'out'}",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"the Beam pipeline to read the text failed: .*NoSuchRunner"):
        main([*arguments, "--", "--runner=NoSuchRunner"])
    assert main([*arguments, "--", "--runner=DirectRunner"]) == 0
    assert capsys.readouterr().err.splitlines()[-3:] == ["read", "tokenize", "write"]
    assert np.all(open_prepared(tmp_path / "out").train[0].counts >= 0)


def test_beam_options_without_beam_and_a_missing_installation_are_reported(tmp_path, monkeypatch):
    arguments = [f"--config={write_config(tmp_path)}"]
    with pytest.raises(UserError, match=r"--project=x is an option for Beam: add --runner=beam"):
        main([*arguments, "--", "--project=x"])
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "jaxlm.data.beam", raising=False)
    monkeypatch.delitem(sys.modules, "jaxlm.data.beam_stores", raising=False)
    monkeypatch.delattr(jaxlm.data, "beam", raising=False)
    with pytest.raises(UserError, match=r"needs Apache Beam, which is not installed: pip install 'jaxlm\[beam\]'"):
        main([*arguments, "--runner=beam"])
