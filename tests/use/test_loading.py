"""Which checkpoint of a work directory is read: by its number, the best, the latest, or by its path."""

import shutil

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.cli import main
from jaxlm.config import load_config, save_config
from jaxlm.errors import UserError
from jaxlm.init_from import resolve
from jaxlm.runtime.checkpoint import Checkpoints, find_step, split_step
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.use.loading import load_trained
from tests.conftest import write_checkpoint
from tests.untrained import make_fine_tuned, make_workdir, random_params

SCORES = {1: None, 2: 3.5, 3: 3.1, 4: 3.3, 5: None}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory with the checkpoints 1 to 5, each with parameters of its own; the third has the lowest loss."""
    path = make_workdir(tmp_path_factory.mktemp("loading") / "run")
    trained = load_trained(path)
    checkpoints = Checkpoints(path / "checkpoints", keep=10)
    for step in range(2, 6):
        params = random_params(trained.encoder, seed=step)
        checkpoints.save(step, {"params": params}, {}, score=SCORES[step], wait=True)
    return path


def first_leaf(params):
    return np.asarray(jax.tree.leaves(params)[0])


@pytest.mark.parametrize(("step", "expected"), [(None, 5), ("latest", 5), ("best", 3), (2, 2), ("2", 2), ("4", 4)])
def test_a_step_is_selected_by_its_number_or_by_name(workdir, step, expected):
    trained = load_trained(workdir, step=step)
    assert trained.step == expected
    np.testing.assert_array_equal(
        first_leaf(trained.params), first_leaf(random_params(trained.encoder, expected if expected > 1 else 0))
    )
    assert jaxlm.load(workdir, step=step).trained.step == expected


def test_the_best_step_has_the_metric_of_the_newest(tmp_path):
    """Losses on 8 rows and on all rows cannot be compared, and a run that goes on with another metric says so."""
    for step, score, metric in ((1, 1.0, "loss on 8 rows"), (2, 3.0, "loss on all rows"), (3, 4.0, "loss on all rows")):
        checkpoints = Checkpoints(tmp_path, keep=5, metric=metric)
        checkpoints.save(step, {"params": {"w": np.full(1, step, np.float32)}}, {}, score=score, wait=True)
    assert find_step(tmp_path, "best") == checkpoints.best()[0] == 2


def test_the_best_step_is_the_highest_score_where_higher_is_better(workdir, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=10, higher_is_better=True)
    for step, score in ((1, 0.7), (2, 0.9), (3, 0.8)):
        checkpoints.save(step, {"params": {"a": jax.numpy.ones(2)}}, {}, score=score, wait=True)
    assert find_step(tmp_path, "best") == 2
    (tmp_path / "2" / "_CHECKPOINT_METADATA").write_text("{")  # a damaged one cannot be read
    assert find_step(tmp_path, "best") == 3


def test_a_checkpoint_is_a_path_too(workdir, monkeypatch):
    assert load_trained(workdir / "checkpoints" / "2").step == 2
    assert load_trained(f"{workdir}/checkpoints/2/", step="2").step == 2
    monkeypatch.chdir(workdir / "checkpoints")
    assert load_trained("../checkpoints/3").step == 3
    assert resolve(str(workdir / "checkpoints" / "4")).step == 4
    assert split_step(workdir) == (workdir, None)
    with pytest.raises(UserError, match=r"^there is no checkpoint 0 in "):
        load_trained(workdir, step=0)
    with pytest.raises(
        UserError, match=r"checkpoints/2 is one checkpoint, but step=0 names another; omit one of them$"
    ):
        load_trained(workdir / "checkpoints" / "2", step=0)
    with pytest.raises(
        UserError, match=r"checkpoints/2 is one checkpoint, but step=3 names another; omit one of them$"
    ):
        load_trained(workdir / "checkpoints" / "2", step=3)


def test_a_checkpoint_of_transformers_may_have_such_a_path(text_file, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    given = write_checkpoint(tmp_path / "checkpoints" / "500", text_file)
    assert load_trained(given).source is not None
    assert resolve(str(given)).source is not None


def test_a_run_can_start_from_one_checkpoint(workdir, tmp_path):
    copy, trained = shutil.copytree(workdir, tmp_path / "copy"), load_trained(workdir)
    config = load_config(str(copy / "config.json"))
    config.model.vocab_size = trained.tokenizer.vocab_size  # as a run records it
    save_config(config, copy / "config.json")
    start = resolve(f"{copy}/checkpoints/2")
    params = start.params(start.encoder, trained.tokenizer, trained.tokenizer)
    np.testing.assert_array_equal(first_leaf(params), first_leaf(random_params(start.encoder, 2)))


def test_steps_that_do_not_exist_are_refused(workdir, text_file, tmp_path):
    cases = [
        ((workdir, "9"), r"there is no checkpoint 9 in .*checkpoints; available: 1, 2, 3 and 2 more$"),
        ((workdir / "checkpoints" / "9", None), r"there is no checkpoint 9 in .*checkpoints; available: "),
        ((workdir, "newest"), r"^step=newest: expected a number of updates, best or latest$"),
        ((workdir, "-1"), r"^step=-1: expected a number of updates, best or latest$"),
        (
            (write_checkpoint(tmp_path / "bert", text_file), "best"),
            r"bert is a Hugging Face directory, .*; omit step=best$",
        ),
        (
            (make_workdir(tmp_path / "unscored"), "best"),
            r"no checkpoint in .* was saved at a step that was evaluated, so ",
        ),
        (("", None), r"^--model= is empty; name a path"),
    ]
    for (name, step), message in cases:
        with pytest.raises(UserError, match=message):
            load_trained(name, step=step)


def test_a_damaged_step_is_not_replaced_by_another(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    (copy / "checkpoints" / "2" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(UserError, match=r"^checkpoint 2 in .*checkpoints "):
        load_trained(copy, step=2)
    assert load_trained(copy).step == 5


@pytest.mark.slow
def test_every_verb_takes_a_step_and_prints_which_one_was_read(workdir, text_file, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("the cat\n")
    verbs = [
        ("fill-mask", "the [MASK]"),
        ("score", "the cat"),
        ("embed", f"--input={tmp_path / 'texts.txt'}", f"--output={tmp_path / 'out.npy'}"),
    ]
    for verb, *arguments in verbs:
        assert main([verb, f"--model={workdir}", "--step=best", *arguments]) == 0
        assert f"{workdir}: read the checkpoint of step 3\n" in capsys.readouterr().err
        assert main([verb, f"--model={workdir}/checkpoints/2", *arguments]) == 0
        assert f"{workdir}: read the checkpoint of step 2\n" in capsys.readouterr().err
        assert main([verb, f"--model={workdir}", "--step=9", *arguments]) == 1
        assert "there is no checkpoint 9" in capsys.readouterr().err
    for verb, *arguments in (("evaluate",), ("export", f"--to={tmp_path / 'out'}")):
        assert main([verb, f"--model={workdir}", "--step=9", *arguments]) == 1
        assert "there is no checkpoint 9" in capsys.readouterr().err
    assert main(["export", f"--workdir={workdir}", "--step=9", f"--to={tmp_path / 'out'}"]) == 1  # the older name
    assert "there is no checkpoint 9" in capsys.readouterr().err


def test_a_token_that_is_padding_in_the_config_only_is_refused(text_file, tmp_path):
    given = write_checkpoint(tmp_path / "roberta", text_file, model_type="roberta", pad_token_id=2)
    message = r"pad_token_id=2 is the token '\[CLS\]', but the tokenizer pads with '\[PAD\]', whose id is 0"
    with pytest.raises(UserError, match=message):
        load_trained(given)
    start, tokenizer = resolve(str(given)), load_tokenizer(given)
    with pytest.raises(UserError, match=message):
        start.params(start.encoder, tokenizer, tokenizer)
    for pad in (0, -1, 5000):  # the last two are no token of a text
        load_trained(write_checkpoint(tmp_path / str(pad), text_file, model_type="roberta", pad_token_id=pad,
                                      max_position_embeddings=40 + max(pad, 0)))  # fmt: skip
    load_trained(write_checkpoint(tmp_path / "bert", text_file, pad_token_id=2))  # its positions do not depend on it


def test_the_step_of_a_run_on_labelled_examples_is_the_one_it_selected(tmp_path, capsys):
    run = make_fine_tuned(tmp_path / "run")
    first = load_trained(run)
    assert (first.step, first.selected_by) == (1, "")  # nothing was evaluated
    params = {"encoder": first.params["encoder"], "head": first.task_head}
    checkpoints = Checkpoints(run / "checkpoints", keep=9, higher_is_better=True, metric="accuracy on dev")
    for step, score in ((2, 0.9), (3, 0.7)):
        checkpoints.save(step, {"params": params}, {}, score=score, wait=True)
    best = load_trained(run)
    assert (best.step, best.selected_by) == (2, "accuracy on dev")
    assert resolve(str(run)).step == 2
    for step, found in (("latest", 3), (1, 1), ("best", 2)):
        assert (load_trained(run, step=step).step, load_trained(run, step=step).selected_by) == (found, "")
    assert load_trained(run / "checkpoints" / "3").step == 3
    assert main(["fill-mask", f"--model={run}", "the cat"]) == 1
    assert f"{run}: read the checkpoint of step 2, the best by accuracy on dev\n" in capsys.readouterr().err
    config = load_config(str(run / "config.json"))
    config.evaluation.select = "none"
    save_config(config, run / "config.json")
    assert resolve(str(run)).step is None  # the newest
    assert load_trained(run).step == 3


def test_predictions_have_the_dtype_of_the_run_unless_another_is_asked_for(tmp_path):
    run = make_fine_tuned(tmp_path / "run")
    config = load_config(str(run / "config.json"))
    config.train.compute_dtype = "bfloat16"
    save_config(config, run / "config.json")
    for asked, encoder, predictions in ((None, "float32", "bfloat16"), ("float32", "float32", "float32")):
        trained = load_trained(run, asked)
        assert (trained.execution.compute_dtype, trained.task_dtype) == (encoder, predictions)
