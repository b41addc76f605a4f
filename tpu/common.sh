# Shared by the scripts beside it: options, what a topology is made of, and commands that are printed instead of run.
# shellcheck shell=bash disable=SC2034 # what is set here is used there
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
dry=0 name=jaxdistill topology='' slices=1 zone='' project='' workdir='' config='' cluster='' image='' spot=0 options=()

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; } # the comment that the script begins with

# What is left of the command line behind `--` are options of the run: --config.a.b=value.
read_options() {
    while (($#)); do
        case $1 in
            --dry-run) dry=1 ;;
            --spot) spot=1 ;;
            --) shift; options=("$@"); return ;;
            --name | --topology | --slices | --zone | --project | --workdir | --config | --cluster | --image | --nodes | --gpus | --partition | --time)
                (($# > 1)) || die "$1 needs a value; see --help"
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            *) die "unknown option $1; see --help" ;;
        esac
        shift
    done
}

need() { local each; for each in "$@"; do [[ -n ${!each} ]] || die "--$each is missing; see --help"; done; }

# Words as they could be typed, quoted where they must be.
typed() {
    local each
    for each in "$@"; do
        if [[ $each =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then printf '%s ' "$each"; else printf '%s ' "${each@Q}"; fi
    done
}

# Runs a command; with --dry-run, prints it.
run() {
    if ((dry)); then typed "$@"; echo; else "$@"; fi
}

# kind=v6e, shape=16x16, chips=256 of the topology v6e:16x16
read_topology() {
    [[ $topology =~ ^(v5e|v5p|v6e):([0-9]+x[0-9]+(x[0-9]+)?)$ ]] ||
        die "--topology ${topology:-is missing}: write v6e:16x16, as for jaxdistill.plan"
    kind=${BASH_REMATCH[1]} shape=${BASH_REMATCH[2]} chips=$((${BASH_REMATCH[2]//x/*}))
    [[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices $slices: give 1 or more"
}

# The one command that every process of every machine runs; given again, it goes on from the last checkpoint.
training() {
    typed "${1:-.venv/bin/python}" -m jaxdistill.main --config "$config" --workdir "$workdir" --config.distributed.coordinator=auto "${options[@]}"
}
