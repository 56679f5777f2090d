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


def test_invalid_options_are_one_sentence(classifier, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    bare = make_fine_tuned(folder / "bare")
    masked = make_workdir(folder / "masked")
    for model, options, message in [
        (classifier, ["--task.evaluation=none.tsv"], "none.tsv does not exist: set --task.evaluation to the file"),
        (classifier, ["--task.evaluation=wrong.tsv"], "wrong.tsv, line 3: the label loud in label is not one of calm"),
        (classifier, ["--task.evaluation=blank.tsv"], "blank.tsv: no example has a label in label; set --task.label"),
        (classifier, ["--task.text=absent"], "there is no column absent; the columns are sentence, label"),
        (classifier, ["--task.metric=f1"], "--task.metric has no effect on the evaluation of a fine-tuned model"),
        (classifier, ["--task.labels=a,b"], "--task.labels has no effect on the evaluation of a fine-tuned model"),
        (classifier, ["--task.txet=a"], "there is no setting task.txet; did you mean task.text?"),
        (classifier, ["--no-whole-documents"], "--whole-documents has no effect on labelled examples"),
        (classifier, ["--data.path=a"], "no masked-LM loss; evaluate it on labelled examples, with --task.evaluation"),
        (bare, [], "has no evaluation set; give a file with --task.evaluation=FILE"),
        (masked, ["--task.evaluation=dev.tsv"], "--task.evaluation is for a model that was fine-tuned on labelled"),
    ]:
        assert message in evaluated(capsys, model, *options)
