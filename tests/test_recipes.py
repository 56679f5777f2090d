"""Every file in configs/ and its variants: the header, the config, and the shapes of its parameters."""

import ast
import functools
import json
import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from jaxlm.config import Phase, config_to_dict, default_config, load_config, phases_of, save_config, split_overrides
from jaxlm.errors import UserError
from jaxlm.huggingface.family_config import nearest_family
from jaxlm.model.config import encoder_config
from jaxlm.model.heads import abstract_params
from jaxlm.optimizer.optimizers import decay_mask, make_optimizer
from jaxlm.optimizer.schedules import make_schedule
from jaxlm.recipes import recipes, variants_of
from jaxlm.runtime.parameter_paths import param_path
from jaxlm.runtime.sharding import check_batch, param_shardings
from jaxlm.settings import MAX_CHOSEN_VOCABULARY
from jaxlm.text.known_tasks import KNOWN_TASKS
from jaxlm.tokenizer.words import check_rule
from tests.conftest import ROOT

FILES = sorted((ROOT / "configs").glob("*.py"))
OWN = {"mini", "quickstart", "continue", "speedrun", "finetune"}  # not published elsewhere
REQUIRED = {"finetune.py": ["task.train=train.tsv"]}  # settings that the user has to provide
FIELDS = ["command", "variants", "hardware", "result", "source", "differs", "export"]
OPTIONAL = {"variants", "export"}


def read_header(text: str) -> dict[str, str]:
    """Returns the fields of a recipe's docstring by name; "what" is its first paragraph."""
    what, _, rest = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
    fields = re.findall(r"^(\w+): +(.*(?:\n +.*)*)", rest, re.MULTILINE)
    assert sum(len(value.split("\n")) for _, value in fields) == len(rest.split("\n")), "a line belongs to no field"
    return {"what": what} | {name: " ".join(value.split()) for name, value in fields}


def header_of(path: Path) -> dict[str, str]:
    return read_header(path.read_text(encoding="utf-8"))


def is_result(text: str) -> bool:
    """Returns whether the text is "not yet run", or contains a figure and a date."""
    date = r"\b20\d\d-[01]\d-[0-3]\d\b"
    return text == "not yet run" or bool(re.search(date, text) and re.search(r"\d", re.sub(date, "", text)))


SPECS = [f"{path.name}{variant}" for path in FILES for variant in ["", *(f":{name}" for name in variants_of(path))]]
PUBLISHED = [spec for spec in SPECS if spec.partition(".")[0] not in OWN]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
each_recipe = pytest.mark.parametrize("spec", SPECS)
each_published = pytest.mark.parametrize("spec", PUBLISHED)


@functools.cache
def load(spec: str):
    return load_config(str(ROOT / "configs" / spec), REQUIRED.get(spec.partition(":")[0], []))


@functools.cache
def shapes_of(encoder):
    return abstract_params(encoder)


@functools.cache
def updates_of(optimizer: str, encoder):
    """Returns the shapes of an optimizer's updates, once for all recipes with the same optimizer and encoder."""
    shapes = shapes_of(encoder)
    update = make_optimizer(ConfigDict(json.loads(optimizer)), shapes)
    return jax.eval_shape(update.update, shapes, jax.eval_shape(update.init, shapes), shapes)[0]


def encoder_of(spec: str):
    config = load(spec)
    return encoder_config(config.model, config.tokenizer.vocab_size or MAX_CHOSEN_VOCABULARY)


def paths_and_leaves(tree) -> dict:
    return {param_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def tokens_of(phase: Phase) -> int:
    return phase.batch_size * phase.sequence_length


def all_steps(spec: str) -> list[int]:
    """Returns the number of updates of each phase of a run that ends by steps or tokens."""
    config = load(spec)
    *earlier, last = phases_of(config)
    done = [phase.steps for phase in earlier]
    if config.train.steps is not None:
        return [*done, config.train.steps - sum(done)]
    spent = sum(steps * tokens_of(phase) for steps, phase in zip(done, earlier, strict=True))
    return [*done, round((config.train.tokens - spent) / tokens_of(last))]


# The header


@each_file
def test_header_has_each_field_in_order(path):
    header = header_of(path)
    assert header["what"].endswith(".")
    assert len(header["what"].split("\n")) == 1
    known = [name for name in FIELDS if name in header]
    assert list(header) == ["what", *known], "fields are missing, unknown or in another order"
    missing = set(FIELDS) - set(known) - OPTIONAL
    assert missing <= ({"source", "differs"} if path.stem in OWN else set())
    assert all(header.values())


@each_file
def test_command_trains_this_file(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides, arguments = split_overrides(shlex.split(header_of(path)["command"]))
    assert arguments == ["jaxlm", "train", f"--config=configs/{path.name}", f"--workdir=runs/{path.stem}"]
    load_config(f"configs/{path.name}", overrides)


@each_file
def test_result_is_not_yet_run_or_a_figure_and_a_date(path):
    assert is_result(header_of(path)["result"])


@pytest.mark.parametrize("text", ["not yet run", "held-out loss 4.31 in 4 minutes, 2026-11-30"])
def test_results_that_are_accepted(text):
    assert is_result(text)


@pytest.mark.parametrize("text", ["", "not run yet", "very good", "held-out loss 4.31", "good, 2026-11-30"])
def test_results_that_are_rejected(text):
    assert not is_result(text)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in OWN], ids=lambda path: path.stem)
def test_source_names_a_paper_by_its_arxiv_number(path):
    assert re.search(r"\barXiv \d{4}\.\d{5}\b", header_of(path)["source"])


@each_file
def test_an_unknown_variant_is_rejected(path):
    with pytest.raises(UserError) as refused:
        load_config(f"{path}:nonsense")
    assert all(name in str(refused.value) for name in ["nonsense", *variants_of(path)])


@pytest.mark.parametrize("spec", [spec for spec in SPECS if ":" in spec])
def test_a_variant_differs_from_its_recipe(spec):
    assert config_to_dict(load(spec)) != config_to_dict(load(spec.partition(":")[0]))


# The name


@each_file
def test_a_recipe_is_found_by_its_name(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / path.stem).mkdir()  # a directory of that name does not matter
    assert config_to_dict(load_config(path.stem, REQUIRED.get(path.name, []))) == config_to_dict(load(path.name))


def test_variants_and_messages_use_the_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert config_to_dict(load_config("bert_base:512")) == config_to_dict(load("bert_base.py:512"))
    with pytest.raises(UserError, match=r"^mini has no variants; remove :large$"):
        load_config("mini:large")
    with pytest.raises(UserError, match=r"^bert_base, line \d+: there is no variant 1024"):
        load_config("bert_base:1024")
    assert recipes().keys() == {path.stem for path in FILES}


# The config


@each_recipe
def test_config_is_unchanged_by_json(spec, tmp_path):
    save_config(load(spec), tmp_path / "config.json")
    assert config_to_dict(load_config(str(tmp_path / "config.json"))) == config_to_dict(load(spec))


@each_recipe
def test_run_has_data_a_word_segmenter_and_an_end(spec):
    config = load(spec)
    assert config.data.path or config.task.train or spec == "continue.py"  # which trains on the user's own text
    check_rule(config.tokenizer.words)
    assert any(config.train[end] is not None for end in ("steps", "epochs", "tokens", "minutes"))


@each_published
def test_phases_add_up_to_the_run(spec):
    config = load(spec)
    if config.train.minutes is not None:
        assert not config.train.phases
        return
    steps = all_steps(spec)
    assert all(number > 0 for number in steps)
    total, schedule = sum(steps), config.schedule
    warmup = schedule.warmup if schedule.warmup >= 1 else schedule.warmup * total
    decay = schedule.decay_steps if schedule.name == "wsd" else 0
    assert warmup + decay < total
    factor = make_schedule(schedule, total)
    assert float(factor(jnp.float32(warmup))) == pytest.approx(1, abs=1e-6)
    assert float(factor(jnp.float32(total))) == pytest.approx(schedule.final, abs=1e-3)


@each_recipe
def test_the_last_phase_has_the_rotary_base_of_the_model(spec):
    config = load(spec)
    assert phases_of(config)[-1].rotary_base == config.model.rotary_base


BILLION = 10**9
# Billions of tokens by row length, in order; where the papers count rows instead, these are rows times length.
PUBLISHED_TOKENS = {
    "bert_base.py": [(128, 900_000 * 256 * 128 / BILLION), (512, 100_000 * 256 * 512 / BILLION)],
    "bert_base.py:512": [(512, 1_000_000 * 256 * 512 / BILLION)],
    "bert_large.py": [(128, 900_000 * 256 * 128 / BILLION), (512, 100_000 * 256 * 512 / BILLION)],
    "roberta_base.py": [(512, 500_000 * 8192 * 512 / BILLION)],
    "mosaicbert_base.py": [(128, 286_720_000 * 128 / BILLION)],
    "modernbert_base.py": [(1024, 1719), (8192, 300)],
    "modernbert_large.py": [(1024, 1719), (8192, 300)],
    "ettin_17m.py": [(1024, 1700), (8192, 300)],
    "encoder_1b.py": [(1024, 1700), (8192, 300)],
    "bert_wwm_zh.py": [(128, 100_000 * 2560 * 128 / BILLION), (512, 100_000 * 384 * 512 / BILLION)],
}


@pytest.mark.parametrize(("spec", "published"), PUBLISHED_TOKENS.items(), ids=PUBLISHED_TOKENS)
def test_phases_have_the_published_number_of_tokens(spec, published):
    found: dict[int, float] = {}
    for steps, phase in zip(all_steps(spec), phases_of(load(spec)), strict=True):
        found[phase.sequence_length] = found.get(phase.sequence_length, 0) + steps * tokens_of(phase) / BILLION
    assert list(found) == [length for length, _ in published]
    assert list(found.values()) == pytest.approx([tokens for _, tokens in published], rel=1e-4)


# Billions of tokens: the warm-up of the rate, that of the batch, the fall at the end.
PUBLISHED_WARMUPS = {
    "modernbert_base.py": (3, 50, 50),
    "modernbert_large.py": (2, 10, 50),
    "ettin_17m.py": (4, 125, 300),
    "encoder_1b.py": (2, 3, 300),
}


@pytest.mark.parametrize(("spec", "published"), PUBLISHED_WARMUPS.items(), ids=PUBLISHED_WARMUPS)
def test_warmup_and_decay_have_the_published_number_of_tokens(spec, published):
    config, phases, steps = load(spec), phases_of(load(spec)), all_steps(spec)

    def tokens(first: float, last: float) -> float:
        """Of the updates from `first` to `last`."""
        found, begin = 0.0, 0
        for number, phase in zip(steps, phases, strict=True):
            inside = min(last, begin + number) - max(first, begin)
            found, begin = found + max(inside, 0) * tokens_of(phase), begin + number
        return found / BILLION

    total = sum(steps)
    sizes = [phase.batch_size for phase in phases if phase.sequence_length == 1024]
    growing = sum(steps[: len(sizes) - 1])
    found = (tokens(0, config.schedule.warmup), tokens(0, growing), tokens(total - config.schedule.decay_steps, total))
    assert found == pytest.approx(published, rel=2e-3)
    assert sizes == sorted(set(sizes))


PUBLISHED_DECAYS = {"mosaicbert": {5e-6, 1e-6, 3e-6, 1e-5, 8e-6}, "modernbert": {5e-6, 1e-5, 1e-6},
                    "modernbert_large": {1e-5, 5e-6, 8e-6, 1e-6}}  # fmt: skip
GLUE = ("mnli", "qnli", "qqp", "rte", "sst2", "mrpc", "cola", "stsb")


@pytest.mark.parametrize("model", ["bert", "roberta", "mosaicbert", "modernbert", "modernbert_large"])
def test_published_settings_of_fine_tuning(model):
    configs = {task: load_config(f"finetune:{task}:{model}", ["init_from=x"]) for task in GLUE}
    for task, config in configs.items():
        start = "mnli" if task in ("rte", "mrpc", "stsb") and model != "bert" else ""
        assert (config.task.name, config.task.intermediate) == (task, start)
        assert config.train.epochs == int(config.train.epochs)
    if model in PUBLISHED_DECAYS:  # Composer subtracts weight_decay * params, and not times the learning rate
        found = {config.optimizer.weight_decay * config.optimizer.learning_rate for config in configs.values()}
        assert sorted(found) == pytest.approx(sorted(PUBLISHED_DECAYS[model]))
    elif model == "roberta":
        assert {task: config.schedule.warmup for task, config in configs.items()}.pop("qqp") == 0.25
        assert [configs[task].train.batch_size for task in GLUE] == [32, 32, 32, 16, 32, 16, 16, 16]


def test_one_setting_for_all_tasks_is_the_default_of_fine_tuning():
    names = ("optimizer", "schedule", "evaluation")
    given = [config_to_dict(load_config(f"finetune:{spec}", ["init_from=x"])) for spec in ("cola", "rte", "rte:sane")]
    assert all({name: one[name] for name in names} == {name: given[0][name] for name in names} for one in given)
    assert (given[0]["train"]["batch_size"], given[0]["train"]["epochs"]) == (16, 5.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("finetune:SST-2", r"^finetune:SST-2 is not known; did you mean sst2\? It can be classification, "),
        ("finetune:reranker", r"^finetune:reranker is not known; did you mean reranking\? It can be classification, "),
        ("finetune:rte:published", r"published is not one of sane, bert, roberta, mosaicbert, modernbert, modernb"),
        ("finetune:wnli:bert", r"settings are published for mnli, qnli, .*; remove :bert$"),
    ],
)
def test_unknown_tasks_and_models_of_fine_tuning(spec, message):
    with pytest.raises(UserError, match=message):
        load_config(spec)


def test_the_header_of_fine_tuning_lists_every_kind_and_known_task():
    config_file = runpy.run_path(str(ROOT / "configs" / "finetune.py"))
    assert variants_of(ROOT / "configs" / "finetune.py") == [*config_file["KINDS"][1:], *KNOWN_TASKS]


# The export


@each_recipe
def test_a_recipe_can_be_exported_or_its_header_names_the_settings_that_prevent_it(spec):
    """Settings that the user may change, such as the tokenizer's size, are as the recipe has them."""
    _, lacking = nearest_family(encoder_of(spec))
    reason = header_of(ROOT / "configs" / spec.partition(":")[0]).get("export", "")
    assert bool(lacking) == reason.startswith("not possible"), lacking
    assert all(setting.partition("=")[0] in reason for setting in lacking)


def test_the_defaults_can_be_exported():
    assert nearest_family(encoder_config(default_config().model, 8192))[1] == []


# The shapes


@each_recipe
def test_parameter_shapes_are_computed_without_allocation(spec):
    params = paths_and_leaves(shapes_of(encoder_of(spec)))
    assert {type(leaf) for leaf in params.values()} == {jax.ShapeDtypeStruct}
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}
    rows, _ = params["encoder/embeddings/token/embedding"].shape
    assert rows >= load(spec).tokenizer.vocab_size


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        ("bert_base.py", 109_514_298),
        ("bert_large.py", 335_174_458),
        ("roberta_base.py", 124_697_433),
        ("modernbert_base.py", 149_655_232),
        ("modernbert_large.py", 395_881_664),
        ("ettin_17m.py", 16_913_600),
        ("bert_wwm_zh.py", 102_290_312),  # BERT-base with 21,128 entries
    ],
)
def test_parameter_count_matches_the_published_one(spec, published):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(encoder_of(spec)))) == published


@each_recipe
def test_optimizer_covers_every_parameter(spec):
    shapes = shapes_of(encoder_of(spec))
    assert updates_of(load(spec).optimizer.to_json(), encoder_of(spec)) == shapes


@each_recipe
def test_norms_and_biases_decay_only_as_in_the_published_code(spec):
    decays = paths_and_leaves(decay_mask(load(spec).optimizer, shapes_of(encoder_of(spec))))
    everything = spec.partition(".")[0] in ("roberta_base", "mosaicbert_base")
    assert all(decay == (everything or not path.endswith(("/scale", "/bias"))) for path, decay in decays.items())


@each_recipe
def test_one_device_holds_all_rows_and_parameters(spec):
    axes = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh((1, 1, 1), axes, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:1])
    shapes = shapes_of(encoder_of(spec))
    places = paths_and_leaves(param_shardings(mesh, shapes))
    for path, leaf in paths_and_leaves(shapes).items():
        assert places[path].shard_shape(leaf.shape) == leaf.shape
    check_batches(load(spec), mesh)


def test_a_billion_parameters_are_split_over_256_devices():
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(encoder_of("encoder_1b.py")))) == 1_031_314_112
    check_batches(load("encoder_1b.py"), SimpleNamespace(shape={"data": 16, "fsdp": 16, "tensor": 1}))


@each_published
def test_every_batch_splits_over_eight_devices(spec):
    check_batches(load(spec), SimpleNamespace(shape={"data": 8, "fsdp": 1, "tensor": 1}))


def check_batches(config, mesh) -> None:
    for phase in phases_of(config):
        check_batch(mesh, phase.batch_size, phase.accumulate)
    check_batch(mesh, config.evaluation.batch_size or config.train.batch_size, 1, "evaluation.batch_size")
