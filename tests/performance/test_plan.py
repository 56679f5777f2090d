"""Planning: what is refused, the figures by formula, collectives read from programs, and XLA's analysis for a TPU."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxlm import cli
from jaxlm.config import default_config, phases_of
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.errors import UserError
from jaxlm.model.config import encoder_config
from jaxlm.model.execution import Execution
from jaxlm.model.flops import training_flops
from jaxlm.objectives.table import make_objective
from jaxlm.performance.collectives import Collective, read_collectives, sent
from jaxlm.performance.plan import describe, kept_bytes, plan, read_mesh, read_out_of_memory, slice_shape, steps_of
from tests.conftest import ROOT

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def small_config(**train):
    config = default_config()
    config.model.update(layers=2, width=64, heads=4, feed_forward_width=128, vocab_size=512)
    config.train.update({"batch_size": 16, "steps": 100} | train)
    return config


# What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mesh=data=8", "--chip=v5"], r"--chip=v5 is unknown; the chips are v5e, v5p, v6e, h100, h200, a100"),
        (["--mesh=data=8,rows=2"], r"'rows=2' is not AXIS=SIZE; write it as data=8,fsdp=4,tensor=2"),
        (["--mesh=data=0"], r"'data=0' is not AXIS=SIZE"),
        (["--mesh=8x4"], r"'8x4' is not AXIS=SIZE"),
        (["--mesh=data=6", "--config.train.batch_size=96"], r"6 devices.*nearest slices have 4 \(2x2\) and 8 \(2x4\)"),
        (["--mesh=data=512"], r"512 devices.*nearest slices have 256 \(16x16\)$"),
        (["--mesh=data=64", "--chip=h100"], r"train.batch_size=8 is not divisible by the 64 devices"),
        (["--mesh=data=8", "--phase=2"], r"--phase=2: the config's phases are 1 to 1"),
        (["--mesh=data=8", "--mfu=40"], r"--mfu=40: must be above 0"),
        (
            ["--mesh=data=8", "--chip=v5p", "--config.train.compute_dtype=float32"],
            r"no peak rate of TPU v5p for float32",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(arguments, said, capsys):
    assert cli.main(["plan", f"--config={ROOT}/configs/mini.py", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxlm: ")
    assert len(error.splitlines()) == 1
    assert re.search(said, error), error


def test_mesh_is_read_in_any_order_and_the_rest_is_one():
    assert read_mesh("tensor=2,data=8") == {"data": 8, "fsdp": 1, "tensor": 2}


@pytest.mark.parametrize(("chip", "devices", "shape"), [("v5e", 256, "16x16"), ("v5p", 256, "4x8x8"), ("h100", 6, "")])
def test_slices_are_those_that_there_are(chip, devices, shape):
    assert slice_shape(chip, devices) == shape


# By formula


def test_figures_by_formula_follow_from_the_shapes():
    config = small_config()
    result = plan(config, {"data": 2, "fsdp": 2, "tensor": 2}, "h100", 0.5)
    parts, encoder = result["formula_bytes"], encoder_config(config.model)
    assert result["analysis"] == "formula"
    quarter = 4 * result["parameters"] / 4  # all but norms and biases are split by fsdp and tensor
    assert quarter < parts["parameters"] < 1.1 * quarter
    assert parts["optimizer"] == pytest.approx(2 * parts["parameters"], rel=1e-3)
    assert parts["gradients"] == parts["parameters"]
    assert parts["batch"] == 16 * 128 * (4 + 4 + 1) / 4
    assert result["fits"]
    assert result["headroom_bytes"] == 80 * 2**30 - sum(parts.values())
    flops = training_flops(encoder, 16, 128, int(0.15 * 16 * 128))
    assert result["flops_per_step"] == flops
    assert result["run_hours"] == pytest.approx(100 * flops / (0.5 * 989.4e12 * 8) / 3600)
    sizes = {(c["kind"], *c["axes"]): c["bytes"] for c in result["collectives"]}
    assert sizes["all-reduce", "data"] == parts["parameters"]
    assert sizes["all-gather", "fsdp"] == 2 * 2 * parts["parameters"] / 2  # twice, of two parts, in bfloat16
    assert sizes["reduce-scatter", "fsdp"] == 2 * parts["parameters"]
    assert sizes["all-reduce", "tensor"] == 4 * 2 * (4 * 128 * 64) * 2
    json.dumps(result)


def test_text_says_that_it_is_by_formula_and_what_does_not_fit():
    config = small_config(batch_size=2**18)
    text = describe(plan(config, ONE, "a100", formula=True), "x.py")
    assert "a100: by formula alone" in text
    assert "DOES NOT FIT" in text


def test_without_libtpu_the_text_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = describe(plan(small_config(), ONE, "v6e"), "x.py")
    assert "pip install 'jaxlm[plan]'" in text


def test_activations_grow_with_rows_and_shrink_with_rematerialisation():
    config = small_config()
    encoder, knobs = encoder_config(config.model), {"mask_rate": jax.ShapeDtypeStruct((), np.float32)}

    def kept(rows, **execution):
        execution = Execution("bfloat16", "bfloat16", **execution)
        objective = make_objective(config, phases_of(config)[0], encoder, execution, SYNTHETIC_FACTS)
        return kept_bytes(objective, encoder, execution, rows, 128, knobs, 1)

    assert kept(16) == pytest.approx(2 * kept(8), rel=0.1)
    assert kept(16, rematerialise="full") < 0.5 * kept(16)


def test_every_objective_is_planned():
    config = small_config(objective="regression")
    config.task.train = "not read"
    result = plan(config, ONE, "h100")
    assert result["formula_bytes"]["activations"] > 0
    assert result["flops_per_step"] == training_flops(encoder_config(config.model), 16, 128, 0)


@pytest.mark.slow
def test_the_phase_that_needs_the_most_is_planned_and_all_count_for_the_hours():
    rows = ({"steps": 60}, {"sequence_length": 256, "batch_size": 32, "steps": 30}, {"mask_rate": 0.3})
    config = small_config(phases=rows)
    result = plan(config, ONE, "h200")
    assert result["phase"] == 2
    assert steps_of(config, phases_of(config)) == [60, 30, 10]
    assert result["run_steps"] == 100
    assert result["run_tokens"] == (60 + 10) * 16 * 128 + 30 * 32 * 256
    config.train.update(steps=None, tokens=1e6)
    assert steps_of(config, phases_of(config))[-1] == math.ceil((1e6 - 60 * 2048 - 30 * 8192) / 2048)
    config.train.update(tokens=None, epochs=1.0)
    assert plan(config, ONE, "h200", number=1)["run_hours"] is None


# Collectives

PROGRAM = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%fused.1 (p.1: bf16[8,16]) -> bf16[32,16] {
  %p.1 = bf16[8,16]{1,0} parameter(0)
  ROOT %ag.1 = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%fused.2 (p.2: bf16[8,16]) -> bf16[32,16] {
  %p.2 = bf16[8,16]{1,0} parameter(0)
  ROOT %ag.2 = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%condition (s: (s32[], f32[10])) -> pred[] {
  %limit = s32[] constant(5)
  %s = (s32[], f32[10]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (t: (s32[], f32[10])) -> (s32[], f32[10]) {
  %t = (s32[], f32[10]) parameter(0)
  %v = f32[10]{0} get-tuple-element(%t), index=1
  %ar.1 = f32[10]{0} all-reduce(%v), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  ROOT %out = (s32[], f32[10]) tuple(%v, %ar.1)
}

ENTRY %main (a: f32[10], b: bf16[8,16]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  %w = (s32[], f32[10]) while(%a), condition=%condition, body=%body
  %f.1 = bf16[32,16]{1,0} fusion(%b), kind=kCustom, calls=%fused.1
  %f.2 = bf16[32,16]{1,0} fusion(%b), kind=kCustom, calls=%fused.2
  %ar.2 = (f32[10]{0}, /*index=1*/pred[4]{0}) all-reduce(%a, %a), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %rs = f32[3]{0} reduce-scatter(%a), channel_id=3, replica_groups=mesh['x'=4,'y'=1,'z'=2], device_ids=([2,4]T(1,0)) {'x'}, dimensions={0}
  %cp = f32[6]{0} collective-permute(%a), channel_id=4, source_target_pairs={{0,4},{4,0},{1,5},{5,1}}
  %same = f32[6]{0} all-reduce(%a), channel_id=5, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %start = (f32[10]{0}, f32[40]{0}) all-gather-start(%a), channel_id=6, replica_groups=[2,4]<=[8], dimensions={0}
}
"""  # noqa: E501


def test_collectives_of_a_program_are_counted_as_often_as_they_run():
    found = read_collectives(PROGRAM, {"data": 2, "fsdp": 4, "tensor": 1})
    assert {(c.kind, c.axes): c[2:] for c in found} == {
        ("all-reduce", ("data",)): (2, 5, 5 * 40, 5 * 40),
        ("all-gather", ("fsdp",)): (4, 2, 1024 + 160, 768 + 120),  # one channel is one collective
        ("all-reduce", ("data", "fsdp")): (8, 1, 44, 77),
        ("reduce-scatter", ("fsdp",)): (4, 1, 48, 36),
        ("collective-permute", ("data",)): (2, 1, 24, 24),
    }


def test_sent_bytes_are_those_of_a_ring():
    assert [sent(kind, 800, 8) for kind in ("all-reduce", "all-gather", "collective-permute")] == [1400, 700, 800]


STEP = """
import json, types
from jaxlm.performance import plan
from jaxlm.runtime import sharding
from jaxlm.objectives.table import make_objective
from jaxlm.performance.collectives import read_collectives
from jaxlm.data.facts import SYNTHETIC_FACTS
from jaxlm.model.config import encoder_config
from jaxlm.step import assemble
from tests.performance.test_plan import small_config
mesh = {"data": 2, "fsdp": 2, "tensor": 1}
config = small_config(batch_size=64, accumulate=2)
config.model.layers = 1
config.train.compute_dtype = "float32"
devices = sharding.make_mesh(types.SimpleNamespace(slices=1, **mesh))
assembly = assemble(config, encoder_config(config.model), SYNTHETIC_FACTS, devices, "cpu")
compiled = plan.compile_step(assembly, 0, 100, "cpu")
print(json.dumps([read_collectives(compiled.as_text(), mesh), plan.device_bytes(compiled)]))
"""


def in_a_process(*arguments, **environment):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_parameters_travel_between_devices_and_activations_do_not():
    """The residual stream of a micro-batch is larger than all parameters: what travels is bounded by these."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    rows, stats = in_a_process("-c", STEP, XLA_FLAGS=flags)
    found = [Collective(*row) for row in rows]
    parameters = 4 * (512 * 64 + 4 * 64 * 64 + 2 * 64 * 128 + 64 * 64)  # norms and biases left out
    assert 3 * parameters < 32 * 128 * 64 * 4
    gathered, summed = (sum(c.bytes for c in found if c.kind == kind) for kind in ("all-gather", "all-reduce"))
    assert {c.kind for c in found} == {"all-gather", "all-reduce"}
    # Each of two micro-batches gathers the parameters for both passes, and the table for lookup and logits.
    assert parameters <= gathered < 2 * 3 * parameters
    assert parameters <= summed < 2 * 3 * parameters  # over fsdp whole, over data what is left; the table twice
    assert not [c for c in found if c.kind == "all-gather" and "data" in c.axes]
    assert stats["arguments"] > 3 * parameters / 2


# XLA's own analysis


def tpu_compiler() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def test_refusal_for_want_of_memory_is_read():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.05G of 15.75G hbm. Exceeded by 7.30G."
    refusal = read_out_of_memory(text)
    assert refusal.message == "Used 23.05G of 15.75G hbm"
    assert refusal.needed == int(23.05 * 2**30)
    assert refusal.available == int(15.75 * 2**30)
    assert read_out_of_memory("out of memory\nsomewhere").needed is None


@pytest.mark.slow
@pytest.mark.skipif(not tpu_compiler(), reason="libtpu is not installed: pip install 'jaxlm[plan]'")
def test_step_is_compiled_for_a_tpu_that_is_not_here():
    result = in_a_process(
        "-m", "jaxlm.cli", "plan", "--config=configs/mini.py", "--mesh=data=2,fsdp=2", "--chip=v5e", "--json",
        "--config.model.layers=1", "--config.model.vocab_size=512", "--config.tokenizer.vocab_size=500",
        "--config.model.width=256",  # narrower arrays are padded to a TPU's tiles
    )  # fmt: skip
    assert result["analysis"] == "XLA for v5e"
    assert result["xla_bytes"]["arguments"] == pytest.approx(
        sum(result["formula_bytes"][part] for part in ("parameters", "optimizer", "batch")), rel=0.05
    )
    assert result["collectives"]
    assert result["fits"]


def test_a_slice_that_libtpu_does_not_know_is_a_sentence(monkeypatch):
    from jax.experimental import topologies

    from jaxlm.performance.plan import tpu_mesh

    def refuse(*_, **__):
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(UserError, match=r"does not know v5e:2x2 \(no such thing\)"):
        tpu_mesh("v5e", "2x2", ONE)
