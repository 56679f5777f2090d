import json

import numpy as np
import pytest

from jaxlm.cli import main
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
    from jaxlm.evaluation.held_out import describe

    known = {"loss": 1.0, "perplexity": 2.7, "accuracy": 0.5, "accuracy_top5": 0.6, "unigram_loss": 2.0,
             "unigram_top5": 0.1, "n": 3, "rows": "rows of 8 tokens", "unigram_of": "training text"}  # fmt: skip
    assert "nats/byte" not in describe("a", known | {"nats_per_byte": np.nan})
    assert "0.250" in describe("a", known | {"nats_per_byte": 0.25})


def test_a_model_without_a_head_is_rejected(run, exported):
    trained = load_trained(exported)._replace(has_head=False)
    with pytest.raises(Exception, match="has no masked-LM head"):
        evaluate(trained, {})
