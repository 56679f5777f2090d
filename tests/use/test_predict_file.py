import json

import pytest

from jaxlm.cli import main
from jaxlm.storage import beside
from jaxlm.use import predict_file
from jaxlm.use.model import load
from tests.conftest import sentences
from tests.untrained import make_fine_tuned

TEXTS = [*sentences(60, seed=3), "", "The cat sees the house " * 12]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_fine_tuned(tmp_path_factory.mktemp("predict_file") / "run")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(predict_file, "PART_SEGMENTS", 8)


def run(workdir, texts, output, *more):
    return main(["classify", f"--model={workdir}", f"--input={texts}", f"--output={output}", *more])


def test_an_object_for_each_row_in_order(workdir, texts, tmp_path, capsys):
    assert run(workdir, texts, tmp_path / "out.jsonl") == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == load(workdir).classify(TEXTS)
    assert f"wrote {len(TEXTS)} predictions to {tmp_path / 'out.jsonl'}" in capsys.readouterr().out
    assert run(workdir, texts, tmp_path / "out.jsonl", "--json") == 0  # a file of predictions is replaced
    assert json.loads(capsys.readouterr().out).items() >= {"examples": len(TEXTS), "truncated": 1}.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "texts.txt"]


def test_a_killed_command_continues_and_writes_the_same_bytes(workdir, texts, tmp_path, small_parts, monkeypatch):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    calls, write = [], predict_file._write_part

    def die(folder, number, outputs):
        calls.append(number)
        if len(calls) in (2, 3):
            beside(folder / f"{number:08}.npz", "tmp").write_bytes(b"half a par")
            raise KeyboardInterrupt
        write(folder, number, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(predict_file, "_write_part", die)
        assert run(workdir, texts, killed) == 1
        assert not killed.exists()
        assert run(workdir, texts, killed) == 1
        part = beside(killed, "parts") / "00000000.npz"
        assert run(workdir, texts, killed) == 0
    assert calls[:4] == [0, 1, 1, 1]
    assert len(calls) > 4
    assert not part.exists()
    assert run(workdir, texts, whole) == 0
    assert killed.read_bytes() == whole.read_bytes()


def test_a_damaged_part_is_computed_again(workdir, texts, tmp_path, small_parts, monkeypatch):
    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(predict_file.TaskModel, "predictions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(workdir, texts, output) == 1
    parts = sorted(beside(output, "parts").glob("0*.npz"))
    assert len(parts) > 2
    content = bytearray(parts[1].read_bytes())
    content[len(content) // 4] ^= 1
    parts[1].write_bytes(content)
    assert run(workdir, texts, output) == 0
    assert [json.loads(line) for line in output.read_text().splitlines()] == load(workdir).classify(TEXTS)


def test_parts_of_other_texts_are_refused(workdir, texts, tmp_path, small_parts, monkeypatch, capsys):
    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(predict_file.TaskModel, "predictions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(workdir, texts, output) == 1
    texts.write_text("other\n")
    assert run(workdir, texts, output) == 1
    assert "with different settings: input; remove it to start again" in capsys.readouterr().err


def test_files_of_the_model_are_not_replaced(workdir, texts, capsys):
    (workdir / "predictions").mkdir(exist_ok=True)
    file = workdir / "predictions" / "dev.jsonl"
    file.write_text('{"label": "calm"}\n')
    assert run(workdir, texts, file) == 1
    assert "is a file of the model's directory; set another file" in capsys.readouterr().err
    assert file.read_text() == '{"label": "calm"}\n'
