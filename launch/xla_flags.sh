#!/usr/bin/env bash
# The compiler's flags for runs on many devices, in one place: communication behind computation.
#
#   export XLA_FLAGS="$(launch/xla_flags.sh gpu) ${XLA_FLAGS:-}"
#   export LIBTPU_INIT_ARGS="$(launch/xla_flags.sh tpu) ${LIBTPU_INIT_ARGS:-}"
#
# In this project's step parameters are gathered before the forward pass (mesh.fsdp > 1) and gradients are summed after
# the backward pass; both can travel while layers that do not need them compute. Not measured on either platform.
set -euo pipefail

gpu=(
  # Starts collectives early and waits for them late, instead of one operation after another.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Few large sums instead of one for each of the 300 gradients (bytes).
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=67108864
)
tpu=(
  # Collectives as pairs of start and done, fused with the computation that they run behind.
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  --xla_tpu_overlap_compute_collective_tc=true
  --xla_enable_async_all_gather=true
)

case ${1-} in
  gpu) echo "${gpu[*]}" ;;
  tpu) echo "${tpu[*]}" ;;
  -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0" ;;
  *)
    echo "error: which platform? $0 gpu or $0 tpu" >&2
    exit 2
    ;;
esac
