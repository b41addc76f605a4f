#!/usr/bin/env bash
# Starts and resumes a run on Cloud TPU slices, through queued resources.
#
# tpu/queued.sh COMMAND [--name NAME] --topology v6e:16x16 [--slices N] --zone ZONE [--project PROJECT] [--spot]
#                       --config FILE --workdir DIR [--dry-run] [-- --config.a.b=value ...]
#
#   create   requests the slices; returns at once, and the slices may take days
#   launch   copies this repository to every machine, installs it, and starts the run there
#   watch    prints the state of the slices, then the log of the first machine
#   resume   requests new slices if the old ones were taken away, waits for them, and launches: the run continues from
#            its last checkpoint, to the bit
#   delete   gives the slices back; the workdir stays
#
# The workdir must be on a file system that all machines share and have mounted: Filestore or another NFS.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Product names of the chips, and the system images of their machines: docs.cloud.google.com/tpu/docs/runtimes
declare -A types=([v5e]=v5litepod [v5p]=v5p [v6e]=v6e)
declare -A systems=([v5e]=v2-alpha-tpuv5-lite [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e)

tpus() { run gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}; }

nodes() { if ((slices == 1)); then echo "$name"; else seq -f "$name-%g" 0 $((slices - 1)); fi; }

# Prints the state of the request, or NONE if there is none. Any other error, such as an expired login, ends the
# script, so that nothing is deleted without a known state.
state() {
    local said
    if said=$(tpus queued-resources describe "$name" '--format=value(state.state)' 2>&1); then
        printf '%s\n' "$said"
    elif [[ $said == *NOT_FOUND* ]]; then
        echo NONE
    else
        die "$said"
    fi
}

# Waits until the slices are active.
await() {
    local now=''
    until [[ $now == ACTIVE ]]; do
        now=$(state)
        case $now in
            NONE | FAILED | SUSPEND* | DELETING) die "the request for slices is $now and will not succeed; see $0 watch" ;;
            ACTIVE) ;;
            *) sleep "${POLL:-60}" ;;
        esac
    done
}

create() {
    read_topology
    local which=("--node-id=$name") more=()
    ((slices == 1)) || which=("--node-count=$slices" "--node-prefix=$name")
    ((spot == 0)) || more=(--spot)
    tpus queued-resources create "$name" "${which[@]}" "--type=${types[$kind]}" "--topology=$shape" "--runtime-version=${systems[$kind]}" "${more[@]}"
}

launch() {
    need config workdir
    ((dry)) || [[ -z $(git -C "$repository" status --porcelain) ]] || die "uncommitted changes would not be copied to the machines; commit them"
    local archive node
    archive=${TMPDIR:-/tmp}/jaxdistill-$name.tar.gz
    run git -C "$repository" archive --format=tar.gz --output="$archive" HEAD
    for node in $(nodes); do
        tpus tpu-vm scp "$archive" "$node:jaxdistill.tar.gz" --worker=all
        tpus tpu-vm ssh "$node" --worker=all --command="mkdir -p jaxdistill && tar -xzf jaxdistill.tar.gz -C jaxdistill && make -C jaxdistill install EXTRAS=tpu,hf"
    done
    for node in $(nodes); do # start all nodes before waiting for any: their processes wait for each other
        tpus tpu-vm ssh "$node" --worker=all --command="cd jaxdistill && (setsid nohup $(training)>> run.log 2>&1 < /dev/null &)"
    done
}

watch() {
    tpus queued-resources describe "$name" '--format=value(state.state)'
    tpus tpu-vm ssh "$(nodes | head -n 1)" --worker=0 --command='tail -n 50 -F jaxdistill/run.log'
}

resume() {
    need config workdir
    read_topology
    local now=SUSPENDED
    ((dry)) || now=$(state)
    case $now in
        NONE) create ;;
        FAILED | SUSPEND*) # its slices are gone
            tpus queued-resources delete "$name" --force --quiet
            create
            ;;
    esac
    ((dry)) || await
    launch
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

command=${1:---help}
case $command in
    create | launch | watch | resume | delete) shift; read_options "$@"; need zone; "$command" ;;
    --help | -h) usage ;;
    *) die "unknown command $command; see --help" ;;
esac
