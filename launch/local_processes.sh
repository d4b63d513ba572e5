#!/usr/bin/env bash
# Several processes of one run on this machine, over loopback: what a pod does, small.
#
#   launch/local_processes.sh --processes 2 -- fcclip train --distributed --config configs/tiny.py --workdir runs/tiny
#
# Each process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. With --devices N each one simulates
# N CPU devices. With --logs DIR process I writes DIR/I.log, else all write here. TERM and INT go to all of them.
# Exit code: that of the first process that did not end with 0.
set -euo pipefail

usage() {
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

processes='' devices='' logs='' port=''
while (($#)); do
  case $1 in
    --processes | --devices | --logs | --port)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) die "unknown argument $1 (see $0 --help); the command comes after --" ;;
  esac
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || die "--processes takes a whole number above 0, not '$processes'"
[[ -z $devices || $devices =~ ^[1-9][0-9]*$ ]] || die "--devices takes a whole number above 0, not '$devices'"
(($#)) || die "what is to be run? ... -- fcclip train ..."

if [[ -z $port ]]; then
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi
[[ -z $logs ]] || mkdir -p -- "$logs"
if [[ -n $devices ]]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
fi
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes

children=()
trap 'kill -s TERM "${children[@]}" 2>/dev/null || true' TERM
trap 'kill -s INT "${children[@]}" 2>/dev/null || true' INT

for ((i = 0; i < processes; i++)); do
  if [[ -n $logs ]]; then
    JAX_PROCESS_ID=$i "$@" >>"$logs/$i.log" 2>&1 &
  else
    JAX_PROCESS_ID=$i "$@" &
  fi
  children+=("$!")
done

code=0
for child in "${children[@]}"; do
  while :; do
    status=0
    wait "$child" || status=$?
    # A signal interrupts `wait` itself: the child may still be at work.
    kill -0 "$child" 2>/dev/null || break
  done
  ((code)) || code=$status
done
exit "$code"
