import sys
from types import SimpleNamespace

import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.runtime.run_log import RunLog, read_metrics
from jaxlm.runtime.trackers import check_trackers, open_trackers


@pytest.fixture
def services(monkeypatch):
    """Puts stand-ins for wandb and trackio in place of the packages; returns what they were told."""
    told = []

    class Run:
        def __init__(self, service):
            self.service = service

        def define_metric(self, name, step_metric):
            told.append((self.service, "axis", step_metric))

        def log(self, numbers, step=None):
            if numbers.get("train/loss") == 13:
                raise ConnectionError("no\nnetwork")
            told.append((self.service, numbers, step))

        def finish(self):
            told.append((self.service, "finish"))

    def init(service):
        def make(**options):
            if options["project"] == "broken":
                raise ValueError("no API key")
            told.append((service, "init", options))
            return Run(service)

        return make

    for name in ("wandb", "trackio"):
        module = SimpleNamespace(init=init(name), finish=lambda: told.append(("trackio", "finish")), __spec__=object())
        monkeypatch.setitem(sys.modules, name, module)
    return told


def logging(**values):
    config = default_config().logging
    config.update(values)
    return config


def test_a_run_is_logged_to_the_services_that_are_named(services, tmp_path):
    trackers = open_trackers(logging(wandb="mine", trackio="ours"), tmp_path / "run", {"train": {"steps": 3}})
    with RunLog(tmp_path / "run", 3, tensorboard=False, curve=False, trackers=trackers) as log:
        log.train(1, {"loss": 2.5, "text": "x", "bad": float("nan")})
        log.evaluation(3, "dev", {"loss": 2.0})
    (_, _, wandb), (_, _, trackio) = services[0], services[2]
    assert (wandb["project"], wandb["resume"], wandb["config"]) == ("mine", "allow", {"train": {"steps": 3}})
    assert trackio["project"] == "ours"
    assert services[3:] == [
        ("wandb", {"train/loss": 2.5, "step": 1}, None), ("trackio", {"train/loss": 2.5}, 1),
        ("wandb", {"held-out/dev/loss": 2.0, "step": 3}, None), ("trackio", {"held-out/dev/loss": 2.0}, 3),
        ("wandb", "finish"), ("trackio", "finish"),
    ]  # fmt: skip


def test_a_resumed_run_is_the_same_run_of_the_service(services, tmp_path):
    for _ in range(2):
        open_trackers(logging(wandb="mine"), tmp_path / "run", {})
    open_trackers(logging(wandb="mine"), tmp_path / "other", {})
    ids = [entry[2]["id"] for entry in services if entry[1] == "init"]
    assert ids[0] == ids[1] != ids[2]


def test_a_service_that_fails_does_not_end_the_run(services, tmp_path, capsys):
    trackers = open_trackers(logging(wandb="mine", trackio="ours"), tmp_path, {})
    with RunLog(tmp_path, 9, tensorboard=False, curve=False, trackers=trackers) as log:
        log.train(1, {"loss": 13})
        log.train(2, {"loss": 1})
    assert "wandb gets no more events: no network; metrics.jsonl is complete" in capsys.readouterr().out
    assert [event["loss"] for event in read_metrics(tmp_path)] == [13, 1]
    assert not [entry for entry in services if entry[1] == "finish"]


def test_a_service_that_cannot_be_opened_is_named(services, tmp_path):
    with pytest.raises(UserError, match=r"logging.wandb=broken cannot be opened: no API key; fix that, or unset it"):
        open_trackers(logging(wandb="broken"), tmp_path, {})
    with pytest.raises(UserError, match=r"logging\.trackio=broken"):
        open_trackers(logging(wandb="mine", trackio="broken"), tmp_path, {})
    assert services[-1] == ("wandb", "finish")


def test_a_package_that_is_missing_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_trackers(logging())
    with pytest.raises(
        UserError, match=r"logging.trackio=ours needs the package trackio: pip install 'jaxlm\[trackio\]'"
    ):
        check_trackers(logging(trackio="ours"))
