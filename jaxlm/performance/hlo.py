"""A reader of compiled XLA programs: `compiled.as_text()` parsed into computations and instructions."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

CALLERS = {"while", "call", "conditional"}  # instructions whose computations run as kernels of their own

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\]")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLEE = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


class Instruction(NamedTuple):
    """One instruction of a compiled program."""

    name: str
    opcode: str
    result: str  # the shape of the result as the program writes it, with layout; of a tuple, all its parts
    arguments: str  # the text between the opcode's parentheses
    op_name: str  # the JAX functions, named scopes and modules that the instruction was compiled from
    attributes: str  # everything after the arguments

    @property
    def operands(self) -> tuple[str, ...]:
        """Returns the names of the instructions whose results this one takes."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))

    @property
    def shape(self) -> str:
        """Returns the shape of the result without layout, such as `bf16[8,16]`; of a tuple, that of its first part."""
        found = _SHAPE.search(self.result)
        return found[0] if found else ""

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Returns the sizes in `shape`."""
        found = _SHAPE.search(self.result)
        return tuple(int(size) for size in found[2].split(",") if size) if found else ()

    @property
    def result_bytes(self) -> int:
        """Returns the bytes of the result; of a tuple, of all its parts."""
        total = 0
        for kind, dimensions in _SHAPE.findall(self.result):
            if kind != "token":
                width = re.match(r"[a-z]+(\d+)", kind)
                bits = int(width[1]) if width else 8  # pred
                total += math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8
        return total


class Program(NamedTuple):
    """A compiled program."""

    module: str
    entry: str  # the name of the computation that the program runs
    computations: dict[str, list[Instruction]]  # in the order of the text: callees before their callers
    instructions: dict[str, Instruction]
    users: dict[str, list[str]]  # instruction name -> names of the instructions that take its result


def read_program(text: str) -> Program:
    """Returns the program in the text of a compiled function, `compiled.as_text()`."""
    module = re.match(r"HloModule ([\w.\-]+)", text)
    entry = ""
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(line, found))
    instructions = {one.name: one for body in computations.values() for one in body}
    users: dict[str, list[str]] = defaultdict(list)
    for one in instructions.values():
        for operand in one.operands:
            users[operand].append(one.name)
    return Program(module[1] if module else "", entry, computations, instructions, users)


def _instruction(line: str, found: re.Match) -> Instruction:
    depth, end = 1, found.end()
    while depth and end < len(line):  # the arguments end where the opcode's parenthesis closes
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    arguments, attributes = line[found.end() : end - 1], line[end:]
    op_name = _OP_NAME.search(attributes)
    return Instruction(found[1], found[3], found[2], arguments, op_name[1] if op_name else "", attributes)


def fused_instructions(program: Program, one: Instruction) -> list[Instruction]:
    """Returns the instructions that run as one kernel: those of a fusion's computation, or the instruction alone."""
    called = re.search(r"calls=%?([\w.\-]+)", one.attributes)
    return program.computations.get(called[1], []) if called and one.opcode not in CALLERS else [one]


def executions(program: Program) -> dict[str, int]:
    """Returns how many times each computation runs in one call of the program; a branch counts as always taken."""
    times = dict.fromkeys(program.computations, 0)
    if program.entry:
        times[program.entry] = 1

    def add(callee: str, count: int) -> None:
        if callee in times:
            times[callee] += count

    for name in reversed(program.computations):
        for one in program.computations[name]:
            loop = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", one.attributes)
            if one.opcode == "while" and loop:
                add(loop[2], times[name] * _trip_count(one, program.computations.get(loop[1], [])))
            elif branches := re.search(r"branch_computations=\{([^}]*)\}", one.attributes):
                for branch in branches[1].split(","):
                    add(branch.strip().lstrip("%"), times[name])
            else:
                for callee in _CALLEE.findall(one.attributes):
                    add(callee, times[name])
    return times


def _trip_count(loop: Instruction, condition: list[Instruction]) -> int:
    """Returns how many times a loop runs: XLA's own count, or the largest integer in its condition, or 1."""
    if known := _TRIP_COUNT.search(loop.attributes):
        return int(known[1])
    limits = [
        int(one.arguments)
        for one in condition
        if one.opcode == "constant" and re.match(r"[su](32|64)\[\]", one.result) and one.arguments.isdecimal()
    ]
    return max(limits, default=1)
