#!/usr/bin/env bash
# Makes the bundled model from nothing: toy clips, codec, tokens, three stages.
#
#   bash launch/train_bundled.sh WORK_DIR [BUNDLE_DIR]
#
# WORK_DIR gets everything on the way (about 3 GB), BUNDLE_DIR (WORK_DIR/bundle
# by default) the finished model: v2meow generate VIDEO --model BUNDLE_DIR.
# Run it again after a stop: each step goes on where it was.
#
# Needs the extra [train], FluidSynth and a General MIDI soundfont (Debian and
# Ubuntu: fluidsynth, fluid-soundfont-gm). CLIPS (1200), PROCESSES (all cores),
# CODEC_STEPS, SEMANTIC_STEPS, COARSE_STEPS and FINE_STEPS change its size;
# with RENDERER=numpy it needs no FluidSynth.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"
  [[ $# -ge 1 ]] && exit 0 || exit 2
fi
mkdir -p "$1"
work=$(cd -- "$1" && pwd)
bundle=${2:-$work/bundle}
python=$root/.venv/bin/python
[[ -x $python ]] || python=python
clips=${CLIPS:-1200}
processes=${PROCESSES:-$(nproc)}
renderer=${RENDERER:-fluidsynth}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/jax_cache}
cd "$root"

step() { echo "== $*" >&2; }

step 'toy music, for the codec and the tokens'
"$python" -m v2meow_jax.toy --out "$work/audio" --num "$clips" --audio-only \
  --renderer "$renderer" --processes "$processes"
manifests="(\"$work/audio/MANIFEST.csv\",)"

train_codec() {  # PHASE STEPS [GIN …]
  local phase=$1 steps=$2
  shift 2
  "$python" -m v2meow_jax.train --gin_file=codecs/spectral.gin \
    --gin_file=runs/train.gin --gin_file="codecs/train_$phase.gin" \
    --gin.MODEL_DIR="\"$work/codec_$phase\"" --gin.MANIFESTS="$manifests" \
    --gin.TRAIN_STEPS="$steps" "$@"
}

step 'codec 1 of 3: encoder and decoder without quantiser'
train_codec autoencoder "${CODEC_STEPS:-3000}" --gin.EVAL_PERIOD=500
step 'codec 2 of 3: codebooks'
if [[ ! -e $work/codec_fitted.safetensors ]]; then
  "$python" -m v2meow_jax.codecs.fit_quantizer \
    --gin_file=codecs/spectral.gin --gin_file=codecs/fit_quantizer.gin \
    --gin.MANIFESTS="$manifests" \
    --gin.CODEC_WEIGHTS="\"$work/codec_autoencoder/params.safetensors\"" \
    --gin.OUTPUT="\"$work/codec_fitted.safetensors\""
fi
step 'codec 3 of 3: everything together'
train_codec joint "${CODEC_STEPS:-3000}" --gin.EVAL_PERIOD=500 \
  --gin.CODEC_WEIGHTS="\"$work/codec_fitted.safetensors\""
codec=$work/codec_joint/params.safetensors

step 'semantic tokens'
if [[ ! -e $work/tokenizer.safetensors ]]; then
  "$python" -m v2meow_jax.tokenizers.kmeans \
    --manifest "$work/audio/MANIFEST.csv" --out "$work/tokenizer.safetensors"
fi

step 'streams of every clip'
"$python" -m v2meow_jax.cli prepare --toy "$clips" --out "$work/toy" --arrays \
  --codec "$codec" --tokenizer "$work/tokenizer.safetensors" \
  --renderer "$renderer" --processes "$processes"

train_stage() {  # STAGE STEPS [GIN …]
  local stage=$1 steps=$2
  shift 2
  step "stage: $stage"
  bash launch/train.sh "$stage" --size bundled --arrays "$work/toy" \
    --model_dir "$work/$stage" --gin.TRAIN_STEPS="$steps" "$@"
}

train_stage semantic "${SEMANTIC_STEPS:-6000}"
train_stage coarse "${COARSE_STEPS:-8000}"
train_stage fine "${FINE_STEPS:-6000}"

step 'bundle'
files=()
for file in sizes/bundled visual/scene codecs/spectral tokenizers/spectral \
  style/caption generate; do
  files+=(--gin_file "gin/$file.gin")
done
"$python" -m v2meow_jax.bundles pack --out "$bundle" "${files[@]}" \
  --semantic "$work/semantic/params.safetensors" \
  --coarse "$work/coarse/params.safetensors" \
  --fine "$work/fine/params.safetensors" --codec "$codec" \
  --tokenizer "$work/tokenizer.safetensors"
echo "$bundle"
