#!/usr/bin/env bash
# Starts and resumes a run on several nodes with GPUs under SLURM.
#
# tpu/slurm.sh COMMAND [--name NAME] [--nodes N] [--gpus PER_NODE] [--partition NAME] [--time 24:00:00]
#                      --config FILE --workdir DIR [--dry-run] [-- --config.a.b=value ...]
#
#   launch   submits the run, with a process for each GPU; before its time limit it saves and is queued again
#   watch    prints the job, then its log
#   resume   submits it again: the run continues from its last checkpoint, to the bit
#   delete   cancels the job; the workdir stays
#
# Run it from this repository on a file system that all nodes share, installed with EXTRAS=gpu,hf.

nodes=2 gpus=8 partition='' time=24:00:00
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

launch() {
    need config workdir
    local log=$workdir/slurm-%j.log
    run mkdir -p "$workdir"
    # SLURM sends SIGTERM to all processes two minutes early; they save and exit with 0, and the requeued job resumes
    run sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" "--time=$time" \
        ${partition:+"--partition=$partition"} "--chdir=$repository" "--output=$log" --open-mode=append --requeue --signal=TERM@120 \
        "--wrap=srun --kill-on-bad-exit=1 $(training)&& { [ -e $(printf %q "$workdir/results.json") ] || scontrol requeue \$SLURM_JOB_ID; }"
}

watch() {
    run squeue "--name=$name"
    run bash -c "tail -n 50 -F $(printf %q "$workdir")/slurm-*.log"
}

resume() { launch; }

delete() { run scancel "--name=$name"; }

command=${1:---help}
case $command in
    launch | watch | resume | delete) shift; read_options "$@"; "$command" ;;
    --help | -h) usage ;;
    *) die "unknown command $command; see --help" ;;
esac
