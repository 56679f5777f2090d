import json

import pytest

from jaxlm.config import config_to_dict, load_config
from jaxlm.errors import UserError
from jaxlm.study.records import Point, at_steps, common_grid, config_differences, read_run
from tests.study.made_up import write_run


def config(*overrides):
    return config_to_dict(load_config("mini", list(overrides)))


def test_a_run_is_read_back(tmp_path):
    write_run(tmp_path, config("train.seed=3"), [5.0, 4.0])
    record = read_run(tmp_path)
    assert (record.seed, record.done, record.steps, record.sets) == (3, True, 20, ["held_out"])
    assert record.metrics("held_out") == ["loss", "accuracy", "n"]
    assert record.curve("loss", "held_out") == [Point(10, 11.0, 5.0), Point(20, 21.0, 4.0)]
    assert record.curve("loss", None) == [Point(10, 10.0, 5.1), Point(20, 20.0, 4.1)]
    assert record.value("loss", "held_out") == Point(20, 21.0, 4.0)
    assert record.value("loss", "held_out", at=10).value == 5.0
    assert record.seconds == 22.0
    assert record.tokens_per_second == 200.0
    assert record.tokens(10) == 10 * 8 * 64


def test_the_time_between_interruptions_does_not_count(tmp_path):
    write_run(tmp_path, config(), [5.0, 4.0], done=False)
    lines = [
        {"kind": "resume", "step": 10, "time": 5000.0},
        {"kind": "start", "step": 10, "elapsed_seconds": 12.0, "time": 5001.0},
        {"kind": "evaluation", "step": 20, "name": "held_out", "loss": 3.0, "time": 5011.0},
        {"kind": "end", "step": 20, "time": 5012.0},
    ]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    record = read_run(tmp_path)
    assert record.curve("loss", "held_out") == [Point(10, 11.0, 5.0), Point(20, 22.0, 3.0)]  # the later one counts
    assert record.seconds == 23.0
    assert record.done


def test_tokens_follow_the_phases(tmp_path):
    phases = '[{"steps": 100, "sequence_length": 32, "batch_size": 16}, {}]'
    write_run(tmp_path, config(f"train.phases={phases}"), [5.0])
    record = read_run(tmp_path)
    assert record.tokens(50) == 50 * 16 * 32
    assert record.tokens(130) == 100 * 16 * 32 + 30 * 8 * 64


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no directory"):
        read_run(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"is no work directory: it lacks config.json or metrics.jsonl"):
        read_run(tmp_path)
    write_run(tmp_path, config(), [5.0])
    record = read_run(tmp_path)
    with pytest.raises(UserError, match="has no evaluation set dev; it has held_out"):
        record.value("loss", "dev")
    with pytest.raises(UserError, match="has no metric f1 of held_out; it has loss, accuracy, n"):
        record.value("f1", "held_out")
    with pytest.raises(UserError, match="was not evaluated at update 7; it was at 10"):
        record.value("loss", "held_out", at=7)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has no records yet"):
        read_run(tmp_path)


def test_only_settings_that_differ_are_returned():
    found = config_differences([config(), config("masking.rate=0.3"), config("train.seed=4")])
    assert found == {"masking.rate": [0.15, 0.3, 0.15], "train.seed": [0, 0, 4]}


def test_curves_are_read_between_their_points():
    curve = [Point(10, 1.0, 5.0), Point(20, 2.0, 3.0), Point(40, 4.0, 2.0)]
    assert at_steps(curve, [5, 10, 15, 40, 41]) == [None, 5.0, 4.0, 2.0, None]
    assert common_grid([curve, [Point(15, 1.0, 0.0), Point(50, 2.0, 0.0)]]) == [15, 20, 40]
    assert common_grid([]) == []
    many = [Point(step, 0.0, 0.0) for step in range(1000)]
    assert len(common_grid([many], 50)) == 50
    assert common_grid([many], 50)[-1] == 999
