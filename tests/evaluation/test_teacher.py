"""Which models can be teachers, and the states of a wider teacher in the student's width."""

import types

import numpy as np
import pytest

from jaxlm import init_from
from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.evaluation.teacher import find_teacher, principal_components, with_teacher


@pytest.fixture
def teacher(monkeypatch, tmp_path):
    """Returns find_teacher for a directory that holds a model with these attributes."""
    (tmp_path / "config.json").write_text("{}")

    def find(objective_of_run="classification", **attributes):
        config = default_config()
        config.train.objective = objective_of_run
        config.task.teacher = str(tmp_path)
        start = types.SimpleNamespace(
            **{"source": None, "objective": "classification", "step": 5, "labels": ("no", "yes")} | attributes
        )
        monkeypatch.setattr(init_from, "resolve", lambda name: start)
        return find_teacher(config)

    return find


def test_a_model_that_was_not_fine_tuned_for_the_task_is_refused_by_name(teacher, tmp_path):
    assert teacher().step == 5
    with pytest.raises(UserError, match=rf"task\.teacher={tmp_path} was not fine-tuned, so it has no answers"):
        teacher(objective="masked")
    with pytest.raises(UserError, match=rf"task\.teacher={tmp_path} was not fine-tuned, so it has no answers"):
        teacher(source="a Hugging Face directory", objective=None)
    assert teacher(source="a Hugging Face directory", step=None).step is None
    with pytest.raises(UserError, match=r"was fine-tuned for train\.objective=regression, not classification; name"):
        teacher(objective="regression")


def test_a_reranker_of_transformers_is_a_teacher_although_its_config_calls_it_a_regression(teacher):
    assert teacher("reranking", source="a Hugging Face directory", objective="regression").objective == "regression"
    with pytest.raises(UserError, match=r"was fine-tuned for train\.objective=regression, not reranking; name another"):
        teacher("reranking", objective="regression")
    with pytest.raises(UserError, match=r"was fine-tuned for train\.objective=classification, not reranking; name"):
        teacher("reranking", source="a Hugging Face directory")


def test_no_teacher_and_a_directory_that_is_not_there():
    config = default_config()
    assert find_teacher(config) is None
    config.task.teacher = "/nowhere"
    with pytest.raises(UserError, match=r"task\.teacher=/nowhere has no config\.json; expected a work directory or a"):
        find_teacher(config)


def test_other_labels_and_a_narrower_teacher_are_refused():
    config = default_config()
    config.task.update(teacher="runs/teacher", teacher_states=1.0)
    start = types.SimpleNamespace(labels=("Yes", "NO"), encoder=types.SimpleNamespace(width=16), source=None)
    data = types.SimpleNamespace(labels=("no", "maybe"))
    with pytest.raises(
        UserError, match=r"fine-tuned for other labels \(Yes, NO, not no, maybe\); name another teacher"
    ):
        with_teacher(data, start, config, 8, None)
    start.source = "a Hugging Face directory"
    with pytest.raises(UserError, match=r"name another teacher, or correct id2label in its config\.json"):
        with_teacher(data, start, config, 8, None)
    data = types.SimpleNamespace(labels=("no", "yes"))
    with pytest.raises(UserError, match="the teacher's width, 16, is below that of this model, 32; set it to 0"):
        with_teacher(data, start, config, 32, None)


def test_principal_components_keep_the_distances_of_vectors_that_fit():
    random = np.random.default_rng(0)
    states = (random.normal(size=(20, 3)) @ random.normal(size=(3, 8)) + 1).astype(np.float32)
    assert principal_components(states, 8) is states
    found = principal_components(states, 3)
    assert found.shape == (20, 3)
    distances = [np.linalg.norm(one[:, None] - one, axis=-1) for one in (states, found)]
    np.testing.assert_allclose(*distances, atol=1e-4)
