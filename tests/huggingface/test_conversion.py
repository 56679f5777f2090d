"""Import and export of Transformers checkpoints, compared with its recorded outputs (tests/parity/record.py)."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.huggingface import conversion, family_config
from jaxlm.huggingface.families import FAMILIES
from jaxlm.model.config import EncoderConfig, encoder_config
from jaxlm.model.heads import MaskedLM, abstract_params, encode, init_params
from jaxlm.model.presets import PRESETS
from tests.parity.cases import CASES, batch, outputs_of, summary, weights

FAST = {"xla_backend_optimization_level": 0}
GOLDEN = Path(__file__).parents[1] / "golden" / "huggingface"


def record_of(case: str) -> dict:
    return json.loads((GOLDEN / f"{case}.json").read_text())


def write(directory: Path, case: str, change=lambda tensors: tensors, **config) -> Path:
    """Writes the checkpoint of a case as Transformers would; `change` maps its tensors (by name) to those written."""
    record = record_of(case)
    tensors = {name: weights(name, tuple(shape)) for name, shape in record["tensors"].items()}
    directory.mkdir(exist_ok=True, parents=True)
    save_file(change(tensors), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(record["config"] | config))
    return directory


def load(directory: Path) -> tuple[conversion.Source, EncoderConfig, conversion.Loaded]:
    source = conversion.read_source(directory)
    config = default_config()
    config.model.update(conversion.model_settings(source))
    encoder = encoder_config(config.model)
    return source, encoder, conversion.read_params(source, encoder)


def flat(params) -> dict[str, np.ndarray]:
    return dict(conversion._flatten(params))


def error_of(function, *args) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_loss_and_gradients_equal_those_of_transformers(case, tmp_path):
    record = record_of(case)
    source, encoder, loaded = load(write(tmp_path, case))
    assert bool(loaded.fresh) == (case in ("bert_without_head", "electra_discriminator"))
    loss_of = jax.value_and_grad(lambda params: outputs_of(encoder, params), has_aux=True)
    (loss, outputs), gradients = jax.jit(loss_of, compiler_options=FAST)(loaded.params)
    found = summary(np.asarray(outputs)[batch()["attention"] == 1])
    np.testing.assert_allclose(found, record["outputs"], atol=1e-4)
    assert abs(float(loss) - record["loss"]) < 1e-5
    ours = flat(gradients)
    family = source.family
    theirs = {name.removeprefix(family.prefix): norm for name, norm in record["gradient_norms"].items()}
    for tensor in conversion.tensors_of(family, encoder):
        if all(path in ours for path in tensor.paths):
            other = (
                {} if encoder.tied_output else {family.output_bias: family.decoder_bias}
            )  # an untied decoder has its own
            norm = np.sqrt(sum(np.square(ours[path]).sum() for path in tensor.paths))
            expected = theirs[other.get(tensor.name) or tensor.name]
            assert abs(norm - expected) < 1e-4 + 1e-4 * expected, tensor.name


@pytest.mark.parametrize("case", CASES)
def test_export_writes_the_same_file_and_config(case, tmp_path):
    source, encoder, loaded = load(write(tmp_path / "in", case))
    record = record_of(case)
    ids = {"pad": record["pad"], "begin": 1, "end": 2}
    ids |= {role: record["config"][key] for key, role in source.family.special_ids.items() if key in record["config"]}
    config = family_config.config_for(encoder, source.family, 8, ids, record["config"])
    assert config == record["config"]
    (tmp_path / "out").mkdir()
    conversion.write_weights(tmp_path / "out", source.family, encoder, loaded.params)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    before = {name: array for name, array in before.items() if name not in loaded.unused}
    family = source.family
    if case == "bert_without_head":  # exported with the names of a base model
        before = {name.removeprefix(family.prefix): array for name, array in before.items()}
    if not encoder.tied_output and family.decoder_bias:
        before[family.output_bias] = before[family.decoder_bias]  # the other one is not used
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], name)


# Names and formats


@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "electra_generator", "modernbert"])
def test_names_with_and_without_the_prefix_are_equivalent(case, tmp_path):
    _, _, loaded = load(write(tmp_path / "with", case))
    prefix = FAMILIES[record_of(case)["config"]["model_type"]].prefix
    strip = lambda tensors: {name.removeprefix(prefix): array for name, array in tensors.items()}  # noqa: E731
    _, _, without = load(write(tmp_path / "without", case, strip))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, without.params)
    _, _, whole = load(
        write(tmp_path / "whole", case, lambda t: strip({k: v for k, v in t.items() if k.startswith(prefix)}))
    )
    assert set(whole.fresh) == {path for path in flat(loaded.params) if path.startswith("head/")}


def test_old_names_of_norms_and_buffers_are_read(tmp_path):
    def older(tensors):
        renamed = {}
        for name, array in tensors.items():
            for old, new in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
                name = name.replace(old, new)
            renamed[name] = array
        return renamed | {"bert.embeddings.position_ids": np.arange(32)[None]}

    _, _, loaded = load(write(tmp_path / "new", "bert"))
    _, _, old = load(write(tmp_path / "old", "bert", older))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, old.params)
    assert not old.unused


@pytest.mark.parametrize(
    ("copy", "original", "what"),
    [
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight", "the token embeddings"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias", "the output bias"),
    ],
)
def test_a_tied_tensor_that_differs_is_reported_and_ignored(copy, original, what, tmp_path, caplog):
    same = load(write(tmp_path / "same", "bert", lambda t: t | {copy: t[original]}))[2]
    assert not caplog.text
    other = load(write(tmp_path / "other", "bert", lambda t: t | {copy: t[original] + 1}))[2]
    assert f"{copy} differs from {what}, but config.json ties them: {original} is used" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, same.params, other.params)


@pytest.mark.parametrize(
    ("case", "table", "decoder"),
    [
        ("bert", "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("modernbert", "model.embeddings.tok_embeddings.weight", "decoder.weight"),
    ],
)
def test_a_tied_array_is_read_under_either_name(case, table, decoder, tmp_path, caplog):
    renamed = lambda tensors: {decoder if name == table else name: array for name, array in tensors.items()}  # noqa: E731
    expected, found = (load(write(tmp_path / name, case, change))[2] for name, change in
                       (("usual", lambda t: t), ("other", renamed)))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, expected.params, found.params)
    assert (found.fresh, found.unused, caplog.text) == ([], [], "")


def test_an_untied_decoder_reads_its_own_bias(tmp_path):
    name = "cls.predictions.decoder.bias"
    _, encoder, loaded = load(write(tmp_path, "bert_untied"))
    np.testing.assert_array_equal(loaded.params["head"]["bias"], weights(name, (41,)))
    np.testing.assert_array_equal(
        loaded.params["head"]["kernel"], weights("cls.predictions.decoder.weight", (41, 24)).T
    )
    assert not encoder.tied_output


def test_heads_of_other_tasks_are_named(tmp_path):
    _, _, loaded = load(write(tmp_path, "bert_pretraining"))
    assert loaded.unused == [
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "cls.seq_relationship.bias", "cls.seq_relationship.weight"
    ]  # fmt: skip
    assert not loaded.fresh


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_and_written_exactly(dtype, tmp_path):
    half = lambda tensors: {name: array.astype(dtype) for name, array in tensors.items()}  # noqa: E731
    source, encoder, loaded = load(write(tmp_path / "in", "roberta", half))
    for leaf in jax.tree.leaves(loaded.params):
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, leaf.astype(dtype).astype(np.float32))
    (tmp_path / "out").mkdir()
    conversion.write_weights(tmp_path / "out", source.family, encoder, loaded.params, np.dtype(dtype).name)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    for name in before:
        assert after[name].dtype == dtype
        np.testing.assert_array_equal(before[name], after[name])


def test_shards_are_written_and_read_by_their_index(tmp_path):
    source, encoder, loaded = load(write(tmp_path / "in", "modernbert"))
    (tmp_path / "out").mkdir()
    files = conversion.write_weights(tmp_path / "out", source.family, encoder, loaded.params, shard_bytes=9000)
    assert len(files) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in jax.tree.leaves(loaded.params))
    (tmp_path / "out" / "config.json").write_text((tmp_path / "in" / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "out")[2].params, loaded.params)
    files[1].unlink()
    assert re.search(r"lacks model-00002-of-\d+.safetensors, which is listed in model.safetensors.index.json",
                     error_of(load, tmp_path / "out"))  # fmt: skip


def test_configs_of_modernbert_in_both_formats(tmp_path):
    old = {
        "layer_types": None, "rope_parameters": None, "global_attn_every_n_layers": 2, "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    }  # fmt: skip
    encoder = load(write(tmp_path / "old", "modernbert", **old))[1]
    assert (encoder.layer_pattern, encoder.rotary_base, encoder.local_rotary_base) == ("gl", 160_000.0, 10_000.0)
    # Transformers uses the global base if the local one is null.
    encoder = load(write(tmp_path / "null", "modernbert", **old | {"local_rope_theta": None}))[1]
    assert encoder.local_rotary_base == 160_000.0
    new = FAMILIES["modernbert"]
    config = family_config.config_for(encoder, new, 64, {"pad": 0, "begin": 1, "end": 2})
    assert config["global_attn_every_n_layers"] == 2
    assert config["layer_types"] == ["full_attention", "sliding_attention"] * 2
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 160_000.0


@pytest.mark.parametrize(
    ("released", "sizes"),
    [
        # ModernBERT and the released sizes of Ettin and mmBERT (arXiv 2507.11412, 2509.06888)
        ("ModernBERT-base", (22, 768, 12, 1152, 50368)), ("ModernBERT-large", (28, 1024, 16, 2624, 50368)),
        ("ettin-17m", (7, 256, 4, 384, 50368)), ("ettin-32m", (10, 384, 6, 576, 50368)),
        ("ettin-68m", (19, 512, 8, 768, 50368)), ("ettin-150m", (22, 768, 12, 1152, 50368)),
        ("ettin-400m", (28, 1024, 16, 2624, 50368)), ("ettin-1b", (28, 1792, 28, 3840, 50368)),
        ("mmBERT-small", (22, 384, 6, 1152, 256000)), ("mmBERT-base", (22, 768, 12, 1152, 256000)),
    ],
)  # fmt: skip
def test_every_released_modernbert_is_supported(released, sizes, tmp_path):
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    config = {"model_type": "modernbert", **dict(zip(names, sizes, strict=True))}
    if not released.startswith("ModernBERT"):
        config |= {"local_rope_theta": 160000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = conversion.read_source(tmp_path)
    settings = default_config()
    settings.model.update(conversion.model_settings(source))
    encoder = dataclasses.replace(encoder_config(settings.model), layers=4)
    size = sum(int(np.prod(tensor.shape)) for tensor in conversion.tensors_of(source.family, encoder))
    assert size == sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_params(encoder)))
    assert family_config.choose_family(encoder).name == "modernbert"
    assert encoder.local_rotary_base == (10_000.0 if released.startswith("ModernBERT") else 160_000.0)


def test_outputs_of_modernbert_do_not_depend_on_padding(tmp_path):
    _, encoder, loaded = load(write(tmp_path, "modernbert"))
    states = jax.jit(functools.partial(encode, MaskedLM(encoder)), compiler_options=FAST)
    tokens = np.random.RandomState(0).randint(5, 41, (4, 40)).astype(np.int32)
    alone = states(loaded.params, tokens[:1, :23], None)  # the local window is 8
    padded = states(loaded.params, tokens, (np.arange(40) < np.array([[23], [40], [3], [30]])).astype(np.int32))
    np.testing.assert_allclose(alone[0], padded[0, :23], atol=1e-5)


# Which family


@pytest.mark.parametrize(
    ("preset", "family"),
    [("bert_base", "bert"), ("bert_large", "bert"), ("roberta_base", "roberta"), ("modernbert_base", "modernbert"),
     ("modernbert_large", "modernbert"), ("ettin_17m", "modernbert")],
)  # fmt: skip
def test_published_architectures_have_their_family(preset, family):
    assert family_config.choose_family(preset_encoder(preset)).name == family


def preset_encoder(preset: str, **changes) -> EncoderConfig:
    config = default_config()
    config.model.update(PRESETS[preset] | changes)
    return encoder_config(config.model)


@pytest.mark.parametrize(
    ("preset", "changes", "named"),
    [
        ("mosaicbert_base", {}, "the nearest family bert cannot express model.activation=geglu, model.positions=alibi"),
        ("bert_base", {"norm_bias": False}, "model.norm_bias=False"),
        ("bert_base", {"output_bias": False}, "model.output_bias=False"),
        ("bert_base", {"head_transform": False}, "model.head_transform=False"),
        ("bert_base", {"norm": "rms_norm"}, "model.norm=rms_norm"),
        ("bert_base", {"head_activation": "relu"}, "bert cannot express model.head_activation=relu"),
        ("modernbert_base", {"first_norm": True}, "modernbert cannot express model.first_norm=True"),
        ("modernbert_base", {"embedding_norm": False}, "model.embedding_norm=False"),
        ("modernbert_base", {"activation": "gelu_tanh"}, "model.activation=gelu_tanh"),
        ("modernbert_base", {"value_residual": 0.5}, "modernbert cannot express model.value_residual=0.5"),
        ("bert_base", {"value_residual": 0.5}, "bert cannot express model.value_residual=0.5"),
    ],
)
def test_settings_that_no_family_expresses_are_named(preset, changes, named):
    assert named in error_of(family_config.choose_family, preset_encoder(preset, **changes))


def test_settings_that_do_not_change_the_function_are_ignored():
    for changes in ({"rotary_base": 5.0}, {"window": 7}, {"dropout": 0.3}, {"initialization": "zero_output"}):
        assert family_config.choose_family(preset_encoder("bert_base", **changes)).name == "bert"
    assert family_config.choose_family(preset_encoder("bert_base", embedding_width=128)).name == "electra"
    assert family_config.choose_family(preset_encoder("bert_base", token_types=0)).name == "bert"
    assert family_config.choose_family(preset_encoder("bert_base"), "electra").name == "electra"
    assert "cannot express model.token_types=2" in error_of(
        family_config.choose_family, preset_encoder("bert_base"), "distilbert"
    )
    assert "the family t5 is not supported; supported are bert, camembert, distilbert" in error_of(
        family_config.choose_family, preset_encoder("bert_base"), "t5"
    )


# Invalid directories


@pytest.mark.parametrize(
    ("case", "change", "config", "message"),
    [
        ("bert", lambda t: {k: v for k, v in t.items() if "layer.1.output.dense.weight" not in k}, {},
         "encoder.layer.1.output.dense.weight is missing"),
        ("bert", lambda t: t | {"bert.encoder.layer.2.output.dense.weight": np.zeros((24, 20), np.float32)}, {},
         "bert.encoder.layer.2.output.dense.weight is unexpected"),
        ("bert", lambda t: t, {"intermediate_size": 21},
         "bert.encoder.layer.0.intermediate.dense.weight has the shape [20, 24], not [21, 24]"),
        ("modernbert", lambda t: t, {"attention_bias": True}, "layers.0.attn.Wqkv.bias is missing"),
        ("bert", lambda t: t, {"hidden_act": "mish"}, "hidden_act='mish' is not supported; supported are gelu,"),
        ("modernbert", lambda t: t, {"hidden_activation": "gelu_new"}, "hidden_activation='gelu_new' is not"),
        ("bert", lambda t: t, {"is_decoder": True}, "is_decoder=True is not supported for the family bert"),
        ("roberta", lambda t: t, {"is_causal": True}, "is_causal=True is not supported for the family roberta"),
        ("distilbert", lambda t: t, {"is_causal": True}, "is_causal=True is not supported"),
        ("modernbert", lambda t: t, {"is_causal": True}, "is_causal=True is not supported"),
        ("modernbert", lambda t: t, {"local_attention": 0}, "local_attention=0 is not supported"),
        ("bert", lambda t: t, {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is"),
        ("modernbert", lambda t: t, {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 10.0}}},
         "rope_parameters.full_attention.rope_type='yarn' is not supported"),
        ("modernbert", lambda t: t, {"layer_types": ["full_attention", "chunked"] * 2}, "is not supported"),
        ("bert", lambda t: t, {"hidden_size": "24"}, "hidden_size='24': expected a whole number; fetch the file again"),
        ("bert", lambda t: t, {"hidden_act": 3}, "hidden_act=3: expected text"),
        ("bert", lambda t: t, {"architectures": 3}, "architectures=3: expected a list"),
        ("roberta", lambda t: t, {"pad_token_id": 900}, "pad_token_id=900: its "),
        ("modernbert", lambda t: t, {"layer_types": {"full_attention": 1}}, "expected a list; fetch the file again"),
        ("modernbert", lambda t: t, {"layer_types": ["full_attention"]}, "expected one for each of the 4 layers"),
        ("modernbert", lambda t: t, {"layer_types": None, "num_hidden_layers": 10**9},
         "num_hidden_layers=1000000000: expected a whole number from 1 to 1000"),
        ("modernbert", lambda t: t, {"layer_types": None, "global_attn_every_n_layers": 0},
         "global_attn_every_n_layers=0: expected a whole number from 1"),
        ("modernbert", lambda t: t, {"global_rope_theta": "10"}, "global_rope_theta='10': expected a number"),
        ("modernbert", lambda t: t, {"rope_parameters": {"rope_type": "yarn"}},
         "expected an object with the keys full_attention and sliding_attention"),
        ("modernbert", lambda t: t, {"rope_parameters": {"full_attention": {"rope_theta": "10"}}},
         "rope_parameters.full_attention.rope_theta='10': expected a number"),
        ("bert", lambda t: t, {"num_attention_heads": 5}, "its 5 attention heads do not divide its width 24"),
        ("bert", lambda t: t, {"model_type": "t5"}, "has the family 't5', which is not supported; supported are bert"),
    ],
)  # fmt: skip
def test_unsupported_configs_and_wrong_tensors_are_named(case, change, config, message, tmp_path):
    assert message in error_of(load, write(tmp_path, case, change, **config))


def test_modernberts_sliding_window_is_half_of_the_window_and_replaces_local_attention(tmp_path):
    source = conversion.read_source(write(tmp_path, "modernbert", local_attention=128, sliding_window=10))
    assert conversion.model_settings(source)["window"] == 20


def test_all_wrong_tensors_are_listed_at_once(tmp_path):
    text = error_of(load, write(tmp_path, "bert", lambda t: {k: v for k, v in t.items() if "layer.1" not in k}))
    assert text.count("is missing") == 6
    assert "and 10 more" in text


def test_damaged_files_are_named(tmp_path):
    file = write(tmp_path / "cut", "bert") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors is cut short or damaged" in error_of(load, tmp_path / "cut")
    file.write_bytes(b"")
    assert "model.safetensors is cut short or damaged" in error_of(load, tmp_path / "cut")
    file.unlink()
    assert "contains no weights: neither model.safetensors nor pytorch_model.bin" in error_of(load, tmp_path / "cut")
    (tmp_path / "cut" / "tf_model.h5").touch()
    assert "; tf_model.h5 cannot be read" in error_of(load, tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text("{")
    assert "config.json is not valid JSON" in error_of(load, tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text("[]")
    assert "JSON object" in error_of(load, tmp_path / "cut")
    (tmp_path / "cut" / "config.json").unlink()
    assert "has no config.json" in error_of(load, tmp_path / "cut")


def test_tensors_that_are_written_wrongly_raise(tmp_path, monkeypatch):
    source, encoder, loaded = load(write(tmp_path, "bert"))
    import safetensors.numpy

    save = safetensors.numpy.save_file
    monkeypatch.setattr(
        safetensors.numpy,
        "save_file",
        lambda tensors, *more: save({k: v[::-1].copy() for k, v in tensors.items()}, *more),
    )
    assert "has other values after it was written" in error_of(
        conversion.write_weights, tmp_path, source.family, encoder, loaded.params
    )


def test_pytorch_files_are_refused_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (write(tmp_path, "bert") / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    text = error_of(load, tmp_path)
    assert "pytorch_model.bin only, which needs torch" in text
    assert "save_pretrained" in text


# Finding a checkpoint


def test_a_model_is_found_by_name_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--some--bert"
    write(folder / "snapshots" / "aaa", "bert")
    write(folder / "snapshots" / "bbb", "bert")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("aaa\n")
    assert conversion.locate("some/bert") == folder / "snapshots" / "aaa"
    (folder / "snapshots" / "ccc").symlink_to(tmp_path / "removed")
    assert conversion.locate("some/bert") == folder / "snapshots" / "aaa"
    (folder / "refs" / "main").write_bytes(b"caf\xe9")
    assert "main, line 1, byte 3: not UTF-8" in error_of(conversion.locate, "some/bert")
    text = error_of(conversion.locate, "other/bert")
    assert "no directory other/bert and no model of this name in" in text
    assert "`hf download other/bert`" in text
    assert "hf download" not in error_of(conversion.locate, "nowhere")


def test_the_transformer_of_a_sentence_transformers_directory_is_found(tmp_path):
    write(tmp_path / "0_Transformer", "bert")
    modules = [{"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert conversion.locate(tmp_path) == tmp_path / "0_Transformer"
    write(tmp_path, "bert")
    assert conversion.locate(tmp_path) == tmp_path


def test_the_longest_text_is_limited_by_position_table_and_tokenizer(tmp_path):
    source, encoder, _ = load(write(tmp_path, "roberta"))
    assert conversion.longest_text(source, encoder) == 30
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 16}')
    assert conversion.longest_text(source, encoder) == 16
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert conversion.longest_text(source, encoder) == 30
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1}')
    assert "model_max_length=1: expected a finite number of at least 3" in error_of(
        conversion.longest_text, source, encoder
    )


def test_the_tables_cover_every_parameter_once():
    for preset in ("bert_base", "roberta_base", "modernbert_base"):
        encoder = preset_encoder(preset, layers=2)
        tensors = conversion.tensors_of(family_config.choose_family(encoder), encoder)
        paths = [path for tensor in tensors for path in tensor.paths]
        assert sorted(paths) == sorted(flat(init_shapes(encoder)))
        assert len({tensor.name for tensor in tensors}) == len(tensors)


def init_shapes(encoder: EncoderConfig):
    return jax.eval_shape(lambda: init_params(encoder, 0))
