import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxlm import cli, config
from jaxlm.config import (
    Phase,
    apply_override,
    check_config,
    default_config,
    load_config,
    phase_number,
    phases_of,
)
from jaxlm.errors import UserError
from jaxlm.setting_type import INTERVALS
from jaxlm.settings import FORMER, PHASE_SETTINGS, RESUMABLE, RESUMABLE_SECTIONS, SETTINGS

ROOT = Path(__file__).parents[1]
KEYS = {f"{section}.{name}": setting for section, table in SETTINGS.items() for name, setting in table.items()}


def with_overrides(*overrides):
    result = default_config()
    for override in overrides:
        apply_override(result, override)
    return result


def rejection(*overrides):
    """Returns the message, one sentence, that rejects these settings."""
    with pytest.raises(UserError) as error:
        check_config(with_overrides(*overrides))
    return one_sentence(str(error.value))


def one_sentence(message):
    assert message
    assert "\n" not in message
    assert len(message) < 300
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_has_help_and_a_default_of_its_own_type(key):
    setting = KEYS[key]
    assert len(setting.help) > 5
    assert setting.help == setting.help.strip()
    assert "\n" not in setting.help
    assert setting.type in (bool, int, float, str, tuple)
    if setting.default is None:
        assert setting.kind
        assert apply(key, "none") is None
    else:
        assert type(setting.default) is setting.type
    if setting.choices:
        assert setting.default in setting.choices
    if setting.within and setting.default is not None:
        assert INTERVALS[setting.within][0](setting.default)
    elif setting.within:
        assert setting.type in (int, float)


def test_the_defaults_are_valid():
    check_config(default_config())
    for key, setting in KEYS.items():
        section, _, name = key.partition(".")
        assert default_config()[section][name] == setting.default
    assert set(KEYS) >= RESUMABLE
    assert set(SETTINGS) >= RESUMABLE_SECTIONS


# Overrides


def apply(key, text):
    section, _, name = key.partition(".")
    return with_overrides(f"{key}={text}")[section][name]


@pytest.mark.parametrize(("key", "text", "value"), [
    ("train.steps", "1e3", 1000),
    ("train.steps", "1_000", 1000),
    ("train.steps", "7", 7),
    ("train.steps", "none", None),
    ("train.seed", "9_007_199_254_740_993", 2**53 + 1),  # beyond what a float holds
    ("train.minutes", "5", 5.0),
    ("train.tokens", "1e9", 1e9),
    ("train.tokens", "None", None),
    ("masking.final_rate", "null", None),
    ("optimizer.learning_rate", "3e-4", 3e-4),
    ("optimizer.learning_rate", "1", 1.0),
    ("data.path", "a.txt", ("a.txt",)),
    ("data.path", "a.txt,b/*.txt", ("a.txt", "b/*.txt")),
    ("data.path", '["a,b.txt", "c"]', ("a,b.txt", "c")),
    ("data.path", "[ab]*.txt", ("[ab]*.txt",)),
    ("data.path", "", ()),
    ("data.path", "[]", ()),
    ("data.weights", "9,1", (9.0, 1.0)),
    ("data.weights", "[0.5, 2]", (0.5, 2.0)),
    ("data.held_out", "mine=a=b.txt", ("mine=a=b.txt",)),
    ("tokenizer.path", "none", "none"),  # a text is taken as it is
    ("data.field", "1e3", "1e3"),
    ("train.phases", '[{"steps": 3, "sequence_length": 64}, {}]', ({"steps": 3, "sequence_length": 64}, {})),
    ("train.phases", "", ()),
    ("data.deduplicate", "false", False),
    ("data.deduplicate", "No", False),
    ("data.prepend_begin", "TRUE", True),
    ("data.prepend_begin", "1", True),
])  # fmt: skip
def test_an_override_keeps_the_settings_type(key, text, value):
    result = apply(key, text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(("override", "expected"), [
    ("train.steps=1.5", "whole number"),
    ("train.steps=many", "whole number"),
    ("train.steps=1e400", "whole number"),
    ("train.steps=nan", "whole number"),
    ("train.steps=true", "whole number"),
    ("train.steps=", "whole number"),
    ("model.width=none", "whole number"),  # only what may be none
    ("train.minutes=five", "a number"),
    ("data.deduplicate=perhaps", "true or false"),
    ("data.weights=a,b", "list"),
    ("data.weights=[1, [2]]", "list"),
    ("data.path=[1,]", "JSON"),
    ("train.phases=3", "list"),
    ("train.phases=[3]", "list"),
    ("train.phases=[{]", "JSON"),
    ('train.phases=[{"steps": 1, "steps": 2}]', "the key 'steps' occurs twice"),
    ("train.phases=" + "[" * 5000, "nested more than 100 deep"),
])  # fmt: skip
def test_an_override_of_the_wrong_type_is_rejected(override, expected):
    message = rejection(override)
    assert expected in message
    assert override.partition("=")[0] in message


@pytest.mark.parametrize(("key", "nearest"), [
    ("train.stpes", "train.steps"),
    ("trian.steps", "train.steps"),
    ("steps", "train.steps"),
    ("optimizer.learning-rate", "optimizer.learning_rate"),
    ("model.batch_size", "train.batch_size"),
    ("model.hidden_widht", "model.width"),
])  # fmt: skip
def test_an_unknown_key_names_the_nearest(key, nearest):
    message = rejection(f"{key}=1")
    assert key in message
    assert "did you mean" in message
    assert nearest.rpartition(".")[2] in message.partition("did you mean")[2]


def test_an_unknown_key_without_a_near_one_points_to_jaxlm_config():
    assert "jaxlm config" in rejection("xyzzy=1")


@settings(deadline=None)
@given(key=st.sampled_from(sorted(KEYS)), place=st.integers(0, 30), letter=st.sampled_from("qxz_"))
def test_a_key_with_one_wrong_letter_names_the_right_one(key, place, letter):
    place %= len(key)
    wrong = key[:place] + letter + key[place:]
    if wrong not in KEYS:
        hint = rejection(f"{wrong}=1").partition("did you mean ")[2]
        assert hint.rstrip("?") in KEYS


def test_command_lines_give_values_with_an_equal_sign_or_a_space():
    arguments = ["--config=a.py", "--config.train.steps=5", "--json", "--config.data.field", "body", "model"]
    assert config.split_overrides(arguments) == (
        ["train.steps=5", "data.field=body"],
        ["--config=a.py", "--json", "model"],
    )
    for arguments in (["--config.train.steps"], ["--config.train.steps", "--json"]):
        with pytest.raises(UserError, match=r"--config\.train\.steps=VALUE"):
            config.split_overrides(arguments)


# Invalid values


@pytest.mark.parametrize(("overrides", "words"), [
    (["masking.rate=15"], ["masking.rate=15", "between 0 and 1"]),
    (["masking.rate=0"], ["masking.rate"]),
    (["masking.rate=nan"], ["masking.rate"]),
    (["masking.final_rate=40"], ["masking.final_rate"]),
    (["masking.mask_share=0.8", "masking.random_share=0.3"], ["masking.mask_share", "masking.random_share"]),
    (["masking.scheme=whole-word"], ["masking.scheme", "did you mean whole_word"]),
    (["model.heads=3"], ["model.heads=3", "model.width=256"]),
    (["model.width=12", "model.heads=4"], ["rotary", "even"]),
    (["model.layer_pattern=gx"], ["model.layer_pattern"]),
    (["model.layer_pattern="], ["model.layer_pattern"]),
    (["model.norm_epsilon=0"], ["model.norm_epsilon"]),
    (["model.dropout=1"], ["model.dropout"]),
    (["model.layers=0"], ["model.layers", "at least 1"]),
    (["data.path=a,b", "data.weights=1"], ["data.weights", "data.path"]),
    (["data.weights=1"], ["data.weights", "data.path"]),
    (["data.path=a,b", "data.weights=1,0"], ["data.weights"]),
    (["data.path=a,b", "data.weights=1,inf"], ["data.weights"]),
    (["data.held_out=a.txt"], ["data.held_out", "NAME=PATH"]),
    (["data.held_out=x=a,x=b"], ["data.held_out", "twice"]),
    (["data.held_out=../x=a"], ["data.held_out", "letters"]),
    (["data.sequence_length=4"], ["data.sequence_length=4"]),
    (["model.positions=learned", "data.sequence_length=513"], ["data.sequence_length=513", "512"]),
    (["model.positions=learned", "model.position_offset=2", "data.sequence_length=511"], ["511", "510"]),
    (["train.steps=10", "train.minutes=1"], ["train.steps", "train.minutes"]),
    (["train.steps=0"], ["train.steps"]),
    (["train.seed=-1"], ["train.seed"]),
    (["train.batch_size=10", "train.accumulate=4"], ["train.batch_size=10", "train.accumulate=4"]),
    (["train.minutes=1", "schedule.warmup=100"], ["train.minutes", "schedule.warmup"]),
    (["train.minutes=1", "schedule.name=wsd", "schedule.decay_steps=100"], ["train.minutes", "schedule.decay_steps"]),
    (['train.phases=[{"sequence_length": 128}, {}]'], ["train.phases, entry 1", "steps"]),
    (['train.phases=[{"steps": 5, "length": 128}, {}]'], ["train.phases, entry 1", "length", "sequence_length"]),
    (['train.phases=[{"steps": 5}, {"mask_rate": 15}]'], ["train.phases", "mask_rate=15"]),
    (['train.phases=[{"objective": "electra"}]'], ["train.phases, entry 1", "objective=electra", "masked, causal"]),
    (['train.phases=[{"steps": 1.5}, {}]'], ["train.phases, entry 1", "whole number"]),
    (['train.phases=[{"steps": "5"}, {}]'], ["train.phases, entry 1", "steps=5"]),
    (['train.phases=[{"steps": -5}, {}]'], ["train.phases, entry 1", "above 0"]),
    (['train.phases=[{"steps": NaN}, {}]'], ["train.phases", "NaN is not a number"]),
    (['train.phases=[{"steps": 1e999}, {}]'], ["train.phases, entry 1", "above 0"]),
    (['train.phases=[{"rotary_base": NaN}]'], ["train.phases", "NaN is not a number"]),
    (["model.positions=learned", 'train.phases=[{"steps": 5}, {"sequence_length": 1024}]'], ["1024", "512"]),
    (['train.phases=[{"steps": 5, "batch_size": 9, "accumulate": 2}, {}]'], ["9", "accumulate=2"]),
    (["optimizer.learning_rate=3"], ["optimizer.learning_rate"]),
    (["schedule.final=2"], ["schedule.final"]),
    (["train.objective=electra"], ["train.objective=electra", "masked, causal, classification"]),
    (["mesh.data=0"], ["mesh.data"]),
    (["tokenizer.character_coverage=0.1"], ["tokenizer.character_coverage"]),
    (["checkpoint.every=0"], ["checkpoint.every"]),
])  # fmt: skip
def test_invalid_values_are_rejected_with_one_sentence(overrides, words):
    message = rejection(*overrides)
    for word in words:
        assert word in message, message


@settings(deadline=None)
@given(data=st.data(), key=st.sampled_from([key for key, setting in KEYS.items() if setting.within]))
def test_no_value_outside_a_settings_interval_passes(data, key):
    setting = KEYS[key]
    values = st.integers(-(10**6), 10**6) if setting.type is int else st.floats(allow_nan=True, allow_infinity=True)
    value = data.draw(values)
    inside = value == value and abs(value) != float("inf") and INTERVALS[setting.within][0](value)
    if not inside:
        assert key in rejection(f"{key}={value!r}")


def test_phases_inherit_omitted_settings_and_the_last_has_no_end():
    result = with_overrides(
        'train.phases=[{"steps": 1e2, "sequence_length": 64.0, "mask_rate": 0.3}, {"steps": 5, "rotary_base": 160000}]'
    )
    check_config(result)
    first, last = phases_of(result)
    assert first == Phase(
        steps=100, sequence_length=64, batch_size=32, accumulate=1, mask_rate=0.3,
        learning_rate=1e-3, rotary_base=10_000.0, objective="masked",
    )  # fmt: skip
    assert last == Phase(
        steps=None, sequence_length=128, batch_size=32, accumulate=1, mask_rate=0.15,
        learning_rate=1e-3, rotary_base=160_000.0, objective="masked",
    )  # fmt: skip
    assert {field.name for field in dataclasses.fields(Phase)} == set(PHASE_SETTINGS)
    for name, kind in PHASE_SETTINGS.items():
        assert type(getattr(first, name)) is kind
    (only,) = phases_of(default_config())
    assert only == Phase(None, 128, 32)  # the defaults of Phase are those of the settings


def test_a_phase_lasts_for_its_steps_and_the_last_one_until_the_end():
    phases = [Phase(steps, 128, 32) for steps in (3, 1, None)]
    assert [phase_number(phases, step) for step in (0, 2, 3, 4, 10**9)] == [0, 0, 1, 2, 2]
    assert phase_number(phases[-1:], 7) == 0


def test_phases_take_the_objective_of_the_run_unless_they_have_their_own():
    rows = 'train.phases=[{"steps": 5, "objective": "masked"}, {}]'
    config = with_overrides("train.objective=causal", rows)
    check_config(config)
    assert [phase.objective for phase in phases_of(config)] == ["masked", "causal"]
    message = rejection("train.objective=classification", "task.train=train.tsv", rows)
    assert "train.phases, entry 1: objective=masked" in message
    assert "train.objective=classification" in message


# Config files


def write_config(folder, body, name="recipe.py"):
    path = folder / name
    path.write_text("from jaxlm.config import default_config\n\n\n" + body)
    return path


def load_error(spec, *overrides):
    with pytest.raises(UserError) as error:
        load_config(str(spec), overrides)
    return one_sentence(str(error.value))


def test_a_config_file_and_overrides_make_the_config(tmp_path):
    body = "def get_config():\n    c = default_config()\n    c.model.layers = 2\n    c.train.steps = 5\n    return c\n"
    result = load_config(str(write_config(tmp_path, body)), ["train.steps=1e2"])
    assert (result.model.layers, result.train.steps, result.model.width) == (2, 100, 256)
    with pytest.raises(AttributeError):
        result.model.widht = 3


def test_a_variant_is_handed_to_the_file(tmp_path):
    body = (
        "def get_config(arg=None):\n    c = default_config()\n"
        "    if arg not in (None, 'small'):\n        raise ValueError(f'no variant {arg}; there is small')\n"
        "    c.model.layers = 1 if arg == 'small' else 9\n    return c\n"
    )
    path = write_config(tmp_path, body)
    assert load_config(f"{path}:small").model.layers == 1
    assert load_config(str(path)).model.layers == 9
    assert load_error(f"{path}:huge") == f"{path}, line 7: no variant huge; there is small"


@pytest.mark.parametrize(("line", "words"), [
    ("c.model.widht = 1", ["widht", "did you mean width?"]),
    ("c.model.update(widht=1)", ["widht", "did you mean width?"]),
    ("c.modle.width = 1", ["modle", "did you mean model?"]),
    ("c.qqqq = 1", ["qqqq", "jaxlm config"]),
    ("c.model.width = 'wide'", ["width", "int"]),
    ("c.train.steps = 2.5", ["steps"]),
    ("c.data.path = 'a.txt'", ["path", "tuple"]),
    ("1 / 0", ["division by zero"]),
    ("import jaxlm.nothing", ["jaxlm.nothing"]),
    ("c = undefined", ["undefined"]),
    ("c.model.width = = 3", ["invalid syntax"]),
    ("assert False", ["AssertionError"]),
])  # fmt: skip
def test_a_mistake_in_a_config_file_is_one_sentence_with_file_and_line(tmp_path, line, words):
    path = write_config(tmp_path, f"def get_config():\n    c = default_config()\n    {line}\n    return c\n")
    message = load_error(path)
    assert message.startswith(f"{path}, line 6: ")
    for word in words:
        assert word in message, message


def test_the_line_of_a_mistake_is_the_innermost_one_of_the_file(tmp_path):
    body = "def small(c):\n    c.model.widht = 8\n\n\ndef get_config():\n    return small(default_config())\n"
    path = write_config(tmp_path, body)
    assert load_error(path).startswith(f"{path}, line 5: ")


@pytest.mark.parametrize(("body", "words"), [
    ("x = 1\n", "no function get_config"),
    ("def get_config():\n    return 3\n", "returned int"),
    ("def get_config():\n    return None\n", "returned NoneType"),
    ("import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict()\n", "default_config"),
    ("def get_config():\n    return (\n", "line 5: '(' was never closed"),
])  # fmt: skip
def test_a_file_that_gives_no_config_is_refused(tmp_path, body, words):
    path = write_config(tmp_path, body)
    message = load_error(path)
    assert str(path) in message
    assert words in message


def test_a_variant_of_a_file_that_has_none_is_refused(tmp_path):
    path = write_config(tmp_path, "def get_config():\n    return default_config()\n")
    assert load_error(f"{path}:large") == f"{path} has no variants; remove :large"


def test_values_of_a_file_are_checked_like_overrides(tmp_path):
    path = write_config(
        tmp_path, "def get_config():\n    c = default_config()\n    c.masking.rate = 15.0\n    return c\n"
    )
    assert "masking.rate=15" in load_error(path)
    assert "model.heads=3" in load_error(path, "masking.rate=0.2", "model.heads=3")


def test_a_missing_file_names_the_nearest_recipe(tmp_path):
    assert load_error("configs/mni.py") == "there is no config file configs/mni.py; did you mean the recipe mini?"
    assert load_error("mni:arg") == "there is no config file mni; did you mean the recipe mini?"
    message = load_error(tmp_path / "xyzzy.py")
    assert "xyzzy.py" in message
    assert "did you mean" not in message
    assert str(tmp_path) in load_error(tmp_path)
    assert load_error("xyzzy").startswith("there is no recipe xyzzy; the recipes are bert_base, bert_large,")


def test_a_config_in_memory_is_copied_and_checked():
    given = default_config()
    given.train.steps = 7
    loaded = load_config(given, ["train.batch_size=16"])
    assert (loaded.train.steps, loaded.train.batch_size, given.train.batch_size) == (7, 16, 32)
    assert load_config(ConfigDict({"train": {"steps": 7}})) == load_config(given)
    for content, words in [
        ({"train": {"stpes": 7}}, "config: there is no setting train.stpes; did you mean train.steps?"),
        ({"trian": {"steps": 7}}, "did you mean train.steps?"),
        ({"train": {"steps": "many"}}, "train.steps=many: expected a whole number"),
        ({"masking": {"rate": 15.0}}, "masking.rate=15.0"),
        ({"train": 5}, "train is not a section"),
    ]:
        with pytest.raises(UserError) as error:
            load_config(ConfigDict(content))
        assert words in one_sentence(str(error.value))
    with pytest.raises(UserError, match="config must be a ConfigDict, a file or the name of a recipe, not dict"):
        load_config({"train": {"steps": 7}})


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("train: {}")
    assert "FILE.py" in load_error(tmp_path / "recipe.yaml")


# config.json


def override_texts():
    """Overrides of any settings with values of their types, as a command line has them."""
    word = st.text("abcxyz .*/é中", min_size=1, max_size=8)

    def texts(key):
        setting = KEYS[key]
        whole, real = st.integers(1, 10**9).map(str), st.floats(1e-9, 1.0).map(repr)
        if setting.choices:
            values = st.sampled_from(setting.choices)
        elif setting.item is dict:
            phase = st.fixed_dictionaries({"steps": st.integers(1, 99)}, optional={"mask_rate": st.floats(0.1, 0.9)})
            values = st.lists(phase, max_size=3).map(json.dumps)
        else:
            values = {
                bool: st.sampled_from(["true", "false"]),
                int: whole,
                float: real,
                str: st.text(max_size=20),
                tuple: st.lists({float: real, int: whole}.get(setting.item, word), max_size=3).map(",".join),
            }[setting.type]
        if setting.default is None:
            values = st.one_of(values, st.just("none"))
        return values.map(lambda text: f"{key}={text}")

    return st.lists(st.sampled_from(sorted(KEYS)).flatmap(texts), max_size=12)


@settings(deadline=None)
@given(overrides=override_texts())
def test_json_replays_any_config(overrides):
    before = with_overrides(*overrides)
    text = json.dumps(config.config_to_dict(before), allow_nan=False)
    after = config.config_from_dict(json.loads(text), "config.json")
    assert config.changed_settings(before, after) == []
    for key, setting in KEYS.items():
        section, _, name = key.partition(".")
        old, new = before[section][name], after[section][name]
        assert old == new
        assert type(new) is type(old) is (setting.type if old is not None else type(None))


def test_the_saved_config_replays_the_run(tmp_path):
    before = with_overrides("train.steps=5", "data.path=a,b", "data.weights=9,1", "masking.final_rate=0.3",
                            'train.phases=[{"steps": 3, "sequence_length": 64}, {}]')  # fmt: skip
    config.save_config(before, tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    after = load_config(str(tmp_path / "config.json"))
    assert after == before
    assert phases_of(after) == phases_of(before)
    assert load_config(str(tmp_path / "config.json"), ["train.steps=7"]).train.steps == 7


@pytest.mark.parametrize(("content", "words"), [
    ('{"train": {"steps": 5', "not valid JSON"),
    ("[1, 2]", "JSON object"),
    ('{"train": 3}', "train is not a section"),
    ('{"train": {"stpes": 5}}', "did you mean train.steps?"),
    ('{"trian": {"steps": 5}}', "did you mean train.steps?"),
    ('{"train": {"steps": "five"}}', "train.steps=five"),
    ('{"train": {"steps": true}}', "whole number"),
    ('{"train": {"minutes": true}}', "a number"),
    ('{"data": {"path": "a.txt"}}', "data.path"),
    ('{"data": {"deduplicate": 1}}', "true or false"),
    ('{"model": {"width": null}}', "whole number"),
    ('{"masking": {"rate": 15}}', "masking.rate=15"),
])  # fmt: skip
def test_a_broken_config_json_is_rejected(tmp_path, content, words):
    (tmp_path / "config.json").write_text(content)
    assert words in load_error(tmp_path / "config.json")


def test_a_config_json_that_is_not_utf8_is_rejected(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"data": {"field": "caf\xe9"}}')
    assert "config.json is not valid JSON" in load_error(tmp_path / "config.json")


# Resuming


def test_an_object_in_place_of_a_list_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {"path": {"a": 1}}}')
    with pytest.raises(UserError, match=r"data\.path=\{'a': 1\}: expected a list"):
        load_config(str(tmp_path / "config.json"))


ANOTHER = {bool: "false", int: "77", float: "0.77", str: "other", tuple: "3,4"}


@pytest.mark.parametrize("key", KEYS)
def test_a_resumed_run_may_change_only_settings_that_extend_or_monitor_it(key):
    setting, before, after = KEYS[key], default_config(), default_config()
    text = ANOTHER[setting.type]
    if setting.type is bool:
        text = str(not setting.default)
    elif setting.item is dict:
        text = '[{"steps": 3}, {}]'
    apply_override(after, f"{key}={text}")
    section, _, name = key.partition(".")
    allowed = section in ("mesh", "checkpoint", "evaluation", "logging") or key in (
        "train.steps", "train.epochs", "train.tokens", "train.minutes", "train.count_compilation", "train.attention",
        "train.rematerialise", "data.cache", "data.workers", "data.prefetch", "task.submission",
    )  # fmt: skip
    changed = config.changed_settings(before, after)
    if allowed:
        assert changed == []
    else:
        old, new = (json.dumps(c[section][name]) for c in (before, after))
        assert changed == [f"{key}: {old} -> {new}"]


def test_a_config_json_with_former_names_loads_as_the_current_one(tmp_path):
    now = with_overrides(
        "optimizer.decay_mask=.=yes", "optimizer.rate_multipliers=head=3", "schedule.name=wsd",
        "schedule.decay_steps=0.2", "train.rematerialise=full", "train.steps=5",
    )  # fmt: skip
    content = config.config_to_dict(now)
    for section, old, new in (
        ("optimizer", "decay", "decay_mask"),
        ("optimizer", "rates", "rate_multipliers"),
        ("schedule", "decay", "decay_steps"),
    ):
        content[section][old] = content[section].pop(new)
    content["train"]["rematerialise"] = True
    content["debug"] = {"nan_at_step": None}
    del content["task"], content["train"]["objective"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    former = load_config(str(path))
    assert former == now
    assert config.changed_settings(former, now) == []
    assert config.changed_settings(former, now, resuming=False) == []


def test_every_former_name_leads_to_a_setting():
    for old, former in FORMER.items():
        assert former.name is None or former.name in KEYS
        assert old not in KEYS or former.values
        assert not old.startswith(("data.", "tokenizer."))  # stores are found by these names


@pytest.mark.parametrize(("former", "now"), [(True, "full"), (False, "none"), ("dots", "dots")])
def test_a_switch_becomes_the_value_that_replaces_it(former, now):
    content = {"train": {"rematerialise": former}}
    assert config.config_from_dict(content, "config.json").train.rematerialise == now


@pytest.mark.parametrize(("old", "hint"), [
    ("optimizer.decay", "did you mean optimizer.decay_mask?"),
    ("optimizer.rates", "did you mean optimizer.rate_multipliers?"),
    ("schedule.decay", "did you mean schedule.decay_steps?"),
    ("decay", "did you mean optimizer.decay_mask or schedule.decay_steps?"),
    ("debug.nan_at_step", "there is no setting debug.nan_at_step"),
])  # fmt: skip
def test_a_former_name_on_the_command_line_is_rejected_with_the_new_one(old, hint):
    assert hint in rejection(f"{old}=1")


def test_a_former_name_in_a_config_file_is_rejected_with_the_new_one(tmp_path):
    for line in ("c.optimizer.rates = ()", "c.optimizer.update(rates=())"):
        path = write_config(tmp_path, f"def get_config():\n    c = default_config()\n    {line}\n    return c\n")
        assert "rates; did you mean optimizer.rate_multipliers?" in load_error(path)


def test_all_changed_settings_are_listed_in_order():
    after = with_overrides("train.steps=5", "model.layers=9", "data.path=a")
    assert config.changed_settings(default_config(), after) == ['data.path: [] -> ["a"]', "model.layers: 4 -> 9"]


# jaxlm config


def run_cli(monkeypatch, *arguments):
    for name in ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL"):  # which the program sets where they are not
        monkeypatch.setenv(name, "")
    return cli.main(["config", *map(str, arguments)])


def test_the_command_prints_every_setting_with_value_and_meaning(monkeypatch, capsys):
    assert run_cli(monkeypatch) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == len(KEYS)
    for line, (key, setting) in zip(lines, KEYS.items(), strict=True):
        value, _, meaning = line.removeprefix(f"{key} = ").partition("  # ")
        assert line.startswith(f"{key} = ")
        assert json.loads(value) == json.loads(json.dumps(setting.default))
        assert meaning.startswith(setting.help)
        assert all(choice in meaning for choice in setting.choices)


def test_the_command_prints_one_section_with_files_and_overrides_applied(monkeypatch, capsys):
    mini = ROOT / "configs" / "mini.py"
    assert run_cli(monkeypatch, "train", f"--config={mini}", "--config.train.seed=5") == 0
    out = capsys.readouterr().out
    assert [line.partition(" = ")[0] for line in out.splitlines()] == [key for key in KEYS if key.startswith("train.")]
    assert "train.seed = 5 " in out
    assert f"train.steps = {load_config(str(mini)).train.steps} " in out


def test_json_printed_by_the_command_can_be_loaded(monkeypatch, capsys, tmp_path):
    path = tmp_path / "printed.json"
    overrides = ["--config.train.steps=5", "--config.data.path=é,b", "--config.model.layers=7"]
    assert run_cli(monkeypatch, *overrides, "--json") == 0
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(str(path)) == with_overrides("train.steps=5", "data.path=é,b", "model.layers=7")
    assert run_cli(monkeypatch, *overrides, "model", "--json") == 0
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(str(path)) == with_overrides("model.layers=7")


@pytest.mark.parametrize(("arguments", "words"), [
    (["modle"], "did you mean model?"),
    (["xyzzy"], "they are data"),
    (["--config=nowhere.py"], "nowhere.py"),
    (["--config.train.stpes=5"], "did you mean train.steps?"),
    (["--config.masking.rate=15"], "masking.rate=15"),
    (["--config.train.steps"], "--config.train.steps=VALUE"),
])  # fmt: skip
def test_the_command_reports_an_error_in_one_sentence_with_status_1(monkeypatch, capsys, arguments, words):
    assert run_cli(monkeypatch, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxlm: ")
    assert words in one_sentence(err.rstrip("\n"))
