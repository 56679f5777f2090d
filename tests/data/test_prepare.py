import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jaxlm.config import default_config
from jaxlm.data.prepare import cache_directory, main, prepare
from jaxlm.data.prepared import open_prepared
from jaxlm.data.table import DATA
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import train_tokenizer
from tests.conftest import ROOT
from tests.data.conftest import sentences, write_lines

# Reuse


def test_the_cache_is_reused_and_the_reuse_is_printed(config, capsys):
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
    config.data.held_out_fraction = 0.2  # ignored, since sets are named
    assert prepare(config).directory == with_set != first.directory
    config.data.held_out, config.data.held_out_fraction = (), 0.01
    os.utime(config.data.path[0], (1, 1))
    assert prepare(config).directory != first.directory
    assert not [path for path in first.directory.parent.iterdir() if path.name.startswith(".")]


def test_the_cache_is_chosen_by_the_setting_or_the_environment(config, monkeypatch, tmp_path):
    config.data.cache = ""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory(config) == tmp_path / "xdg" / "jaxlm" / "stores"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory(config) == tmp_path / "home" / ".cache" / "jaxlm" / "stores"


def test_an_existing_directory_is_reused_or_rejected_with_the_settings_that_differ(tmp_path, config, capsys):
    (tmp_path / "out").mkdir()
    first = prepare(config, tmp_path / "out")
    assert prepare(config, tmp_path / "out").fingerprint == first.fingerprint
    assert f"{tmp_path / 'out'} is already complete" in capsys.readouterr().out
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


def test_an_existing_directory_is_rejected_with_another_tokenizer(tmp_path, config):
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
    with pytest.raises(UserError, match="out already exists and contains other files: choose a new directory"):
        prepare(config, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_opening_checks_tokenizer_and_stores(tmp_path, config):
    with pytest.raises(UserError, match="was not written by `jaxlm prepare` or is damaged"):
        open_prepared(tmp_path)
    first = prepare(config, tmp_path / "out")
    assert open_prepared(tmp_path / "out").fingerprint == first.fingerprint
    config.data.path = (str(write_lines(tmp_path / "b.jsonl", sentences(10, 3))),)
    prepare(config, tmp_path / "other")
    (tmp_path / "out" / "train" / "0").rename(tmp_path / "aside")
    (tmp_path / "other" / "train" / "0").rename(tmp_path / "out" / "train" / "0")
    with pytest.raises(UserError, match="0 is not the token store that was prepared here"):
        open_prepared(tmp_path / "out")
    with pytest.raises(UserError, match="0 is not a token store"):
        open_prepared(tmp_path / "other")
    (tmp_path / "out" / "prepared.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="has format version 99"):
        open_prepared(tmp_path / "out")
    (tmp_path / "out" / "prepared.json").write_text('{"format')
    with pytest.raises(UserError, match="is damaged"):
        open_prepared(tmp_path / "out")


# Errors, killed processes and concurrent processes


def test_missing_text_and_missing_documents_are_reported(tmp_path, config):
    config.data.path = ()
    with pytest.raises(UserError, match=r"data.path is empty"):
        prepare(config)
    file = write_lines(tmp_path / "a.jsonl", ["", " "])
    config.data.path = (str(file),)
    for path in (config.tokenizer.path, ""):
        config.tokenizer.path = path
        with pytest.raises(UserError, match=rf"no documents for training in {file} \(dropped: 2 empty documents\)"):
            prepare(config)
    config.data.path = (str(write_lines(tmp_path / "b.jsonl", ["text"])),)
    config.data.held_out = (f"valid={file}",)
    with pytest.raises(UserError, match=rf"no documents for the held-out set valid in {file}"):
        prepare(config)


def test_a_failed_preparation_leaves_no_files(tmp_path, config):
    file = Path(config.data.path[0])
    file.write_bytes(file.read_bytes() + b'{"text": "\xff"}\n')
    for path in (config.tokenizer.path, ""):
        config.tokenizer.path = path
        with pytest.raises(UserError, match=r"line 301, byte .*: 0xff"):
            prepare(config)
        assert list(Path(config.data.cache).iterdir()) == []
    config.tokenizer.vocab_size = 8192
    config.data.path = (str(write_lines(tmp_path / "few.jsonl", ["one", "two", "three"])),)
    with pytest.raises(UserError):
        prepare(config)
    assert list(Path(config.data.cache).iterdir()) == []


RUN = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background of a shell
    from jaxlm.config import config_from_dict
    from jaxlm.data import corpus
    from jaxlm.data.prepare import prepare
    import json
    if __name__ == "__main__":
        config = config_from_dict(json.load(open(sys.argv[1])), "test")
        if sys.argv[2] == "slow":
            original = corpus._encode
            def slow(chunk):
                print("encoding", flush=True)
                time.sleep(60)
            corpus._encode = slow
        prepared = prepare(config)
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


def test_a_killed_preparation_leaves_no_complete_directory_and_the_next_one_cleans_up(tmp_path, config):
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
    assert [path for path in Path(config.data.cache).iterdir() if path.suffix != ".jaxlm-lock"] == [prepared.directory]


@pytest.mark.slow
def test_a_running_preparation_is_not_disturbed_by_another(tmp_path, config):
    run = start(tmp_path, config, "slow")
    assert run.stdout is not None
    assert run.stdout.readline() == "encoding\n"
    config.data.deduplicate = False
    prepare(config)
    assert len(list(Path(config.data.cache).glob(".*.jaxlm-partial"))) == 1
    run.send_signal(signal.SIGINT)
    out, errors = run.communicate(timeout=30)
    assert "fingerprint" not in out
    assert "KeyboardInterrupt" in errors
    assert not list(Path(config.data.cache).glob(".*"))


def test_a_run_prints_that_it_waits_for_another_and_takes_over_when_that_one_is_killed(tmp_path, config):
    first = start(tmp_path, config, "slow")
    assert first.stdout is not None
    assert first.stdout.readline() == "encoding\n"
    second = start(tmp_path, config, "fast")
    assert second.stderr is not None
    assert second.stderr.readline().startswith(f"waiting for another process that is preparing {config.data.cache}/")
    first.kill()
    first.communicate()
    out, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert "reused" not in out
    assert len(list(Path(config.data.cache).iterdir())) == 1


def test_workers_end_when_their_parent_is_killed(tmp_path):
    work = """
        import os, time
        def work(item):
            print(os.getpid(), flush=True)
            time.sleep(60)
    """
    (tmp_path / "work.py").write_text(textwrap.dedent(work))
    program = """
        from jaxlm.runtime.processes import map_in_processes
        from work import work
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
    output = capsys.readouterr()
    header, *rows = output.out.splitlines()
    assert header.split() == ["store", "documents", "bytes", "tokens", "bytes/token", "source"]
    row = next(row.split() for row in rows if row.startswith("train/0"))
    store = open_prepared(tmp_path / "out").train[0]
    assert row[1:4] == [f"{store.documents:,}", f"{store.text_bytes:,}", f"{store.tokens:,}"]
    assert row[4] == f"{store.text_bytes / store.tokens:.2f}"
    assert output.err.splitlines() == ["read and tokenize"]
    assert main(arguments) == 0
    complete, *spelling = capsys.readouterr().out.splitlines()
    assert complete == f"token store: {tmp_path / 'out'} is already complete"
    assert spelling[0].startswith(f"{config.data.path[0]}: 0.00% of ")
    assert spelling[1].startswith("held-out set held_out: 0.00% of ")
    assert main([*arguments, "--json"]) == 0
    output = capsys.readouterr().out  # `jaxlm` sends the lines before the object to standard error
    assert json.loads(output[output.index("{") :])["stores"]["train/0"]["tokens"] == store.tokens


def test_files_of_the_user_beside_the_output_are_left_alone(tmp_path, config):
    for name in (".out.partial", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diary.txt").write_text("mine")
    (tmp_path / ".out.lock").write_text("mine")
    prepare(config, tmp_path / "out")
    assert (tmp_path / ".out.partial" / "diary.txt").read_text() == (tmp_path / ".out.lock").read_text() == "mine"
    assert (tmp_path / "out.partial" / "diary.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".*jaxlm*"))


def test_what_an_older_version_left_in_the_cache_is_removed(config):
    cache = Path(config.data.cache)
    for name in ("." + "0" * 32 + ".partial", "." + "1" * 32 + ".jaxlm-partial", ".mine.partial"):
        (cache / name).mkdir(parents=True)
    prepared = prepare(config)
    assert sorted(path.name for path in cache.iterdir()) == [".mine.partial", prepared.directory.name]


def test_an_empty_output_and_an_unused_init_from_are_refused(tmp_path, monkeypatch, capsys):
    from jaxlm import cli

    monkeypatch.chdir(tmp_path)
    recipe = f"--config={ROOT / 'configs' / 'mini.py'}"
    assert cli.main(["prepare", recipe, "--output="]) == 1
    assert "--output= is empty; name a path" in capsys.readouterr().err
    for arguments in ([recipe, "--config.init_from=bert"], [f"--config={ROOT / 'configs' / 'continue.py'}"]):
        assert cli.main(["prepare", *arguments]) == 1
        assert "model.init_from has no effect here: set --config.tokenizer.path=DIR, " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_text_that_the_vocabulary_cannot_spell_is_refused_or_reported(config, tmp_path, capsys, caplog):
    russian = ["Столица Франции и её реки", "Он читает книгу в саду"] * 40
    config.data.deduplicate = False
    config.data.path = (str(write_lines(tmp_path / "ru.jsonl", russian)),)
    config.data.held_out_fraction = 0.0
    for _ in range(2):  # a reused store is refused as well
        with pytest.raises(
            UserError, match=r"ru\.jsonl: the vocabulary has no token for the words of this text, only \[UNK\]"
        ):
            prepare(config)
    mixed = [*russian, *sentences(40, 5)]
    config.data.path = (str(write_lines(tmp_path / "mixed.jsonl", mixed)),)
    capsys.readouterr()
    data = DATA["masked"].prepare(config)
    assert "mixed.jsonl: 19.35% of 2,067 tokens are unknown" in capsys.readouterr().out
    assert caplog.text.count("because the vocabulary has no token for their characters") == 1
    DATA["masked"].reopen(data.directory, config)
    assert caplog.text.count("because the vocabulary has no token for their characters") == 2
