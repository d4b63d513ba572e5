#!/usr/bin/env bash
# One training run on a Cloud TPU slice.
#
#   launch/tpu_pod.sh create --name fcclip --zone us-west4-a --type v5litepod-256 [--queued] [--spot]
#   launch/tpu_pod.sh start  --name fcclip --zone us-west4-a --bucket gs://my-bucket/runs \
#       --config configs/fcclip_convnext_large_coco.py -- --config.mesh.fsdp=8 --config.batch_size=256
#   launch/tpu_pod.sh logs | status | stop | resume | delete  (the same --name, --zone and what create and start took)
#
# create   makes the slice, or takes one of that name that is ready, and installs this checkout on every worker
# start    runs `fcclip supervise -- fcclip train` on every worker, in the background; what follows -- goes to train
# logs     shows what a worker says (--worker N, default 0) until interrupted
# status   the slice's state, and whether the run is alive on each worker
# stop     tells the run to save and end; start or resume goes on from there
# resume   after preemption: makes the slice again where it is gone, installs, starts
# delete   deletes the slice (the bucket stays)
#
# --bucket gs://...   the work folder is BUCKET/NAME         --project P       another project than gcloud's own
# --queued            ask by a queued resource, and wait     --spot            preemptible, cheaper
# --runtime VERSION   the workers' image, else by --type     --restarts N      of the supervisor on each worker (10)
# --prepare COMMAND   is run on every worker before start (mount or copy the data)
# --dry_run           prints every command, quoted as a shell takes it, and runs none
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

usage() {
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

(($#)) || die "which subcommand? create, start, logs, status, stop, resume, delete (see $0 --help)"
case $1 in
  -h | --help)
    usage
    exit 0
    ;;
  create | start | logs | status | stop | resume | delete) subcommand=$1 ;;
  *) die "unknown subcommand $1 (see $0 --help)" ;;
esac
shift

name='' zone='' type='' bucket='' config='' project='' runtime='' prepare='' worker=0 restarts=10 poll=15
queued='' spot='' dry_run=''
while (($#)); do
  case $1 in
    --name | --zone | --type | --bucket | --config | --project | --runtime | --prepare | --worker | --restarts | --poll)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --queued | --spot | --dry_run)
      printf -v "${1#--}" yes
      shift
      ;;
    --)
      shift
      break
      ;;
    *) die "unknown argument $1 (see $0 --help); what is for fcclip train comes after --" ;;
  esac
done
train_arguments=("$@")

# What the service itself would refuse, said before anything is made.
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
  die "--name takes lower-case letters, digits and dashes, a letter first, at most 63, not '$name'"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || die "--zone takes a zone such as us-west4-a, not '$zone'"
[[ -z $project || $project =~ ^[a-z][a-z0-9.:-]{4,60}[a-z0-9]$ ]] || die "--project: '$project' is no project's id"
[[ -z $runtime || $runtime =~ ^[a-z0-9][a-z0-9.-]*$ ]] || die "--runtime: '$runtime' is no version's name"
[[ $worker =~ ^([0-9]+|all)$ ]] || die "--worker takes a number or all, not '$worker'"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts takes a whole number, not '$restarts'"
[[ $poll =~ ^[0-9]+$ ]] || die "--poll takes whole seconds, not '$poll'"

check_type() {
  [[ $type =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] || die "--type takes an accelerator type such as v5litepod-256, not '$type'"
  [[ -n $runtime ]] && return
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
}

check_run() {
  [[ $bucket =~ ^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?$ ]] || die "--bucket takes gs://BUCKET or gs://BUCKET/FOLDER, not '$bucket'"
  [[ -f $config ]] || die "--config: there is no file '$config'"
}

quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

run() {
  if [[ -n $dry_run ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

where=(--zone="$zone" ${project:+--project="$project"})
aside=$(mktemp -d)
trap 'rm -rf -- "$aside"' EXIT
folder=fcclip-$name # on the workers, in the home folder

on_workers() { # which workers, command
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

state() { # of the slice; nothing where there is none
  if [[ -n $dry_run ]]; then
    run gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' >&2
  else
    gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' 2>/dev/null || true
  fi
}

make_slice() {
  check_type
  local found
  found=$(state)
  case $found in
    READY) echo "the slice $name is ready" >&2 && return ;;
    '') ;;
    PREEMPTED | TERMINATED | STOPPED | FAILED) delete_slice ;;
    *) die "the slice $name is $found: try again when it is READY" ;;
  esac
  if [[ -z $queued ]]; then
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type="$type" --version="$runtime" \
      ${spot:+--spot}
    return
  fi
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" ${spot:+--spot}
  local asked=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)')
  [[ -z $dry_run ]] || run "${asked[@]}"
  while [[ -z $dry_run ]]; do
    found=$("${asked[@]}")
    case $found in
      ACTIVE) break ;;
      FAILED | SUSPENDED) die "the queued resource $name is $found" ;;
    esac
    echo "the queued resource $name is $found" >&2
    sleep "$poll"
  done
}

delete_slice() {
  if [[ -n $queued ]]; then
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

install_project() {
  run git -C "$here/.." archive --format=tar.gz --output="$aside/fcclip.tar.gz" HEAD
  on_workers all "mkdir -p $folder/source"
  run gcloud compute tpus tpu-vm scp "$aside/fcclip.tar.gz" "$name:$folder/fcclip.tar.gz" "${where[@]}" --worker=all
  on_workers all "cd $folder && tar -xzf fcclip.tar.gz -C source && { test -x venv/bin/pip || python3 -m venv venv; } &&\
 venv/bin/pip install --quiet 'source[gcs,tpu,train]'"
}

start_run() {
  check_run
  local command
  run cp -- "$config" "$aside/run.py" # a name that no tool mistakes for a flag or another host
  run gcloud compute tpus tpu-vm scp "$aside/run.py" "$name:$folder/run.py" "${where[@]}" --worker=all
  [[ -z $prepare ]] || on_workers all "$prepare"
  command=$(quoted venv/bin/fcclip supervise --restarts "$restarts" -- venv/bin/fcclip train --distributed \
    --config run.py --workdir "${bucket%/}/$name" --compilation_cache "${bucket%/}/compiled" "${train_arguments[@]}")
  on_workers all "cd $folder && { ! kill -0 \"\$(cat pid 2>/dev/null)\" 2>/dev/null || { echo 'it runs already' >&2; exit 1; }; } &&\
 export LIBTPU_INIT_ARGS=$(quoted "$("$here/xla_flags.sh" tpu)") && { setsid nohup $command >>log 2>&1 </dev/null & echo \$! >pid; }"
}

case $subcommand in
  create)
    make_slice
    install_project
    ;;
  start) start_run ;;
  logs) on_workers "$worker" "tail -n 200 -F $folder/log" ;;
  status)
    run gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)'
    on_workers all "kill -0 \"\$(cat $folder/pid)\" 2>/dev/null && echo runs || echo 'does not run'; tail -n 1 $folder/log"
    ;;
  stop)
    on_workers all "pid=\$(cat $folder/pid) && kill -TERM \"\$pid\" && while kill -0 \"\$pid\" 2>/dev/null; do sleep 1; done"
    ;;
  resume)
    check_type
    check_run
    make_slice
    install_project
    start_run
    ;;
  delete) delete_slice ;;
esac
