#!/usr/bin/env bash
# Trains one stage; run again, it goes on where it stopped.
#
# SIGTERM and Ctrl-C save all; then it exits with 0 and 130. Exit status 0 and
# DIR/checkpoint_<TRAIN_STEPS> say that the training is done.
#
#   bash launch/train.sh STAGE --model_dir DIR [OPTION …] [--gin.NAME=VALUE …]
#
# STAGE is semantic, coarse, coarse_visual or fine (a file of gin/stages).
#   --model_dir DIR    where checkpoints, metrics and params.safetensors go
#   --size SIZE        file of gin/sizes (default: small)
#   --device NAME      file of gin/devices: accelerator for TPUs and GPUs
#                      (default: none, for a CPU)
#   --dataset NAME     file of gin/datasets (default: toy)
#   --arrays DIR       read what `v2meow prepare … --arrays` wrote; this needs
#                      no TensorFlow (default: the dataset's TFDS records)
#   --data_dir DIR     folder of the TFDS records (default: TFDS's own)
#   --visual NAME      file of gin/visual (default: scene)
#   --codec NAME       file of gin/codecs (default: spectrogram)
#   --tokenizer NAME   file of gin/tokenizers (default: spectral)
#   --style NAME       file of gin/style (default: caption)
#   --engine NAME      who trains: v2meow, or t5x for T5X's own `t5x.train`,
#                      which must be on the path, see docs/t5x.md (default:
#                      v2meow). Both read and write the same checkpoints.
#   --gin_file FILE    one more gin file, behind all others; may be repeated
#   --gin.NAME=VALUE   sets one value, behind all files; may be repeated
#   --dry_run          print the command and do not run it; what a run would
#                      need and build is --gin.DRY_RUN=True
#
# Examples:
#   bash launch/train.sh semantic --size tiny --arrays data/arrays \
#     --model_dir runs/semantic --gin.TRAIN_STEPS=2000
#   bash launch/train.sh fine --model_dir runs/fine --gin.BATCH_SIZE=32 \
#     --gin.LEARNING_RATE=3e-4
#
# Uses .venv beside this folder if there is one, else the python of the path.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"
}

fail() {
  echo "error: $1 See \`bash launch/train.sh --help\`." >&2
  exit 2
}

# Prints a string as gin reads it.
quote() {
  local text=${1//\\/\\\\}
  printf "'%s'" "${text//\'/\\\'}"
}

stage='' model_dir='' arrays='' data_dir=''
size=small dataset=toy visual=scene codec=spectrogram tokenizer=spectral
style=caption engine=v2meow device=''
dry_run=false
more=()
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --dry_run)
      dry_run=true
      shift
      continue
      ;;
    --gin.*=* | --gin_file=* | --gin_search_paths=*)
      more+=("$1")
      shift
      continue
      ;;
    --*=*)  # --size=tiny is --size tiny
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
  esac
  case $1 in
    --model_dir | --size | --device | --dataset | --arrays | --data_dir | \
      --visual | --codec | --tokenizer | --style | --engine | --gin_file)
      [[ $# -ge 2 ]] || fail "$1 has no value, expected one."
      if [[ $1 == --gin_file ]]; then
        more+=("--gin_file=$2")
      else
        declare "${1#--}=$2"
      fi
      shift 2
      ;;
    -*) fail "unknown option $1." ;;
    *)
      [[ -z $stage ]] || fail "two stages, $stage and $1, expected one."
      stage=$1
      shift
      ;;
  esac
done
[[ -n $stage ]] || fail 'no stage, expected a file of gin/stages, such as semantic.'
[[ -n $model_dir ]] || fail 'no --model_dir, expected a folder to write to.'

python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
case $engine in
  v2meow) module=v2meow_jax.train run=runs/train gin='' ;;
  t5x)
    module=t5x.train run=t5x/train
    gin=$root/gin/ # else gin stumbles over folders of the names of gin's own
    model_dir=$(realpath -m -- "$model_dir") # T5X takes no relative path
    more=("--gin_search_paths=$root/gin" ${more[@]+"${more[@]}"})
    ;;
  *) fail "unknown engine $engine, expected v2meow or t5x." ;;
esac

road=records
[[ -z $arrays ]] || road=arrays
files=()
for file in "sizes/$size" ${device:+"devices/$device"} "visual/$visual" \
  "codecs/$codec" "tokenizers/$tokenizer" "style/$style" "datasets/$dataset" \
  "datasets/$road" "stages/$stage" "$run"; do
  files+=("--gin_file=$gin$file.gin")
done
bindings=("--gin.MODEL_DIR=$(quote "$model_dir")")
[[ -z $arrays ]] || bindings+=("--gin.ARRAYS=$(quote "$arrays")")
[[ -z $data_dir ]] || bindings+=("--gin.DATA_DIR=$(quote "$data_dir")")

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
command=("$python" -m "$module"
  "${files[@]}" "${bindings[@]}" ${more[@]+"${more[@]}"})
if $dry_run; then
  line=$(printf '%q ' "PYTHONPATH=$PYTHONPATH" "${command[@]}")
  echo "${line% }"
  exit 0
fi
if [[ $engine == t5x ]]; then
  "$python" -c 'import importlib.util as u; exit(not u.find_spec("t5x"))' ||
    fail "$python finds no T5X, expected it on PYTHONPATH (docs/t5x.md)."
fi
exec "${command[@]}"
