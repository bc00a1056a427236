#!/usr/bin/env bash
# Stage 2 of the research plan on a folder of speech: runs/stage2.sh AUDIO_FOLDER OUT_FOLDER [CODEC…]
# VAEs that differ in their AR losses alone, beside framed PCA of the same dimension and frame rate, every CODEC ('mimi:levels=8=FOLDER' is
# the reference of the first rule), and a control: a VAE's without AR losses through z_t = x_t + 0.7·z_{t−1}, easy to predict and no
# news. Without a CODEC, PCA is the baseline of the decisions. A killed run goes on where it stopped.
# GRID=FILE.toml trains other points than conf/vae/ar_losses.toml, TRAIN='train.steps=6000 device=cuda' with other settings,
# DIM=64 says their dimension, PRESET=FILE.toml gives the battery other settings than conf/diag/stage1.toml.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
audio=$1 out=$2; shift 2
grid=${GRID:-$here/conf/vae/ar_losses.toml} preset=${PRESET:-$here/conf/diag/stage1.toml} dim=${DIM:-32}
codecs=("pca=$out/pca" "$@") baseline=; [ $# -gt 0 ] || baseline=pca:$dim
name() { printf '%s' "${1%%=*}" | tr -c 'A-Za-z0-9.' '-'; }
runs=() failed=()

measure() {  # CODEC NAME: its latents, their predictability, rollouts, anatomy, and how they sound
    if arlat data extract --audio "$audio" --codec "$1" --out "$out/stores/$2" &&
        arlat diag battery "$preset" "data.latents_dir=$out/stores/$2" "data.audio_dir=$audio" --out "$out/runs/$2"; then
        runs+=("$out/runs/$2")
    else
        failed+=("$2")
    fi
}

# shellcheck disable=SC2086  # TRAIN holds several words
arlat vae train "$grid" "data.audio_dir=$audio" --out "$out/vae" "bottleneck.dim=$dim" ${TRAIN:-}
arlat data pca --audio "$audio" --dim "$dim" --frame-rate 12.5 --out "$out/pca"

for codec in "${codecs[@]}"; do measure "$codec" "$(name "$codec")"; done
for point in "$out"/vae/points/*/; do measure "vae=${point}vae" "$(basename "$point")"; done
plain=$(grep -l '"ar_loss": "none"' "$out"/vae/points/*/vae/vae.json | head -n 1 || true)
[ -z "$plain" ] || measure "leaky:0.7|vae=$(dirname "$plain")" control

arlat diag decide "${runs[@]}" --out "$out/decision" ${baseline:+--baseline "$baseline"}
arlat diag report "${runs[@]}" --out "$out/report.html" ${baseline:+--baseline "$baseline"}
[ ${#failed[@]} -eq 0 ] || { echo "Left out, for the reasons above: ${failed[*]}" >&2; exit 1; }
