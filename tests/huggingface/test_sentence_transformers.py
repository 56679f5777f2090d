"""What sentence-transformers directories say, read and written."""

import json

import pytest

from jaxlm.errors import UserError
from jaxlm.huggingface.sentence_transformers import (
    SentenceModel,
    read_sentence_model,
    write_dimensions,
    write_sentence_model,
)

OLD = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
OLD_MODULES = "sentence_transformers.models."
NEW_MODULES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


def write_settings(root, transformer="", pooling=OLD, kinds=("Transformer", "Pooling", "Normalize"), **files):
    """Writes a sentence-transformers directory without weights; returns that of its Transformer module."""
    paths = {"Transformer": transformer, "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": paths.get(kind, kind),
         "type": kind if "." in kind else f"{OLD_MODULES}{kind}"}
        for number, kind in enumerate(kinds)
    ]  # fmt: skip
    (root / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (root / transformer).mkdir(exist_ok=True)
    (root / "modules.json").write_text(json.dumps(modules))
    (root / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, content in files.items():
        folder = root if name.startswith("config") else root / transformer
        (folder / f"{name}.json").write_text(json.dumps(content))
    return root / transformer


def test_a_directory_that_is_none_says_nothing(tmp_path):
    assert read_sentence_model(tmp_path) is None


def test_settings_are_read_in_the_older_and_the_newer_form(tmp_path):
    assert read_sentence_model(write_settings(tmp_path)) == SentenceModel("cls", True)
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": kind if kind == "Normalize" else "1_Pooling" * (kind == "Pooling"), "type": type}
                    for kind, type in NEW_MODULES.items()])
    )  # fmt: skip
    assert read_sentence_model(tmp_path) == SentenceModel("cls", True)
    for content, pooling in [
        ({"embedding_dimension": 16, "pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["max"], "pooling_mode_mean_tokens": True}, "max"),  # the older keys are dropped
        ({"word_embedding_dimension": 16}, "mean"),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_lasttoken": True}, "weightedmean and lasttoken"),
    ]:
        assert read_sentence_model(write_settings(tmp_path, pooling=content)).pooling == pooling


@pytest.mark.parametrize("normalise", [True, False])
def test_what_is_written_is_read(tmp_path, normalise):
    prompts = {"query": "query: ", "document": ""}
    model = SentenceModel("lasttoken", normalise, 24, prompts, "query", dimensions=8)
    write_sentence_model(model, 16, pooler=True, to=tmp_path)
    assert read_sentence_model(tmp_path) == model
    write_dimensions(tmp_path, 4)
    assert read_sentence_model(tmp_path) == model._replace(dimensions=4)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"pooling": {"pooling_mode_mean_tokens": "1e-12"}},
            "pooling_mode_mean_tokens='1e-12': expected true or false",
        ),
        ({"pooling": {"pooling_mode": 3}}, "pooling_mode=3: expected text"),
        ({"kinds": ("Pooling",)}, "has no Transformer module in "),
        ({"kinds": ("Transformer", "Pooling", "Dense")}, "a module Dense, which jaxlm does not support"),
        ({"kinds": ("Transformer", "Pooling", "Pooling")}, "two modules Pooling, which jaxlm does not support"),
        ({"kinds": ("custom.Transformer",)}, r"a module custom\.Transformer, which jaxlm does not support"),
        ({"kinds": ("Transformer", "Normalize", "Pooling")}, "Normalize does not follow Pooling"),
        ({"sentence_bert_config": {"do_lower_case": True}}, "do_lower_case"),
        ({"sentence_bert_config": {"transformer_task": "fill-mask"}}, "sets transformer_task=fill-mask"),
        ({"sentence_bert_config": {"max_seq_length": "x"}}, "max_seq_length='x': expected a whole number"),
        ({"config_sentence_transformers": {"truncate_dim": 0}}, "truncate_dim=0: expected a whole number from 1"),
        ({"config_sentence_transformers": {"prompts": {"query": 1}}}, "prompts: query=1: expected text"),
        (
            {"config_sentence_transformers": {"prompts": {"query": "q"}, "default_prompt_name": "document"}},
            r"config_sentence_transformers\.json: prompts lacks document",
        ),
    ],
)
def test_what_cannot_be_computed_is_named(tmp_path, changes, error):
    with pytest.raises(UserError, match=error):
        read_sentence_model(write_settings(tmp_path, **changes))
