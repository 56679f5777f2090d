import os
import subprocess
import sys

import pytest

from jaxlm.errors import UserError
from jaxlm.runtime import processes
from tests.conftest import environment


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_the_order_of_the_items(workers):
    assert list(processes.map_in_processes(abs, iter(range(-50, 0)), workers)) == list(range(50, 0, -1))


def test_a_single_item_starts_no_process():
    pids = processes.map_in_processes(_own_pid, [0], 4)
    assert list(pids) == [os.getpid()]


def _own_pid(_):
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_or_in_its_initializer_is_raised_unchanged(workers):
    with pytest.raises(UserError, match=r"^no such tokenizer$"):
        list(processes.map_in_processes(abs, [1, 2], workers, _refuse, ("no such tokenizer",)))
    with pytest.raises(UserError, match=r"^bad item$"):
        list(processes.map_in_processes(_refuse, ["bad item"] * 2, workers))


def _refuse(message):
    raise UserError(message)


def test_a_killed_worker_is_reported():
    with pytest.raises(UserError, match=r"a worker process was killed.*data.workers"):
        list(processes.map_in_processes(os._exit, [1, 1], 2))


def test_workers_do_not_import_the_main_file(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from jaxlm.runtime.processes import map_in_processes\n"
        "print('imported')\n"
        "print(list(map_in_processes(len, ['a', 'bc', 'def'], workers=2)), __file__)\n"
    )
    done = subprocess.run([sys.executable, program], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout == f"imported\n[1, 2, 3] {program}\n", done.stderr
