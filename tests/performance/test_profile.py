"""Kernels get their kind and FLOPs from the compiled program, and every moment of a step is counted once."""

import re
from types import SimpleNamespace

import pytest

from jaxlm.performance import profile
from jaxlm.performance.hlo import read_program
from jaxlm.performance.profile import Interval
from jaxlm.performance.profile_report import profile_table

LAYER = "jit(train_step)/jvp(loss)/MaskedLM.encode/encoder/layers_0"
BACK = "jit(train_step)/transpose(jvp(loss))/MaskedLM.encode/encoder/layers_0"
CUBLAS = '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
PROGRAM = """HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%product (p.0: bf16[32,16], p.1: bf16[16,64]) -> f32[32,64] {
  %p.0 = bf16[32,16]{1,0} parameter(0)
  %p.1 = bf16[16,64]{1,0} parameter(1)
  ROOT %dot.9 = f32[32,64]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%mixed (p.2: f32[32,64]) -> f32[32,64] {
  %p.2 = f32[32,64]{1,0:T(8,128)} parameter(0)
  %small = f32[] exponential(%p.2), <LAYER/attention/exp>
  %add.1 = f32[32,64]{1,0:T(8,128)} add(%p.2, %p.2), <LAYER/feed_forward/up/add>
  ROOT %erf.1 = f32[32,64]{1,0:T(8,128)} erf(%add.1), <LAYER/feed_forward/erf>
}

%body (p.3: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p.3 = (s32[], f32[8,8]{1,0}) parameter(0)
  %x = f32[8,8]{1,0} get-tuple-element(%p.3), index=1
  %dot.loop = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, <jit(train_step)/optimizer/dot>
  ROOT %pair = (s32[], f32[8,8]{1,0}) tuple(%x, %dot.loop)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = bf16[32,16]{1,0} parameter(0)
  %b = bf16[16,64]{1,0} parameter(1)
  %q = f32[4,2,8,16]{3,2,1,0} parameter(2)
  %up = f32[32,64]{1,0} fusion(%a, %b), kind=kCustom, calls=%product, <LAYER/feed_forward/up/dot>
  %gelu_fusion = f32[32,64]{1,0} fusion(%up), kind=kLoop, calls=%mixed, <LAYER/feed_forward/mul>
  %scores = f32[4,2,8,8]{3,2,1,0} dot(%q, %q), lhs_batch_dims={0,1}, lhs_contracting_dims={3}, rhs_contracting_dims={3}
  %soft = f32[4,2,8,8]{3,2,1,0} exponential(%scores), <LAYER/attention/exp>
  %ones = bf16[1,32]{1,0} broadcast(%a), dimensions={}
  %bias = f32[1,64]{1,0} dot(%ones, %up), lhs_contracting_dims={1}, <BACK/feed_forward/up/dot>
  %norm = f32[32,64]{1,0} multiply(%up, %up), <BACK/attention_norm/mul>
  %drop = f32[32,64]{1,0} xor(%up, %up), <LAYER/attention/dropout/xor;LAYER/add>
  %cast = bf16[32,64]{1,0} convert(%up), <LAYER/feed_forward/down/convert_element_type>
  %gemm = (bf16[32,64]{1,0}, s8[4]{0}) custom-call(%a, %b), <LAYER/attention/query/dot>, backend_config=CUBLAS
  %conv = bf16[32,64]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf, <jvp(loss)/head/dot>
  %start = (s32[], f32[8,8]{1,0}) parameter(3)
  %while.1 = (s32[], f32[8,8]{1,0}) while(%start), condition=%c, body=%body, config={"known_trip_count":{"n":"5"}}
  %choose = s32[8]{0} add(%a, %a), <jit(train_step)/masking/vmap(jit(_uniform))/add>
  %sum-start = f32[8]{0} all-reduce-start(%up), <BACK/feed_forward/up/dot>
  ROOT %r = f32[8]{0} add(%a, %a), <jit(train_step)/add>
}
"""
PROGRAM = re.sub("<(.*)>", r'metadata={op_name="\1"}', PROGRAM)
for word, text in (("LAYER", LAYER), ("BACK", BACK), ("CUBLAS", CUBLAS)):
    PROGRAM = PROGRAM.replace(word, text)


@pytest.fixture(scope="module")
def program():
    return read_program(PROGRAM)


@pytest.mark.parametrize(("name", "kind", "flops"), [
    ("up", "products", 2 * 32 * 16 * 64),
    ("gelu_fusion", "activation", 0),  # the erf has more elements than the bias addition; the exponential has one
    ("scores", "attention", 2 * 4 * 2 * 8 * 8 * 16),  # without op_name: that of its user counts
    ("bias", "biases", 0),  # a column of sums is not a matrix product
    ("norm", "normalisation", 0),
    ("drop", "dropout", 0),
    ("cast", "casts and layout", 0),
    ("gemm", "products", 2 * 32 * 16 * 64),
    ("conv", "logits", 2 * 32 * 16 * 64),
    ("dot.loop", "optimizer", 2 * 8**3),
    ("choose", "masking", 0),
    ("sum-start", "collectives", 0),
    ("r", "the rest", 0),
    ("unheard-of", "the rest", 0),
])  # fmt: skip
def test_kernels_are_classified_by_their_contents(program, name, kind, flops):
    assert profile.classify(program, name) == (kind, flops)


def test_every_moment_is_counted_once():
    intervals = [
        Interval("loop", 0, 100), Interval("a", 10, 30), Interval("b", 20, 60), Interval("nothing", 25, 25),
        Interval("inner loop", 70, 90), Interval("c", 80, 85), Interval("a", 200, 210),
    ]  # fmt: skip
    shares = profile.share_time(reversed(intervals), lambda name: "loop" in name)
    # a and b share 20 to 30; the rest of a loop is its own, the inner loop before the outer one.
    assert shares == {"loop": 30, "a": 25, "b": 35, "inner loop": 15, "c": 5}
    assert sum(shares.values()) == 110


def test_products_in_a_loop_count_once_per_iteration(program):
    result = profile.summarise(program, {"dot.loop": 4e9, "up": 2e9, "r": 1e9}, steps=2, wall_seconds=10.0)
    assert result.kinds["optimizer"] == (2.0, 2.0, 5 * 2 * 8**3)
    assert result.kinds["products"] == (1.0, 1.0, 2 * 32 * 16 * 64)
    assert result.kinds["the rest"] == (0.5, 0.0, 0.0)
    assert result.uncovered == 1.5
    assert [entry[0] for entry in result.slowest] == ["dot.loop", "up", "r"]
    rows = {row[0]: row[1:] for row in profile_table(result, peak=1e6)}
    assert rows["products"] == ["1,000.0", "20.0%", "0", "7%"]
    assert rows["no kernel"][:2] == ["1,500.0", "30.0%"]


def event(name, start, duration, **stats):
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=list(stats.items()))


def planes(**lines_of):
    lines = {plane: [SimpleNamespace(name=n, events=e) for n, e in found.items()] for plane, found in lines_of.items()}
    return SimpleNamespace(planes=[SimpleNamespace(name=plane, lines=found) for plane, found in lines.items()])


ours = {"hlo_module": "jit_train_step"}


@pytest.mark.parametrize(("found", "expected"), [
    ({"/host:CPU": {  # a kernel that ends in another thread, another module, another device
        "thread": [event("up", 0, 5, hlo_op="up", _p=7, **ours), event("r", 9, 1, hlo_op="r", hlo_module="other")],
        "other": [event("end: up", 19, 1, _c=7), event("r", 30, 2, hlo_op="r", device_ordinal=1, **ours)],
    }}, [("up", 0, 20)]),
    ({"/host:CPU": {"python": [event("step", 0, 99)]}, "/device:TPU:1": {}, "/device:TPU:0": {
        "Steps": [event("1", 0, 50)], "XLA Ops": [event("%conv = bf16[32,64]{1,0} convolution(...)", 3, 4)],
    }}, [("conv", 3, 7)]),
    ({"/device:GPU:0": {
        "Stream #14(Compute)": [event("gelu_fusion", 1, 2), event("sm90_gemm", 3, 2, hlo_op="gemm", **ours),
                                event("sum_start", 5, 1), event("MemcpyD2D", 6, 1)],
        "Other": [event("gemm", 0, 99)],
    }}, [("gelu_fusion", 1, 3), ("gemm", 3, 5), ("sum-start", 5, 6), ("MemcpyD2D", 6, 7)]),
])  # fmt: skip
def test_kernels_are_found_on_every_kind_of_device(program, monkeypatch, tmp_path, found, expected):
    monkeypatch.setattr(profile.jax.profiler.ProfileData, "from_file", lambda path: planes(**found))
    assert profile.read_intervals(tmp_path, program) == [Interval(*one) for one in expected]
