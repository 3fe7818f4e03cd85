#!/usr/bin/env bash
# Makes the bundled model from nothing: toy clips, codec, tokens, three stages.
#
#   bash launch/train_bundled.sh WORK_DIR [BUNDLE_DIR]
#
# WORK_DIR gets everything on the way (about 1 GB), BUNDLE_DIR (WORK_DIR/bundle
# by default) the finished model: v2meow generate VIDEO --model BUNDLE_DIR.
# Run it again after a stop: each step goes on where it was. Takes some hours
# on two cores; a GPU is used if jax finds one.
#
# Needs the extra [train], FluidSynth and a General MIDI soundfont (Debian and
# Ubuntu: fluidsynth, fluid-soundfont-gm). CLIPS (2400), AUDIO_CLIPS (1200, for
# the codec), PROCESSES (all cores), AUTOENCODER_STEPS, JOINT_STEPS,
# DECODER_STEPS, UPPER_STEPS (of the codec's upper layer), SEMANTIC_STEPS, SHORT_STEPS (of short crops), COARSE_STEPS and
# FINE_STEPS change its size; with RENDERER=numpy it needs no FluidSynth.
# START=BUNDLE_DIR goes on from a model: with its tokenizer and the tokens of
# its codec, it trains the stages and the codec's decoder on.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"
  [[ $# -ge 1 ]] && exit 0 || exit 2
fi
mkdir -p "$1"
work=$(cd -- "$1" && pwd)
bundle=$(realpath -m -- "${2:-$work/bundle}")
start=${START:+$(realpath -- "$START")}
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
clips=${CLIPS:-2400}
audio_clips=${AUDIO_CLIPS:-1200}
processes=${PROCESSES:-$(nproc)}
renderer=${RENDERER:-fluidsynth}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/jax_cache}
cd "$root"

step() { echo "== $*" >&2; }

step 'toy music, for the codec and the tokens'
"$python" -m v2meow_jax.toy --out "$work/audio" --num "$audio_clips" \
  --audio-only --renderer "$renderer" --processes "$processes"
manifest=$work/audio/MANIFEST.csv

# A training that was told to stop has saved its state and says 0, as one that
# is done does; what comes behind it must not go on with half of it.
check_done() {  # DIR STEPS
  local path step
  for path in "$1"/checkpoint_*; do
    step=${path##*_}
    if [[ $step =~ ^[0-9]+$ && $step -ge $2 ]]; then
      return
    fi
  done
  echo "error: the training in $1 was stopped before step $2. Run the same" \
    'command again: it goes on from there.' >&2
  exit 143
}

train_codec() {  # CODEC PHASE DIR STEPS [GIN …]
  local codec=$1 phase=$2 dir=$3 steps=$4
  shift 4
  step "codec $codec: $phase"
  "$python" -m v2meow_jax.train --gin_file="codecs/$codec.gin" \
    --gin_file=runs/train.gin --gin_file="codecs/train_$phase.gin" \
    --gin.MODEL_DIR="'$work/$dir'" --gin.MANIFESTS="('$manifest',)" \
    --gin.TRAIN_STEPS="$steps" --gin.EVAL_PERIOD=500 "$@"
  check_done "$work/$dir" "$steps"
}

fit_codebooks() {  # CODEC WEIGHTS OUTPUT [GIN …]
  local codec=$1 from=$2 output=$3
  shift 3
  step "codec $codec: codebooks"
  [[ -e $output ]] || "$python" -m v2meow_jax.codecs.fit_quantizer \
    --gin_file="codecs/$codec.gin" --gin_file=codecs/fit_quantizer.gin \
    --gin.MANIFESTS="('$manifest',)" --gin.CODEC_WEIGHTS="'$from'" \
    --gin.OUTPUT="'$output'" "$@"
}

if [[ -n $start ]]; then
  codec=$start/codec.safetensors
  tokenizer=$start/tokenizer.safetensors
else
  train_codec spectrogram autoencoder codec_autoencoder \
    "${AUTOENCODER_STEPS:-4500}"
  fit_codebooks spectrogram "$work/codec_autoencoder/params.safetensors" \
    "$work/codec_fitted.safetensors"
  train_codec spectrogram joint codec_joint "${JOINT_STEPS:-2000}" \
    --gin.CODEC_WEIGHTS="'$work/codec_fitted.safetensors'"
  # From here on the codes are final.
  codec=$work/codec_joint/params.safetensors
  tokenizer=$work/tokenizer.safetensors

  step 'semantic tokens'
  if [[ ! -e $tokenizer ]]; then
    "$python" -m v2meow_jax.tokenizers.fit --start_seconds 6000 \
      --manifest "$manifest" --out "$tokenizer"
  fi
fi

step 'streams of every clip'
"$python" -m v2meow_jax.cli prepare --toy "$clips" --out "$work/toy" --arrays \
  --codec "$codec" --tokenizer "$tokenizer" \
  --renderer "$renderer" --processes "$processes"

train_stage() {  # STAGE DIR STEPS BATCH_SIZE LEARNING_RATE START [GIN …]
  local stage=$1 dir=$work/$2 steps=$3 batch_size=$4 learning_rate=$5 from=$6
  shift 6
  step "stage: $stage, in $dir"
  if [[ -n $from ]]; then
    set -- "$@" --gin.INITIAL_CHECKPOINT_PATH="'$from'"
  fi
  bash launch/train.sh "$stage" --size bundled --arrays "$work/toy" \
    --model_dir "$dir" --gin.TRAIN_STEPS="$steps" \
    --gin.BATCH_SIZE="$batch_size" --gin.EVAL_PERIOD=200 \
    --gin.WARMUP_STEPS=100 --gin.LEARNING_RATE="$learning_rate" \
    "$@" 2>&1 | tee -a "$dir.log" >&2
  check_done "$dir" "$steps"
}

files=()
for file in sizes/bundled visual/scene codecs/layered tokenizers/spectral \
  style/caption generate; do
  files+=(--gin_file "gin/$file.gin")
done
coarse_seconds=5.0
short_seconds=2.4
bindings=(
  --gin 'ACOUSTIC = "spectrogram"'
  --gin "coarse/stages.make.seconds = $coarse_seconds"
  --gin 'semantic/models.StageModel.temperature = 0.9'
  --gin 'coarse/models.StageModel.temperature = 0.6'
)

# First long crops, for how music goes on; then short ones, whose tokens have
# less music before them and must follow from the picture. Most videos come
# without a text: the caption is left out of many examples.
train_semantic() {
  train_stage semantic semantic "${SEMANTIC_STEPS:-5000}" 12 2e-3 \
    "${start:+$start/semantic.safetensors}" --gin.STYLE_DROPOUT=0.5
  train_stage semantic semantic_short "${SHORT_STEPS:-1500}" 50 1e-3 \
    "$work/semantic/params.safetensors" --gin.STYLE_DROPOUT=0.7 \
    --gin.stages.make.seconds=$short_seconds
}

# The fine stage starts from the coarse one: alone it learns nothing for hours.
train_coarse_and_fine() {
  train_stage coarse coarse "${COARSE_STEPS:-6000}" 8 2e-3 \
    "${start:+$start/coarse.safetensors}" \
    --gin.stages.make.seconds=$coarse_seconds
  local from=$start/fine.safetensors
  if [[ -z $start ]]; then
    from=$work/fine_start.safetensors
    "$python" -m v2meow_jax.warm_start "${files[@]}" "${bindings[@]}" \
      --source "coarse=$work/coarse/params.safetensors" --target fine \
      --out "$from"
  fi
  train_stage fine fine "${FINE_STEPS:-3000}" 8 2e-3 "$from"
}

# The stages write the lower layer's tokens; the upper layer is for the sound
# that is given.
train_decoders() {
  train_codec spectrogram decoder codec_decoder "${DECODER_STEPS:-5000}" \
    --gin.CODEC_WEIGHTS="'$codec'"
  local below="--gin.BELOW_WEIGHTS='$work/codec_decoder/params.safetensors'"
  local from=$codec
  if [[ -z $start ]]; then
    from=$work/upper_fitted.safetensors
    train_codec layered autoencoder upper_autoencoder \
      "${UPPER_STEPS:-6000}" "$below"
    fit_codebooks layered "$work/upper_autoencoder/params.safetensors" \
      "$from" "$below"
  fi
  train_codec layered decoder upper_decoder "${UPPER_STEPS:-6000}" \
    --gin.CODEC_WEIGHTS="'$from'" "$below"
}

# Three trainings side by side, each on one core: with networks this small, two
# threads for one of them cost more than they give. Each is a process group of
# its own, and all stop where one fails or the script is stopped.
jobs=()
stop() {
  for job in "${jobs[@]}"; do
    kill -TERM -- "-$job" 2>/dev/null || true
  done
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
set -m
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_multi_thread_eigen=false"
train_semantic &
jobs+=($!)
train_coarse_and_fine &
jobs+=($!)
train_decoders &
jobs+=($!)
set +m
for _ in "${jobs[@]}"; do
  wait -n
done

step 'bundle'
"$python" -m v2meow_jax.bundles pack --out "$bundle" "${files[@]}" \
  "${bindings[@]}" --semantic "$work/semantic_short/params.safetensors" \
  --coarse "$work/coarse/params.safetensors" \
  --fine "$work/fine/params.safetensors" \
  --codec "$work/upper_decoder/params.safetensors" \
  --tokenizer "$tokenizer" --card launch/bundled_card.md
echo "$bundle"
