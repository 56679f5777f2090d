"""How a process finds the others of its run; runs of several processes are tested in test_hosts.py."""

import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.runtime import coordination, distributed, peers

ROOT = Path(__file__).parents[2]

CLUSTER = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_LOCALID", "TPU_WORKER_HOSTNAMES",
           "TPU_PROCESS_ADDRESSES", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")  # fmt: skip
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_LOCALID": "1"}


def mesh_settings(**changes):
    settings = default_config().mesh
    settings.update(changes)
    return settings


@pytest.fixture
def set_environment(monkeypatch):
    """Returns a function that sets the environment variables of one cluster and removes those of all others."""

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
def test_the_environment_shows_whether_there_are_several_processes(set_environment, environment, several):
    set_environment(environment)
    assert distributed._initialize_arguments(mesh_settings()) == ({} if several else None)


def test_detect_lets_jax_decide_in_any_environment(set_environment):
    set_environment({})
    assert distributed._initialize_arguments(mesh_settings(coordinator="detect")) == {}


def test_settings_override_the_environment(set_environment):
    set_environment(SLURM)
    given = distributed._initialize_arguments(mesh_settings(coordinator="host:1234", processes=2, process_id=0))
    assert (given["coordinator_address"], given["num_processes"], given["process_id"]) == ("host:1234", 2, 0)
    assert distributed._initialize_arguments(mesh_settings(processes=1)) is None


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
def test_incomplete_settings_are_rejected(changes):
    with pytest.raises(UserError, match=r"set all three, to HOST:PORT of the first process"):
        distributed._initialize_arguments(mesh_settings(**changes))


def test_a_single_process_joins_no_others_and_raises_its_errors(set_environment):
    set_environment({})
    with distributed.joined(mesh_settings()):
        assert distributed.from_first(lambda: [1, "a"]) == [1, "a"]
    with pytest.raises(UserError, match="unchanged"), distributed.joined(mesh_settings()):
        raise UserError("unchanged")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer"), True),
        (ValueError("UNKNOWN is not a setting"), False),
        (KeyError("x"), False),
    ],
)
def test_the_failure_of_another_process_is_told_apart_from_a_bug(error, expected):
    outer = RuntimeError("while saving")
    outer.__cause__ = error
    assert peers.is_peer_failure(error) == peers.is_peer_failure(outer) == expected


def test_where_a_process_runs_is_removed_from_the_settings(set_environment):
    set_environment({})
    settings = mesh_settings(processes=1, process_id=0, coordinator="host:1")
    with distributed.joined(settings):
        assert settings.to_dict() == default_config().mesh.to_dict()


# Votes


def test_a_step_with_any_inputs_can_be_counted(monkeypatch):
    def train_step(*inputs):
        return inputs[0] + 1, {"loss": sum(inputs)}

    mesh = jax.make_mesh((1,), ("data",))
    alone = distributed.Votes(mesh)
    assert alone.cast(1.5, True) == ()
    assert alone.counted(train_step)(1, 2, 3) == (2, ({"loss": 6}, None))

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    votes = distributed.Votes(mesh)
    step = votes.counted(train_step)
    assert step.__name__ == "train_step"
    for inputs in ((1, 2), (1, 2, 3, 4, 5)):
        state, (metrics, agreed) = jax.jit(step)(*inputs, *votes.cast(1.5, True))
        assert (int(state), int(metrics["loss"])) == (2, sum(inputs))
        assert agreed.tolist() == [1.5, 1.0]
        assert agreed.dtype == jnp.float32


def test_only_the_clock_of_the_first_process_counts(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    (vote,) = distributed.Votes(jax.make_mesh((1,), ("data",))).cast(1.5, False)
    assert np.asarray(vote).tolist() == [[-np.inf, 0.0]]


# The coordination service


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_is_busy_while_a_socket_listens_even_one_that_shares_it(free_port, shared):
    assert coordination.port_is_free(free_port)
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("::", free_port))
        listener.listen()
        assert not coordination.port_is_free(free_port)
        # Neither a connection that is still open nor one that is closing keeps the next service from starting.
        client = socket.create_connection(("127.0.0.1", free_port))
        server, _ = listener.accept()
    assert coordination.port_is_free(free_port)
    server.close()
    client.close()
    assert coordination.port_is_free(free_port)


def test_the_service_outlives_the_first_process_only_as_long_as_the_others_need():
    heartbeat = 30.0
    assert coordination.linger_seconds(coordination.DONE, 4, heartbeat) == 0
    assert coordination.linger_seconds("", 1, heartbeat) == 0
    explained, killed = (coordination.linger_seconds(word, 4, heartbeat) for word in (coordination.EXPLAINED, ""))
    assert coordination.poll_seconds(heartbeat) + coordination.GRACE_SECONDS < explained < heartbeat < killed
    assert killed < coordination.PORT_SECONDS  # the same command can be run again at once


def test_a_service_process_ends_when_it_is_told_to(free_port):
    service = coordination.ServiceProcess(f"[::]:{free_port}", 2, 1.0)
    assert not coordination.port_is_free(free_port)
    service.shutdown()
    assert service.process.wait(10) == 0
    assert coordination.port_is_free(free_port)


def test_a_busy_port_is_reported(monkeypatch):
    def start(*args, **kwargs):
        return subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(coordination, "subprocess", type("", (), {"PIPE": -1, "DEVNULL": -3, "Popen": start}))
    with pytest.raises(UserError, match=r"cannot listen on \[::\]:1234: the port is in use; set another one"):
        coordination.ServiceProcess("[::]:1234", 2, 1.0)


HANGING = """
import sys, time, jax
from jaxlm.config import default_config
from jaxlm.errors import UserError
from jaxlm.runtime import distributed
settings, index, ending = default_config().mesh, int(sys.argv[2]), sys.argv[3]
settings.update(coordinator=f"127.0.0.1:{sys.argv[1]}", processes=3, process_id=index, heartbeat_seconds=3.0)
with distributed.joined(settings):
    distributed.from_first(lambda: 1)
    print("joined", flush=True)
    if index == 0 and ending == "error":
        raise UserError("the disk is full")
    time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["kill", "error"])
def test_when_the_first_process_ends_the_others_report_it_and_the_port_becomes_free(free_port, ending):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HANGING, str(free_port), str(index), ending],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(3)
    ]  # fmt: skip
    for process in processes:
        assert any(line == "joined\n" for line in process.stdout)
    if ending == "kill":
        processes[0].kill()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    if ending == "kill":
        assert processes[0].returncode == -signal.SIGKILL
        expected = ["jaxlm: process 0 has not responded for 3 s: it was killed, it hangs, or its machine is down"] * 2
        errors = errors[1:]
    else:
        expected = ["jaxlm: the disk is full", *["jaxlm: process 0: the disk is full"] * 2]
    assert [process.returncode for process in processes[1:]] == [1, 1]
    assert all(found.startswith(text) for found, text in zip(errors, expected, strict=True)), errors
    assert [error.count("\n") for error in errors] == [1] * len(errors), errors
    end = time.monotonic() + 20
    while not coordination.port_is_free(free_port):
        assert time.monotonic() < end
        time.sleep(0.1)


# Without JAX's private names


@pytest.mark.parametrize("name", ["get_distributed_runtime_service", "DistributedRuntimeClient"])
def test_a_missing_private_name_selects_jax_s_own_service(monkeypatch, caplog, name):
    from jax._src.lib import _jax

    assert coordination._private_names()
    monkeypatch.delattr(_jax, name)
    called = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: called.update(arguments))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with caplog.at_level(logging.WARNING, "jaxlm"):
        coordination.initialize({"process_id": 0}, 7.0)
    assert coordination.client() is None
    assert (called["process_id"], called["heartbeat_timeout_seconds"]) == (0, 7)
    assert "lacks private functions that jaxlm uses to coordinate processes" in caplog.text


def test_a_service_that_jax_starts_another_way_is_reported(monkeypatch, caplog):
    from jax._src.distributed import global_state

    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: setattr(global_state, "service", "JAX's own"))
    monkeypatch.setattr(global_state, "service", None)
    with caplog.at_level(logging.WARNING, "jaxlm"):
        coordination.initialize({}, 7.0)
    assert "when the first process fails, JAX aborts the others" in caplog.text


WITHOUT_PRIVATE_NAMES = """
import sys, jax, jax.numpy as jnp, numpy as np
import jax.experimental.multihost_utils
from orbax.checkpoint import v1
del jax._src.lib._jax  # what has imported it keeps it: JAX and Orbax work as before
from pathlib import Path
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxlm.config import default_config
from jaxlm.runtime import distributed
from jaxlm.runtime.checkpoint import Checkpoints
settings, index = default_config().mesh, int(sys.argv[2])
settings.update(coordinator=f"127.0.0.1:{sys.argv[1]}", processes=2, process_id=index)
with distributed.joined(settings):
    assert distributed.from_first(lambda: {"from": index, "text": "é" * 300}) == {"from": 0, "text": "é" * 300}
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    votes = distributed.Votes(mesh)
    step = votes.counted(lambda state, batch: (state + batch, {}))
    state, (_, agreed) = jax.jit(step)(np.float32(1), np.float32(2), *votes.cast(3.0 + index, index == 1))
    assert (float(state), agreed.tolist()) == (3.0, [3.0, 1.0])
    rows = jax.jit(lambda: jnp.arange(4.0), out_shardings=NamedSharding(mesh, P("data")))()
    checkpoints = Checkpoints(Path(sys.argv[3]))
    checkpoints.save(1, {"params": {"w": rows}}, {}, wait=True)
    like = jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=rows.sharding)
    assert checkpoints.restore({"params": {"w": like}}).step == 1
print("done")
"""


@pytest.mark.slow
def test_two_processes_work_together_without_the_private_names(free_port, tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WITHOUT_PRIVATE_NAMES, str(free_port), str(index), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert all(output.endswith("done\n") for output, _ in results)
    assert all("JAX aborts the others with a stack trace" in errors for _, errors in results)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("the disk is full"), "the disk is full"),
        (KeyError("x"), "process 0 failed with KeyError; see the output of that process"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_an_error_of_the_first_process_ends_the_wait_of_the_others(monkeypatch, error, sentence):
    store = {}
    client = SimpleNamespace(key_value_set=store.__setitem__, blocking_key_value_get=lambda key, _: store[key])
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(coordination, "client", lambda: client)

    def fail():
        raise error

    monkeypatch.setattr(distributed, "_value_numbers", itertools.count())
    with pytest.raises(type(error)):
        distributed.from_first(fail)
    monkeypatch.setattr(distributed, "_value_numbers", itertools.count())
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match=re.escape(sentence)):
        distributed.from_first(fail)


# Stop signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_is_received_and_a_second_one_has_its_usual_effect_except_sighup(name):
    number, usual = getattr(signal, name), []
    before = signal.signal(number, lambda *_: usual.append(name))
    try:
        with distributed.stop_signals() as received:
            signal.raise_signal(number)
            assert received == [name]
            signal.raise_signal(number)
            assert usual == ([] if name == "SIGHUP" else [name])
        signal.raise_signal(number)
        assert usual[-1] == name
    finally:
        signal.signal(number, before)


def test_under_nohup_sighup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with distributed.stop_signals() as received:
            signal.raise_signal(signal.SIGHUP)
        assert received == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
