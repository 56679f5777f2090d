"""The clock of a run, with a time that the tests set."""

import numpy as np
import pytest

from jaxlm.runtime import clock as clock_module
from jaxlm.runtime.clock import TIME_UNITS, Clock


@pytest.fixture
def now(monkeypatch):
    """The present time in seconds, in a list of one."""
    present = [1000.0]
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: present[0])
    return present


def compile_for(clock: Clock, now: list[float], seconds: float) -> None:
    with clock.compiling():
        now[0] += seconds


def test_the_clock_starts_when_the_first_step_has_finished(now):
    clock = Clock(1.0, None)
    now[0] += 7  # reading data
    compile_for(clock, now, 30)
    assert clock.elapsed == 0
    now[0] += 15
    assert clock.elapsed == 15
    assert clock.read(9) == (0.25 * TIME_UNITS, 0.25)


def test_each_later_compilation_is_excluded_too(now):
    clock = Clock(1.0, None)
    for seconds in (30, 20):
        compile_for(clock, now, seconds)
        now[0] += 10
    assert clock.elapsed == 20
    now[0] += 39.9
    assert not clock.is_over(5)
    now[0] += 0.2
    assert clock.is_over(5)


def test_compilation_is_counted_if_the_config_says_so(now):
    clock = Clock(1.0, None, count_compilation=True)
    now[0] += 7
    compile_for(clock, now, 30)
    assert clock.elapsed == 37


@pytest.mark.parametrize("count_compilation", [False, True])
def test_a_resumed_run_goes_on_from_the_seconds_before(now, count_compilation):
    clock = Clock(1.0, None, 40.0, count_compilation)
    compile_for(clock, now, 12)
    now[0] += 5
    clock.stop()
    now[0] += 100  # the last evaluation and save
    assert clock.elapsed == (57 if count_compilation else 45)


def test_a_spent_budget_is_over_before_anything_compiles(now):
    assert Clock(1.0, None, 60.0).is_over(3)


def test_without_a_budget_the_steps_count(now):
    clock = Clock(None, 10)
    assert clock.read(4) == (4.0, 0.4)
    assert not clock.is_over(9)
    assert clock.is_over(10)


def test_several_processes_use_the_time_of_the_first(now, monkeypatch):
    monkeypatch.setattr(clock_module.jax, "process_count", lambda: 2)
    clock = Clock(1.0, None, 6.0)
    compile_for(clock, now, 30)
    now[0] += 3
    assert clock.read(5) == (0.1 * TIME_UNITS, 0.1)  # of 6 s, until the processes have agreed
    assert clock.agree(np.array([30.0, 0.0], np.float32)) is False
    assert clock.read(5) == (0.5 * TIME_UNITS, 0.5)
    assert clock.elapsed == 9
    assert clock.agree(np.array([60.0, 1.0], np.float32)) is True
    assert clock.is_over(5)
