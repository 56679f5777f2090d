"""Exported directories: their files and contents, and that a failed export leaves nothing behind."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer as Library

import jaxlm
from jaxlm import cli
from jaxlm.errors import UserError
from jaxlm.train import train
from jaxlm.use.export import export
from jaxlm.use.loading import load_trained
from tests.conftest import sentences, write_checkpoint

MODERN = (
    "model.activation=geglu", "model.norm_bias=false", "model.attention_bias=false", "model.feed_forward_bias=false",
    "model.first_norm=false", "model.embedding_norm=true", "model.head_bias=false", "model.layer_pattern=gl",
    "model.window=8", "train.steps=4", "logging.curve=true",
)  # fmt: skip
ROBERTA = (
    "model.norm_position=post", "model.embedding_norm=true", "model.positions=learned", "model.activation=gelu",
    "model.max_positions=42", "model.position_offset=2", "train.steps=2", "evaluation.every=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(mini, tmp_path_factory):
    """A finished run that the family modernbert can express."""
    workdir = tmp_path_factory.mktemp("run") / "modern"
    train(mini(*MODERN), workdir)
    return workdir


@pytest.mark.slow
def test_an_exported_run_loads_with_the_same_parameters(run, tmp_path, capsys):
    assert cli.main(["export", f"--workdir={run}", f"--to={tmp_path / 'out'}"]) == 0
    listed = capsys.readouterr().out
    names = {"README.md", "config.json", "curve.png", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert all(name in listed for name in names)
    before, after = load_trained(run), load_trained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert after.longest == 32
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    text = sentences(3)[0].replace(" the ", " [MASK] ", 1) if " the " in sentences(3)[0] else "The [MASK] sees."
    answers = [jaxlm.load(where).fill_mask(text) for where in (run, tmp_path / "out")]
    assert [c.word for c in answers[0][0]] == [c.word for c in answers[1][0]]
    np.testing.assert_allclose(*([c.probability for c in masks[0]] for masks in answers), rtol=1e-4)


@pytest.mark.slow
def test_the_exported_tokenizer_gives_the_same_ids(run, tmp_path):
    tokenizer, out = load_trained(run).tokenizer, export(run, tmp_path / "out")
    library = Library.from_file(str(out / "tokenizer.json"))
    for text in [*sentences(50), "", "  a  b\t", "x [MASK] y", "[MASK]"]:
        expected = [tokenizer.begin_id, *tokenizer.encode(text, find_mask=True).ids.tolist(), tokenizer.end_id]
        assert library.encode(text).ids == expected, text


@pytest.mark.slow
def test_the_model_card_describes_the_run(run, tmp_path):
    card = (export(run, tmp_path / "my-model") / "README.md").read_text()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [event for event in metrics if event["kind"] == "evaluation"][-1]
    end = [event for event in metrics if event["kind"] == "end"][-1]
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    for part in (
        "# my-model", 'model="my-model"', "text.txt", " documents, ", "| steps | 4 |", "nats per masked token",
        f"{last['loss']:.3f}", "![training and held-out loss](curve.png)", 'model.activation = "geglu"',
        end["params_sha256"], str(metrics[0]["commit"] or "unknown"),
    ):  # fmt: skip
        assert part in card, part
    assert str(run.parent) not in card
    assert "/text.txt" not in card


@pytest.mark.slow
def test_positions_and_token_types_are_converted_to_the_family(mini, tmp_path):
    train(mini(*ROBERTA), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    tokens = np.arange(5, 25, dtype=np.int32)[None]
    expected = jax.jit(trained.model.apply)({"params": trained.params}, tokens)
    for family, rows in (("roberta", 41), ("bert", 40)):
        out = load_trained(export(tmp_path / "run", tmp_path / family, family))
        assert out.encoder.max_positions == rows  # pad is id 0, so RoBERTa's positions start at row 1
        assert out.encoder.token_types == 1
        found = jax.jit(out.model.apply)({"params": out.params}, tokens)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_imported_checkpoint_is_exported_unchanged(text_file, tmp_path):
    given = write_checkpoint(tmp_path / "in", text_file, hidden_act="gelu_python")
    out = export(given, tmp_path / "out")
    before, after = (load_file(directory / "model.safetensors") for directory in (given, out))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    config = json.loads((given / "config.json").read_text())
    found = json.loads((out / "config.json").read_text())
    assert {key: found[key] for key in config} == config
    assert (out / "vocab.txt").read_bytes() == (given / "vocab.txt").read_bytes()


def test_a_checkpoint_with_a_vocabulary_only_is_exported_with_its_rules(text_file, tmp_path):
    given = write_checkpoint(tmp_path / "given", text_file)
    (given / "tokenizer_config.json").unlink()
    *entries, last = (given / "vocab.txt").read_text().split()
    (given / "vocab.txt").write_text("\n".join([*entries, last.capitalize()]) + "\n")
    tokenizer = load_trained(given).tokenizer
    out = export(given, tmp_path / "out")
    library = Library.from_file(str(out / "tokenizer.json"))
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer.encode(last).ids.tolist() != tokenizer.encode(last.capitalize()).ids.tolist()
    for text in (*sentences(20), last, last.capitalize(), f"the [MASK] {last.capitalize()}S"):
        assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, find_mask=True).ids.tolist()


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_weights_are_exported_in_the_requested_dtype(dtype, size, text_file, tmp_path):
    given = write_checkpoint(tmp_path / "in", text_file)
    out = export(given, tmp_path / "out", dtype=dtype)
    assert {array.dtype.itemsize for array in load_file(out / "model.safetensors").values()} == {size}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype


@pytest.mark.slow
def test_invalid_arguments_raise_one_sentence_and_write_nothing(run, mini, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    train(mini("train.steps=1", "evaluation.every=0"), tmp_path / "own")
    cases = [
        ((run, tmp_path / "full"), "exists and is not empty; set a new directory"),
        ((run, tmp_path / "out", "t5"), "the family t5 is not supported; supported are bert,"),
        ((run, tmp_path / "out", "bert"), "the family bert cannot express model.norm_position=pre"),
        ((run, tmp_path / "out", None, "int8"), "--dtype=int8 is not one of float32, bfloat16, float16"),
        ((tmp_path / "nowhere", tmp_path / "out"), "no directory .*nowhere"),
        ((tmp_path / "full", tmp_path / "out"), "has no config.json"),
        (
            (tmp_path / "own", tmp_path / "out"),
            "no Transformers encoder has all of these settings; the nearest family",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            export(*arguments)
        assert "\n" not in str(caught.value)
    assert "model.first_norm=True, model.embedding_norm=False" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"full", "own"}
    (tmp_path / "file").write_text("")
    assert cli.main(["export", f"--workdir={run}", f"--to={tmp_path / 'file' / 'out'}"]) == 1
    assert f"cannot write --to={tmp_path / 'file' / 'out'}: " in capsys.readouterr().err


@pytest.mark.slow
def test_an_export_that_fails_leaves_no_half_directory(run, tmp_path, monkeypatch):
    from jaxlm.huggingface import conversion

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "write_weights", full)
    with pytest.raises(UserError, match=r"cannot write --to=.*out: No space left on device"):
        export(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    shutil.rmtree(export(run, tmp_path / "out"))
