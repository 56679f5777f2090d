"""`jaxlm sweep --emit`: the missing runs of a sweep as a list of commands, a Slurm array, or a Kubernetes Job."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxlm.errors import UserError
from jaxlm.study import search
from jaxlm.study.design import Sweep
from jaxlm.study.execution import Job, command_of
from jaxlm.study.grid import PlannedRun, planned_runs, slug, state_of, write_configs

FORMATS = ("commands", "slurm", "kubernetes")
SAVING_SECONDS = 600  # before the time limit, in which a run saves

SLURM = """\
#!/usr/bin/env bash
# The {count} missing runs of {folder}, at most {workers} at a time:
#   sbatch {name}.sh
# Ten minutes before the time limit a run is asked to stop, saves, and is requeued. DIR of --workdir and data.cache must
# be on a file system that all machines share. Set --gres, --partition and the like for your cluster.
#SBATCH --job-name=jaxlm-{name}
#SBATCH --array=0-{last}%{workers}
#SBATCH --output=%x-%A_%a.txt
#SBATCH --open-mode=append
#SBATCH --time={time}
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:TERM@{saving}
#SBATCH --requeue
set -uo pipefail
cd "${{SLURM_SUBMIT_DIR:-.}}"
runs=(
{runs}
)
run=${{runs[$SLURM_ARRAY_TASK_ID]}}
stopping=
trap 'stopping=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM # signals the processes of srun, not this script
export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}
srun jaxlm train --config={root}/configs/"$run".json --workdir={root}/runs/"$run" &
wait $!
status=$?
if [ "$stopping" ]; then # the signal interrupted the wait, and the run is still saving
  wait $!
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""

KUBERNETES = """\
# The {count} missing runs of {folder}, at most {workers} at a time:
#   edit the lines marked with <<<, then  kubectl apply -f {name}.yaml
# A pod that is terminated, or that reaches its time limit, has ten minutes to save; the next one of its index resumes.
apiVersion: batch/v1
kind: Job
metadata:
  name: jaxlm-{label}
spec:
  completions: {count}
  parallelism: {workers}
  completionMode: Indexed
  backoffLimitPerIndex: 20
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: {saving}
      activeDeadlineSeconds: {deadline}
      containers:
        - name: jaxlm
          image: registry.example/jaxlm:latest # <<< built from the Dockerfile of jaxlm
          command:
            - bash
            - -c
            - {command}
          resources:
            limits:
              nvidia.com/gpu: 1 # <<< accelerators of a run
          volumeMounts:
            - name: data
              mountPath: /data # <<< the folder that holds the text, the token stores and the sweep's --workdir
            - name: shared-memory
              mountPath: /dev/shm
      volumes:
        - name: data
          persistentVolumeClaim:
            claimName: jaxlm-data # <<<
        - name: shared-memory
          emptyDir:
            medium: Memory
"""


def emit(
    form: str, sweep: Sweep, file: Path, overrides: Sequence[str], root: Path, wanted: set[tuple[str, int]],
    workers: int, hours: float,
) -> str:  # fmt: skip
    """Returns the text of one of FORMATS, after writing the config of each run below `root`. Raises UserError."""
    if not hours > 0:
        raise UserError(f"--hours={hours:g}: must be above 0")
    found = search.chosen_settings(sweep, file, overrides, root)
    if found is None:
        raise UserError("the search of this sweep has to end before its runs are known; run it without --emit first")
    runs = planned_runs(sweep, file, overrides, found)
    missing = [run for run in runs if (run.arm, run.seed) in wanted and state_of(run, root) != "done"]
    if not missing:
        raise UserError("all runs are done; there is nothing to emit")
    write_configs(runs, root)
    if form == "commands":
        return "".join(
            shlex.join(command_of(Job(run.name, run.config_file(root), run.workdir(root)))) + "\n" for run in missing
        )
    name = slug(file.parent.resolve().name)
    fields = {
        "count": len(missing), "last": len(missing) - 1, "workers": min(workers, len(missing)), "name": name,
        "folder": file.parent, "saving": SAVING_SECONDS, "root": shlex.quote(str(root)),
    }  # fmt: skip
    if form == "slurm":
        minutes = max(1, round(hours * 60))
        time = f"{minutes // 60:02}:{minutes % 60:02}:00"
        return SLURM.format(**fields, time=time, runs="\n".join(f"  {shlex.quote(run.name)}" for run in missing))
    return KUBERNETES.format(
        **fields, label=name.lower().replace("_", "-").replace(".", "-"), deadline=max(1, round(hours * 3600)),
        command=json.dumps(_pod_command(missing, root)),
    )  # fmt: skip


def _pod_command(missing: Sequence[PlannedRun], root: Path) -> str:
    runs, place = " ".join(shlex.quote(run.name) for run in missing), shlex.quote(str(root))
    return (
        f"runs=({runs}); run=${{runs[$JOB_COMPLETION_INDEX]}}; "
        f'exec jaxlm train --config={place}/configs/"$run".json --workdir={place}/runs/"$run"'
    )
