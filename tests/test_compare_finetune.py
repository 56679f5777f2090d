"""scripts/compare_finetune: the commands that it runs, what it counts, and the table that it writes."""

import importlib
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from jaxlm.config import load_config, split_overrides
from jaxlm.data.example_rows import Shape
from jaxlm.data.examples import Examples
from jaxlm.errors import UserError
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("compare_finetune")


def arguments(tmp_path):
    return Namespace(python="python", peer=Path("peer.py"), model="MODEL", vocab="vocab.txt", epochs=1.0)


@pytest.mark.parametrize("name", ["sst2", "mrpc"])
def test_both_sides_get_the_same_files_and_settings(script, tmp_path, name):
    case, args = script.CASES[name], arguments(tmp_path)
    files = {"train": tmp_path / "train.tsv", "dev": tmp_path / "dev.tsv"}
    peer = script.peer_command(case, ["--padding=max"], files, args)
    assert [f"--train={files['train']}", f"--dev={files['dev']}"] == peer[4 if name == "mrpc" else 3 :][:2]
    own = script.command_of(case, files, tmp_path / "run", args)
    overrides, rest = split_overrides(own[3:])
    spec = next(option for option in rest if option.startswith("--config=")).partition("=")[2]
    config = load_config(spec, overrides)
    assert config.train.batch_size == int(next(o for o in peer if o.startswith("--batch=")).partition("=")[2])
    assert config.optimizer.learning_rate == float(next(o for o in peer if o.startswith("--lr=")).partition("=")[2])
    assert config.train.epochs == float(next(o for o in peer if o.startswith("--epochs=")).partition("=")[2])
    assert (config.model.layers, config.model.init_from) == ((12, "") if name == "mrpc" else (4, "MODEL"))
    header = {"sst2": ["sentence", "label"], "mrpc": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]}[name]
    columns = {"text": config.task.text[0], "text2": config.task.text[-1], "label": config.task.label}
    for option in case.columns:
        key, _, number = option.removeprefix("--").partition("=")
        assert header[int(number)] == columns[key]


def test_the_side_without_packing_has_one_example_in_a_row(script, tmp_path):
    files = {"train": tmp_path / "train.tsv", "dev": tmp_path / "dev.tsv"}
    commands = [
        script.command_of(script.CASES["sst2"], files, tmp_path / "run", arguments(tmp_path), side)
        for side in (script.OURS, script.PADDED)
    ]
    assert commands[0][3:] == commands[1][2:]
    assert commands[1][1].endswith("jaxlm_padded.py")
    padded = importlib.import_module("jaxlm_padded")
    examples = Examples([], [np.ones(9, np.int32), np.ones(40, np.int32)], [], {})
    assert padded.one_example_in_a_row(examples, 128, 1.5) == Shape(40, 1)


def test_the_part_of_the_training_set_is_the_same_in_every_run(script, tmp_path):
    (tmp_path / "a.tsv").write_text("\ufeffsentence\tlabel\n" + "".join(f"text {n}\t{n % 2}\n" for n in range(50)))
    for name in ("b.tsv", "c.tsv"):
        script.write_part(tmp_path / "a.tsv", 20, tmp_path / name)
    lines = (tmp_path / "b.tsv").read_text().splitlines()
    assert lines == (tmp_path / "c.tsv").read_text().splitlines()
    assert lines[0] == "sentence\tlabel"
    assert len({*lines}) == 21
    with pytest.raises(UserError, match=r"--examples=51, but .*a\.tsv has 50 rows"):
        script.write_part(tmp_path / "a.tsv", 51, tmp_path / "d.tsv")


def test_time_begins_after_the_first_steps_and_includes_later_compilation(script):
    times = {20: 100.0, 40: 110.0, 50: 130.0}
    events = [{"kind": "train", "step": step, "time": time} for step, time in times.items()]
    events.insert(1, {"kind": "evaluation", "step": 40, "time": 0.0})
    assert script.own_rate(events) == pytest.approx(32 * 30 / 30)
    with pytest.raises(UserError, match="a run of 32 x 20 examples is not counted"):
        script.own_rate(events[:1])


def test_table_gives_medians_and_ratios_within_rounds(script):
    names = ["jaxlm", *script.PEERS]
    rounds = [
        {name: {"rate": rate, "accuracy": accuracy} for name, rate in zip(names, rates, strict=True)}
        for rates, accuracy in [((180, 10, 90), 0.5), ((200, 8, 200), 0.75)]
    ]
    rows = [line.split(" | ") for line in script.table(script.CASES["sst2"], 2048, 1.0, rounds).splitlines()]
    cells = {row[0].removeprefix("| "): row[1:] for row in rows if len(row) > 4}
    assert cells["jaxlm"] == ["190.0", "180.0 to 200.0", "1", "", "62.5% |"]
    assert cells["Transformers, max"][2:4] == ["21.50 (18.00 to 25.00)", "18"]
    assert cells["Transformers, grouped, bf16"][2:4] == ["1.50 (1.00 to 2.00)", "1.6"]


def test_missing_files_and_peers_are_named(script, monkeypatch, capsys, tmp_path):
    model = f"--model={tmp_path}"
    for options, message in [
        (["--cases=cola"], "there is no case cola; the cases are sst2 and mrpc"),
        (["--model=/nowhere"], "--model=/nowhere does not exist"),
        ([model, "--peer=/nowhere.py"], "--peer=/nowhere.py does not exist"),
        ([model, f"--peer={__file__}", "--python=/nowhere"], "--python=/nowhere has no torch, transformers, sklearn"),
    ]:
        argv = ["compare_finetune", "--cases=sst2", f"--data={tmp_path}", *options]
        monkeypatch.setattr(sys, "argv", argv)
        assert script.main() == 1
        assert message in capsys.readouterr().err
