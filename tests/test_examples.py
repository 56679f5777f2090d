"""The programs and the notebook of examples/ run as they stand."""

import json
import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment, sentences
from tests.untrained import make_workdir

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("examples") / "run", layers=1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a program of examples/ in this process and returns what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def write_lines(path):
    path.write_text("\n".join(sentences(30)) + "\n")
    return path


@pytest.mark.slow
def test_search_finds_the_line_itself(run, workdir, tmp_path):
    lines = write_lines(tmp_path / "lines.txt")
    query = lines.read_text().splitlines()[7]
    for _ in range(2):  # the second search reads the vectors of the first
        heading, first, *_ = run("search.py", f"--model={workdir}", f"--lines={lines}", query).splitlines()
        assert heading == query
        assert first.split(maxsplit=1) == ["1.000", query]
    assert (tmp_path / "lines.vectors.npy").exists()


@pytest.mark.slow
def test_the_own_training_loop_lowers_the_loss(run, workdir, tmp_path):
    lines = write_lines(tmp_path / "lines.txt")
    printed = run("own_training_loop.py", f"--model={workdir}", f"--lines={lines}", "--steps=40")
    start, end = map(float, re.findall(r"(\d+\.\d+) at the", printed))
    assert end < start - 0.1


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")  # they would become outdated
    settings = environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    program = "\n\n".join(code)
    done = subprocess.run(
        [sys.executable, "-"], input=program, cwd=tmp_path, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nats per masked token after 100 updates" in done.stdout
    assert "bert_base: 12 layers of width 768" in done.stdout
    assert sorted(os.listdir(tmp_path / "runs")) == ["tour"]
