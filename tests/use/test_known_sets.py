"""`jaxlm evaluate --tasks=sst2`: the metrics of known tasks are those of their files, and other models are refused."""

import json

import pytest

from jaxlm.cli import main
from tests.untrained import make_fine_tuned, make_workdir

ROWS = [("the cat sees the house", 1), ("a river", 0), ("the old captain carries a letter", 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    (folder / "SST-2").mkdir()
    (folder / "SST-2" / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t{n}\n" for text, n in ROWS))
    (folder / "cola").mkdir()
    (folder / "cola" / "dev.tsv").write_text("".join(f"a\t{n}\t*\t{text}\n" for text, n in ROWS))
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return make_fine_tuned(tmp_path_factory.mktemp("model") / "run", "classification", ("0", "1"))


def evaluated(capsys, model, *options):
    status = main(["evaluate", f"--model={model}", *options, "--json"])
    output = capsys.readouterr()
    return json.loads(output.out) if status == 0 else output.err.splitlines()[-1].removeprefix("jaxlm: ")


def test_a_known_task_is_read_from_the_folder_or_one_in_it_by_either_name(classifier, folder, capsys):
    found = evaluated(capsys, classifier, "--tasks=cola,sst2", f"--data={folder}")
    assert list(found) == ["cola", "sst2"]
    assert found["cola"] == found["sst2"]  # the same rows: without a header, and with one
    assert evaluated(capsys, classifier, "--tasks=sst2", f"--data={folder / 'SST-2'}") == {"sst2": found["sst2"]}
    by_file = evaluated(
        capsys, classifier, f"--task.evaluation=dev={folder / 'SST-2' / 'dev.tsv'}", "--task.label=label"
    )
    assert found["sst2"] == by_file
    assert found["sst2"]["dev"]["n"] == 3
    one = evaluated(capsys, classifier, "--tasks=sst2", f"--data={folder}", "--rows=1")
    assert one["sst2"]["dev"]["n"] == 1
    assert main(["evaluate", f"--model={classifier}", "--tasks=sst2", f"--data={folder}"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"sst2: {folder / 'SST-2'}\ndev")
    assert "n = 3" in shown


def test_what_does_not_fit_is_one_sentence(classifier, folder, capsys, tmp_path):
    def error(model, *options):
        return evaluated(capsys, model, f"--data={folder}", *options)

    missing = f"{folder / 'dev_matched.tsv'}, {folder / 'dev_mismatched.tsv'}"
    assert error(classifier, "--tasks=mnli") == f"--tasks=mnli needs {missing}; name the folder with --data"
    (folder / "dev-v1.1.json").write_text("{}")
    assert "was fine-tuned with train.objective=classification, and squad needs a model" in error(
        classifier, "--tasks=squad"
    )
    (folder / "dev-v1.1.json").unlink()
    assert "--variant has no effect on sst2: remove it" in error(classifier, "--tasks=sst2", "--variant=original")
    other = make_fine_tuned(tmp_path / "other", "classification", ("calm", "busy"))
    assert "SST-2/dev.tsv, line 2" in error(other, "--tasks=sst2")
    masked = make_workdir(tmp_path / "masked")
    assert error(masked, "--tasks=sst2").startswith(f"{masked} was not fine-tuned, and sst2 needs a model that was")
    both = error(masked, "--tasks=sst2,cloze")
    assert "cloze" in both
