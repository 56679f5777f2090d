"""Heads of tasks to and from Transformers, compared with its recorded outputs (tests/parity/record.py)."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.huggingface import conversion, family_config, task_heads
from jaxlm.huggingface.families import FAMILIES
from jaxlm.huggingface.task_heads import TaskSettings
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.task_model import TaskHead
from tests.parity.cases import batch, weights
from tests.parity.head_cases import HEAD_CASES, NAMES, head_outputs

RECORDS = json.loads((Path(__file__).parents[1] / "golden" / "huggingface" / "heads.json").read_text())
BERT = EncoderConfig.preset("bert_base", vocab_size=41, layers=1, width=24, heads=2, feed_forward_width=20)


def write(directory: Path, case: str, change=lambda tensors: tensors, **config) -> Path:
    """Writes the checkpoint of a case as Transformers would; `change` maps its tensors (by name) to those written."""
    record = RECORDS[case]
    tensors = {name: weights(name, tuple(shape)) for name, shape in record["tensors"].items()}
    directory.mkdir(exist_ok=True, parents=True)
    save_file(change(tensors), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(record["config"] | config))
    return directory


def load(directory: Path):
    """Returns source, encoder, task, and the parameters of the head of a checkpoint."""
    source = conversion.read_source(directory)
    config = default_config()
    config.model.update(conversion.model_settings(source))
    encoder, task = encoder_config(config.model), task_heads.task_of_source(source)
    return source, encoder, task, task_heads.read_head(source, encoder, task) if task else None


def resolved(objective: str, head: str = "auto", pooling: str = "auto", labels=("a", "b"), **more) -> TaskSettings:
    return task_heads.resolve_head(TaskSettings(objective, labels, head, pooling, **more), BERT)


def test_the_records_are_those_of_the_cases():
    assert list(RECORDS) == list(HEAD_CASES)
    for case, (name, config) in HEAD_CASES.items():
        found = RECORDS[case]["config"]
        assert found["architectures"] == [name]
        assert found["hidden_size" if "hidden_size" in config else "dim"] == 24


@pytest.mark.slow
@pytest.mark.parametrize("case", HEAD_CASES)
def test_outputs_equal_those_of_transformers(case, tmp_path):
    source, encoder, task, head = load(write(tmp_path, case))
    params = {"encoder": conversion.read_params(source, encoder).params["encoder"], "head": head}
    outputs = head_outputs(encoder, task, params)
    outputs = outputs[batch()["attention"] == 1][::9] if outputs.ndim == 3 else outputs
    np.testing.assert_allclose(outputs, RECORDS[case]["outputs"], atol=1e-4)


@pytest.mark.parametrize("case", HEAD_CASES)
def test_tensors_and_config_are_written_as_they_were_read(case, tmp_path):
    source, encoder, task, head = load(write(tmp_path / "in", case))
    loaded = conversion.read_params(source, encoder)
    assert sorted(task_heads.head_names(source, task)) == loaded.unused
    (tmp_path / "out").mkdir()
    tensors = task_heads.head_tensors(source.family, task, head)
    params = {"encoder": loaded.params["encoder"]}
    conversion.write_weights(tmp_path / "out", source.family, encoder, params, more=tensors)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], name)

    original = RECORDS[case]["config"]
    other = original | {"id2label": {"0": "x"}, "problem_type": "regression", "architectures": ["Other"]}
    written = task_heads.head_config(source.family, encoder, task, other)
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if task.objective == "regression" else {}
    explicit = {} if task.head != "modernbert" or not task.pools else {"classifier_pooling": task.pooling}
    summary = task_heads.head_format(source.family, task.kind).fixed
    unset = {"classifier_dropout": None} if task.dropout is None and "classifier_dropout" in written else {}
    assert written == {**unset, **original, **labels, **explicit, **summary}


@pytest.mark.parametrize("case", HEAD_CASES)
def test_a_head_of_ours_has_the_parameters_that_a_family_stores(case, tmp_path):
    _, encoder, task, head = load(write(tmp_path, case))
    model = TaskHead(encoder, Execution(), task.outputs, task.style, 0.0)
    states = jax.ShapeDtypeStruct((1, encoder.width), np.float32)
    ours = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, None), states)["params"]
    assert jax.tree.map(np.shape, head) == jax.tree.map(lambda leaf: leaf.shape, ours)


# Import


@pytest.mark.parametrize(
    ("case", "changes", "objective", "labels"),
    [
        ("bert_sequence", {}, "classification", ("dull", "Fine", "grand")),
        ("bert_sequence", {"problem_type": None}, "classification", ("dull", "Fine", "grand")),
        ("bert_sequence", {"id2label": {"2": "z", "0": "x", "1": "y"}}, "classification", ("x", "y", "z")),
        ("bert_sequence", {"id2label": None, "num_labels": 3}, "classification", ("LABEL_0", "LABEL_1", "LABEL_2")),
        ("bert_multi_label", {}, "multi_label", ("dull", "Fine", "grand")),
        ("bert_number", {}, "regression", ()),
        ("bert_number", {"problem_type": None}, "regression", ()),
        ("electra_token", {}, "tagging", ("O", "B-PER", "I-PER")),
        ("distilbert_span", {}, "span", ()),
        ("roberta_choice", {"id2label": {"0": "only one"}}, "choice", ()),
    ],
)
def test_the_task_of_a_checkpoint_is_that_of_its_class_and_problem_type(case, changes, objective, labels, tmp_path):
    _, _, task, head = load(write(tmp_path, case, **changes))
    assert (task.objective, task.labels) == (objective, labels)
    assert head["bias"].shape == (task.outputs,)


@pytest.mark.parametrize(
    ("case", "changes", "named"),
    [
        ("bert_sequence", {"problem_type": "ranking"}, "problem_type='ranking'"),
        ("bert_sequence", {"problem_type": "regression"}, "problem_type='regression'"),
        ("bert_sequence", {"id2label": {"0": "a", "2": "b"}}, "id2label="),
        ("bert_token", {"id2label": ["a", "b"]}, "id2label="),
        ("electra_choice", {"summary_type": "mean"}, "summary_type='mean'"),
        ("electra_choice", {"summary_use_proj": False}, "summary_use_proj=False"),
    ],
)
def test_a_head_that_is_none_of_ours_is_named_and_not_used(case, changes, named, tmp_path, caplog):
    assert load(write(tmp_path, case, **changes))[2:] == (None, None)
    assert "the head of " in caplog.text
    assert named in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: a for n, a in t.items() if n != "classifier.bias"}, "classifier.bias is missing"),
        (lambda t: t | {"classifier.weight": np.ones((2, 24), np.float32)},
         "classifier.weight has the shape [2, 24], not [3, 24]"),
    ],
)  # fmt: skip
def test_an_incomplete_head_is_named_and_not_used(change, message, tmp_path, caplog):
    assert load(write(tmp_path, "bert_sequence", change))[3] is None
    assert message in caplog.text


def test_a_head_that_is_not_finite_is_refused(tmp_path):
    broken = lambda t: t | {"classifier.bias": np.array([0, np.nan, 1], np.float32)}  # noqa: E731
    with pytest.raises(UserError, match=r"classifier\.bias"):
        load(write(tmp_path, "bert_sequence", broken))


def test_labels_without_names_are_equal_to_numbers():
    unnamed = ("LABEL_0", "LABEL_1")
    assert task_heads.same_labels(unnamed, ("0", "1"))
    assert task_heads.same_labels(("no", "yes"), ("no", "yes"))
    assert not task_heads.same_labels(unnamed, ("1", "0"))
    assert not task_heads.same_labels(unnamed, ("no", "yes"))
    assert not task_heads.same_labels(("no", "yes"), ("yes", "no"))
    assert not task_heads.same_labels(unnamed, ("0", "1", "2"))


def test_the_dropout_of_a_head_is_its_familys():
    rates = {name: task_heads.head_dropouts({}, family) for name, family in FAMILIES.items()}
    assert rates["bert"] == rates["roberta"] == {}
    assert rates["distilbert"] == {"sequence": 0.2, "span": 0.1, "choice": 0.2}
    assert rates["electra"] == {"choice": 0.1}
    assert rates["modernbert"] == dict.fromkeys(("sequence", "token", "span", "choice"), 0.0)
    assert task_heads.head_dropouts({"classifier_dropout": 0.3}, FAMILIES["roberta"]) == {"sequence": 0.3, "token": 0.3}


# Export


@pytest.mark.parametrize(
    ("task", "wanted", "family", "headless"),
    [
        (resolved("classification"), None, "bert", ""),
        (resolved("classification", "roberta"), None, "bert", ""),  # its layers are those of BERT
        (resolved("classification", "bert"), "roberta", "roberta", ""),
        (resolved("classification", "electra"), None, "electra", ""),
        (resolved("tagging", "distilbert"), None, "bert", ""),
        (resolved("choice", "roberta"), None, "bert", ""),
        (resolved("choice", "electra"), None, "electra", ""),
        (resolved("classification", "distilbert"), None, "bert",
         "BertForSequenceClassification lacks the layers of task.head=distilbert"),
        (resolved("classification", "modernbert", "cls"), None, "bert",
         "BertForSequenceClassification lacks the layers of task.head=modernbert"),
        (resolved("span", "modernbert"), None, "bert",
         "BertForQuestionAnswering lacks the layers of task.head=modernbert"),
        (resolved("regression", pooling="mean"), None, "bert", "BertForSequenceClassification lacks task.pooling=mean"),
        (resolved("multi_label", pooling="max"), "roberta", "roberta",
         "RobertaForSequenceClassification lacks task.pooling=max"),
        (resolved("tagging", pooling="mean"), None, "bert", ""),  # tokens are not pooled
    ],
)  # fmt: skip
def test_a_family_is_chosen_that_has_the_head_or_says_what_it_lacks(task, wanted, family, headless):
    target = task_heads.target_of(BERT, task, wanted=wanted)
    assert (target.family.name, target.lacking, target.headless) == (family, [], headless)


def test_a_family_is_chosen_by_the_encoder_first():
    modern = EncoderConfig.preset("modernbert_base", vocab_size=41)
    for pooling, headless in (("cls", ""), ("mean", ""), ("max", "task.pooling=max")):
        target = task_heads.target_of(modern, resolved("classification", "modernbert", pooling))
        assert (target.family.name, headless in target.headless) == ("modernbert", True)
    target = task_heads.target_of(modern, resolved("classification", "bert"))
    assert target.headless == "ModernBertForSequenceClassification lacks the layers of task.head=bert"
    alibi = dataclasses.replace(modern, positions="alibi")
    assert task_heads.target_of(alibi, resolved("classification", "modernbert")).lacking == ["model.positions=alibi"]
    # The masked-LM head is not written, so it may be any.
    plain = dataclasses.replace(BERT, head_transform=False, head_activation="silu", output_bias=False)
    assert family_config.nearest_family(plain)[1]
    assert task_heads.target_of(plain, resolved("classification")).lacking == []
    assert task_heads.target_of(BERT, resolved("classification"), base="camembert").family.name == "camembert"


@pytest.mark.parametrize(
    ("family", "objective", "dropout", "key", "value"),
    [
        ("bert", "classification", None, "classifier_dropout", None),
        ("bert", "tagging", 0.3, "classifier_dropout", 0.3),
        ("distilbert", "classification", None, "seq_classif_dropout", 0.1),
        ("distilbert", "span", 0.0, "qa_dropout", 0.0),
        ("electra", "choice", None, "summary_last_dropout", 0.1),
        ("modernbert", "span", 0.2, "classifier_dropout", 0.2),
    ],
)
def test_the_rate_of_dropout_is_written_where_the_family_reads_it(family, objective, dropout, key, value):
    task = TaskSettings(objective, ("a", "b"), family, "cls", dropout)
    assert task_heads.head_config(FAMILIES[family], BERT, task, {})[key] == value


def test_a_rate_of_dropout_without_a_key_is_named():
    for family, objective in (("roberta", "choice"), ("distilbert", "tagging")):
        target = task_heads.Target(FAMILIES[family], [], "")
        for dropout, named in ((0.3, True), (None, False), (BERT.dropout, False)):
            task = TaskSettings(objective, ("a", "b"), family, "cls", dropout)
            assert ("does not write task.dropout=0.3" in task_heads.unwritten_dropout(target, BERT, task)) == named
    span = TaskSettings("span", (), "bert", "cls", 0.3)  # has no dropout here either
    assert task_heads.unwritten_dropout(task_heads.Target(FAMILIES["bert"], [], ""), BERT, span) == ""


def test_the_keys_of_another_head_are_removed():
    before = NAMES | {"num_labels": 3, "problem_type": "multi_label_classification", "architectures": ["X"]}
    span = task_heads.head_config(FAMILIES["bert"], BERT, TaskSettings("span", (), "bert", "cls"), before)
    assert span == {"architectures": ["BertForQuestionAnswering"]}
    tags = task_heads.head_config(FAMILIES["bert"], BERT, TaskSettings("tagging", ("O", "B-X"), "bert", "cls"), before)
    assert tags["id2label"] == {"0": "O", "1": "B-X"}
    assert "problem_type" not in tags


def test_the_tables_of_kinds_and_families_are_complete():
    assert {task_heads.HEADS.get(name, name) for name in FAMILIES} == task_heads.FORMATS.keys()
    for name, formats in task_heads.FORMATS.items():
        assert formats.keys() == task_heads.STYLES.keys() == set(task_heads.KINDS.values())
        for kind, form in formats.items():
            style = task_heads.STYLES[kind][name]
            assert (bool(form.transform), bool(form.norm)) == (style.transform, style.norm)
