"""Heads of tasks, imported and exported, compared with the classes of Transformers for every family and kind."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")

from jaxlm.huggingface.conversion import SOURCE_CONFIG  # noqa: E402
from jaxlm.init_from import resolve  # noqa: E402
from jaxlm.use.export import export_trained  # noqa: E402
from jaxlm.use.loading import load_trained  # noqa: E402
from tests.parity.cases import batch  # noqa: E402
from tests.parity.head_cases import HEAD_CASES, head_outputs  # noqa: E402
from tests.parity.reference import head_outputs_of, make_head  # noqa: E402
from tests.use.test_export import add_vocabulary  # noqa: E402

REAL = batch()["attention"] == 1

# The keys of config.json that a kind of head reads in some family, by the end of the case's name.
SHARED = ("classifier_pooling", "seq_classif_dropout")
KEYS = {
    "sequence": (*SHARED, "classifier_dropout"), "number": (*SHARED, "classifier_dropout"),
    "label": ("classifier_dropout",), "mean": (*SHARED, "classifier_dropout", "classifier_bias"),
    "token": ("classifier_dropout",), "span": ("qa_dropout",),
    "choice": (*SHARED, "summary_last_dropout", "summary_type", "summary_activation"),
}  # fmt: skip


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest difference, of tokens only where there is no padding."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs)[REAL if ours.ndim == 3 else ...].max())


@pytest.fixture(scope="module", params=HEAD_CASES)
def case(request, tmp_path_factory):
    """A case: its name, the Transformers model, and its directory."""
    directory = tmp_path_factory.mktemp(request.param)
    model = make_head(request.param)
    model.save_pretrained(directory)
    return request.param, model, add_vocabulary(directory)


@pytest.mark.slow
def test_imported_and_exported_heads_give_the_outputs_of_transformers(case, tmp_path):
    name, model, directory = case
    trained = load_trained(directory)
    start = resolve(str(directory))
    assert trained.task is not None
    assert trained.task.objective == start.objective
    ours = head_outputs(
        trained.encoder, trained.task, {"encoder": trained.params["encoder"], "head": trained.task_head}
    )
    imported = difference(ours, head_outputs_of(model))

    shift = lambda tree: jax.tree.map(lambda leaf: leaf + np.float32(0.01), tree)  # noqa: E731
    (directory / "metrics.jsonl").write_text("")
    changed = trained._replace(source=None, params=shift(trained.params), task_head=shift(trained.task_head))
    family = model.config.model_type
    out = export_trained(changed, tmp_path / "out", None if family in ("bert", "modernbert") else family)
    loader = getattr(transformers, "AutoModelFor" + type(model).__name__.partition("For")[2])
    back, info = loader.from_pretrained(out, output_loading_info=True)
    assert type(back) is type(model)
    assert not any(info.values()), info
    ours = head_outputs(
        changed.encoder, trained.task, {"encoder": changed.params["encoder"], "head": changed.task_head}
    )
    exported = difference(ours, head_outputs_of(back.eval()))
    print(f"\n{name:<24} largest difference: import {imported:.1e}, export {exported:.1e}")
    assert max(imported, exported) < 1e-4
    for key in (
        "id2label",
        "label2id",
        "problem_type",
        "num_labels",
        "hidden_dropout_prob",
        *KEYS[name.split("_")[-1]],
    ):
        if hasattr(model.config, key):
            assert getattr(back.config, key) == getattr(model.config, key), key


def test_a_head_is_written_with_the_config_that_it_was_read_with(case, tmp_path):
    name, _, directory = case
    trained = load_trained(directory)
    original = json.loads((directory / "config.json").read_text())
    (directory / SOURCE_CONFIG).write_text(json.dumps(original))
    (directory / "metrics.jsonl").write_text("")
    out = export_trained(trained._replace(source=None), tmp_path / "out")
    written = json.loads((out / "config.json").read_text())
    if name.endswith("number"):  # Transformers numbers the one output as we do
        assert written["id2label"] == {"0": "LABEL_0"}
    assert written == original
