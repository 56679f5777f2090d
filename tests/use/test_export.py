"""Exported directories: their files and contents, and that a failed export leaves nothing behind."""

import json
import os
import shutil
import stat
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Library

import jaxlm
from jaxlm import cli
from jaxlm.data.tasks.table import encoder_for
from jaxlm.errors import UserError
from jaxlm.trainer import train
from jaxlm.use.export import CROSS_ENCODER, export
from jaxlm.use.loading import load_trained
from tests.conftest import sentences, write_checkpoint
from tests.huggingface.test_conversion import write as write_case
from tests.huggingface.test_task_heads import write as write_head
from tests.untrained import make_workdir

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


@pytest.mark.slow
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


def add_vocabulary(directory: Path) -> Path:
    """Adds a vocabulary of 41 entries to a checkpoint of the parity cases."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(36))]
    (directory / "vocab.txt").write_text("\n".join(entries) + "\n")
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    return directory


def with_classifier(tensors: dict) -> dict:
    classifier = {"classifier.weight": np.ones((3, 24), np.float32), "classifier.bias": np.ones(3, np.float32)}
    return {name: array for name, array in tensors.items() if "cls." not in name and "decoder" not in name} | classifier


@pytest.mark.parametrize(
    ("case", "change", "config", "call"),
    [
        ("modernbert", with_classifier, {"architectures": ["ModernBertForSequenceClassification"]},
         "AutoModelForSequenceClassification.from_pretrained"),
        ("modernbert", with_classifier, {"architectures": ["ModernBertForTokenClassification"], "decoder_bias": False},
         "AutoModelForTokenClassification.from_pretrained"),
        ("bert", with_classifier, {"architectures": ["BertForQuestionAnswering"], "id2label": {"0": "no", "1": "yes"}},
         "AutoModelForQuestionAnswering.from_pretrained"),
        ("bert_without_head", lambda t: t, {}, "AutoModel.from_pretrained"),
        ("bert_pretraining", lambda t: t, {}, "AutoModelForPreTraining.from_pretrained"),
        ("electra_discriminator", lambda t: t | {"electra.embeddings.position_ids": np.arange(32)[None]}, {},
         "AutoModelForPreTraining.from_pretrained"),
        ("modernbert_untied", lambda t: t, {"architectures": None}, "AutoModel.from_pretrained"),
    ],
)  # fmt: skip
def test_a_checkpoint_with_any_head_is_exported_whole(case, change, config, call, tmp_path, capsys):
    given = add_vocabulary(write_case(tmp_path / "in", case, change, **config))
    assert cli.main(["export", f"--workdir={given}", f"--to={tmp_path / 'out'}"]) == 0
    assert f"load it with {call}('{tmp_path / 'out'}')" in capsys.readouterr().out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert (tmp_path / "out" / "config.json").read_bytes() == (given / "config.json").read_bytes()
    assert load_trained(given).has_head == (case in ("bert_pretraining", "modernbert_untied"))


def test_the_printed_call_names_the_home_directory_as_transformers_needs_it(text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "in", text_file)
    assert cli.main(["export", "--model=~/in", "--to=~/out"]) == 0
    assert f"from_pretrained('{tmp_path / 'out'}')" in capsys.readouterr().out


def test_a_checkpoint_keeps_its_dtypes_and_its_model_card(text_file, tmp_path):
    given = write_checkpoint(tmp_path / "in", text_file, torch_dtype="float16")
    tensors = load_file(given / "model.safetensors")
    tensors = {name: array.astype(np.float16) for name, array in tensors.items()} | {
        "bert.pooler.dense.bias": np.ones(24)
    }
    save_file(tensors, given / "model.safetensors", {"format": "pt"})
    (given / "README.md").write_text("---\nlicense: mit\n---\n")
    out = export(given, tmp_path / "out")
    assert {array.dtype.name for array in load_file(out / "model.safetensors").values()} == {"float16", "float64"}
    assert (out / "README.md").read_text() == "---\nlicense: mit\n---\n"
    out = export(given, tmp_path / "single", dtype="float32")
    assert {array.dtype.name for array in load_file(out / "model.safetensors").values()} == {"float32"}
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "families"),
    [
        ("bert", ("roberta", "electra")),
        ("roberta", ("bert", "camembert")),
        ("distilbert", ("bert", "xlm-roberta")),
        ("bert_pretraining", ("roberta",)),
    ],
)
def test_a_checkpoint_is_exported_as_another_family(case, families, tmp_path, caplog):
    given = load_trained(add_vocabulary(write_case(tmp_path / "in", case, pad_token_id=0)))
    tokens = np.arange(5, 25, dtype=np.int32)[None]
    expected = jax.jit(given.model.apply)({"params": given.params}, tokens)
    for family in families:
        out = load_trained(export(tmp_path / "in", tmp_path / family, family))
        assert json.loads((out.directory / "config.json").read_text())["model_type"] == family
        np.testing.assert_allclose(jax.jit(out.model.apply)({"params": out.params}, tokens), expected, atol=1e-5)
        text = "word3 word5[MASK] absent"
        ids = [trained.tokenizer.encode(text, find_mask=True).ids.tolist() for trained in (given, out)]
        assert ids[0] == ids[1]
    if case == "bert_pretraining":
        assert "converted between families: cls.seq_relationship.bias; cls.seq_relationship.weight" in caplog.text


@pytest.mark.parametrize(
    ("case", "family", "prefix"),
    [("bert_without_head", "roberta", ""), ("bert_without_head", "camembert", ""), ("bert_pretraining", "xlm-roberta",
      "roberta."), ("bert_without_head", "electra", None)],
)  # fmt: skip
def test_a_pooler_goes_along_to_a_family_that_has_one(case, family, prefix, tmp_path, caplog):
    given = add_vocabulary(write_case(tmp_path / "in", case, pad_token_id=0))
    before, after = (load_file(path / "model.safetensors") for path in (given, export(given, tmp_path / "out", family)))
    before = {name.removeprefix("bert."): array for name, array in before.items() if ".pooler." in f".{name}"}
    assert len(before) == 2
    if prefix is None:
        assert not [name for name in after if "pooler" in name]
        assert "converted between families: pooler.dense.bias; pooler.dense.weight" in caplog.text
        return
    assert "pooler.dense" not in caplog.text
    for name, array in before.items():
        np.testing.assert_array_equal(after[prefix + name], array)


def test_a_discriminator_becomes_an_encoder_of_another_family(tmp_path, caplog):
    given = add_vocabulary(write_case(tmp_path / "in", "electra_discriminator", square_embeddings, embedding_size=24))
    out = export(given, tmp_path / "out", "bert")
    assert "discriminator_predictions" in caplog.text
    before, after = load_trained(given), load_trained(out)
    jax.tree.map(np.testing.assert_array_equal, before.params["encoder"], after.params["encoder"])
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertModel"]


def square_embeddings(tensors: dict) -> dict:
    """Replaces embeddings of width 16, and their projection, by embeddings of the model's width 24."""
    wide = {
        name: np.resize(array, (*array.shape[:-1], 24)) for name, array in tensors.items() if ".embeddings." in name
    }
    return {name: array for name, array in tensors.items() if "embeddings_project" not in name} | wide


@pytest.mark.parametrize("transformer", ["", "0_Transformer"])
def test_a_sentence_transformers_directory_is_exported_whole(transformer, text_file, tmp_path, capsys):
    given, out = tmp_path / "in", tmp_path / "out"
    write_checkpoint(given / transformer, text_file, head=False)
    files = {
        "modules.json": [
            {"idx": 0, "path": transformer, "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
            {"idx": 3, "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
        f"{transformer or '.'}/sentence_bert_config.json": {"max_seq_length": 24},
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "2_Dense/config.json": {"in_features": 24},
    }
    for name, content in files.items():
        (given / name).parent.mkdir(exist_ok=True)
        (given / name).write_text(json.dumps(content))
    save_file({"linear.weight": np.ones((24, 24), np.float32)}, given / "2_Dense" / "model.safetensors")
    assert cli.main(["export", f"--workdir={given}", f"--to={out}"]) == 0
    assert f"load it with SentenceTransformer('{out}')" in capsys.readouterr().out
    for name in [*files, "2_Dense/model.safetensors", f"{transformer or '.'}/vocab.txt"]:
        assert (given / name).read_bytes() == (out / name).read_bytes(), name
    before, after = (load_file(path / transformer / "model.safetensors") for path in (given, out))
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity" in (out / "README.md").read_text()

    (given / "modules.json").write_text(json.dumps([*files["modules.json"][:1], {"path": "../other", "type": "Dense"}]))
    with pytest.raises(UserError, match=r"has a module outside the directory: \.\./other"):
        export(given, tmp_path / "again")


@pytest.mark.parametrize(("dtype", "value"), [("float16", 70_000.0), ("bfloat16", 3.4e38)])
def test_a_weight_that_the_dtype_cannot_hold_is_named(dtype, value, text_file, tmp_path, capsys):
    given = write_checkpoint(tmp_path / "in", text_file)
    name = "bert.encoder.layer.1.output.dense.weight"
    set_weight(given, name, value)
    for more in ([], ["--family=roberta"]):
        assert cli.main(["export", f"--workdir={given}", f"--to={tmp_path / 'out'}", f"--dtype={dtype}", *more]) == 1
        message = f"encoder.layer.1.output.dense.weight has values up to {value:.4g}, too large for {dtype}"
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    export(given, tmp_path / "out")


def set_weight(directory: Path, name: str, value: float) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors[name][0, 0] = value
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_weights_that_are_not_finite_are_refused_by_every_verb(value, what, text_file, tmp_path, capsys):
    given = write_checkpoint(tmp_path / "in", text_file)
    set_weight(given, "bert.encoder.layer.0.attention.self.query.weight", value)
    verbs = [
        ["export", f"--workdir={given}", f"--to={tmp_path / 'out'}"], ["fill-mask", f"--model={given}", "the [MASK]"],
        ["score", f"--model={given}", "the cat"], ["evaluate", f"--model={given}", f"--data.path={text_file}"],
    ]  # fmt: skip
    for arguments in verbs:
        assert cli.main(arguments) == 1
        error = capsys.readouterr().err
        assert f"bert.encoder.layer.0.attention.self.query.weight in {given} contains {what}" in error
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_finite_is_not_exported(text_file, tmp_path):
    given = write_checkpoint(tmp_path / "in", text_file)
    tensors = load_file(given / "model.safetensors") | {"classifier.weight": np.full((2, 24), np.nan, np.float32)}
    save_file(tensors, given / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"classifier\.weight contains NaN"):
        export(given, tmp_path / "out")


def test_the_files_have_the_mode_that_the_umask_gives(text_file, tmp_path):
    before = os.umask(0o027)
    try:
        out = export(write_checkpoint(tmp_path / "in", text_file), tmp_path / "out")
    finally:
        os.umask(before)
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in out.iterdir()} == {"0o640"}


def test_the_model_card_states_the_masking_and_the_parameters_of_the_run(tmp_path):
    """As in the quickstart, whose encoder has more parameters in the form of a ModernBERT."""
    architecture = {"positions": "rotary", "head_transform": False}
    run = make_workdir(tmp_path / "run", **architecture)
    config = json.loads((run / "config.json").read_text())
    config["masking"] |= {"rate": 0.4, "final_rate": 0.15}
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("")
    card = (export(run, tmp_path / "out") / "README.md").read_text()
    count = sum(leaf.size for leaf in jax.tree.leaves(load_trained(run).params))
    written = sum(array.size for array in load_file(tmp_path / "out" / "model.safetensors").values())
    assert written > count
    assert f" {count:,} parameters ({written:,} in the form of this architecture, which computes the same)" in card
    assert "| masking | 40% of the tokens at the beginning, changing linearly to 15% at the end, scheme token |" in card


def test_a_head_without_parameters_is_exported(tmp_path):
    """With a tied output, without a bias and a transform: a ModernBERT needs a transform, here the identity."""
    given = load_trained(make_workdir(tmp_path / "run", positions="rotary", head_transform=False, output_bias=False))
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    exported = load_trained(export(tmp_path / "run", tmp_path / "out"))
    assert exported.has_head
    tokens = np.arange(5, 25, dtype=np.int32)[None]
    found, expected = (jax.jit(t.model.apply)({"params": t.params}, tokens) for t in (exported, given))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_export_of_a_causal_model_says_that_transformers_attends_in_both_directions(tmp_path, caplog):
    run = make_workdir(tmp_path / "run", positions="rotary")
    config = json.loads((run / "config.json").read_text())
    config["train"]["objective"] = "causal"
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("")
    card = (export(run, tmp_path / "out") / "README.md").read_text()
    for text in (card, caplog.text):
        assert "trained to predict each token from those before it" in text
    assert "fill-mask" not in card


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
    own = ("model.first_norm=true", "model.value_residual=0.5")
    train(mini("train.steps=1", "evaluation.every=0", *own), tmp_path / "own")
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
    assert "model.first_norm=True, model.value_residual=0.5" in str(caught.value)
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


def test_only_a_new_or_empty_directory_is_written(text_file, tmp_path, monkeypatch, capsys):
    given = write_checkpoint(tmp_path / "in", text_file)
    before = {file.name: file.read_bytes() for file in given.iterdir()}
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "diary.txt").write_text("mine")
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(given)
    for to in (given, tmp_path / "link", tmp_path / "in" / ".." / "in"):
        assert cli.main(["export", f"--model={given}", f"--to={to}"]) == 1
        assert "exists and is not empty; set a new directory" in capsys.readouterr().err
    assert cli.main(["export", f"--model={given}", "--to="]) == 1
    assert "--to= is empty; name a path" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in given.iterdir()} == before
    assert cli.main(["export", f"--workdir={given}", f"--to={tmp_path / 'out'}"]) == 0
    assert (tmp_path / ".out.partial" / "diary.txt").read_text() == "mine"
    monkeypatch.chdir(tmp_path / "here")
    assert cli.main(["export", f"--model={given}", "--to=."]) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == names
    assert os.listdir(".")  # the same folder, not another one of its name


@pytest.mark.parametrize("offset", [0, 1])
def test_the_exported_tokenizer_separates_pairs_as_the_model_was_fine_tuned_on_them(offset, tmp_path):
    model = {"norm_position": "post", "activation": "gelu", "position_offset": offset, "max_positions": 40 + offset}
    workdir = make_workdir(tmp_path / "run", **model)
    (workdir / "metrics.jsonl").write_text("")
    trained = load_trained(workdir)
    pair = ["The cat sees.", "A river"]
    expected = encoder_for(trained.config, trained.tokenizer)([pair], ["a row"]).tokens[0].tolist()
    library = Library.from_file(str(export(workdir, tmp_path / "out") / "tokenizer.json"))
    assert library.encode(*pair).ids == expected
    assert expected.count(trained.tokenizer.end_id) == 2 + bool(offset)


def test_a_fine_tuned_checkpoint_is_exported_as_another_family_with_its_head(tmp_path, caplog):
    given = add_vocabulary(write_head(tmp_path / "in", "bert_sequence"))
    out = export(given, tmp_path / "out", "roberta")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["RobertaForSequenceClassification"]
    assert config["id2label"] == {"0": "dull", "1": "Fine", "2": "grand"}
    assert (config["problem_type"], config["classifier_dropout"]) == ("single_label_classification", 0.25)
    before, after = (load_file(path / "model.safetensors") for path in (given, out))
    for ours, theirs in (("bert.pooler.dense", "classifier.dense"), ("classifier", "classifier.out_proj")):
        for leaf in ("weight", "bias"):
            np.testing.assert_array_equal(before[f"{ours}.{leaf}"], after[f"{theirs}.{leaf}"])
    assert not [name for name in after if "pooler" in name]
    out = export(given, tmp_path / "electra", "electra")
    assert (
        "exported without its head: ElectraForSequenceClassification lacks the layers of task.head=bert" in caplog.text
    )
    assert json.loads((out / "config.json").read_text())["architectures"] == ["ElectraModel"]


def test_a_cross_encoder_keeps_its_activation_in_another_family(tmp_path):
    given = add_vocabulary(write_head(tmp_path / "in", "bert_number"))
    content = json.loads((given / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(content | CROSS_ENCODER))
    config = json.loads((export(given, tmp_path / "out", "roberta") / "config.json").read_text())
    assert config["architectures"] == ["RobertaForSequenceClassification"]
    assert config["sentence_transformers"] == CROSS_ENCODER["sentence_transformers"]
