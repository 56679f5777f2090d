"""Damaged files and nonsensical arguments end in one sentence; scripts/soak --faults=inputs tries many more."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fuzz

FEW = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
NUMBER = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    logging.disable(logging.WARNING)
    yield fuzz.World(tmp_path_factory.mktemp("world"))
    logging.disable(logging.NOTSET)


def check(outcome: fuzz.Outcome) -> None:
    assert outcome.kind in ("accepted", "refused"), outcome
    if outcome.kind == "refused" and "usage:" not in outcome.text:
        assert outcome.text.count("jaxlm: ") == 1, outcome


@pytest.mark.slow
@settings(FEW, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(world, data):
    targets = [target for target in world.targets if target.argv[0] != "evaluate"]  # which compiles for seconds
    target = data.draw(st.sampled_from(targets))
    kind = data.draw(st.sampled_from(fuzz.kinds_for(target.file.name)))
    check(world.damage(target, kind, data.draw(NUMBER), data.draw(NUMBER)))


@pytest.mark.slow
@settings(FEW, max_examples=60)
@given(data=st.data())
def test_a_nonsensical_argument_is_used_or_named(world, data):
    command = data.draw(st.sampled_from(world.arguments()))
    value = data.draw(st.sampled_from(fuzz.NUMBERS + fuzz.TEXTS))
    check(world.call([part.replace("{}", value) for part in command]))
