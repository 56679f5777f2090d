import json
import os
import re

import numpy as np
import pytest
from pyarrow import parquet

from jaxlm.cli import main
from jaxlm.storage import beside, lock
from jaxlm.use import embed, embed_file
from jaxlm.use.model import load
from tests.conftest import sentences
from tests.untrained import make_workdir

TEXTS = [*sentences(40, seed=3), "", "The cat sees the house " * 12]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("embed_file") / "run")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embed, "GROUP_TEXTS", 8)


def run(workdir, texts, output, *more):
    return main(["embed", f"--model={workdir}", f"--input={texts}", f"--output={output}", *more])


@pytest.mark.slow
def test_all_formats_contain_the_same_vectors_in_order(workdir, texts, tmp_path, small_parts, capsys, caplog):
    expected = load(workdir).embed(TEXTS, normalise=True)
    for ending in (".npy", ".jsonl", ".parquet"):
        assert run(workdir, texts, tmp_path / f"out{ending}", "--normalise") == 0
    output = capsys.readouterr()
    assert f"wrote {len(TEXTS)} vectors of width 16 to" in output.out
    assert "mean pooling, normalised, float32" in output.out
    assert f"1 of {len(TEXTS)} texts are longer than 40 tokens" in caplog.text
    array = np.load(tmp_path / "out.npy", allow_pickle=False)
    lines = [json.loads(line)["embedding"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    column = parquet.read_table(tmp_path / "out.parquet").column("embedding").to_pylist()
    assert array.dtype == np.float32
    assert (np.array(lines, np.float32) == array).all()
    assert (np.array(column, np.float32) == array).all()
    assert array == pytest.approx(expected, abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.npy", "out.parquet", "texts.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".npy", ".jsonl", ".parquet"])
def test_a_killed_run_continues_and_writes_the_same_bytes(workdir, texts, tmp_path, small_parts, monkeypatch, ending):
    whole, killed = tmp_path / f"whole{ending}", tmp_path / f"killed{ending}"
    assert run(workdir, texts, whole) == 0
    calls, write = [], embed_file._write_part

    def die(folder, number, vectors):
        calls.append(number)
        if len(calls) in (3, 5):
            beside(folder / f"{number:08}.npy", "tmp").write_bytes(b"half a par")
            raise KeyboardInterrupt
        write(folder, number, vectors)

    monkeypatch.setattr(embed_file, "_write_part", die)
    assert run(workdir, texts, killed) == 1
    assert not killed.exists()
    assert run(workdir, texts, killed) == 1
    assert run(workdir, texts, killed, "--json") == 0
    assert calls == [0, 1, 2, 2, 3, 3, 4, 5]
    assert killed.read_bytes() == whole.read_bytes()
    assert not beside(killed, "parts").exists()


def test_a_resumed_run_counts_all_texts_and_replaces_a_damaged_part(
    workdir, texts, tmp_path, small_parts, monkeypatch, capsys
):
    output = tmp_path / "out.npy"
    assemble = embed_file._assemble
    monkeypatch.setattr(embed_file, "_assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(workdir, texts, output) == 1
    parts = sorted(beside(output, "parts").glob("0*.npy"))
    assert len(parts) == 6
    parts[4].write_bytes(parts[4].read_bytes()[:-9])
    monkeypatch.setattr(embed_file, "_assemble", assemble)
    capsys.readouterr()
    assert run(workdir, texts, output, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["vectors"] == len(TEXTS)
    assert result["truncated"] == 1
    assert np.load(output) == pytest.approx(load(workdir).embed(TEXTS), abs=1e-5)


def test_parts_of_a_run_with_other_settings_are_rejected(workdir, texts, tmp_path, small_parts, monkeypatch, capsys):
    output = tmp_path / "out.npy"
    with monkeypatch.context() as patch:
        patch.setattr(embed_file, "_assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(workdir, texts, output) == 1
    assert run(workdir, texts, output, "--pooling=max") == 1
    assert (
        ".out.npy.jaxlm-parts contains parts of an interrupted run with different settings: pooling; remove it"
        in capsys.readouterr().err
    )
    texts.write_text("other\n")
    assert run(workdir, texts, output) == 1
    assert "with different settings: input; remove it" in capsys.readouterr().err


def test_an_existing_output_is_kept_until_the_new_one_is_complete(workdir, texts, tmp_path, monkeypatch):
    output = tmp_path / "out.npy"
    np.save(output, np.zeros((1, 2), np.float32))
    before = output.read_bytes()
    with monkeypatch.context() as patch:
        patch.setitem(embed_file.WRITERS, ".npy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(workdir, texts, output) == 1
    assert output.read_bytes() == before
    assert not list(tmp_path.glob(".*jaxlm-tmp"))
    assert run(workdir, texts, output) == 0
    assert len(np.load(output)) == len(TEXTS)


@pytest.mark.parametrize("ending", [".npy", ".jsonl", ".parquet"])
def test_only_a_file_of_vectors_is_replaced(workdir, texts, tmp_path, ending, capsys):
    output = tmp_path / f"out{ending}"
    for write in (
        lambda: np.save(output.open("wb"), np.zeros(3, np.int64)),
        lambda: output.write_text('{"text": "x"}\n'),
    ):
        write()
        before = output.read_bytes()
        assert run(workdir, texts, output) == 1
        assert f"--output={output} exists and does not contain vectors" in capsys.readouterr().err
        assert output.read_bytes() == before
    output.unlink()
    os.mkfifo(output)
    assert run(workdir, texts, output) == 1
    assert output.is_fifo()
    output.unlink()
    output.touch()
    assert run(workdir, texts, output) == 0  # over an empty file, and then over its own
    assert run(workdir, texts, output) == 0


def test_a_pipe_in_place_of_a_part_is_not_waited_for(workdir, texts, tmp_path, small_parts, monkeypatch):
    output = tmp_path / "out.npy"
    with monkeypatch.context() as patch:
        patch.setattr(embed_file, "_assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(workdir, texts, output) == 1
    part = beside(output, "parts") / "00000002.npy"
    for pipe in (part, beside(part, "tmp")):
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    assert run(workdir, texts, output) == 0
    assert len(np.load(output)) == len(TEXTS)


@pytest.mark.parametrize(("name", "option"), [("texts.txt", "--field=body"), ("texts.parquet", "--encoding=latin-1")])
def test_an_option_without_effect_is_refused(workdir, texts, tmp_path, capsys, name, option):
    (tmp_path / "texts.parquet").touch()
    for arguments in (["embed", f"--output={tmp_path / 'out.npy'}"], ["score"]):
        assert main([*arguments, f"--model={workdir}", f"--input={tmp_path / name}", option]) == 1
        assert f"{option} has no effect on {name[6:].replace('txt', 'text')} files" in capsys.readouterr().err


def test_records_of_json_lines_by_field(workdir, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "the cat"}\n{"body": null}\n')
    assert run(workdir, tmp_path / "a.jsonl", tmp_path / "out.npy", "--field=body", "--layers=0,-1") == 0
    expected = load(workdir).embed(["the cat", ""], layers=(0, -1))
    assert np.load(tmp_path / "out.npy") == pytest.approx(expected, abs=1e-5)


def test_invalid_input_prints_one_sentence_and_leaves_the_output_alone(workdir, texts, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text": \n')
    (tmp_path / "empty.txt").write_text("")
    output = tmp_path / "out.npy"
    wrong = [
        ((texts, tmp_path / "out.txt"), "the name must end in .npy, .jsonl, .parquet"),
        ((texts, tmp_path / "none" / "out.npy"), f"the folder {tmp_path / 'none'} does not exist"),
        ((tmp_path / "none.txt", output), str(tmp_path / "none.txt")),
        ((tmp_path / "bad.jsonl", output), "bad.jsonl, line 2: "),
        ((tmp_path / "empty.txt", output), "contains no records"),
        ((tmp_path / "bad.jsonl", tmp_path / "bad.jsonl"), "is the input"),
        ((texts, output, "--layers=9"), "layers=9: must be from 0"),
        ((texts, output, "--layers=x"), "--layers=x: expected integers separated by commas"),
        ((texts, output, "--batch-tokens=-3"), "batch_tokens=-3"),
        (
            (texts, tmp_path / "long.npy", "--too-long=refuse"),
            f"text {len(TEXTS)} is longer than the model's maximum of 40 tokens",
        ),
        ((texts, output, "--pooling=sum"), "invalid choice: 'sum'"),
    ]
    for arguments, error in wrong:
        assert run(workdir, *arguments) == 1, arguments
        message = capsys.readouterr().err
        assert error in message
        assert "Traceback" not in message
        assert not output.exists()
    assert main(["embed", "--model=nowhere", f"--input={texts}", f"--output={output}"]) == 1
    assert "no directory nowhere" in capsys.readouterr().err


def test_help_explains_empty_texts_and_has_an_example(capsys):
    assert main(["embed", "--help"]) == 0
    help_text = capsys.readouterr().out
    assert "an empty text" in " ".join(help_text.split())
    assert "example:\n  jaxlm embed" in help_text


def test_a_folder_of_parts_in_use_is_rejected(workdir, texts, tmp_path, capsys):
    folder = beside(tmp_path / "out.npy", "parts")
    folder.mkdir()
    with lock(folder / "lock"):
        assert run(workdir, texts, tmp_path / "out.npy") == 1
    assert f"{folder} is in use by another process" in capsys.readouterr().err
    assert run(workdir, texts, tmp_path / "out.npy") == 0


@pytest.fixture
def folder(tmp_path):
    """A folder with two files of texts, and links to the first one."""
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("1", "2"):
        (folder / f"{name}.jsonl").write_text(f'{{"text": "the cat {name}"}}\n')
    (tmp_path / "symlink.jsonl").symlink_to(folder / "1.jsonl")
    (tmp_path / "hardlink.jsonl").hardlink_to(folder / "1.jsonl")
    (tmp_path / "e").symlink_to(folder)
    return folder


@pytest.mark.parametrize(
    "source", ["d/*.jsonl", "d", "d/**", "e", "./d/../d/1.jsonl", "symlink.jsonl", "hardlink.jsonl"]
)
@pytest.mark.parametrize("output", ["d/1.jsonl", "e/1.jsonl", "symlink.jsonl", "hardlink.jsonl", "d/../d/1.jsonl"])
def test_an_output_that_is_an_input_is_refused_however_it_is_spelled(folder, monkeypatch, capsys, source, output):
    monkeypatch.chdir(folder.parent)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert main(["embed", "--model=unused", f"--input={source}", f"--output={output}"]) == 1
    assert re.search(
        rf"--output={output} is (the input|.*1\.jsonl|.*link\.jsonl)\b.*; set another file$", capsys.readouterr().err
    )
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_an_output_in_the_folder_of_the_inputs_is_no_input(workdir, folder, capsys):
    assert run(workdir, folder, folder / "out.npy", "--json") == 0
    assert json.loads(capsys.readouterr().out)["vectors"] == 2
    assert run(workdir, folder, folder / "out.npy") == 0
    assert sorted(file.name for file in folder.iterdir()) == ["1.jsonl", "2.jsonl", "out.npy"]


def test_files_of_the_user_that_look_like_ours_are_left_alone(workdir, texts, tmp_path):
    (tmp_path / "out.npy.parts").mkdir()
    (tmp_path / "out.npy.parts" / "diary.txt").write_text("mine")
    (tmp_path / "out.npy.tmp").write_text("mine")
    assert run(workdir, texts, tmp_path / "out.npy") == 0
    assert (tmp_path / "out.npy.parts" / "diary.txt").read_text() == (tmp_path / "out.npy.tmp").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.npy", "out.npy.parts", "out.npy.tmp", "texts.txt"]


def test_a_file_of_the_model_is_no_output(workdir, texts, capsys):
    counts = (workdir / "token_counts.npy").read_bytes()
    assert run(workdir, texts, workdir / "token_counts.npy") == 1
    assert "token_counts.npy is a file of the model's directory; set another file" in capsys.readouterr().err
    assert (workdir / "token_counts.npy").read_bytes() == counts


@pytest.mark.parametrize("option", ["model", "input", "output"])
def test_an_empty_path_is_not_the_current_folder(workdir, texts, tmp_path, capsys, option):
    paths = {"model": workdir, "input": texts, "output": tmp_path / "out.npy"} | {option: ""}
    assert main(["embed", *(f"--{name}={path}" for name, path in paths.items())]) == 1
    assert f"--{option}= is empty; name a path" in capsys.readouterr().err
