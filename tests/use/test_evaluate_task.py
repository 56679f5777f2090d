import json

import pytest

from jaxlm.cli import main
from tests.conftest import sentences
from tests.untrained import make_fine_tuned, make_workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate_task")
    texts = sentences(20, seed=5)
    labels = ["calm" if number % 3 else "BUSY" for number in range(20)]
    pairs = list(zip(texts, labels, strict=True))
    (folder / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in pairs))
    (folder / "other.csv").write_text("body,class\n" + "".join(f"{text},{label}\n" for text, label in pairs[:9]))
    (folder / "blank.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t\n" for text in texts))
    (folder / "wrong.tsv").write_text("sentence\tlabel\nthe cat\tcalm\nthe cat\tloud\n")
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    sets = {"evaluation": ("dev=dev.tsv",), "test": ("later=blank.tsv",), "data": str(folder)}
    return make_fine_tuned(folder / "classifier", **sets)


def evaluated(capsys, model, *options):
    """Returns the metrics that `jaxlm evaluate --json` prints, or its error."""
    status = main(["evaluate", f"--model={model}", "--json", *options])
    output = capsys.readouterr()
    return json.loads(output.out) if status == 0 else output.err.splitlines()[-1].removeprefix("jaxlm: ")


def test_the_sets_of_a_run_are_evaluated_as_its_predictions_say(classifier, folder, capsys):
    results = evaluated(capsys, classifier)
    assert list(results) == ["dev", "later"]
    assert results["dev"]["n"] == 20
    assert results["later"]["n"] == 0
    assert main(["classify", f"--model={classifier}", f"--input={folder / 'dev.tsv'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    right = [one["label"] == ("calm" if number % 3 else "busy") for number, one in enumerate(found)]
    assert results["dev"]["accuracy"] == sum(right) / 20
    assert results["dev"]["accuracy_error"] == pytest.approx((sum(right) * (20 - sum(right)) / 20**3) ** 0.5)
    assert main(["evaluate", f"--model={classifier}", "--rows=6"]) == 0
    assert f"dev: accuracy {sum(right[:6]) / 6:.2%} ± " in capsys.readouterr().out


def test_other_files_and_columns(classifier, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    whole = evaluated(capsys, classifier)["dev"]
    assert evaluated(capsys, classifier, "--task.evaluation=dev.tsv") == {"evaluation": whole}
    columns = ("--task.text=body", "--task.label=class")
    results = evaluated(capsys, classifier, "--task.evaluation=a=other.csv", *columns)
    assert results["a"]["n"] == 9


def test_predictions_are_written_as_a_run_writes_them(classifier, folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert list(evaluated(capsys, classifier, "--output=out")) == ["dev", "later"]
    for name, file in (("dev", "dev.tsv"), ("later", "blank.tsv")):
        assert main(["classify", f"--model={classifier}", f"--input={folder / file}", f"--output={name}.jsonl"]) == 0
        written, classified = (
            [json.loads(line) for line in (tmp_path / place / f"{name}.jsonl").read_text().splitlines()]
            for place in ("out/predictions", ".")
        )
        labels = [one.pop("gold", None) for one in written]  # that the file has, and the texts alone have not
        assert set(labels) == ({"calm", "busy"} if name == "dev" else {None})
        assert written == classified
    capsys.readouterr()
    assert main(["evaluate", f"--model={classifier}", f"--task.test={folder / 'blank.tsv'}", "--output=out"]) == 0
    assert capsys.readouterr().out == "test: predicted; there are no labels to compare with\n"
    (tmp_path / "out" / "mine.txt").touch()
    assert "--output=out has other files (mine.txt); set a new folder" in evaluated(capsys, classifier, "--output=out")
    assert "there is no folder" in evaluated(capsys, classifier, "--output=absent/out")
    assert "has other files (checkpoints, config.json," in evaluated(capsys, classifier, f"--output={classifier}")


def test_a_file_that_is_not_of_predictions_is_never_replaced(classifier, folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = f"--task.evaluation=dev={folder / 'dev.tsv'}", "--output=out"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions").write_text("mine")
    assert "--output=out has other files (predictions); set a new folder" in evaluated(capsys, classifier, *given)
    (tmp_path / "out" / "predictions").unlink()
    (tmp_path / "out" / "predictions").mkdir()
    for name, content in (("dev.jsonl", '{"sentence": "the cat", "label": "calm"}\n'), ("dev.json", "{}")):
        file = tmp_path / "out" / "predictions" / name
        file.write_text(content)
        message = f"--output=out: out/predictions/{name} exists and does not contain predictions; set a new folder"
        assert message in evaluated(capsys, classifier, *given)
        assert file.read_text() == content
        file.unlink()
    for _ in range(2):  # those of an earlier command are replaced
        assert evaluated(capsys, classifier, *given)["dev"]["n"] == 20


def test_submissions_of_glue_and_squad(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tthe cat\ngj04\t0\t*\ta river\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n5\tthe cat\n9\ta river\n")
    cola = make_fine_tuned(folder / "cola", labels=("0", "1"), name="cola", evaluation=("dev=dev.tsv",), text=("3",),
                           label="1", header=False, data=str(tmp_path))  # fmt: skip
    assert "name their folder with --output=DIR" in evaluated(capsys, cola, "--task.submission=true")
    rows = evaluated(capsys, cola, "--task.submission=true", "--output=cola", "--rows=1")
    assert "--rows=1 leaves rows out of a submission" in rows
    assert list(evaluated(capsys, cola, "--task.submission=true", "--output=cola")) == ["dev", "test"]
    lines = [line.split("\t") for line in (tmp_path / "cola/submission/CoLA.tsv").read_text().splitlines()]
    assert [line[0] for line in lines] == ["index", "5", "9"]
    assert {line[1] for line in lines[1:]} <= {"0", "1"}

    qas = [{"id": "a", "question": "who?", "answers": [{"text": "The", "answer_start": 0}]},
           {"id": "b", "question": "why?", "answers": [], "is_impossible": True}]  # fmt: skip
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "The cat.", "qas": qas}]}]}))
    reader = make_fine_tuned(folder / "reader", "span", (), stride=8)
    evaluated(capsys, reader, "--task.evaluation=dev=dev.json", "--task.submission=true", "--output=squad")
    found = [json.loads(line) for line in (tmp_path / "squad/predictions/dev.jsonl").read_text().splitlines()]
    answers = json.loads((tmp_path / "squad/predictions/dev.json").read_text())
    assert answers == {one["id"]: one["text"] for one in found}
    odds = json.loads((tmp_path / "squad/predictions/dev.null_odds.json").read_text())
    assert list(odds) == ["a", "b"]
    assert all((odds[one["id"]] > 0) == (one["text"] == "") for one in found)  # the threshold of such a set is 0


def test_files_of_a_known_task_that_are_not_evaluated_may_be_absent(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.tsv").write_text("sentence\tlabel\nthe cat\tcalm\n")
    model = make_fine_tuned(folder / "sst2", name="sst2", evaluation=("dev=dev.tsv",), data="absent")
    assert evaluated(capsys, model, "--task.evaluation=new.tsv")["evaluation"]["n"] == 1
    assert evaluated(capsys, model).startswith("absent/dev.tsv does not exist: set --task.evaluation")


def test_an_unknown_label_names_no_setting_that_is_refused(classifier, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert evaluated(capsys, classifier, "--task.evaluation=wrong.tsv").endswith("; fix the row, or set task.label")


def test_invalid_options_are_one_sentence(classifier, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    bare = make_fine_tuned(folder / "bare")
    masked = make_workdir(folder / "masked")
    for model, options, message in [
        (classifier, ["--task.evaluation=none.tsv"], "none.tsv does not exist: set --task.evaluation to the file"),
        (classifier, ["--task.evaluation=wrong.tsv"], "wrong.tsv, line 3: the label loud in label is not one of calm"),
        (
            classifier,
            ["--task.evaluation=blank.tsv"],
            "blank.tsv: no example has a label in label; set --task.label, or give the file",
        ),
        (classifier, ["--task.text=absent"], "there is no column absent; the columns are sentence, label"),
        (classifier, ["--task.text=a,b"], "reads 1 text of each row; name 1 column, such as sentence"),
        (classifier, ["--task.metric=f1"], "--task.metric has no effect on the evaluation of a fine-tuned model"),
        (classifier, ["--task.labels=a,b"], "--task.labels has no effect on the evaluation of a fine-tuned model"),
        (classifier, ["--task.txet=a"], "there is no setting task.txet; did you mean task.text?"),
        (classifier, ["--no-whole-documents"], "--whole-documents has no effect on labelled examples"),
        (classifier, ["--data.path=a"], "no masked-LM loss; evaluate it on labelled examples, with --task.evaluation"),
        (bare, [], "has no evaluation set; give a file with --task.evaluation=FILE"),
        (classifier, ["--task.submission=true"], "task.submission: this task has no format of submissions"),
        (masked, ["--output=out"], "--output is for the predictions of a fine-tuned model on labelled examples"),
        (masked, ["--task.evaluation=dev.tsv"], "--task.evaluation is for a model that was fine-tuned on labelled"),
    ]:
        assert message in evaluated(capsys, model, *options)
