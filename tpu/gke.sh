#!/usr/bin/env bash
# Starts and resumes a run on TPU slices of a GKE cluster, as a JobSet (tpu/jobset.yaml).
#
# tpu/gke.sh COMMAND [--name NAME] --topology v6e:16x16 [--slices N] --cluster CLUSTER --zone ZONE [--project PROJECT]
#                    [--spot] --image IMAGE --config FILE --workdir DIR [--dry-run] [-- --config.a.b=value ...]
#
#   create   creates a node pool for each slice
#   launch   applies the JobSet; pods that die are restarted, and the run continues from the last checkpoint
#   watch    lists the pods, then prints the log of the first one
#   resume   deletes the JobSet, if there is one, and launches: the run continues from its last checkpoint, to the bit
#   delete   deletes the JobSet and the node pools; the workdir stays
#
# The image must have this repository in /jaxdistill, installed with EXTRAS=tpu,hf. The persistent volume claim NAME
# (ReadWriteMany, such as Filestore) is mounted at the workdir. The cluster must have JobSet installed, and kubectl
# must be configured for the cluster.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: the machines have 4 chips each
declare -A machines=([v5e]=ct5lp-hightpu-4t [v5p]=ct5p-hightpu-4t [v6e]=ct6e-standard-4t)
declare -A accelerators=([v5e]=tpu-v5-lite-podslice [v5p]=tpu-v5p-slice [v6e]=tpu-v6e-slice)
per_host=4

pools() { run gcloud container node-pools "$1" "$name-$2" "--cluster=$cluster" "--location=$zone" ${project:+"--project=$project"} "${@:3}"; }

each_slice() { seq 0 $((slices - 1)); }

read_hosts() {
    read_topology
    ((chips % per_host == 0)) || die "--topology $topology: machines have $per_host chips; choose a multiple"
    hosts=$((chips / per_host))
}

create() {
    need cluster zone
    read_hosts
    local number more=()
    ((spot == 0)) || more=(--spot)
    for number in $(each_slice); do
        pools create "$number" "--machine-type=${machines[$kind]}" "--tpu-topology=$shape" "--num-nodes=$hosts" "${more[@]}"
    done
}

manifest() {
    local text key
    text=$(<"$here/jobset.yaml")
    local -A filled=(
        [name]=$name [slices]=$slices [shape]=$shape [image]=$image [workdir]=$workdir
        [hosts]=$hosts [chips_per_host]=$per_host [accelerator]=${accelerators[$kind]}
        [training]=$(training /jaxdistill/.venv/bin/python)
    )
    for key in "${!filled[@]}"; do text=${text//"@$key@"/"${filled[$key]}"}; done
    printf '%s\n' "$text"
}

launch() {
    need image config workdir
    read_hosts
    if ((dry)); then
        printf '%s\n' "kubectl apply -f - <<'YAML'" "$(manifest)" YAML
    else
        manifest | kubectl apply -f -
    fi
}

watch() {
    run kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name"
    run kubectl logs --follow "--selector=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

resume() {
    need image config workdir
    read_hosts
    run kubectl delete jobset "$name" --ignore-not-found --wait
    launch
}

delete() {
    need cluster zone
    local number
    run kubectl delete jobset "$name" --ignore-not-found --wait
    for number in $(each_slice); do pools delete "$number" --quiet; done
}

command=${1:---help}
case $command in
    create | launch | watch | resume | delete)
        shift
        read_options "$@"
        "$command"
        ;;
    --help | -h) usage ;;
    *) die "unknown command $command; see --help" ;;
esac
