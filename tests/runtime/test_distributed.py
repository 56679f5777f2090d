"""How a process finds out that it is one of several; what several do together is in test_hosts.py."""

import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.runtime import distributed

CLUSTER = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_LOCALID", "TPU_WORKER_HOSTNAMES",
           "TPU_PROCESS_ADDRESSES", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")  # fmt: skip
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_LOCALID": "1"}


def mesh_settings(**changes):
    settings = default_config().mesh
    settings.update(changes)
    return settings


@pytest.fixture
def elsewhere(monkeypatch):
    """Sets the environment of a cluster, and nothing of any other."""

    def set_to(environment):
        for name in CLUSTER:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # a shell inside an allocation, not started by srun
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
    ids=str,
)
def test_the_environment_tells_whether_there_are_several(elsewhere, environment, several):
    elsewhere(environment)
    assert distributed._given(mesh_settings()) == ({} if several else None)


def test_detect_asks_jax_whatever_the_environment(elsewhere):
    elsewhere({})
    assert distributed._given(mesh_settings(coordinator="detect")) == {}


def test_three_settings_go_over_the_environment(elsewhere):
    elsewhere(SLURM)
    given = distributed._given(mesh_settings(coordinator="host:1234", processes=2, process_id=0))
    assert (given["coordinator_address"], given["num_processes"], given["process_id"]) == ("host:1234", 2, 0)
    assert distributed._given(mesh_settings(processes=1)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"coordinator": "host:1234"},
        {"coordinator": "host:1234", "processes": 2},
        {"coordinator": "host:1234", "processes": 2, "process_id": 2},
        {"coordinator": "host", "processes": 2, "process_id": 0},
        {"processes": 2, "process_id": 0},
    ],
    ids=str,
)
def test_settings_that_do_not_say_all_are_refused(changes):
    with pytest.raises(UserError, match=r"all three are needed, as HOST:PORT"):
        distributed._given(mesh_settings(**changes))


def test_one_process_joins_nobody_and_keeps_its_errors(elsewhere):
    elsewhere({})
    with distributed.joined(mesh_settings()):
        assert distributed.from_first(lambda: [1, "a"]) == [1, "a"]
    with pytest.raises(UserError, match="as it is"), distributed.joined(mesh_settings()):
        raise UserError("as it is")


@pytest.mark.parametrize(
    ("error", "peers"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer"), True),
        (ValueError("UNKNOWN is no setting"), False),
        (KeyError("x"), False),
    ],
)
def test_what_a_dead_process_makes_of_a_computation_is_told_from_a_bug(error, peers):
    outer = RuntimeError("while saving")
    outer.__cause__ = error
    assert distributed._came_from_peers(error) == distributed._came_from_peers(outer) == peers


def test_where_a_process_runs_is_not_kept(elsewhere):
    elsewhere({})
    settings = mesh_settings(processes=1, process_id=0, coordinator="host:1")
    with distributed.joined(settings):
        assert settings.to_dict() == default_config().mesh.to_dict()
