"""The code of docs/extending.md runs as it stands: its objective and its head train, its family is converted."""

import functools
import re
import sys
from types import ModuleType

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.config import Phase, default_config
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.data.table import DATA
from jaxlm.evaluation.table import EVALUATORS
from jaxlm.huggingface import conversion, family_config
from jaxlm.huggingface.families import FAMILIES
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.heads import MaskedLM
from jaxlm.objectives.table import OBJECTIVES, make_objective
from jaxlm.settings import SETTINGS
from tests.conftest import ROOT
from tests.test_finetuning import write_table
from tests.untrained import make_workdir, random_params

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # tests mostly compile
PAGE = ROOT / "docs" / "extending.md"
SMALL = {
    "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "max_position_embeddings": 20, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    """Runs the Python blocks of the page in one module; restores the tables that they change."""
    tables = (OBJECTIVES, DATA, EVALUATORS, FAMILIES, SETTINGS["train"])
    before = [dict(table) for table in tables]
    module = ModuleType("extending")
    sys.modules[module.__name__] = module
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def run(mini, workdir, steps: int):
    """Returns the checksum and the held-out metrics of a run of the page's objective."""
    rare = ["checkpoint.every=1000", "evaluation.every=0", "logging.every=10"]
    config = mini("train.objective=replaced", "optimizer.learning_rate=1e-2", f"train.steps={steps}", *rare)
    result = jaxlm.train(config, workdir)
    return result["params_sha256"], result["evaluation"]["held_out"]


@pytest.mark.slow
def test_the_objective_learns_and_its_run_resumes_exactly(page, mini, tmp_path):
    _, first = run(mini, tmp_path / "cut", 3)
    resumed, metrics = run(mini, tmp_path / "cut", 40)
    whole, same = run(mini, tmp_path / "whole", 40)
    assert resumed == whole
    assert metrics == same
    assert metrics["n"] > 1000
    assert metrics["loss"] < 0.9 * first["loss"]
    assert metrics["loss"] < entropy(0.15)  # better than knowing only how many tokens are replaced
    assert jaxlm.load(tmp_path / "whole").embed(["The cat sees a letter."]).shape == (1, 32)


def entropy(p: float) -> float:
    return float(-p * np.log(p) - (1 - p) * np.log(1 - p))


@pytest.mark.slow
def test_the_objective_replaces_ordinary_tokens_and_its_sums_add_over_rows(page):
    config = default_config()
    config.model.update(layers=1, width=16, heads=2, feed_forward_width=16)
    encoder = encoder_config(config.model, 60)
    objective = page.ReplacedTokens.from_config(config, Phase(None, 64, 6), encoder, Execution(), SYNTHETIC_FACTS)
    tokens = np.random.default_rng(0).integers(0, 60, (6, 64)).astype(np.int32)
    segment_ids = np.tile(np.arange(64) < 60, (6, 1)).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": segment_ids, "word_starts": np.ones((6, 64), bool)}
    prepared = jit(objective.prepare)(batch, jax.random.split(jax.random.key(0), 6), {})
    inputs, _, replaced, weights = map(np.asarray, prepared.rows)
    ordinary = (tokens > 4) & (segment_ids > 0)
    assert (weights == ordinary).all()
    assert prepared.weight == ordinary.sum()
    assert ((inputs != tokens) == replaced).all()
    assert not (replaced & ~ordinary).any()
    assert 0.12 < replaced[ordinary].mean() < 0.16
    params = jax.tree.map(lambda leaf: leaf + 0.1, jit(objective.init)(0))
    whole, *parts = (
        jit(objective.sums)(params, tuple(column[rows] for column in prepared.rows), None)
        for rows in (slice(None), slice(0, 2), slice(2, 6))
    )
    jax.tree.map(lambda x, *y: np.testing.assert_allclose(x, sum(y), rtol=1e-4), whole, *parts)
    assert whole["tokens"] == ordinary.sum()


def head_objective(page):
    config = default_config()
    config.model.update(layers=1, width=16, heads=2, feed_forward_width=16)
    facts = SYNTHETIC_FACTS._replace(labels=("a", "b", "c"))
    phase = Phase(None, 32, 2, objective="attention_pooling")
    return make_objective(config, phase, encoder_config(config.model, 60), Execution(), facts)


def test_the_head_gives_packed_examples_the_logits_that_they_have_alone(page):
    objective = head_objective(page)
    assert type(objective) is page.ClassifyByAttention
    params = jax.tree.map(lambda leaf: leaf + 0.05 * np.arange(leaf.size).reshape(leaf.shape), jit(objective.init)(0))
    assert params["head"]["kernel"].shape == (16, 3)
    tokens = np.random.default_rng(0).integers(5, 60, (1, 32)).astype(np.int32)
    segment_ids = np.repeat([1, 2, 0], [12, 14, 6])[None].astype(np.int32)

    def logits(tokens, segment_ids):
        padding = ((0, 0), (0, 32 - tokens.shape[1]))
        rows = {"tokens": np.pad(tokens, padding), "segment_ids": np.pad(segment_ids, padding),
                "token_types": np.zeros((1, 32), np.int32), "weights": np.zeros((1, 4), np.float32)}  # fmt: skip
        return np.asarray(jit(objective.outputs)(params, rows))

    both = logits(tokens, segment_ids)
    assert np.isfinite(both).all()
    np.testing.assert_allclose(both[0, 0], logits(tokens[:, :12], segment_ids[:, :12])[0, 0], atol=1e-5)
    np.testing.assert_allclose(both[0, 1], logits(tokens[:, 12:26], segment_ids[:, :14] * 0 + 1)[0, 0], atol=1e-5)


@pytest.mark.slow
def test_the_head_learns(page, tmp_path):
    for name, count, seed in (("train", 300, 0), ("dev", 60, 1)):
        write_table(tmp_path / f"{name}.tsv", count, seed)
    result = jaxlm.train("finetune", tmp_path / "run", [
        "train.objective=attention_pooling", f"init_from={make_workdir(tmp_path / 'encoder', vocab_size=80)}",
        f"task.train={tmp_path / 'train.tsv'}", f"task.evaluation={tmp_path / 'dev.tsv'}", "data.sequence_length=32",
        "train.epochs=none", "train.steps=60", "optimizer.learning_rate=0.005", "schedule.name=constant",
        "logging.tensorboard=false", "logging.curve=false", "model.dropout=0", "model.attention_dropout=0",
    ])  # fmt: skip
    assert result["evaluation"]["evaluation"]["accuracy"] > 0.8
    assert jaxlm.load(tmp_path / "run").embed(["The cat sees a letter."]).shape == (1, 16)


def settings_of(config):
    settings = default_config()
    source = conversion.Source(PAGE, config, FAMILIES["roberta-prelayernorm"])
    settings.model.update(conversion.model_settings(source))
    return encoder_config(settings.model)


def test_a_checkpoint_of_the_family_survives_export_and_import(page, tmp_path):
    family, encoder = FAMILIES["roberta-prelayernorm"], settings_of(SMALL)
    assert (encoder.norm_position, encoder.position_offset, encoder.layers) == ("pre", 2, 2)
    params = random_params(encoder)
    conversion.write_weights(tmp_path, family, encoder, params)
    source = conversion.Source(tmp_path, SMALL, family)
    loaded = conversion.read_params(source, encoder)
    assert not loaded.fresh
    assert not loaded.unused
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    ids = {"pad": 1, "begin": 0, "end": 2}
    config = family_config.config_for(encoder, family, 18, ids)
    assert settings_of(config) == encoder
    assert config["model_type"] == "roberta-prelayernorm"
    assert family_config.choose_family(encoder, family.name) is family


@pytest.mark.slow
def test_the_family_computes_what_transformers_computes(page, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.RobertaPreLayerNormForMaskedLM(transformers.RobertaPreLayerNormConfig(**SMALL)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    source = conversion.read_source(tmp_path)
    encoder = settings_of(source.config)
    loaded = conversion.read_params(source, encoder)
    assert not loaded.fresh
    tokens = np.random.default_rng(0).integers(3, 41, (2, 12)).astype(np.int32)
    ours = jit(MaskedLM(encoder).apply)({"params": loaded.params}, tokens)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
