"""The reader of compiled programs: instructions, shapes, and how often each computation runs."""

import jax
import jax.numpy as jnp

from jaxlm.performance.hlo import executions, fused_instructions, read_program

PROGRAM = r"""HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%fused (p.1: bf16[8,16]) -> f32[16] {
  %p.1 = bf16[8,16]{1,0} parameter(0)
  ROOT %sum = f32[16]{0} reduce(%p.1, %p.1), dimensions={0}, to_apply=%add
}

%inner_condition (c: s32[]) -> pred[] {
  %c = s32[] parameter(0)
  %three = s32[] constant(3)
  ROOT %less.1 = pred[] compare(%c, %three), direction=LT
}

%inner_body (b: s32[]) -> s32[] {
  ROOT %b = s32[] parameter(0)
}

%outer_condition (d: s32[]) -> pred[] {
  ROOT %d = pred[] parameter(0)
}

%outer_body (e: s32[]) -> s32[] {
  %e = s32[] parameter(0)
  ROOT %while.1 = s32[] while(%e), condition=%inner_condition, body=%inner_body
}

%branch.1 (f: f32[]) -> f32[] {
  ROOT %f = f32[] parameter(0)
}

ENTRY %main (a: bf16[8,16]) -> f32[16] {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="say \"a\""}
  %start = (s32[], /*index=1*/pred[4]{0}, token[], f8e4m3fn[3]{0}) custom-call(%a), custom_call_target="f(x)"
  %while.2 = s32[] while(%start), condition=%outer_condition, body=%outer_body, config={"known_trip_count":{"n":"5"}}
  %choice = f32[] conditional(%while.2, %a), branch_computations={%branch.1, %branch.1}
  ROOT %fusion.1 = f32[16]{0} fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/encoder/sum"}
}
"""


def test_instructions_have_shapes_arguments_and_names():
    program = read_program(PROGRAM)
    assert (program.module, program.entry) == ("jit_step", "main")
    fusion, start, argument = (program.instructions[name] for name in ("fusion.1", "start", "a"))
    assert (fusion.opcode, fusion.shape, fusion.dimensions) == ("fusion", "f32[16]", (16,))
    assert (fusion.operands, fusion.op_name) == (("a",), "jit(step)/encoder/sum")
    assert [one.name for one in fused_instructions(program, fusion)] == ["p.1", "sum"]
    assert fused_instructions(program, start) == [start]
    assert fused_instructions(program, program.instructions["while.2"]) == [program.instructions["while.2"]]
    assert (start.shape, start.dimensions, start.result_bytes) == ("s32[]", (), 4 + 4 + 3)
    assert start.attributes == ', custom_call_target="f(x)"'
    assert (argument.result_bytes, argument.arguments, argument.op_name) == (8 * 16 * 2, "0", r"say \"a\"")
    assert program.users["a"] == ["start", "choice", "fusion.1"]


def test_computations_run_once_per_iteration_of_their_loops():
    assert executions(read_program(PROGRAM)) == {
        "main": 1, "fused": 1, "add": 1, "outer_body": 5, "inner_body": 15, "branch.1": 2,
        "outer_condition": 0, "inner_condition": 0,
    }  # fmt: skip


def test_a_program_compiled_here_is_read():
    def step(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.tanh(y @ x), x)

    program = read_program(jax.jit(step).lower(jnp.ones((8, 8))).compile().as_text())
    assert program.entry in program.computations
    runs = executions(program)
    dots = [name for name, body in program.computations.items() if any(one.opcode == "dot" for one in body)]
    assert [runs[name] for name in dots] == [7]
    assert any("tanh" in one.op_name for one in program.instructions.values())
