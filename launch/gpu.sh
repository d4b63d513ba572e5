#!/usr/bin/env bash
# One training run on all GPUs of this host: one process, a mesh over its devices.
#
#   launch/gpu.sh --config configs/fcclip_convnext_large_coco.py --workdir runs/coco --config.batch_size=16
#   launch/gpu.sh --docker fcclip:cuda --mount /data --mount /runs -- --config ... --workdir /runs/coco
#
# What is not one of these flags, or follows --, goes to fcclip train.
# --restarts N     of the supervisor (3)          --dry_run       prints the command, and runs nothing
# --docker IMAGE   inside a container made from launch/Dockerfile.cuda
# --mount DIR      a folder that the container sees under the same name; any number of these
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

restarts=3 docker='' dry_run='' mounts=() rest=()
while (($#)); do
  case $1 in
    --restarts | --docker | --mount)
      (($# > 1)) || die "$1 needs a value"
      case $1 in
        --restarts) restarts=$2 ;;
        --docker) docker=$2 ;;
        --mount) mounts+=("$2") ;;
      esac
      shift 2
      ;;
    --dry_run)
      dry_run=yes
      shift
      ;;
    -h | --help)
      sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --)
      shift
      rest+=("$@")
      break
      ;;
    *)
      rest+=("$1")
      shift
      ;;
  esac
done
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts takes a whole number, not '$restarts'"
((${#rest[@]})) || die "what is to be trained? --config FILE --workdir DIR (see $0 --help)"
[[ -z $docker || $docker != -* ]] || die "--docker: '$docker' is no image's name"

flags=$("$here/xla_flags.sh" gpu)
export XLA_FLAGS="$flags${XLA_FLAGS:+ $XLA_FLAGS}"
command=(fcclip supervise --restarts "$restarts" -- fcclip train "${rest[@]}")
if [[ -n $docker ]]; then
  container=(docker run --rm --init --gpus all --ipc host --network host --stop-timeout 300 --env XLA_FLAGS)
  container+=(--user "$(id -u):$(id -g)" --workdir /work)
  for folder in "${mounts[@]}"; do
    [[ $folder == /* && $folder != *[,:]* ]] || die "--mount takes an absolute path without commas and colons, not '$folder'"
    container+=(--mount "type=bind,source=$folder,target=$folder")
  done
  command=("${container[@]}" "$docker" "${command[@]:1}") # the image's entry point is fcclip
fi
if [[ -n $dry_run ]]; then
  printf -v words '%q ' "${command[@]}"
  printf '%s\n' "${words% }"
  exit 0
fi
if [[ -z $docker ]] && command -v nvidia-smi >/dev/null; then
  nvidia-smi --list-gpus >&2
fi
exec "${command[@]}"
