import json
import shlex
import shutil
import subprocess

import pytest

from jaxlm import cli
from jaxlm.study.design import read_sweep
from jaxlm.study.grid import planned_runs
from jaxlm.study.sweep import run_sweep
from tests.study.made_up import replace_training, write_sweep

JOB = {  # the fields of a batch/v1 Job that are used here, as the API of Kubernetes defines them
    "type": "object", "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "batch/v1"}, "kind": {"const": "Job"},
        "metadata": {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}},
        },
        "spec": {
            "type": "object", "required": ["template"], "additionalProperties": False,
            "properties": {
                "completions": {"type": "integer", "minimum": 1}, "parallelism": {"type": "integer", "minimum": 1},
                "completionMode": {"enum": ["Indexed", "NonIndexed"]}, "backoffLimitPerIndex": {"type": "integer"},
                "template": {
                    "type": "object", "required": ["spec"],
                    "properties": {"spec": {
                        "type": "object", "required": ["containers"], "additionalProperties": False,
                        "properties": {
                            "restartPolicy": {"enum": ["Never", "OnFailure"]},
                            "terminationGracePeriodSeconds": {"type": "integer"},
                            "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
                            "containers": {"type": "array", "items": {
                                "type": "object", "required": ["name", "image"], "additionalProperties": False,
                                "properties": {
                                    "name": {"type": "string"}, "image": {"type": "string"},
                                    "command": {"type": "array", "items": {"type": "string"}},
                                    "resources": {"type": "object"},
                                    "volumeMounts": {"type": "array", "items": {"required": ["name", "mountPath"]}},
                                },
                            }},
                            "volumes": {"type": "array", "items": {"required": ["name"]}},
                        },
                    }},
                },
            },
        },
    },
}  # fmt: skip


@pytest.fixture
def emitted(tmp_path, monkeypatch, capsys):
    """Returns the text of --emit=FORM for a sweep with one run done, and the names of the others."""
    folder, root = write_sweep(tmp_path / "mask_rate"), tmp_path / "my runs"
    replace_training(monkeypatch)
    run_sweep(folder, root, arms=["slow"], seeds=[0])

    def make(form, *options):
        capsys.readouterr()
        status = cli.main(["sweep", str(folder), f"--workdir={root}", f"--emit={form}", *options])
        out, err = capsys.readouterr()
        return (out, [run.name for run in planned_runs(*read_sweep(folder))][1:], root) if status == 0 else err

    return make


def test_commands_are_those_of_the_missing_runs(emitted):
    text, runs, root = emitted("commands")
    lines = [shlex.split(line) for line in text.splitlines()]
    assert lines == [
        ["jaxlm", "train", f"--config={root}/configs/{run}.json", f"--workdir={root}/runs/{run}"] for run in runs
    ]
    assert all((root / "configs" / f"{run}.json").is_file() for run in runs)


def run_with_fakes(tmp_path, script, **variables):
    """Runs a script in which jaxlm, srun and the like print their arguments; returns what they print."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, body in {"srun": 'exec "$@"', "jaxlm": 'printf "%s\\n" "$@"', "scontrol": "", "scancel": ""}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", **variables}
    return subprocess.run(
        ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout


def test_the_slurm_script_is_valid_and_runs_one_run_for_each_index(emitted, tmp_path):
    text, runs, root = emitted("slurm", "--workers=3", "--hours=1.5")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "#SBATCH --array=0-4%3\n" in text
    assert "#SBATCH --time=01:30:00\n" in text
    for index, run in enumerate(runs):
        printed = run_with_fakes(tmp_path, text, SLURM_ARRAY_TASK_ID=str(index))
        assert printed.splitlines() == ["train", f"--config={root}/configs/{run}.json", f"--workdir={root}/runs/{run}"]
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-s", "bash", "-"], input=text, text=True, check=True)


def test_the_kubernetes_job_is_valid_and_runs_one_run_for_each_index(emitted, tmp_path):
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    text, runs, root = emitted("kubernetes", "--workers=2", "--hours=2")
    job = yaml.safe_load(text)
    jsonschema.validate(json.loads(json.dumps(job)), JOB)
    assert job["metadata"]["name"] == "jaxlm-mask-rate"
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (5, 2)
    pod = job["spec"]["template"]["spec"]
    assert pod["activeDeadlineSeconds"] == 7200
    program, flag, command = pod["containers"][0]["command"]
    assert (program, flag) == ("bash", "-c")
    for index, run in enumerate(runs):
        printed = run_with_fakes(tmp_path, command, JOB_COMPLETION_INDEX=str(index))
        assert printed.splitlines() == ["train", f"--config={root}/configs/{run}.json", f"--workdir={root}/runs/{run}"]


def test_nothing_is_emitted_when_all_is_done_or_the_limit_is_none(emitted):
    assert emitted("slurm", "--hours=0") == "jaxlm: --hours=0: must be above 0\n"
    assert emitted("commands", "--arms=slow", "--seeds=0") == "jaxlm: all runs are done; there is nothing to emit\n"
