"""The comparison of GPU kernels with XLA: what passes, and that a wrong kernel does not."""

import math

import numpy as np

from jaxlm.performance import kernel_errors
from jaxlm.performance.kernel_errors import BFLOAT16_ROUNDING, AttentionCase, KernelError, random_documents


def test_errors_pass_within_twice_those_of_xla():
    assert KernelError("k", "c", 0.02, 0.01, 2 * BFLOAT16_ROUNDING, 0.0).passed
    assert not KernelError("k", "c", 0.021, 0.01, 0.0, 0.0).passed
    assert not KernelError("k", "c", 0.0, 0.0, math.inf, math.inf).passed
    assert not KernelError("k", "c", problem="it does not compile").passed


def test_a_wrong_kernel_is_found(monkeypatch):
    case = AttentionCase(32, 2, rows=1, heads=1, head_width=16)
    right = kernel_errors.attention_error(case, interpret=True)
    attend = kernel_errors.attend

    def unmasked(query, key, value, mask, execution, *more):
        if execution.attention == "flash":
            mask = kernel_errors.mask_for(kernel_errors.AttentionMask(), case.length, execution)
        return attend(query, key, value, mask, execution, *more)

    monkeypatch.setattr(kernel_errors, "attend", unmasked)
    wrong = kernel_errors.attention_error(case, interpret=True)
    assert right.passed
    assert not wrong.passed


def test_a_case_that_raises_has_a_problem(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("too\nlarge")

    monkeypatch.setattr(kernel_errors, "attend", refuse)
    monkeypatch.setattr(kernel_errors, "TINY_CASES", (AttentionCase(32, 2),))
    (error,) = kernel_errors.kernel_errors(tiny=True)
    assert error.problem == "ValueError: too large"
    assert not error.passed


def test_documents_are_random_and_padding_comes_last():
    table = np.asarray(random_documents(np.random.default_rng(0), 5, 40, 3))
    assert all(list(dict.fromkeys(row)) == [1, 2, 3, 0] for row in table.tolist())
    assert len({tuple(row) for row in table.tolist()}) == 5
