#!/usr/bin/env bash
# One training run on Google Kubernetes Engine, with kubectl and launch/gke.yaml.
#
#   launch/gke.sh start --name fcclip --image IMAGE --accelerator tpu-v5-lite-podslice --topology 16x16 --hosts 64 \
#       --devices_per_host 4 --bucket gs://my-bucket/runs --config configs/fcclip_convnext_large_coco.py \
#       -- --config.mesh.fsdp=8 --config.batch_size=256
#   launch/gke.sh show | logs | stop | delete --name fcclip
#
# start    applies the manifest; what follows -- goes to fcclip train. The configuration is read in the image
# show     prints the manifest that start would apply (give what start takes)
# logs     of one pod (--worker N, default 0)      stop  ends the pods, which save first; start goes on from there
# --accelerator       a TPU node pool's, such as tpu-v5-lite-podslice, or a GPU's, such as nvidia-h100-80gb
# --restarts N        of the supervisor in each pod (10)        --retries N  pods to make anew (20)
# --namespace N       another than kubectl's own                --dry_run    prints the commands, and runs none
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

(($#)) || die "which subcommand? start, show, logs, stop, delete (see $0 --help)"
case $1 in
  -h | --help)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  start | show | logs | stop | delete) subcommand=$1 ;;
  *) die "unknown subcommand $1 (see $0 --help)" ;;
esac
shift

name='' image='' accelerator='' topology='' hosts='' devices_per_host='' bucket='' config='' namespace='' worker=0
restarts=10 retries=20 dry_run=''
while (($#)); do
  case $1 in
    --name | --image | --accelerator | --topology | --hosts | --devices_per_host | --bucket | --config | --namespace | \
      --worker | --restarts | --retries)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --dry_run)
      dry_run=yes
      shift
      ;;
    --)
      shift
      break
      ;;
    *) die "unknown argument $1 (see $0 --help); what is for fcclip train comes after --" ;;
  esac
done

[[ $name =~ ^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$ ]] ||
  die "--name takes lower-case letters, digits and dashes, a letter first, at most 52, not '$name'"
[[ -z $namespace || $namespace =~ ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || die "--namespace: '$namespace' is none"
for number in worker restarts retries; do
  [[ ${!number} =~ ^[0-9]+$ ]] || die "--$number takes a whole number, not '${!number}'"
done
kubectl=(kubectl ${namespace:+--namespace="$namespace"})

run() {
  if [[ -n $dry_run ]]; then
    local words
    printf -v words '%q ' "$@"
    printf '%s\n' "${words% }"
  else
    "$@"
  fi
}

manifest() {
  for number in hosts devices_per_host; do
    [[ ${!number} =~ ^[1-9][0-9]*$ ]] || die "--$number takes a whole number above 0, not '${!number}'"
  done
  [[ -n $image && -n $accelerator && -n $config ]] || die "--image, --accelerator and --config are needed"
  [[ $bucket =~ ^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?$ ]] || die "--bucket takes gs://BUCKET or gs://BUCKET/FOLDER, not '$bucket'"
  python3 - "$here/gke.yaml" "$name" "$image" "$accelerator" "$topology" "$hosts" "$devices_per_host" "$restarts" \
    "$retries" "${bucket%/}" "$config" "$@" <<'PYTHON'
import json, re, sys

path, name, image, accelerator, topology, hosts, devices, restarts, retries, bucket, config, *rest = sys.argv[1:]
tpu = accelerator.startswith("tpu")
nodes = {f"cloud.google.com/gke-{'tpu-accelerator' if tpu else 'accelerator'}": accelerator}
if tpu and topology:
    nodes["cloud.google.com/gke-tpu-topology"] = topology
train = ["fcclip", "train", "--distributed", "--config", config, "--workdir", f"{bucket}/{name}"]
train += ["--compilation_cache", f"{bucket}/compiled", *rest]
values = {
    "NAME": name,
    "IMAGE": image,
    "HOSTS": int(hosts),
    "COUNT": hosts,
    "RETRIES": int(retries),
    "COORDINATOR": f"{name}-0.{name}:8482",
    "NODES": nodes,
    "DEVICES": {"google.com/tpu" if tpu else "nvidia.com/gpu": int(devices)},
    "ARGUMENTS": ["supervise", "--restarts", restarts, "--", *train],
}
text = open(path, encoding="utf-8").read()
print(re.sub(r"@([A-Z]+)@", lambda place: json.dumps(values[place[1]]), text), end="")
PYTHON
}

case $subcommand in
  show) manifest "$@" ;;
  start)
    made=$(mktemp)
    trap 'rm -f -- "$made"' EXIT
    manifest "$@" >"$made"
    run "${kubectl[@]}" apply --filename="$made"
    ;;
  logs) run "${kubectl[@]}" logs --follow --tail=200 --selector="job-name=$name,batch.kubernetes.io/job-completion-index=$worker" ;;
  stop) run "${kubectl[@]}" delete job "$name" --cascade=foreground --ignore-not-found ;;
  delete)
    run "${kubectl[@]}" delete job "$name" --cascade=foreground --ignore-not-found
    run "${kubectl[@]}" delete service "$name" --ignore-not-found
    ;;
esac
