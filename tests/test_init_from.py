"""Runs that start from a checkpoint: what they take from it, what may differ, and what they grow."""

import dataclasses
import json
import logging
import re
import shutil
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm import cli
from jaxlm.config import load_config, save_config
from jaxlm.errors import UserError
from jaxlm.init_from import load_config_and_start, resolve, start_settings
from jaxlm.run import set_up
from jaxlm.runtime.run_log import read_metrics
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.trainer import train
from jaxlm.use.loading import load_trained
from tests.conftest import ROOT, write_checkpoint
from tests.huggingface.test_conversion import load as load_golden
from tests.huggingface.test_conversion import write as write_golden
from tests.huggingface.test_sentence_transformers import write_settings
from tests.huggingface.test_task_heads import write as write_head
from tests.untrained import make_fine_tuned, make_workdir
from tests.use.test_export import add_vocabulary

CONTINUE = str(ROOT / "configs" / "continue.py")
LEARNED = "encoder/embeddings/position/embedding"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, text_file):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "bert", text_file)


@pytest.fixture
def continued(text_file, cache, checkpoint):
    """Returns the config of continue.py on the text file, with overrides."""

    def make(*overrides: str, start=checkpoint):
        settings = [
            f"init_from={start}", f"data.path={text_file}", "data.document=paragraph", f"data.cache={cache}",
            "data.workers=1", "data.held_out_fraction=0.05", "data.sequence_length=32", "train.batch_size=8",
            "train.epochs=none", "train.steps=4", "logging.tensorboard=false", "logging.curve=false",
            "train.compute_dtype=float32", "evaluation.rows=16",
        ]  # fmt: skip
        return load_config(CONTINUE, [*settings, *overrides], start_settings)

    return make


@pytest.mark.slow
def test_a_run_starts_with_architecture_tokenizer_and_weights_of_a_checkpoint(continued, checkpoint, tmp_path):
    config = continued()
    assert (config.model.width, config.model.norm_position, config.model.positions) == (24, "post", "learned")
    assert config.model.output_bias_from_frequencies  # of continue.py: no matter of architecture
    run = set_up(config, tmp_path)
    params = run.fresh_state()["params"]
    given = load_file(checkpoint / "model.safetensors")
    np.testing.assert_array_equal(
        params["encoder"]["embeddings"]["token"]["embedding"], given["bert.embeddings.word_embeddings.weight"]
    )
    np.testing.assert_array_equal(
        params["encoder"]["layers_1"]["feed_forward"]["down"]["kernel"],
        given["bert.encoder.layer.1.output.dense.weight"].T,
    )
    np.testing.assert_array_equal(params["head"]["bias"], given["cls.predictions.bias"])
    assert run.data.tokenizer.mask_token == "[MASK]"
    assert json.loads((tmp_path / "huggingface_config.json").read_text())["id2label"] == {"0": "A"}


@pytest.mark.slow
def test_before_and_after_stand_side_by_side(continued, tmp_path, capsys):
    result = train(continued("train.steps=8"), tmp_path)
    shown = capsys.readouterr().out
    before = [e for e in read_metrics(tmp_path) if e["kind"] == "evaluation" and e["step"] == 0]
    assert f"{before[0]['loss']:.3f}" in shown.split("loss before")[1]
    assert f"{result['evaluation']['held_out']['loss']:.3f}" in shown.split("loss before")[1]
    assert result["evaluation"]["held_out"]["loss"] < before[0]["loss"]
    assert load_trained(tmp_path).longest == 40  # of the checkpoint's table, though rows had 32


@pytest.mark.slow
def test_a_run_without_held_out_sets_prints_no_empty_table(continued, tmp_path, capsys):
    assert train(continued("train.steps=1", "data.held_out_fraction=0"), tmp_path)["evaluation"] == {}
    assert "loss before" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_no_longer_needs_the_checkpoint(continued, checkpoint, tmp_path, text_file, cache):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    overrides = [
        f"--config={CONTINUE}", f"--config.init_from={copy}", f"--config.data.path={text_file}",
        "--config.data.document=paragraph", f"--config.data.cache={cache}", "--config.data.workers=1",
        "--config.data.sequence_length=32", "--config.train.batch_size=8", "--config.train.epochs=none",
        "--config.logging.tensorboard=false", "--config.logging.curve=false", "--config.evaluation.rows=16",
        "--config.schedule.name=constant", "--config.schedule.warmup=0", "--config.train.compute_dtype=float32",
    ]  # fmt: skip
    assert cli.main(["train", *overrides, f"--workdir={tmp_path / 'whole'}", "--config.train.steps=6"]) == 0
    assert cli.main(["train", *overrides, f"--workdir={tmp_path / 'parts'}", "--config.train.steps=3"]) == 0
    shutil.rmtree(copy)
    assert cli.main(["train", *overrides, f"--workdir={tmp_path / 'parts'}", "--config.train.steps=6"]) == 0
    ends = [read_metrics(tmp_path / name)[-1] for name in ("whole", "parts")]
    assert ends[0]["params_sha256"] == ends[1]["params_sha256"]
    assert cli.main(["train", *overrides, f"--workdir={tmp_path / 'new'}", "--config.train.steps=6"]) == 1


def test_a_run_that_ended_before_its_first_checkpoint_starts_again_from_the_weights(continued, checkpoint, tmp_path):
    save_config(continued(), tmp_path / "config.json")
    for name, again in (("", True), ("checkpoints", True), ("checkpoints/.5.tmp", True), ("checkpoints/5", False)):
        (tmp_path / name).mkdir(exist_ok=True)
        assert (resolve(str(checkpoint), tmp_path).source is not None) == again


@pytest.mark.slow
def test_a_resumed_run_has_the_head_that_it_took_from_the_checkpoint(checkpoint, tmp_path):
    overrides = [f"init_from={checkpoint}", "task.train=a.tsv", "data.sequence_length=32"]
    config = load_config("finetune", overrides, start_settings)
    assert config.task.head == "bert"
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.json")
    again = load_config("finetune", overrides, lambda name: start_settings(name, tmp_path / "run"))
    assert again.task.head == "bert"


def test_a_checkpoint_without_a_head_gets_a_new_one_with_a_warning(continued, text_file, tmp_path, caplog):
    start = write_checkpoint(tmp_path / "bare", text_file, head=False)
    run = set_up(continued(start=start), tmp_path / "run")
    with caplog.at_level(logging.WARNING, "jaxlm"):
        params = run.fresh_state()["params"]
    assert "has no masked-LM head: a new head is initialized" in caplog.text
    np.testing.assert_allclose(np.exp(np.asarray(params["head"]["bias"])).sum(), 1, rtol=1e-4)  # log frequencies
    # A fresh head may be of another kind.
    config = continued("model.head_transform=false", "model.tied_output=false", start=start)
    assert "kernel" in set_up(config, tmp_path / "other").fresh_state()["params"]["head"]


@pytest.mark.slow
def test_a_run_starts_from_a_work_directory_too(mini, continued, tmp_path):
    train(mini("model.activation=geglu", "train.steps=2"), tmp_path / "first")
    config = continued("data.prepend_begin=false", "tokenizer.words=unicode", start=tmp_path / "first")
    assert config.model.activation == "geglu"
    params = set_up(config, tmp_path / "second").fresh_state()["params"]
    jax.tree.map(np.testing.assert_array_equal, params, load_trained(tmp_path / "first").params)


def test_what_may_differ_and_what_may_not(continued, tmp_path):
    config = continued("model.dropout=0.2", "optimizer.name=lamb")
    assert set_up(config, tmp_path / "one").assembly.encoder.dropout == 0.2
    for setting in ("model.activation=relu", "model.head_activation=relu", "model.norm_epsilon=0.1"):
        name, _, value = setting.partition("=")
        with pytest.raises(UserError, match=rf"{name}={value}, but .*bert has .*; remove the setting"):
            set_up(continued(setting, "data.path=/nowhere"), tmp_path / setting)  # before any text is read


@pytest.mark.slow
def test_learned_positions_end_where_the_table_does_or_are_extended(continued, checkpoint, tmp_path):
    with pytest.raises(
        UserError, match=r"exceeds the 40 rows .*; raise model.max_positions and set model.extend_positions"
    ):
        continued("data.sequence_length=64")
    longer = ("data.sequence_length=64", "model.max_positions=64")
    with pytest.raises(UserError, match=r"set model\.extend_positions to repeat or interpolate"):
        set_up(continued(*longer), tmp_path / "one")
    with pytest.raises(UserError, match=r"model\.max_positions=36 would cut the 40 positions of"):
        set_up(continued("model.max_positions=36"), tmp_path / "one")
    table = load_file(checkpoint / "model.safetensors")["bert.embeddings.position_embeddings.weight"]
    found = {}
    for how in ("repeat", "interpolate"):
        run = set_up(continued(*longer, f"model.extend_positions={how}"), tmp_path / how)
        found[how] = np.asarray(run.fresh_state()["params"]["encoder"]["embeddings"]["position"]["embedding"])
        assert found[how].shape == (64, 24)
    np.testing.assert_array_equal(found["repeat"], np.concatenate([table, table[:24]]))
    np.testing.assert_allclose(found["interpolate"][[0, 63]], table[[0, 39]], atol=1e-6)
    np.testing.assert_allclose(found["interpolate"][21], table[13], atol=1e-5)  # 21 x 39 / 63 = 13


def test_weights_that_are_not_finite_are_not_continued(checkpoint, continued, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "damaged")
    tensors = load_file(tmp_path / "damaged" / "model.safetensors")
    tensors["cls.predictions.bias"][3] = np.nan
    save_file(tensors, tmp_path / "damaged" / "model.safetensors", {"format": "pt"})
    config = continued("data.path=/nowhere", start=tmp_path / "damaged")  # found before any text is read
    with pytest.raises(UserError, match=r"cls\.predictions\.bias in .*damaged contains NaN"):
        set_up(config, tmp_path / "run")


def test_a_work_directory_without_an_intact_checkpoint_is_reported_before_any_text_is_read(continued, tmp_path):
    make_workdir(tmp_path / "broken", vocab_size=80)
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "1" / "params")
    with pytest.raises(UserError, match=r"no checkpoint in .*broken/checkpoints is intact"):
        set_up(continued("data.path=/nowhere", start=tmp_path / "broken"), tmp_path / "run")


def test_the_checkpoint_that_a_run_starts_from_is_printed(continued, tmp_path, capsys):
    make_workdir(tmp_path / "before", vocab_size=80)
    set_up(continued(start=tmp_path / "before" / "checkpoints" / "1"), tmp_path / "run").fresh_state()
    assert capsys.readouterr().err.count(f"{tmp_path / 'before'}: read the checkpoint of step 1\n") == 1


def test_a_discriminator_gives_its_encoder_alone(tmp_path):
    directory = write_golden(tmp_path, "electra_discriminator")
    encoder, tokenizer = load_golden(directory)[1], types.SimpleNamespace(vocab_size=41)
    params = resolve(str(directory)).params(encoder, tokenizer, tokenizer)
    assert params.keys() == {"encoder"}


def test_a_larger_table_keeps_its_rows(continued, checkpoint, tmp_path):
    tokenizer = set_up(continued(), tmp_path).data.tokenizer
    encoder = load_trained(checkpoint).encoder
    larger = dataclasses.replace(encoder, vocab_size=encoder.vocab_size + 3)
    params = resolve(str(checkpoint)).params(larger, tokenizer, tokenizer)
    given = load_file(checkpoint / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    table = params["encoder"]["embeddings"]["token"]["embedding"]
    np.testing.assert_array_equal(table[:-3], given)
    np.testing.assert_allclose(table[-3:], np.repeat(given.mean(0, keepdims=True), 3, 0), atol=1e-6)
    smaller = dataclasses.replace(encoder, vocab_size=encoder.vocab_size - 1)
    with pytest.raises(UserError, match="would cut"):
        resolve(str(checkpoint)).params(smaller, tokenizer, tokenizer)


def test_added_tokens_start_at_the_mean_of_their_old_pieces(continued, checkpoint, tmp_path, capsys):
    (tmp_path / "terms.txt").write_text("\ufeffzzyzx\nthe cat\nzzyzx\nthe\n\n")
    run = set_up(continued(f"tokenizer.add={tmp_path / 'terms.txt'}"), tmp_path / "run")
    tokenizer, before = run.data.tokenizer, load_trained(checkpoint).tokenizer
    assert tokenizer.added == ("zzyzx", "the cat")  # "the" is one token already, or its pieces are
    rows = before.vocab_size
    assert run.assembly.encoder.vocab_size == rows + 2
    assert tokenizer.encode("a zzyzx").ids[-1] == rows
    params, given = run.fresh_state()["params"], load_file(checkpoint / "model.safetensors")
    table = np.asarray(params["encoder"]["embeddings"]["token"]["embedding"])
    old = given["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(table[:rows], old)
    np.testing.assert_allclose(table[rows], old[before.encode("zzyzx").ids].mean(0), atol=1e-6)
    np.testing.assert_allclose(table[rows + 1], old[before.encode("the cat").ids].mean(0), atol=1e-6)
    bias, old_bias = np.asarray(params["head"]["bias"]), given["cls.predictions.bias"]
    np.testing.assert_allclose(bias[rows], old_bias[before.encode("zzyzx").ids].mean(), atol=1e-6)
    np.testing.assert_array_equal(bias[:rows], old_bias)


def test_added_tokens_need_a_vocabulary_to_be_added_to(mini, tmp_path):
    (tmp_path / "terms.txt").write_text("zzyzx\n")
    with pytest.raises(UserError, match=r"tokenizer\.add needs an existing vocabulary"):
        set_up(mini(f"tokenizer.add={tmp_path / 'terms.txt'}"), tmp_path / "run")


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_on_any_text(checkpoint, text_file, tmp_path, cache, capsys):
    text = [f"--data.path={text_file}", f"--data.cache={cache}", "--data.document=paragraph", "--rows=8"]
    assert cli.main(["evaluate", f"--model={checkpoint}", *text, "--data.sequence_length=32", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)[str(text_file)]
    assert result["unigram_loss"] < result["loss"] < 10
    for more, message in (
        (["--data.sequence_length=64"], "data.sequence_length=64 exceeds the 40 tokens that the model can read"),
        ([], "has no held-out sets; give a text with --data.path"),
    ):
        arguments = [f"--model={checkpoint}", *(text if more else []), *more]
        assert cli.main(["evaluate", *arguments]) == 1
        assert message in capsys.readouterr().err
    bare = write_checkpoint(tmp_path / "bare", text_file, head=False)
    assert cli.main(["evaluate", f"--model={bare}", *text, "--data.sequence_length=32"]) == 1
    assert "has no masked-LM head, so it has no masked-LM loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "t5"}'),
            "which is not supported; supported are bert",
        ),
        (lambda d: (d / "model.safetensors").unlink(), "contains no weights"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x10" + bytes(30)), "is cut short or damaged"),
    ],
)
def test_a_broken_checkpoint_is_reported_before_any_text_is_read(break_it, message, continued, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "broken")
    break_it(tmp_path / "broken")
    with pytest.raises(UserError, match=message):
        continued("data.path=/nowhere", start=tmp_path / "broken")


def test_a_tokenizer_with_more_ids_than_the_table_has_rows_is_refused(checkpoint, tmp_path, text_file):
    start = write_checkpoint(tmp_path / "bert", text_file)
    with open(start / "vocab.txt", "a") as file:
        file.write("antidisestablishment\n")
    with pytest.raises(UserError, match=r"has ids up to \d+, but the token embedding has only \d+ rows"):
        load_trained(start)


def test_the_config_command_shows_the_settings_of_a_checkpoint(checkpoint, capsys):
    assert (
        cli.main(
            [
                "config",
                "model",
                f"--config={CONTINUE}",
                f"--config.init_from={checkpoint}",
                "--config.data.sequence_length=32",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "model.width = 24 " in shown
    assert 'model.norm_position = "post"' in shown


@pytest.mark.slow
def test_continuing_says_what_is_added_what_is_frozen_and_what_learns(continued, tmp_path, capsys):
    words = ["harbourmaster", "harbourmaster", "the", "quayside", "captain"]
    (tmp_path / "terms.txt").write_text("\n".join(words) + "\n")
    settings = (f"tokenizer.add={tmp_path / 'terms.txt'}", "optimizer.freeze=embeddings,layers:0", "train.steps=1")
    train(continued(*settings), tmp_path / "run")
    output = capsys.readouterr()
    assert "terms.txt: tokens added to the vocabulary: 2; in it already: 2\n" in output.err
    found = re.search(r"^([\d,]+) of ([\d,]+) parameters are trained; frozen: embeddings,layers:0$", output.out, re.M)
    trained, total = (int(text.replace(",", "")) for text in found.groups())
    params = load_trained(tmp_path / "run").params
    frozen = [params["encoder"]["embeddings"], params["encoder"]["layers_0"]]
    assert total == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert trained == total - sum(leaf.size for leaf in jax.tree.leaves(frozen))
    train(continued("train.steps=1"), tmp_path / "whole")
    assert re.search(r"^all ([\d,]+) parameters are trained$", capsys.readouterr().out, re.MULTILINE)


def test_the_head_of_a_task_comes_with_its_settings_and_says_when_it_cannot_go_on(tmp_path):
    start = resolve(str(write_head(tmp_path, "modernbert_mean")))
    assert start.settings["task"] == {"head": "modernbert", "pooling": "mean"}
    assert (start.objective, start.labels) == ("classification", ("dull", "Fine", "grand"))
    assert start.dropouts["sequence"] == 0.0
    labels, same = start.labels, start.task
    assert start.why_new_head("classification", labels, same) == ""
    assert start.why_new_head("masked", (), None) == "was trained for classification, not masked"
    assert start.why_new_head("multi_label", labels, dataclasses.replace(same, objective="multi_label"))
    other = start.why_new_head("classification", ("a", "b"), dataclasses.replace(same, labels=("a", "b")))
    assert other == "was trained for other labels (dull, Fine, grand, not a, b)"
    pooled = start.why_new_head("classification", labels, dataclasses.replace(same, pooling="cls"))
    assert pooled == (
        "has another head (task.head=modernbert, task.pooling=mean; not task.head=modernbert, task.pooling=cls)"
    )
    # The layers count, not their name: RoBERTa's classifier drops out before its dense layer, BERT's does not.
    assert start.why_new_head("classification", labels, dataclasses.replace(same, head="roberta"))


def test_a_head_of_one_number_goes_on_as_a_reranker(tmp_path):
    start = resolve(str(write_head(tmp_path, "bert_number")))
    assert start.objective == "regression"
    assert start.why_new_head("reranking", (), start.task) == ""
    assert start.why_new_head("classification", ("0",), start.task)


def test_the_weights_of_a_checkpoint_contain_the_head_of_its_task(tmp_path, caplog):
    directory = add_vocabulary(write_head(tmp_path, "bert_sequence"))
    start = resolve(str(directory))
    tokenizer = load_tokenizer(directory)
    params = start.params(start.encoder, tokenizer, tokenizer)
    assert params["task_head"]["kernel"].shape == (24, 3)
    np.testing.assert_array_equal(params["task_head"]["transform"]["kernel"], params["pooler"]["kernel"])
    assert "ignored" not in caplog.text


def finetune(kind, start, *overrides):
    """Returns section task of the config of a run from a directory."""
    settings = [f"init_from={start}", "task.train=a.tsv", "data.sequence_length=32", *overrides]
    return load_config_and_start(f"{ROOT / 'configs' / 'finetune.py'}:{kind}", settings)[0].task


def test_an_embedding_model_goes_on_with_its_pooling_and_prompts(text_file, tmp_path):
    start = write_checkpoint(tmp_path / "bert", text_file, head=False)
    assert finetune("embedding", start).pooling == "auto"
    prompts = {"prompts": {"query": "q: ", "document": "p: "}}
    write_settings(start, pooling={"pooling_mode": "lasttoken"}, config_sentence_transformers=prompts)
    task = finetune("embedding", start)
    assert (task.pooling, task.query_prompt, task.document_prompt) == ("lasttoken", "q: ", "p: ")
    task = finetune("embedding", start, "task.pooling=mean", "task.query_prompt=", "task.document_prompt=text: ")
    assert (task.pooling, task.query_prompt, task.document_prompt) == ("mean", "", "text: ")
    task = finetune("classification", start)
    assert (task.pooling, task.query_prompt) == ("auto", "")  # the head of a classifier has a pooling of its own

    write_settings(start, pooling={"pooling_mode": "weightedmean"})
    with pytest.raises(UserError, match=r"bert: the model sets the pooling to weightedmean; jaxlm supports mean, cls"):
        finetune("embedding", start)
    write_settings(start, kinds=("Transformer", "Pooling", "Dense"))
    with pytest.raises(UserError, match="a module Dense, which jaxlm does not support"):
        finetune("embedding", start)


def test_a_run_goes_on_with_the_vectors_of_another_one(tmp_path):
    start = make_fine_tuned(
        tmp_path / "run", "embedding", (), text=("a", "b"), pooling="max", query_prompt="q: ", document_prompt="d: "
    )
    task = finetune("embedding", start)
    assert (task.pooling, task.query_prompt, task.document_prompt) == ("max", "q: ", "d: ")
    assert finetune("classification", start).pooling == "auto"
