"""The public interface: what `jaxlm.__all__` names, how it looks, and `jaxlm.train`."""

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlm
from jaxlm import trainer
from jaxlm.cli import main
from jaxlm.config import default_config
from jaxlm.errors import UserError
from tests.conftest import ROOT, environment
from tests.scripts import load_script
from tests.untrained import make_workdir


def test_every_public_name_exists_and_says_what_it_does():
    for name in jaxlm.__all__:
        value = getattr(jaxlm, name)
        assert value.__name__ == name
        assert inspect.getdoc(value), name
        assert name in dir(jaxlm)
    namespace: dict = {}
    exec("from jaxlm import *", namespace)
    assert namespace.keys() >= set(jaxlm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        jaxlm.lode  # noqa: B018


def test_help_shows_the_public_names():
    page = pydoc.plain(pydoc.render_doc(jaxlm))
    for line in ("class EncoderConfig", "class Model", "    load(", "    train(", "    nearest(", "    similarity("):
        assert line in page, line
    for method in ("fill_mask", "embed", "score", "logits", "encode", "tokenize", "preset"):
        assert f" |  {method}(" in page, method


def test_importing_jaxlm_imports_neither_jax_nor_tensorflow():
    code = "import jaxlm, sys; print([m for m in ('jax', 'flax', 'tensorflow', 'ml_collections') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.fixture
def trained_with(monkeypatch):
    """Returns what the training loop is called with; nothing is trained."""
    calls = []
    monkeypatch.setattr(trainer, "train", lambda *arguments: calls.append(arguments) or {"step": 3})
    return calls


@pytest.mark.parametrize("kind", ["name", "path", "str", "config"])
def test_train_takes_a_recipe_a_path_and_a_config(trained_with, tmp_path, kind):
    path = ROOT / "configs" / "mini.py"
    own = default_config()
    own.train.steps = 5
    given = {"name": "mini", "path": path, "str": str(path), "config": own}[kind]
    assert jaxlm.train(given, str(tmp_path / "run"), ["train.batch_size=4"]) == {"step": 3}
    assert jaxlm.train(given, tmp_path / "run") == {
        "step": 3
    }  # importing the module trainer does not hide the function
    (config, workdir, start), (plain, *_) = trained_with
    assert (workdir, start, config.train.batch_size, own.train.batch_size) == (tmp_path / "run", None, 4, 32)
    assert config.train.steps == (5 if kind == "config" else 100)
    assert plain.train.batch_size == (32 if kind == "config" else 8)


def test_invalid_arguments_of_train_are_one_sentence(trained_with, tmp_path):
    wrong = default_config()
    wrong.model.heads = 3
    for arguments, words in [
        (("minni", tmp_path), "there is no config file minni; did you mean the recipe mini?"),
        ((wrong, tmp_path), "model.heads=3 does not divide model.width=256"),
        ((5, tmp_path), "config must be a ConfigDict, a file or the name of a recipe, not int"),
        (("mini", ""), "--workdir= is empty; name a path"),
        (("mini", None), "the workdir must be a path or a str, not NoneType"),
        (("mini", tmp_path, [3]), "overrides must be a list of str"),
        (("mini", tmp_path, {"train.steps": 3}), "overrides must be a list of str"),
        (("mini", tmp_path, None), "overrides must be a list of str"),
        (("mini", tmp_path, ["train.steps"]), "train.steps has no value; write train.steps=VALUE"),
        (("mini", tmp_path, ["train.stpes=1"]), "did you mean train.steps?"),
        (("mini", tmp_path, "train.steps=1"), 'overrides must be a list of str such as ["train.steps=100"]'),
    ]:
        with pytest.raises(UserError) as error:
            jaxlm.train(*arguments)
        assert words in str(error.value)
    assert not trained_with


def test_a_tilde_is_the_home_directory(trained_with, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text((ROOT / "configs" / "mini.py").read_text())
    jaxlm.train("~/own.py", "~/run")
    main(["train", "--config=~/own.py", "--workdir=~/run"])  # which bash and zsh do not expand
    assert [workdir for _, workdir, _ in trained_with] == [tmp_path / "run"] * 2


def test_a_model_is_named_by_a_path():
    for wrong in (None, 3):
        with pytest.raises(UserError, match="the model must be a path or a str"):
            jaxlm.load(wrong)


def test_train_starts_from_a_directory_like_the_verb(trained_with, tmp_path):
    config = default_config()
    config.model.init_from = str(make_workdir(tmp_path / "start", layers=1))
    jaxlm.train(config, tmp_path / "run", ["data.sequence_length=40"])
    ((resolved, _, start),) = trained_with
    assert start.directory == Path(tmp_path / "start")
    assert (resolved.model.layers, resolved.model.width) == (1, 16)


def test_the_page_is_what_the_docstrings_say():
    page = load_script("api_page").page()
    assert page == (ROOT / "docs" / "api.md").read_text(), "run scripts/api_page"
    for name in jaxlm.__all__:
        assert f"\n## jaxlm.{name}\n" in page
    assert "train(\n    config: ConfigDict | str | Path,\n    workdir: str | Path,\n" in page
    assert "| `layers` | " in page
