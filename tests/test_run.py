"""Which directories a run may be written into, and what a config must contain before anything is read."""

import json
from pathlib import Path

import pytest

from jaxlm import cli
from jaxlm.config import config_to_dict, default_config, load_config
from jaxlm.errors import UserError
from jaxlm.run import MARKER, check_workdir, load_run_config, locked, set_up
from tests.conftest import ROOT, mini_overrides, write_checkpoint

RECIPE = f"--config={ROOT / 'configs' / 'mini.py'}"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def jaxlm_config() -> str:
    return json.dumps(config_to_dict(default_config()))


# Work directories


FOREIGN = {
    "a config.json": {"config.json": "{}"},
    "a Hugging Face config.json": {"config.json": '{"model_type": "bert"}', "checkpoints/3/weights": "x"},
    "a config.json of jaxlm that is no run": {"config.json": jaxlm_config()},
    "a tokenizer folder": {"tokenizer/tokenizer.model": "x"},
    "checkpoints of another program": {"checkpoints/100/model.pt": "x"},
    "a damaged data.json": {"data.json": '{"directory": '},
    "a data.json of another program": {"data.json": '{"rows": 3}'},
    "a data.json with our keys and others": {"data.json": '{"directory": "d", "fingerprint": "f", "rows": 3}'},
    "a config.json with some of our sections": {
        "config.json": '{"data": {}, "model": {}, "train": {}}',
        "metrics.jsonl": '{"loss": 1}',
    },
    "notes": {"notes.txt": "x"},
    "a lock and notes": {"lock": "", "notes.txt": "x"},
    "a hidden file": {".bashrc": "x"},
}
OWN = {
    "a marked directory": {MARKER: "", "notes.txt": "x"},
    "a run of an older version": {"config.json": jaxlm_config(), "checkpoints/5/x": "", "tokenizer/vocab.txt": "x"},
    "a run that was killed before its first checkpoint": {
        "lock": "", "tokenizer/tokenizer.model": "x", "data.json": '{"directory": "d", "fingerprint": "f"}'
    },
    "a run that was killed before its first step": {"config.json": jaxlm_config(), "metrics.jsonl": ""},
    "a run that was killed at once": {"lock": ""},
    "an empty directory": {},
}  # fmt: skip


def fill(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir()
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return directory


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path, files, capsys):
    directory = fill(tmp_path / "mine", files)
    before = contents(directory)
    with pytest.raises(
        UserError, match=r"contains files that are not of a run \(.+\); name a new or an empty directory$"
    ):
        check_workdir(directory)
    (tmp_path / "link").symlink_to(directory)
    for name in (directory, tmp_path / "link", directory / ".." / "mine"):
        assert cli.main(["train", RECIPE, f"--workdir={name}"]) == 1
        assert "contains files that are not of a run" in capsys.readouterr().err
    with pytest.raises(UserError), locked(directory):  # as `train` does, without the command
        pass
    assert contents(directory) == before


@pytest.mark.parametrize("files", OWN.values(), ids=OWN)
def test_a_directory_of_a_run_and_an_empty_one_are_accepted_and_marked(tmp_path, files):
    directory = fill(tmp_path / "run", files)
    before = contents(directory)
    with locked(directory):
        assert (directory / MARKER).is_file()
    assert before.items() <= contents(directory).items()
    assert contents(directory).keys() == before.keys() | {MARKER, "lock"}
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / MARKER).is_file()


@pytest.mark.slow
def test_a_checkpoint_of_transformers_is_not_overwritten_by_a_run_that_starts_from_it(text_file, tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "bert", text_file)
    before = contents(checkpoint)
    recipe = f"--config={ROOT / 'configs' / 'continue.py'}"
    arguments = [f"--config.init_from={checkpoint}", f"--config.data.path={text_file}"]
    assert cli.main(["train", recipe, f"--workdir={checkpoint}", *arguments]) == 1
    assert "(config.json, model.safetensors, tokenizer_config.json and 1 more)" in capsys.readouterr().err
    assert contents(checkpoint) == before


def test_an_empty_workdir_is_not_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given in ("", " "):
        assert cli.main(["train", RECIPE, f"--workdir={given}"]) == 1
        assert "--workdir= is empty; name a path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_an_older_version_left_before_its_first_checkpoint_is_accepted(mini, tmp_path):
    set_up(mini("train.steps=2"), tmp_path / "run")
    assert not (tmp_path / "run" / MARKER).exists()
    check_workdir(tmp_path / "run")
    (tmp_path / "run" / "data.json").unlink()
    (tmp_path / "run" / "checkpoints").mkdir()
    check_workdir(tmp_path / "run")


# Recipes for trained weights


@pytest.mark.parametrize("name", ["continue.py", "finetune.py"])
@pytest.mark.parametrize("empty", [(), ("init_from=",), ("model.init_from=",)])
def test_a_recipe_for_trained_weights_is_refused_without_them(name, empty, tmp_path):
    recipe, settings = str(ROOT / "configs" / name), ("data.path=a.txt", "task.train=a.tsv", *empty)
    with pytest.raises(UserError, match=r"^this config starts from a trained model: set --config\.init_from=DIR, "):
        load_run_config(recipe, settings, tmp_path)
    with pytest.raises(UserError, match="this config starts from a trained model"):
        set_up(load_config(recipe, settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The size of the vocabulary


def test_the_chosen_size_of_the_vocabulary_is_recorded_and_accepted_on_resume(text_file, cache, tmp_path, capsys):
    settings = [s for s in mini_overrides(text_file, cache) if "vocab_size" not in s]
    config = load_config(str(ROOT / "configs" / "mini.py"), [*settings, "tokenizer.vocab_size=0"])
    run = set_up(config, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    size = run.data.tokenizer.vocab_size
    assert f"vocabulary: {size:,} entries, chosen for 0." in capsys.readouterr().err
    assert recorded["tokenizer"]["vocab_size"] == recorded["model"]["vocab_size"] == size < 512
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)  # from here on the settings must not change
    assert set_up(config, tmp_path / "run").config.tokenizer.vocab_size == size
    with pytest.raises(UserError, match=f"tokenizer.vocab_size: {size} -> 90"):
        set_up(load_config(str(ROOT / "configs" / "mini.py"), [*settings, "tokenizer.vocab_size=90"]), tmp_path / "run")
