import io
import json

import pytest

from jaxlm.cli import main
from jaxlm.errors import UserError
from jaxlm.use.model import load
from tests.conftest import sentences
from tests.untrained import make_fine_tuned, make_workdir

TEXTS = [*sentences(12, seed=3), "", "The cat sees the house " * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("classify")


@pytest.fixture(scope="module")
def classifier(folder):
    return make_fine_tuned(folder / "classifier")


@pytest.fixture(scope="module")
def pairs(folder):
    return make_fine_tuned(folder / "pairs", "regression", (), text=("first", "second"), label="score")


def printed(capsys, model, *options, verb="classify"):
    """Returns what a verb prints, or its error."""
    status = main([verb, f"--model={model}", *options])
    output = capsys.readouterr()
    return output.out if status == 0 else output.err.splitlines()[-1].removeprefix("jaxlm: ")


def test_a_line_is_a_label_its_probability_and_the_text(classifier, capsys):
    output = printed(capsys, classifier, *TEXTS[:2])
    found = load(classifier).classify(TEXTS[:2])
    assert output == "".join(
        f"{one['probability']:6.1%}  {one['label']}  {text}\n" for one, text in zip(found, TEXTS, strict=False)
    )
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1)
    assert found[0]["probability"] == max(found[0]["probabilities"].values())
    assert list(found[0]["probabilities"]) == ["calm", "busy"]


def test_texts_standard_input_and_files_give_the_same_in_order(classifier, tmp_path, capsys, monkeypatch, caplog):
    expected = load(classifier).classify(TEXTS)
    assert "the texts: 1 of 14 examples are longer than 40 tokens and are truncated" in caplog.text
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "a.tsv").write_text("label\tsentence\n" + "".join(f"unheard\t{text}\n" for text in TEXTS))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    (tmp_path / "bare.tsv").write_text("".join(f"x\t{text}\n" for text in TEXTS))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    sources = [(), (f"--input={tmp_path / 'a.txt'}",), (f"--input={tmp_path / 'a.tsv'}",),
               (f"--input={tmp_path / 'a.jsonl'}", "--field=body"),
               (f"--input={tmp_path / 'bare.tsv'}", "--field=1", "--no-header")]  # fmt: skip
    for source in sources:
        found = json.loads(printed(capsys, classifier, "--json", *source))["predictions"]
        assert [one.pop("text") for one in found] == TEXTS
        assert found == expected


def test_pairs_are_separated_by_a_tab_or_in_two_columns(pairs, tmp_path, capsys):
    expected = load(pairs).classify([("the cat", "sees it"), ("a river", "")])
    assert [list(one) for one in expected] == [["value"]] * 2
    (tmp_path / "a.csv").write_text("second,first\nsees it,the cat\n,a river\n")
    for source in (("the cat\tsees it", "a river\t"), (f"--input={tmp_path / 'a.csv'}",)):
        found = json.loads(printed(capsys, pairs, "--json", *source))["predictions"]
        assert [one["text"] for one in found] == [["the cat", "sees it"], ["a river", ""]]
        assert [one["value"] for one in found] == [one["value"] for one in expected]
    assert printed(capsys, pairs, "the cat\tsees it") == f"{expected[0]['value']:10.4f}  the cat | sees it\n"
    message = "expected two texts separated by one tab, since the model was trained on pairs (first and second)"
    assert f"text 1: {message}, but there are 0 tabs" in printed(capsys, pairs, "the cat")
    assert f"text 2: {message}, but there are 2 tabs" in printed(capsys, pairs, "a\tb", "a\tb\tc")
    with pytest.raises(UserError, match="text 1 must be a pair of str, since the model was trained on pairs"):
        load(pairs).classify(["the cat"])


def test_several_labels_are_those_above_one_half(folder, capsys):
    model = make_fine_tuned(folder / "multi", "multi_label", ("a", "b", "c"))
    found = json.loads(printed(capsys, model, "--json", *TEXTS[:5]))["predictions"]
    for one in found:
        assert one["labels"] == [name for name, share in one["probabilities"].items() if share > 0.5]
    lines = printed(capsys, model, *TEXTS[:5]).splitlines()
    shown = ", ".join(f"{name} {found[0]['probabilities'][name]:.1%}" for name in found[0]["labels"])
    assert lines[0] == f"{shown or '(no label)'}  {TEXTS[0]}"


def test_no_texts_give_no_predictions(classifier, capsys, monkeypatch):
    assert load(classifier).classify([]) == []
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert printed(capsys, classifier) == ("no text given: pass it as an argument, with --input, or on standard input")


def test_python_takes_lists_of_texts(classifier):
    model = load(classifier)
    for wrong in ("the cat", 3):
        with pytest.raises(UserError, match="texts must be a list of str, or of pairs of str"):
            model.classify(wrong)
    for wrong in ([("a", "b")], [["a", 3]]):
        with pytest.raises(UserError, match="text 1 must be a str"):
            model.classify(wrong)


def test_other_models_are_refused(folder, classifier, capsys):
    masked = make_workdir(folder / "masked")
    assert printed(capsys, masked, "the cat") == (
        f"{masked} is a masked language model; classify needs a model that was fine-tuned with train.objective="
        "classification, multi_label, regression or template, as `jaxlm train --config=finetune` does"
    )
    with pytest.raises(UserError, match="is a masked language model; classify needs"):
        load(masked).classify(["the cat"])
    assert printed(capsys, classifier, "the cat", verb="tag") == (
        f"{classifier} was fine-tuned with train.objective=classification; tag needs a model that was fine-tuned with "
        "train.objective=tagging: use `jaxlm classify`"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input=/nowhere.tsv"], "there is no file or folder /nowhere.tsv; check the path"),
        (["--input=a.tsv", "the cat"], "give either texts or --input, not both"),
        (["--field=a", "the cat"], "--field applies to the file of --input, which is not given"),
        (["--no-header", "the cat"], "--header applies to the file of --input, which is not given"),
        (["--input=a.tsv", "--field=absent"], "there is no column absent; the columns are sentence: set --field"),
        (["--input=a.txt", "--field=text"], "--field has no effect on text files, as a.txt is: remove it"),
        (["--input=a.odd"], "set the format, for example --format=text"),
        (["--input=empty.txt"], "empty.txt contains no text"),
        (
            ["--output=a.npy", "the cat"],
            "--output=a.npy: the name must end in .jsonl, .csv, .tsv, .parquet, which sets the format",
        ),
        (["--input=a.jsonl", "--output=a.jsonl"], "--output=a.jsonl is the input; set another file"),
        (["--output=a.jsonl", "the cat"], "--output=a.jsonl exists and does not contain predictions"),
        (["--step=7", "the cat"], "there is no checkpoint 7 in"),
    ],
)
def test_invalid_options_are_one_sentence(classifier, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    for name, content in {"a.tsv": "sentence\nthe cat\n", "a.txt": "the cat\n", "a.odd": "the cat\n", "empty.txt": "",
                          "a.jsonl": '{"sentence": "the cat"}\n'}.items():  # fmt: skip
        (tmp_path / name).write_text(content)
    assert message in printed(capsys, classifier, *options)
    assert (tmp_path / "a.jsonl").read_text() == '{"sentence": "the cat"}\n'
