"""Logits, gradients and exported checkpoints compared with Transformers."""

import json
import re

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
from safetensors.numpy import load_file  # noqa: E402
from safetensors.torch import load_file as load_torch_file  # noqa: E402

from jaxlm.config import default_config  # noqa: E402
from jaxlm.huggingface import conversion, family_config  # noqa: E402, family_config
from jaxlm.huggingface.copying import copy_checkpoint  # noqa: E402
from jaxlm.huggingface.refit import refit, refit_params  # noqa: E402
from jaxlm.model.config import encoder_config  # noqa: E402
from jaxlm.model.heads import abstract_params  # noqa: E402
from tests.parity.cases import CASES, batch, outputs_of  # noqa: E402
from tests.parity.reference import make, pad_id, run  # noqa: E402


def load(directory):
    source = conversion.read_source(directory)
    config = default_config()
    config.model.update(conversion.model_settings(source))
    encoder = encoder_config(config.model)
    return source, encoder, conversion.read_params(source, encoder)


def ours(encoder, params):
    """Returns outputs, loss and gradients as `reference.run` does."""
    loss_of = jax.jit(jax.value_and_grad(lambda params: outputs_of(encoder, params), has_aux=True))
    (loss, outputs), gradients = loss_of(params)
    return np.asarray(outputs), float(loss), jax.tree.map(np.asarray, gradients)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A case: its name, the Transformers model, and its directory."""
    directory = tmp_path_factory.mktemp(request.param)
    model = make(request.param)
    model.save_pretrained(directory)
    return request.param, model, directory


@pytest.mark.slow
def test_logits_and_gradients_equal_those_of_transformers(case):
    name, model, directory = case
    source, encoder, loaded = load(directory)
    values, loss, gradients = run(model)
    found, our_loss, our_gradients = ours(encoder, loaded.params)
    real = batch()["attention"] == 1
    difference = np.abs(found - values)[real].max()
    assert difference < 1e-4
    assert abs(loss - our_loss) < 1e-5
    flat = dict(conversion._flatten(our_gradients))
    worst = 0.0
    for tensor in conversion.tensors_of(source.family, encoder):
        if not all(path in flat for path in tensor.paths):
            continue
        parts = [flat[path].T if tensor.transposed else flat[path] for path in tensor.paths]
        family = source.family
        # an untied decoder has its own bias
        other = {} if encoder.tied_output else {family.output_bias: family.decoder_bias}
        theirs = {n.removeprefix(family.prefix): gradient for n, gradient in gradients.items()}
        gradient = theirs[other.get(tensor.name) or tensor.name]
        worst = max(worst, float(np.abs(np.concatenate(parts) - gradient).max()))
    assert worst < 1e-4
    print(f"\n{name:<24} largest difference: logits {difference:.1e}, gradients {worst:.1e}")


def test_export_writes_the_imported_file(case, tmp_path):
    name, model, directory = case
    source, encoder, loaded = load(directory)
    original = json.loads((directory / "config.json").read_text())
    longest = conversion.longest_text(source, encoder)
    ids = {"pad": pad_id(model), "begin": model.config.bos_token_id, "end": model.config.eos_token_id}
    config = family_config.config_for(encoder, source.family, longest, ids, original)
    assert config == original
    conversion.write_weights(tmp_path, source.family, encoder, loaded.params)
    (tmp_path / "config.json").write_text(json.dumps(config))
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    before = {key: value for key, value in before.items() if key not in loaded.unused}
    if name == "bert_without_head":  # exported with the names of a base model
        before = {key.removeprefix(source.family.prefix): value for key, value in before.items()}
    assert before.keys() == after.keys()
    if not encoder.tied_output and source.family.decoder_bias:
        before[source.family.output_bias] = before[source.family.decoder_bias]  # the other one is not used
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], key)
    again = load(tmp_path)[2]
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


@pytest.mark.slow
def test_transformers_loads_exported_checkpoints(case, tmp_path):
    _, model, directory = case
    source, encoder, loaded = load(directory)
    if loaded.fresh:
        return
    family = family_config.choose_family(encoder, source.family.name)
    ids = {"pad": pad_id(model), "begin": 1, "end": 2}
    config = family_config.config_for(encoder, family, encoder.max_positions - encoder.position_offset, ids)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [family.masked_lm]}))
    params = jax.tree.map(lambda x: x + np.float32(0.01), loaded.params)
    conversion.write_weights(tmp_path, family, encoder, params, shard_bytes=6000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    back, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    values, _, _ = run(back.eval(), gradients=False)
    found, _, _ = ours(encoder, params)
    real = batch()["attention"] == 1
    assert np.abs(found - values)[real].max() < 1e-4


@pytest.mark.parametrize("head", [{}, {"head_transform": False, "tied_output": False}], ids=["default", "quickstart"])
@pytest.mark.parametrize("activation", ["relu_squared", "gelu", "silu"])
def test_an_encoder_with_the_default_settings_gives_the_same_logits_as_modernbert(activation, head, tmp_path):
    config = default_config()
    config.model.update(
        layers=2, width=24, heads=2, feed_forward_width=20, vocab_size=41, activation=activation, **head
    )  # fmt: skip
    before = encoder_config(config.model)
    random = np.random.RandomState(0)
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), abstract_params(before))
    family = family_config.choose_family(before)
    after = refit(before, family, 0)
    ids = {"pad": 0, "begin": 1, "end": 2}
    content = family_config.config_for(after, family, 64, ids) | {"architectures": [family.masked_lm]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    conversion.write_weights(tmp_path, family, after, refit_params(params, before, after))
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    values, _, _ = run(model.eval(), gradients=False)
    found = np.asarray(outputs_of(before, params)[1])
    real = batch()["attention"] == 1
    assert np.abs(found - values)[real].max() < 1e-4 * np.abs(values).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_half_precision_and_torch_files(tmp_path, dtype, suffix):
    model = make("bert").to(getattr(torch, dtype))
    if suffix == "bin":
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        model.save_pretrained(tmp_path)
    _, _, loaded = load(tmp_path)
    expected = {name: p.detach().float().numpy() for name, p in model.named_parameters()}
    table = loaded.params["encoder"]["embeddings"]["token"]["embedding"]
    np.testing.assert_array_equal(table, expected["bert.embeddings.word_embeddings.weight"])
    kernel = loaded.params["encoder"]["layers_1"]["feed_forward"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, expected["bert.encoder.layer.1.intermediate.dense.weight"].T)
    (tmp_path / "out").mkdir()
    copy_checkpoint(tmp_path, tmp_path / "out")
    tensors = load_torch_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensors[name], parameter) for name, parameter in model.named_parameters())
    assert all(tensors[name].dtype == parameter.dtype for name, parameter in model.named_parameters())


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    make("bert").config.save_pretrained(tmp_path)
    torch.save({"x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=re.escape("contains more than tensors")):
        load(tmp_path)
    assert not (tmp_path / "owned").exists()
