"""scripts/compare_pretraining: every model is fine-tuned at one setting, and the reported set chooses nothing."""

import sys

import pytest

from tests.scripts import load_script, write_sick


@pytest.fixture(scope="module")
def script():
    return load_script("compare_pretraining")


@pytest.fixture
def sick(tmp_path):
    return write_sick(tmp_path / "sick")


def test_rates_are_chosen_on_the_selecting_part_and_finished_runs_are_kept(script, sick, tmp_path, monkeypatch):
    made = []

    def fine_tune(task, settings, directory):
        made.append((directory.name, settings["optimizer.learning_rate"], settings["train.seed"]))
        # The rate that is best on the reported set is the worst on the selecting part.
        rate = settings["optimizer.learning_rate"]
        return {
            "score": 0.5 + rate + settings["train.seed"] / 100,
            "selected": 1 - rate,
            "n": 8,
            "steps": 1,
            "seconds": 1,
        }

    monkeypatch.setattr(script, "fine_tune", fine_tune)
    found = {"reported": {"mean": {"pearson": None}, "tfidf_cosine": {"pearson": 0.4}, "tfidf_ridge": {"pearson": 0.3}}}
    monkeypatch.setattr(script, "run", lambda *_, **__: script.json.dumps({"evaluation": found}))
    page = tmp_path / "page.md"
    command = [
        "compare_pretraining", f"--workdir={tmp_path / 'work'}", f"--model=trained={tmp_path}", "--rates=0.2,0.1",
        "--seeds=2", f"--output={page}", f"sick_relatedness={sick}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    assert script.main() == 0
    assert [(rate, seed) for _, rate, seed in made] == [(0.2, 0), (0.1, 0), (0.1, 1)]
    row = "| sick_relatedness (test, 8) | Pearson correlation | 8 |  | 40.0 | 60.5 (60.0 to 61.0) |"
    assert row in page.read_text()
    assert "trained (0.1)" in page.read_text()
    assert script.main() == 0
    assert len(made) == 3


@pytest.mark.parametrize(("options", "message"), [
    (["--model=runs"], "--model=runs: expected NAME=DIR"),
    (["--model=a=/nowhere"], "--model=a=/nowhere: expected NAME=DIR"),
    (["--model=a=.", "--rates=fast"], "--rates=fast: expected numbers"),
    (["--model=a=.", "trecqa=."], "trecqa=.: expected TASK=FOLDER"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(script, sick, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["compare_pretraining", "--workdir=w", *options, f"sick_entailment={sick}"])
    assert script.main() == 1
    assert message in capsys.readouterr().err
