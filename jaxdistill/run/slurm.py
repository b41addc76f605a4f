"""Write a shell script that runs a study on a cluster with the scheduler Slurm."""

import shlex
import sys
from pathlib import Path

from jaxdistill.run.study import Study, expand


def slurm_script(study: Study, workdir: Path, seeds: int) -> str:
    """Return a shell script that submits a study to the Slurm scheduler as three jobs, one after the other.

    The first job trains the teachers. The second is an array with a job for each run. The third writes the report.

    Args:
        study: a base config and its variants (arms).
        workdir: folder of the study.
        seeds: number of runs for each arm (variant of the base config).
    """
    command = f"{study.command_line} {shlex.join(['--workdir', str(workdir), '--seeds', str(seeds)])}"
    count = len(expand(study)) * seeds
    wrapped = lambda options: f"--wrap {shlex.quote(f'{command} {options}'.strip())}"
    return f"""#!/bin/bash
# Usage, with any options of sbatch: bash FILE --partition=gpu --time=1:00:00
set -e
export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"  # this Python; sbatch passes PATH on to the jobs
submit() {{ sbatch --parsable --job-name={study.name} "$@"; }}
teachers=$(submit "$@" {wrapped("--run teachers")})
runs=$(submit "$@" --dependency=afterok:"$teachers" --array=0-{count - 1} {wrapped("--run $SLURM_ARRAY_TASK_ID")})
submit "$@" --dependency=afterany:"$runs" {wrapped("")}
"""
