# Shared by the scripts in this folder: reads options and topologies, and runs commands or prints them (--dry-run).
# shellcheck shell=bash disable=SC2034 # variables set here are used by those scripts
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
dry=0 name=jaxdistill topology='' slices=1 zone='' project='' workdir='' config='' cluster='' image='' spot=0 options=()

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; } # the comment at the top of the script

# Everything after `--` on the command line is an option of the run: --config.a.b=value.
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

# Prints words as one would type them, quoted where needed.
typed() {
    local each
    for each in "$@"; do
        if [[ $each =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then printf '%s ' "$each"; else printf '%s ' "${each@Q}"; fi
    done
}

# Runs a command, or prints it with --dry-run.
run() {
    if ((dry)); then typed "$@"; echo; else "$@"; fi
}

# Splits the topology v6e:16x16 into kind=v6e, shape=16x16 and chips=256.
read_topology() {
    [[ $topology =~ ^(v5e|v5p|v6e):([0-9]+x[0-9]+(x[0-9]+)?)$ ]] ||
        die "--topology ${topology:-is missing}: write v6e:16x16, as for jaxdistill plan"
    kind=${BASH_REMATCH[1]} shape=${BASH_REMATCH[2]} chips=$((${BASH_REMATCH[2]//x/*}))
    [[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices $slices: give 1 or more"
}

# Prints the one command that every process of every machine runs. Repeated, it resumes from the last checkpoint.
training() {
    typed "${1:-.venv/bin/python}" -m jaxdistill.main --config "$config" --workdir "$workdir" --config.distributed.coordinator=auto "${options[@]}"
}
