"""The recorded scores are those of minicons; tests/use/test_score.py compares ours with them."""

import json

import pytest

from tests.parity.minicons_scores import GOLDEN, make_checkpoint, minicons_scores

pytest.importorskip("minicons", reason="the oracles extra is not installed")
pytest.importorskip("torch", reason="the parity extra is not installed")


def test_the_recorded_scores_are_those_of_minicons(tmp_path):
    recorded = json.loads(GOLDEN.read_text())
    found = minicons_scores(make_checkpoint(tmp_path / "bert"))
    assert {name: pytest.approx(values, abs=1e-3) for name, values in recorded.items()} == found
