import json
import shutil

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.cli import main
from jaxlm.config import load_config
from jaxlm.data.prepare import prepare
from jaxlm.errors import UserError
from jaxlm.evaluation.held_out import describe
from jaxlm.runtime.checkpoint import Checkpoints
from jaxlm.tokenizer.tokenizer import train_tokenizer
from jaxlm.use.evaluate import evaluate
from jaxlm.use.export import export
from jaxlm.use.loading import load_trained
from tests.conftest import sentences, write_text
from tests.untrained import make_workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory whose settings of section data differ from the defaults."""
    from jaxlm.config import load_config, save_config

    bert = {"activation": "gelu", "norm_position": "post", "embedding_norm": True, "token_types": 2}
    path = make_workdir(tmp_path_factory.mktemp("evaluate") / "run", **bert)
    config = load_config(str(path / "config.json"))
    with config.unlocked():
        config.data.update(document="line", prepend_begin=False, held_out_fraction=0.5, max_megabytes=0.001)
        config.data.update(cache=str(path.parent / "cache"), workers=1)
    save_config(config, path / "config.json")
    (path / "metrics.jsonl").touch()
    return path


@pytest.fixture(scope="module")
def exported(run):
    return export(run, run.parent / "exported")


@pytest.fixture(scope="module")
def text(run):
    return write_text(run.parent / "text.txt", 60)


@pytest.fixture
def evaluated(run, text, capsys):
    """Returns the metrics that `jaxlm evaluate --json` prints for the text, or its error."""

    def call(model, *options):
        where = (f"--data.path={text}", f"--data.cache={run.parent / 'cache'}", "--data.workers=1")
        status = main(["evaluate", f"--model={model}", *where, "--json", *options])
        output = capsys.readouterr()
        return json.loads(output.out)[str(text)] if status == 0 else output.err

    return call


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--data.document=paragraph",),
        ("--no-whole-documents",),
        ("--no-whole-documents", "--data.prepend_begin=true"),
    ],
)
def test_a_run_and_its_export_have_the_same_loss_on_the_same_text(evaluated, run, exported, options):
    one, other = evaluated(run, *options), evaluated(exported, *options)
    for name in ("loss", "perplexity", "accuracy", "accuracy_top5", "nats_per_byte", "n", "rows"):
        assert one[name] == (pytest.approx(other[name], rel=1e-4) if name != "rows" else other[name]), name
    assert (one["unigram_of"], other["unigram_of"]) == ("training text", "evaluated text")
    assert one["unigram_loss"] != pytest.approx(other["unigram_loss"], rel=1e-3)


@pytest.mark.slow
def test_whole_documents_have_the_same_loss_whatever_the_length_of_rows(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("".join(f"{sentence[:12]}\n" for sentence in sentences(30)))
    arguments = [f"--data.path={tmp_path / 'a.txt'}", "--data.document=line", f"--data.cache={run.parent / 'cache'}"]
    found = []
    for length in (24, 40):
        assert main(["evaluate", f"--model={run}", *arguments, f"--data.sequence_length={length}", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)[str(tmp_path / "a.txt")])
    assert found[0].pop("rows") == found[1].pop("rows") == "whole documents"
    assert found[0].pop("unigram_of") == found[1].pop("unigram_of")
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--data.weights=3",), "--data.weights has no effect on an evaluation: remove it"),
        (("--data.held_out_fraction=0.5",), "--data.held_out_fraction has no effect"),
        (("--data.held_out=a=b.txt",), "--data.held_out has no effect"),
        (("--data.prefetch=2",), "--data.prefetch has no effect"),
        (("--data.prepend_begin=true",), "no effect on whole documents, which begin with the begin token"),
        (("--config.train.steps=3",), "--config.train.steps=3: only settings of section data"),
        (("--data.sequence_length=2",), "data.sequence_length=2: must be at least 8"),
        (("--data.sequence_length=50",), "data.sequence_length=50 exceeds the 40 tokens that the model can read"),
        (("--data.document=paragraf",), "did you mean paragraph"),
        (("--data.max_document_characters=0",), "data.max_document_characters=0: must be at least 1"),
        (("--data.pth=x",), "did you mean data.path"),
        (("--rows=-1",), "--rows=-1: it cannot be negative"),
    ],
)
def test_settings_that_are_invalid_or_without_effect_are_rejected(evaluated, run, options, error):
    assert error in evaluated(run, *options)


def test_a_text_without_a_token_to_predict_is_rejected(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("語語語 語語\n")
    arguments = [f"--data.path={tmp_path / 'a.txt'}", f"--data.cache={run.parent / 'cache'}", "--data.workers=1"]
    assert main(["evaluate", f"--model={run}", *arguments]) == 1
    assert "a.txt: the vocabulary has no token for the words of this text" in capsys.readouterr().err


def test_the_table_fits_a_terminal_and_names_its_protocol(run, text, capsys):
    arguments = [f"--data.path={text}", f"--data.cache={run.parent / 'cache'}", "--data.document=paragraph"]
    assert main(["evaluate", f"--model={run}", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{text}: ")
    assert lines[0].endswith(" masked tokens")
    assert lines[1].split() == ["loss", "(nats)", "perplexity", "accuracy", "top-5", "nats/byte"]
    assert lines[2].split()[0] == "model"
    assert lines[3].split()[0] == "unigram"
    assert len({len(line) for line in lines[1:3]}) == 1  # aligned
    assert lines[4:] == [
        "  masked: 15% of the tokens of whole documents; 12 of 12 are cut after 40 tokens",
        "  unigram: token frequencies of the training text",
    ]
    assert max(map(len, lines[1:])) <= 80


def test_bytes_that_are_unknown_are_left_out(run):
    known = {"loss": 1.0, "perplexity": 2.7, "accuracy": 0.5, "accuracy_top5": 0.6, "unigram_loss": 2.0,
             "unigram_top5": 0.1, "n": 3, "rows": "rows of 8 tokens", "unigram_of": "training text"}  # fmt: skip
    assert "nats/byte" not in describe("a", known | {"nats_per_byte": np.nan})
    assert "0.250" in describe("a", known | {"nats_per_byte": 0.25})


def test_a_model_without_a_head_is_rejected(run, exported):
    trained = load_trained(exported)._replace(has_head=False)
    with pytest.raises(Exception, match="has no masked-LM head"):
        evaluate(trained, {})


def test_a_set_without_masked_tokens_has_no_figures():
    assert describe("a", {"n": 0, "loss": np.nan}) == "a: no masked tokens"


def test_figures_too_long_for_their_column_are_in_scientific_notation():
    known = {"loss": 3e30, "perplexity": np.inf, "accuracy": 0.0, "accuracy_top5": 0.0, "unigram_loss": 800.0,
             "unigram_top5": 0.1, "n": 3, "rows": "rows of 8 tokens", "unigram_of": "training text"}  # fmt: skip
    model, baseline = describe("a", known | {"nats_per_byte": 1e30}).splitlines()[2:4]
    assert model.split() == ["model", "3.00e+30", "inf", "0.0%", "0.0%", "1.00e+30"]
    assert baseline.split() == ["unigram", "800.000", "inf", "10.0%"]


@pytest.mark.parametrize("too_large", ["attention", "decoder bias"])
def test_a_model_whose_outputs_overflow_is_rejected_by_every_verb(run, evaluated, tmp_path, too_large, capsys):
    """Its weights are finite, but too large; `evaluate` would print a top-5 accuracy of 100%."""
    damaged = shutil.copytree(run, tmp_path / "run")
    params = jax.tree.map(np.array, load_trained(run).params)
    if too_large == "attention":
        params["encoder"]["layers_0"]["attention"]["query"]["kernel"] *= 1e25
        params["encoder"]["layers_0"]["attention"]["key"]["kernel"] *= 1e25
    else:
        params["head"]["bias"][:], params["head"]["bias"][5] = -3e38, 3e38
    Checkpoints(damaged / "checkpoints").save(2, {"params": params}, {}, wait=True)
    reason = "is not finite: the model's parameters are damaged or too large"
    assert f"text.txt {reason}" in evaluated(damaged)
    assert main(["score", f"--model={damaged}", "Some text"]) == 1
    assert f"the score of 'Some text' {reason}" in capsys.readouterr().err
    if too_large == "attention":
        assert main(["fill-mask", f"--model={damaged}", "Some [MASK]."]) == 1
        assert f"the prediction for 'Some [MASK].' {reason}" in capsys.readouterr().err
        with pytest.raises(UserError, match=f"the vector of text 1 {reason}"):
            jaxlm.load(damaged).embed(["Some text"])


@pytest.mark.parametrize("changed", ["", "fingerprint", "directory", "tokenizer", "missing"])
def test_held_out_sets_of_another_run_are_rejected(run, text, tmp_path, changed, capsys):
    model = shutil.copytree(run, tmp_path / "run")
    config = load_config(str(run / "config.json"))
    prepared = {}
    for name, words in (("own", "unicode"), ("other", "spaces")):
        with config.unlocked():
            config.data.update(path=(str(text),), max_megabytes=1.0, held_out_fraction=0.5 if name == "own" else 0.4)
            config.tokenizer.update(path=str(run / "tokenizer"), words=words)
        prepared[name] = prepare(config)
    record = {"directory": str(prepared["own"].directory), "fingerprint": prepared["own"].fingerprint}
    if changed == "tokenizer":
        train_tokenizer(sentences(300, seed=1), config.tokenizer, model / "tokenizer")
    record |= {
        "fingerprint": {"fingerprint": prepared["other"].fingerprint},
        "directory": {"directory": str(prepared["other"].directory)},
        "missing": {"directory": str(tmp_path / "nothing")},
    }.get(changed, {})
    (model / "data.json").write_text(json.dumps(record))
    status = main(["evaluate", f"--model={model}", "--rows=1"])
    error = capsys.readouterr().err
    if changed:
        assert status == 1
        what = "are missing: there is no" if changed == "missing" else "does not hold the data that"
        assert what in error
        assert f"run `jaxlm train` in {model} again to prepare them, or give a text with --data.path" in error
    else:
        assert status == 0, error
