"""The launchers in scripts/, with stand-ins for gcloud, Slurm and Python, and the image that Kubernetes runs."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

# gcloud's commands on a machine whose home directory is $FAKE_HOME: `scp FILE NAME:FILE` and `ssh ... --command=TEXT`.
GCLOUD = """
echo "$@" >> "$FAKE_HOME/../calls.txt"
case $4 in
  scp) cp "$5" "$FAKE_HOME/${6#*:}" ;;
  ssh) command=${@: -1} && cd "$FAKE_HOME" && exec bash -c "${command#--command=}" ;;
esac
"""
JAXLM = """
echo "jaxlm $*" "$(cat configs/new.py)"
trap 'echo saved; exit 1' TERM
if [ -e wait ]; then sleep 0.2; touch started; for i in $(seq 100); do sleep 0.1; done; fi
exit 7
"""


def write_program(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{content}")
    path.chmod(0o755)
    return path


@pytest.fixture
def tpu_vm(tmp_path):
    """Runs scripts/tpu_vm in a repository with changes that are not committed; `tpu_vm.home` is the machine's home."""
    repository, home = tmp_path / "repository", tmp_path / "home"
    for folder in (repository / "scripts", repository / "configs", home / "jaxlm-run" / ".venv" / "bin"):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "tpu_vm", repository / "scripts")
    (repository / "configs" / "old.py").write_text("committed")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    (repository / "configs" / "old.py").unlink()
    (repository / "configs" / "new.py").write_text("not committed")
    write_program(tmp_path / "bin" / "gcloud", GCLOUD)
    write_program(home / "jaxlm-run" / ".venv" / "bin" / "pip", "")
    write_program(home / "jaxlm-run" / ".venv" / "bin" / "jaxlm", JAXLM)
    (home / "jaxlm-run" / "run.sh").touch()  # as after a run before this one
    variables = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FAKE_HOME": str(home)}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [str(repository / "scripts" / "tpu_vm"), *arguments]
        return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)

    run.home, run.command, run.variables = home, repository / "scripts" / "tpu_vm", variables
    return run


def test_tpu_vm_copies_what_is_not_committed_and_returns_output_and_status(tpu_vm):
    result = tpu_vm("name", "zone", "--config=configs/new.py", "--config.data.path=my notes/*.txt", "--workdir=it's")
    assert result.stdout == (
        "jaxlm train --config.mesh.coordinator=detect --config=configs/new.py --config.data.path=my notes/*.txt"
        " --workdir=it's not committed\n"
    )
    assert result.returncode == 7
    assert sorted(path.name for path in (tpu_vm.home / "jaxlm-run" / "configs").iterdir()) == ["new.py"]
    calls = (tpu_vm.home.parent / "calls.txt").read_text()
    assert [line.split()[3] for line in calls.splitlines() if line.startswith("compute")] == ["scp", *["ssh"] * 3]
    assert tpu_vm("name", "zone", "--log").stdout == result.stdout


def test_a_run_of_tpu_vm_outlives_the_connection_and_is_stopped_by_name(tpu_vm):
    run_folder = tpu_vm.home / "jaxlm-run"
    (run_folder / "wait").touch()
    command = [str(tpu_vm.command), "name", "zone", "--config=configs/new.py"]
    launcher = subprocess.Popen(
        command, env=os.environ | tpu_vm.variables, stdout=subprocess.DEVNULL, start_new_session=True
    )
    for _ in range(600):
        if (run_folder / "started").exists():
            break
        time.sleep(0.05)
    os.killpg(launcher.pid, 1)  # SIGHUP, as when the connection is lost
    launcher.wait()
    os.kill(int((run_folder / "run.pid").read_text()), 0)  # it still runs
    again = tpu_vm("name", "zone", "--config=configs/new.py")
    assert (again.returncode, again.stderr) == (1, "a run is in progress on this machine: see --log and --stop\n")
    assert tpu_vm("name", "zone", "--stop").returncode == 0
    log = tpu_vm("name", "zone", "--log")
    assert log.stdout.endswith("not committed\nsaved\n")
    assert log.returncode == 1


def test_tpu_vm_leaves_a_folder_of_the_user_alone(tpu_vm):
    shutil.rmtree(tpu_vm.home / "jaxlm-run")
    (tpu_vm.home / "jaxlm-run").mkdir()
    (tpu_vm.home / "jaxlm-run" / "notes.txt").write_text("mine")
    result = tpu_vm("name", "zone", "--config=configs/new.py")
    assert result.returncode == 1
    assert result.stderr == "the folder jaxlm-run on this machine is not of scripts/tpu_vm: rename it\n"
    assert [path.name for path in (tpu_vm.home / "jaxlm-run").iterdir()] == ["notes.txt"]
    assert "usage:" in tpu_vm("name").stderr


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"SLURM_CPUS_PER_TASK": "6"}, "6")])
def test_slurm_asks_for_cpus_and_hands_them_to_each_process(tmp_path, given, expected):
    script = (ROOT / "scripts" / "slurm").read_text()
    assert re.search(r"^#SBATCH --cpus-per-task=\d+$", script, re.MULTILINE)
    write_program(tmp_path / "bin" / "srun", 'echo "$SRUN_CPUS_PER_TASK: $*"\n')
    variables = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)} | given
    command = [str(ROOT / "scripts" / "slurm"), "--config=FILE"]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)
    assert result.stdout == f"{expected}: .venv/bin/jaxlm train --config=FILE\n"


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({}, "but none was found;"),
        ({"python3": "3.10"}, "but python3 is Python 3.10;"),
        ({"python3": "3.14", "python3.11": "3.9"}, "but python3 is Python 3.14, python3.11 is Python 3.9;"),
        ({"python3": "3.9", "python3.12": "3.12"}, None),
    ],
)
def test_an_unsuitable_python_is_named(tmp_path, versions, message):
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        version = versions.get(name)
        make = 'mkdir -p "$3/bin" && printf "#!/bin/sh\\n" > "$3/bin/python" && chmod +x "$3/bin/python"'
        answer = f"case $1 in -c) echo {version} ;; -m) {make} ;; esac" if version else "exit 127"
        write_program(tmp_path / "bin" / name, f"{answer}\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    command = ["bash", "-euc", f". {ROOT / 'scripts' / 'environment'} test"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    if message is None:
        assert result.returncode == 0, result.stderr
        assert list((tmp_path / ".venv").glob("installed-*"))
        return
    assert result.returncode == 1
    assert result.stderr.startswith("jaxlm needs Python 3.11, 3.12 or 3.13, ")
    assert message in result.stderr


def test_the_image_contains_what_its_dockerfile_copies():
    dockerfile = (ROOT / "Dockerfile").read_text()
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for names in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for name in names.split()}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    assert "docker build" in (ROOT / "scripts" / "kubernetes.yaml").read_text()
