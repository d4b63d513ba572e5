#!/usr/bin/env bash
# One training run through xpk, on a cluster that `xpk cluster create` made.
#
#   launch/xpk.sh --name fcclip --cluster my-cluster --zone us-west4-a --tpu_type v5litepod-256 --image IMAGE \
#       --bucket gs://my-bucket/runs --config configs/fcclip_convnext_large_coco.py -- --config.mesh.fsdp=8
#
# --num_slices N  joins several slices (1)      --project P  another project than gcloud's own
# --restarts N    of the supervisor (10)        --delete     ends the run      --dry_run  prints the command
set -euo pipefail

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

name='' cluster='' zone='' tpu_type='' image='' bucket='' config='' project='' num_slices=1 restarts=10 delete='' dry_run=''
while (($#)); do
  case $1 in
    --name | --cluster | --zone | --tpu_type | --image | --bucket | --config | --project | --num_slices | --restarts)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --delete | --dry_run)
      printf -v "${1#--}" yes
      shift
      ;;
    -h | --help)
      sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) die "unknown argument $1 (see $0 --help); what is for fcclip train comes after --" ;;
  esac
done

[[ $name =~ ^[a-z]([a-z0-9-]{0,37}[a-z0-9])?$ ]] ||
  die "--name takes lower-case letters, digits and dashes, a letter first, at most 39, not '$name'"
[[ $cluster =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || die "--cluster: '$cluster' is no cluster's name"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || die "--zone takes a zone such as us-west4-a, not '$zone'"
for number in num_slices restarts; do
  [[ ${!number} =~ ^[0-9]+$ ]] || die "--$number takes a whole number, not '${!number}'"
done

common=(--cluster="$cluster" --workload="$name" --zone="$zone" ${project:+--project="$project"})
if [[ -n $delete ]]; then
  command=(xpk workload delete "${common[@]}")
else
  [[ $tpu_type =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] || die "--tpu_type takes a type such as v5litepod-256, not '$tpu_type'"
  [[ -n $image && $image != -* ]] || die "--image: '$image' is no image's name"
  [[ $bucket =~ ^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?$ ]] || die "--bucket takes gs://BUCKET or gs://BUCKET/FOLDER, not '$bucket'"
  [[ -n $config ]] || die "--config is needed: the file's place in the image"
  # xpk hands the command to a shell in each container.
  printf -v words '%q ' fcclip supervise --restarts "$restarts" -- fcclip train --distributed --config "$config" \
    --workdir "${bucket%/}/$name" --compilation_cache "${bucket%/}/compiled" "$@"
  command=(xpk workload create "${common[@]}" --tpu-type="$tpu_type" --num-slices="$num_slices"
    --docker-image="$image" --command="${words% }")
fi
if [[ -n $dry_run ]]; then
  printf -v words '%q ' "${command[@]}"
  printf '%s\n' "${words% }"
else
  "${command[@]}"
fi
