"""Fine-tuning by the same loop as pretraining: a classifier from an encoder, resumed, and its best checkpoint."""

import json
import random
import re

import jax
import numpy as np
import pytest

from jaxlm import cli
from jaxlm.config import load_config
from jaxlm.errors import UserError
from jaxlm.evaluation.calibration import AT_COVERAGE, read_calibration
from jaxlm.evaluation.sequences import softmax
from jaxlm.init_from import resolve
from jaxlm.model.heads import encode
from jaxlm.run import set_up
from jaxlm.runtime.checkpoint import Checkpoints
from jaxlm.runtime.run_log import read_metrics
from jaxlm.trainer import train
from jaxlm.use.loading import load_trained
from tests.conftest import OBJECTS, ROOT, SUBJECTS, VERBS, predictions_of

FINETUNE = str(ROOT / "configs" / "finetune.py")


def write_table(path, count, seed):
    """Writes sentences labelled by their verb: a rule that a small model learns in seconds."""
    rng = random.Random(seed)
    lines = ["sentence\tlabel"]
    for _ in range(count):
        verb = rng.choice(VERBS)
        lines.append(f"{rng.choice(SUBJECTS)} {verb} {rng.choice(OBJECTS)}\t{'calm' if verb < 'e' else 'busy'}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def encoder(mini, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("encoder")
    train(mini("train.steps=3", "model.dropout=0", "model.attention_dropout=0"), workdir)
    return workdir


@pytest.fixture
def classify(encoder, tmp_path):
    """Returns the config of finetune.py from the encoder on made-up sentences, with overrides."""
    from jaxlm.init_from import start_settings

    files = [write_table(tmp_path / f"{name}.tsv", count, seed) for seed, (name, count) in
             enumerate([("train", 300), ("dev", 60), ("other", 20)])]  # fmt: skip

    def make(*overrides):
        settings = [
            f"init_from={encoder}", f"task.train={files[0]}", f"task.evaluation=dev={files[1]},other={files[2]}",
            "model.dropout=0", "model.attention_dropout=0", "data.sequence_length=32", "train.batch_size=16",
            "train.epochs=none", "train.steps=60", "evaluation.every=20", "checkpoint.every=20",
            "evaluation.per_epoch=0",
            "optimizer.learning_rate=0.005", "logging.tensorboard=false", "logging.curve=false", "logging.every=10",
            "train.compute_dtype=float32", "schedule.name=constant", "schedule.warmup=0",
        ]  # fmt: skip
        return load_config(FINETUNE, [*settings, *overrides], start_settings)

    return make


@pytest.mark.slow
def test_a_classifier_learns_and_its_best_checkpoint_is_that_of_the_highest_accuracy(classify, tmp_path, capsys):
    result = train(classify(), tmp_path / "run")
    assert result["evaluation"]["dev"]["n"] == 60
    assert result["evaluation"]["other"]["n"] == 20
    assert result["evaluation"]["dev"]["accuracy"] > 0.9
    shown = capsys.readouterr().out
    assert "dev: accuracy" in shown
    assert re.search(r"nats per example; the most frequent label alone \d\d\.\d\d%; n = 60", shown)
    assert re.search(r"best checkpoint: .*step \d+, with the highest accuracy on selection, ", shown)
    events = [e for e in read_metrics(tmp_path / "run") if e["kind"] == "evaluation" and e["name"] == "selection"]
    assert [e["step"] for e in events] == [0, 20, 40, 60]
    accuracies = {e["step"]: e["accuracy"] for e in events if e["step"]}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", higher_is_better=True)
    assert checkpoints.newest() == 60
    best = max(accuracies, key=lambda step: (accuracies[step], -step))
    assert (tmp_path / "run" / "checkpoints" / str(best)).exists()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["task"]["labels"] == ["busy", "calm"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["evaluation"]["dev"] == result["evaluation"]["dev"]
    assert results["protocol"]["step"] == best
    assert results["protocol"]["selected_by"] == "highest accuracy on selection"
    lines = (tmp_path / "run" / "predictions" / "dev.jsonl").read_text().splitlines()
    answers = [json.loads(line)["label"] for line in lines]
    wanted = [line.split("\t")[1] for line in (tmp_path / "dev.tsv").read_text().splitlines()[1:]]
    calibration = read_calibration(tmp_path / "run", best)
    assert calibration["fitted_on"] == "selection"
    assert calibration["n"] == events[0]["n"]
    assert {"ece", "brier", "calibrated_ece", AT_COVERAGE} <= results["evaluation"]["dev"].keys()
    assert "temperature" in shown
    right = np.mean([answer == label for answer, label in zip(answers, wanted, strict=True)])
    assert right == pytest.approx(result["evaluation"]["dev"]["accuracy"])


@pytest.mark.slow
def test_the_report_is_that_of_the_best_checkpoint_and_patience_ends_a_run(classify, tmp_path, capsys):
    # A learning rate that destroys the model after the first evaluation.
    settings = ("optimizer.learning_rate=1.0", "optimizer.clip_norm=0", "evaluation.every=2", "evaluation.patience=3")
    result = train(classify("train.steps=40", "checkpoint.every=100", *settings), tmp_path / "run")
    assert result["step"] < 40
    assert "stopping early: 3 evaluations without a better one" in capsys.readouterr().out
    best = json.loads((tmp_path / "run" / "results.json").read_text())["protocol"]["step"]
    assert result["step"] == best + 6
    events = [e for e in read_metrics(tmp_path / "run") if e["kind"] == "evaluation" and e["name"] == "dev"]
    assert events[-1]["step"] == best
    again = train(classify("train.steps=40", "checkpoint.every=100", *settings), tmp_path / "run")
    assert again["step"] == result["step"]
    assert again["params_sha256"] == result["params_sha256"]


@pytest.mark.slow
def test_a_resumed_classifier_ends_with_the_same_bits(classify, tmp_path):
    dropout = ("model.dropout=0.1", "model.attention_dropout=0.1", "evaluation.every=0", "checkpoint.every=5")
    whole = train(classify("train.steps=12", *dropout), tmp_path / "whole")
    train(classify("train.steps=7", *dropout), tmp_path / "parts")
    parts = train(classify("train.steps=12", *dropout), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]


@pytest.mark.slow
def test_accumulation_changes_a_classifier_by_rounding_only(classify, tmp_path):
    losses = []
    for accumulate in (1, 2):
        settings = (f"train.accumulate={accumulate}", "train.steps=6", "logging.every=1", "evaluation.every=0")
        train(classify(*settings), tmp_path / str(accumulate))
        events = read_metrics(tmp_path / str(accumulate))
        losses.append([e["loss"] for e in events if e["kind"] == "train"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_changed_training_data_are_refused(classify, tmp_path):
    train(classify("train.steps=2", "evaluation.every=0"), tmp_path / "run")
    write_table(tmp_path / "train.tsv", 300, 9)
    with pytest.raises(UserError, match="the data have changed since"):
        train(classify("train.steps=4", "evaluation.every=0"), tmp_path / "run")


@pytest.mark.slow
def test_a_classifier_embeds_but_has_no_masked_lm_head(classify, tmp_path, capsys):
    train(classify("train.steps=2", "evaluation.every=0"), tmp_path / "run")
    assert "`jaxlm export` will" not in capsys.readouterr().out
    trained = load_trained(tmp_path / "run")
    assert not trained.has_head
    assert trained.params.keys() == {"encoder"}
    assert cli.main(["fill-mask", f"--model={tmp_path / 'run'}", "the cat [MASK]"]) == 1
    assert "has no masked-LM head" in capsys.readouterr().err
    text = f"--data.path={tmp_path / 'dev.tsv'}"
    assert cli.main(["evaluate", f"--model={tmp_path / 'run'}", text, "--data.field=sentence"]) == 1
    assert "has no masked-LM head, so it has no masked-LM loss" in capsys.readouterr().err


@pytest.mark.slow
def test_a_classifier_is_exported_and_fine_tuning_goes_on_from_it(classify, tmp_path, capsys, caplog):
    result = train(classify("train.steps=40", "task.dropout=0.25"), tmp_path / "run")
    out = tmp_path / "out"
    assert cli.main(["export", f"--workdir={tmp_path / 'run'}", f"--to={out}"]) == 0
    shown = capsys.readouterr().out
    assert f"load it with AutoModelForSequenceClassification.from_pretrained('{out}')" in shown
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["ModernBertForSequenceClassification"]
    assert config["id2label"] == {"0": "busy", "1": "calm"}
    assert config["problem_type"] == "single_label_classification"
    assert (config["classifier_pooling"], config["classifier_dropout"]) == ("mean", 0.25)

    results = json.loads((tmp_path / "run" / "results.json").read_text())
    best, card = results["protocol"]["step"], (out / "README.md").read_text()
    assert load_trained(tmp_path / "run").step == best  # and not the last one
    assert "This is a classifier of texts with the `modernbert` architecture" in card
    assert f"those of step {best} of 40, which was chosen by the highest accuracy on selection." in card
    assert f"| dev | 60 | {results['evaluation']['dev']['loss']:.4f} |" in card
    assert str(tmp_path) not in card
    if best == result["step"]:
        assert result["params_sha256"] in card

    events = [e for e in read_metrics(tmp_path / "run") if e["kind"] == "evaluation" and e["name"] == "selection"]
    before = next(e for e in events if e["step"] == best)
    settings = (f"init_from={out}", "task.dropout=0.25", "train.steps=1")
    train(classify(*settings), tmp_path / "on", resolve(str(out)))
    after = next(e for e in read_metrics(tmp_path / "on") if e["kind"] == "evaluation" and e["name"] == "selection")
    assert (after["step"], after["accuracy"]) == (0, before["accuracy"])
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)
    assert "new head" not in caplog.text

    for name in ("train", "dev", "other"):
        (tmp_path / f"{name}.tsv").write_text((tmp_path / f"{name}.tsv").read_text().replace("calm", "quiet"))
    train(classify(f"init_from={out}", "train.steps=1"), tmp_path / "other", resolve(str(out)))
    assert "was trained for other labels (busy, calm, not busy, quiet): a new head is initialized" in caplog.text


@pytest.mark.slow
def test_a_head_that_no_family_has_is_announced_and_left_out(classify, tmp_path, capsys, caplog):
    train(classify("train.steps=2", "evaluation.every=0", "task.head=bert"), tmp_path / "run")
    lacking = "ModernBertForSequenceClassification lacks the layers of task.head=bert"
    announced = f"`jaxlm export` will write the encoder of this model without its head: {lacking}"
    assert announced in capsys.readouterr().out
    assert cli.main(["export", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    assert f"exported without its head: {lacking}" in caplog.text
    assert f"load it with AutoModel.from_pretrained('{tmp_path / 'out'}')" in capsys.readouterr().out
    tokens = np.arange(5, 25, dtype=np.int32)[None]
    states = [
        encode(model.model, model.params, tokens) for model in map(load_trained, (tmp_path / "run", tmp_path / "out"))
    ]
    np.testing.assert_allclose(*states, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "This is a text encoder with" in card
    assert "They need the head of the task, which is not part of this directory." in card
    assert "| dev |" in card
    assert "| masking |" not in card


@pytest.mark.slow
def test_a_run_that_started_from_a_transformers_directory_is_resumed_by_the_same_command(classify, tmp_path):
    from jaxlm.run import load_run_config
    from jaxlm.use.export import export

    train(classify("train.steps=2", "evaluation.every=0", "task.dropout=0.25"), tmp_path / "first")
    export(tmp_path / "first", tmp_path / "checkpoint")
    config = classify("train.steps=2", "evaluation.every=0")
    given = [f"init_from={tmp_path / 'checkpoint'}", "train.steps=3"]
    for _ in range(2):
        resolved, start = load_run_config(config, given, tmp_path / "run")
        assert (resolved.task.head, resolved.task.pooling, resolved.task.dropout) == ("modernbert", "mean", 0.25)
        result = train(resolved, tmp_path / "run", start)
    assert result["step"] == 3


@pytest.mark.slow
def test_pretraining_goes_on_from_a_classifier_with_a_new_head(classify, mini, tmp_path, caplog):
    train(classify("train.steps=2", "evaluation.every=0"), tmp_path / "classifier")
    start = resolve(str(tmp_path / "classifier"))
    settings = (f"model.init_from={tmp_path / 'classifier'}", f"tokenizer.path={start.tokenizer['path']}")
    config = mini("train.steps=1", *settings)
    result = train(config, tmp_path / "on", start)
    assert "has no masked-LM head: a new head is initialized" in caplog.text
    assert result["evaluation"]["held_out"]["n"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.train=/nowhere.tsv", "/nowhere.tsv does not exist: set task.train"),
        ("task.text=absent", "there is no column absent; the columns are sentence, label"),
        ("task.label=absent", "there is no column absent; the columns are sentence, label: set task.label"),
    ],
)
def test_bad_tasks_are_one_sentence(classify, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train(classify(override), tmp_path / "run")


def test_a_classifier_needs_an_encoder(tmp_path, capsys):
    table = write_table(tmp_path / "a.tsv", 10, 0)
    command = ["train", f"--config={FINETUNE}", f"--config.task.train={table}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(command) == 1
    assert "this config starts from a trained model: set --config.init_from=DIR" in capsys.readouterr().err


def write_sst2(folder):
    """Writes made-up sentences as the files of SST-2, and returns their folder."""
    folder.mkdir()
    for seed, (name, count) in enumerate([("train", 200), ("dev", 40)]):
        write_table(folder / f"{name}.tsv", count, seed)
    lines = (folder / "dev.tsv").read_text().splitlines()[1:]
    tested = [f"{number}\t{line.partition(chr(9))[0]}" for number, line in enumerate(lines)]
    (folder / "test.tsv").write_text("\n".join(["index\tsentence", *tested]) + "\n")
    return folder


@pytest.mark.slow
def test_a_known_task_ends_with_its_protocol_and_glue_submission_and_is_an_intermediate_task(encoder, tmp_path):
    from jaxlm.init_from import start_settings

    def run(spec, name, start, *overrides):
        settings = [
            f"init_from={start}", "data.sequence_length=32", "train.batch_size=20", "logging.tensorboard=false",
            "logging.curve=false", "train.compute_dtype=float32", "train.epochs=1", "evaluation.per_epoch=1",
        ]  # fmt: skip
        config = load_config(spec, [*settings, *overrides], start_settings)
        train(config, tmp_path / name)
        return json.loads((tmp_path / name / "results.json").read_text())

    folder = write_sst2(tmp_path / "SST-2")
    results = run("finetune:sst2", "run", encoder, f"task.data={folder}", "task.submission=true", "train.seed=3")
    assert results["evaluation"].keys() == {"dev", "test"}
    assert results["evaluation"]["test"]["n"] == 0
    protocol = results["protocol"]
    assert protocol["task"] == "sst2"
    assert protocol["intermediate_task"] is None
    assert protocol["init_from"] == str(encoder)
    assert protocol["seeds"] == {"init": 3, "data": 3, "masks": 3}
    assert protocol["epochs"] == pytest.approx(1, abs=0.1)
    assert protocol["selection"]["set"] == "selection"
    assert protocol["selection"]["metric"] == "accuracy"
    assert protocol["selection"]["fraction_of_training_set"] == 0.1
    lines = (tmp_path / "run" / "submission" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    answers = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert lines[1:] == [f"{number}\t{answer['label']}" for number, answer in enumerate(answers)]
    assert len(answers) == 40

    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("sentence\tlabel\n" + "".join(f"the cat sees {n}\t{n % 3}\n" for n in range(60)))
    settings = (f"task.train={pairs}", f"task.evaluation={pairs}")
    results = run("finetune", "second", tmp_path / "run", *settings)
    assert results["protocol"]["intermediate_task"] == "sst2"
    with pytest.raises(UserError, match=r"task\.intermediate=mnli, but .*run was fine-tuned on sst2; name a model"):
        run("finetune", "third", tmp_path / "run", *settings, "task.intermediate=mnli")
    with pytest.raises(UserError, match=r"but .* was not fine-tuned on labelled examples; name a model"):
        run("finetune", "fourth", encoder, *settings, "task.intermediate=mnli")


@pytest.mark.slow
def test_top_layers_and_head_can_start_from_new_weights(classify, encoder, tmp_path):
    from jaxlm.run import set_up

    given = resolve(str(encoder))
    before = set_up(classify(), tmp_path / "inherited", given).fresh_state()["params"]
    params = set_up(classify("model.reinitialize_layers=1"), tmp_path / "new", given).fresh_state()["params"]
    layers = sorted(name for name in params["encoder"] if name.startswith("layers_"))
    for name in params["encoder"]:
        equal = jax.tree.map(np.array_equal, params["encoder"][name], before["encoder"][name])
        assert all(jax.tree.leaves(equal)) == (name != layers[-1]), name
    with pytest.raises(UserError, match=rf"model\.reinitialize_layers=9 exceeds the {len(layers)} layers of the model"):
        classify("model.reinitialize_layers=9")


@pytest.mark.slow
def test_verbs_reproduce_what_a_run_reports_of_its_best_checkpoint(classify, tmp_path, capsys):
    # All accuracies are 100% in the end, and the first is the best.
    train(classify("train.steps=120", f"task.test={tmp_path / 'other.tsv'}"), tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    best = results["protocol"]["step"]
    assert best < 120
    capsys.readouterr()
    assert cli.main(["evaluate", f"--model={tmp_path / 'run'}", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == results["evaluation"]
    assert f"read the checkpoint of step {best}, the best by accuracy on selection" in output.err
    for name, file in (("dev", "dev.tsv"), ("other", "other.tsv")):
        options = [f"--input={tmp_path / file}", f"--output={tmp_path / 'out.jsonl'}"]
        assert cli.main(["classify", f"--model={tmp_path / 'run'}", *options]) == 0
        written = predictions_of(tmp_path / "run/predictions" / f"{name}.jsonl")
        assert predictions_of(tmp_path / "out.jsonl") == written
    assert resolve(str(tmp_path / "run")).step == best
    assert load_trained(tmp_path / "run", step="latest").step == 120


@pytest.mark.slow
def test_a_student_learns_the_answers_of_its_teacher(classify, tmp_path):
    alone = ("evaluation.select=none", "evaluation.calibrate=false", "train.steps=10", "evaluation.every=0")
    teacher = tmp_path / "teacher"
    train(classify(f"task.evaluation=own={tmp_path / 'train.tsv'}", "task.labels=calm,busy", *alone), teacher)
    lines = (teacher / "predictions" / "own.jsonl").read_text().splitlines()
    wanted = [[json.loads(line)["probabilities"][label] for label in ("busy", "calm")] for line in lines]

    learn = (f"task.teacher={teacher}", "task.teacher_share=1", "task.teacher_states=0.5", *alone, "logging.every=5")
    run = set_up(classify(*learn), tmp_path / "other")
    found = run.data.train.columns["teacher_outputs"]
    np.testing.assert_allclose(softmax(found.astype(np.float64)), wanted, atol=1e-5)
    assert run.data.train.columns["teacher_states"].shape == (300, run.assembly.encoder.width)

    whole = train(classify(*learn), tmp_path / "student")
    losses = [event["teacher_loss"] for event in read_metrics(tmp_path / "student") if event["kind"] == "train"]
    assert losses[-1] < losses[0]
    again = train(classify(*learn), tmp_path / "student")
    assert again["params_sha256"] == whole["params_sha256"]
