"""scripts/compare_regularization: the settings of its runs, what is repeated, the paired difference, and the table."""

import json
import math
from argparse import Namespace

import pytest

from jaxlm.config import load_config
from jaxlm.errors import UserError
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("compare_regularization")


@pytest.fixture
def arguments(tmp_path):
    data, model = tmp_path / "sick", tmp_path / "model"
    data.mkdir()
    model.mkdir()
    (model / "config.json").write_text("{}")
    for name in ("train", "trial", "test"):
        (data / f"{name}.tsv").write_text("sentence_A\tsentence_B\tentailment_judgment\n" + "a\tb\tNEUTRAL\n" * 30)
    (tmp_path / "part.tsv").write_text("part\n")
    return Namespace(
        model=str(model), data=data, workdir=tmp_path / "runs", mask_model="MASK", variants="", examples=20, epochs=2.0,
        seeds=2, output=tmp_path / "doc.md", train=tmp_path / "part.tsv",
        halves={"layers": 2, "heads": 2, "units": 512},
    )  # fmt: skip


def test_each_run_is_the_baseline_with_one_thing_more(script, arguments):
    baseline = load_config("finetune", script.overrides_of(script.VARIANTS[0], 3, arguments))
    assert baseline.train.seed == 3
    assert (baseline.model.dropout, baseline.optimizer.weight_decay, baseline.evaluation.select) == (0, 0, "none")
    assert len({variant.name for variant in script.VARIANTS}) == len(script.VARIANTS)
    for variant in script.VARIANTS[1:]:
        config = load_config("finetune", script.overrides_of(variant, 3, arguments))
        changed = {
            f"{section}.{name}" for section in baseline for name in baseline[section]
            if config[section][name] != baseline[section][name]
        }  # fmt: skip
        named = {setting.partition("=")[0] for setting in variant.settings}
        implied = {"task.replace_model"} if variant.needs == "mask_model" else set()
        implied |= {"task.evaluation"} if variant.name == "early stopping" else set()
        assert changed - implied <= named
        assert changed
        assert "test=" in config.task.evaluation[-1]
        assert config.evaluation.select in ("none", "trial")


def test_a_result_counts_only_for_the_same_settings_and_data(script, arguments, tmp_path):
    overrides = script.overrides_of(script.VARIANTS[1], 0, arguments)
    identity, file = script.identity_of(overrides, arguments), tmp_path / "result.json"
    assert script.finished(file, identity) is None
    file.write_text('{"identity": ')
    assert script.finished(file, identity) is None
    file.write_text(json.dumps({"identity": identity, "seed": 0}))
    assert script.finished(file, identity) == {"identity": identity, "seed": 0}
    assert script.finished(file, script.identity_of([*overrides, "train.seed=1"], arguments)) is None
    arguments.train.write_text("other rows\n")
    assert script.finished(file, script.identity_of(overrides, arguments)) is None


def result(script, variant, seed, accuracy):
    return {
        "variant": variant.name, "seed": seed, "settings": list(variant.settings), "steps": 4, "parameters": 22_000_000,
        "test": {"accuracy": accuracy, "n": 4927}, "last_training_loss": 0.1, "seconds": 3.0,
        "examples_per_second": 210.0,
    }  # fmt: skip


def test_runs_are_made_once_in_order_and_the_table_has_paired_differences(script, arguments, monkeypatch):
    variants = [variant for variant in script.VARIANTS if variant.name in ("baseline", "dropout") or variant.needs]
    accuracies, made = {"baseline": (0.70, 0.74), "dropout": (0.72, 0.75)}, []

    def run(variant, seed, overrides, workdir):
        made.append((variant.name, seed))
        directory = script.run_directory(workdir, variant, seed)
        (directory / "checkpoints" / "4").mkdir(parents=True)
        if variant.needs == "teacher":
            teacher = next(one for one in overrides if one.startswith("task.teacher=")).partition("=")[2]
            assert teacher == str(script.run_directory(workdir, script.VARIANTS[0], seed))
            assert script.has_checkpoint(workdir, script.VARIANTS[0], seed)
        return result(script, variant, seed, accuracies.get(variant.name, (0.7, 0.7))[seed])

    monkeypatch.setattr(script, "run", run)
    script.all_results(variants, arguments)
    assert made == [(variant.name, seed) for seed in (0, 1) for variant in variants]
    assert not any((arguments.workdir / "runs").iterdir())
    content = json.loads((arguments.workdir / "results.json").read_text())
    assert len(content["runs"]) == 2 * len(variants)
    text = arguments.output.read_text()
    assert "| baseline |  | 72.00% |  | 22.0 M | 210 | 0.100 |" in text
    assert "| dropout | `model.dropout=0.1` `model.attention_dropout=0.1` | 73.50% | +1.50 ± 0.50 |" in text
    assert "2 seeds; accuracy on the 4,927 rows" in text
    script.all_results(variants, arguments)
    assert len(made) == 2 * len(variants)


def test_the_standard_error_of_one_difference_is_not_known(script):
    one = {0: {"test": {"accuracy": 0.5}}}
    difference, error = script.paired(one, {0: {"test": {"accuracy": 0.25}}})
    assert difference == 0.25
    assert math.isnan(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": "dropout,nothing"}, "--variants: there is no nothing; the variants are baseline; dropout"),
        ({"seeds": 0}, "--seeds=0: must be at least 1"),
        ({"examples": 0}, "--examples=0: must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_runs(script, arguments, changes, message):
    vars(arguments).update(changes)
    with pytest.raises(UserError, match=message):
        script.check(arguments)
    (arguments.data / "trial.tsv").unlink()
    vars(arguments).update(variants="", seeds=1, examples=20)
    with pytest.raises(UserError, match=r"has no trial\.tsv; name the folder of SICK"):
        script.check(arguments)
