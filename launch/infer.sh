#!/usr/bin/env bash
# Gives all videos of a folder music, on one host or on many.
#
#   bash launch/infer.sh VIDEOS OUT [OPTION …] [OPTION of v2meow generate …]
#
# VIDEOS and OUT are folders that all hosts see. Each host takes every N-th video:
# its number I and N are, of these, the first that there are:
#   V2MEOW_SHARD                          I/N, with I from 0 to N - 1
#   SLURM_PROCID, SLURM_NTASKS            a task of a SLURM job step; it takes one
#                                         GPU of its node, the SLURM_LOCALID-th
#   TPU_WORKER_ID, TPU_WORKER_HOSTNAMES   a worker of a TPU slice, on GKE
#   agent-worker-number and               the same on a TPU VM, as its metadata
#   worker-network-endpoints              server says
# and otherwise 0/1: this host takes all. A worker of a slice takes one chip
# (TPU_VISIBLE_CHIPS, 0 by default) and does not wait for the other workers.
#
# Run again, it goes on where it stopped: what is there with the same options is
# not made again. Exit status 1: a piece could not be made, which is said at the
# end. After SIGTERM in a SLURM job it is 0: the job goes back into the queue.
#   --dry_run          print the command and do not run it
#
# Examples:
#   bash launch/infer.sh videos with_music --seed 7 --format both
#   V2MEOW_SHARD=0/2 bash launch/infer.sh videos with_music
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 \
#     launch/slurm.sbatch --srun_args --kill-on-bad-exit=0 -- \
#     bash launch/infer.sh /data/videos /data/music
#   bash launch/tpu_pod.sh --tpu my-slice --zone us-west4-a --run infer -- \
#     bash launch/infer.sh /mnt/videos /mnt/music --model /mnt/model
#
# Uses .venv beside this folder if there is one, else the python of the path.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"
}

fail() {
  echo "error: $1 See \`bash launch/infer.sh --help\`." >&2
  exit 2
}

ask_metadata() {  # NAME: an attribute of this TPU VM
  curl -fsS --max-time 10 -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1\
/instance/attributes/$1"
}

is_tpu_vm() {
  [[ -n ${GCE_METADATA_IP:-} || -e /dev/accel0 || -e /dev/vfio/0 ]]
}

videos='' out='' dry_run=false options=()
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --dry_run) dry_run=true ;;
    --shard | --shard=*) fail "$1 is set here, expected V2MEOW_SHARD=I/N." ;;
    --out | --out=*) fail "$1 is set here, expected OUT behind VIDEOS." ;;
    --from | --from=*) fail "$1 makes one piece, expected v2meow generate." ;;
    *)
      if [[ -n $out ]]; then
        options+=("$1")
      elif [[ $1 == -* || -z $1 ]]; then
        fail "options first, expected VIDEOS and OUT before $1."
      elif [[ -z $videos ]]; then
        videos=$1
      else
        out=$1
      fi
      ;;
  esac
  shift
done
[[ -n $videos ]] || fail 'no VIDEOS, expected a folder of videos.'
[[ -n $out ]] || fail 'no OUT, expected a folder to write to.'

settings=() where='this host takes all'
index=0 count=1
if [[ -n ${V2MEOW_SHARD:-} ]]; then
  where=V2MEOW_SHARD
  index=${V2MEOW_SHARD%%/*} count=${V2MEOW_SHARD#*/}
elif [[ -n ${SLURM_PROCID:-} && -n ${SLURM_NTASKS:-} ]]; then
  where=SLURM
  index=$SLURM_PROCID count=$SLURM_NTASKS
  IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
  if [[ ${#gpus[@]} -gt 1 && -n ${SLURM_LOCALID:-} ]]; then
    gpu=${gpus[SLURM_LOCALID % ${#gpus[@]}]}
    settings+=("CUDA_VISIBLE_DEVICES=$gpu")
  fi
else
  workers=''
  if [[ -n ${TPU_WORKER_ID:-} && -n ${TPU_WORKER_HOSTNAMES:-} ]]; then
    where=TPU_WORKER_ID index=$TPU_WORKER_ID workers=$TPU_WORKER_HOSTNAMES
  elif is_tpu_vm; then
    where='the metadata server'
    if ! index=$(ask_metadata agent-worker-number) ||
      ! workers=$(ask_metadata worker-network-endpoints); then
      fail 'this TPU VM does not know its number, expected V2MEOW_SHARD=I/N.'
    fi
  fi
  if [[ -n $workers ]]; then
    IFS=, read -ra workers <<<"$workers"
    count=${#workers[@]}
  fi
  if [[ $count -gt 1 ]]; then
    settings+=('TPU_PROCESS_BOUNDS=1,1,1' 'TPU_CHIPS_PER_PROCESS_BOUNDS=1,1,1'
      "TPU_VISIBLE_CHIPS=${TPU_VISIBLE_CHIPS:-0}")
  fi
fi
shard=$index/$count
if [[ ! $shard =~ ^[0-9]{1,9}/[0-9]{1,9}$ ]] || ((10#$index >= 10#$count)); then
  fail "this is shard $shard ($where), expected I/N with I from 0 to N - 1."
fi
echo "shard $shard ($where)" >&2

python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
settings+=("PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}")
command=("$python" -m v2meow_jax.cli generate "$videos" --out "${out%/}/"
  --shard "$shard" --skip_existing ${options[@]+"${options[@]}"})
if $dry_run; then
  line=$(printf '%q ' "${settings[@]}" "${command[@]}")
  echo "${line% }"
  exit 0
fi
export "${settings[@]}"
[[ -n ${SLURM_JOB_ID:-} ]] || exec "${command[@]}"

# SLURM signals this shell and the command. launch/slurm.sbatch takes any other
# status than 0 for a failure.
trap : TERM
status=0
"${command[@]}" || status=$?
[[ $status != 143 ]] || status=0
exit "$status"
