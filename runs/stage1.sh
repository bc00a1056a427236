#!/usr/bin/env bash
# Stage 1 of the research plan on a folder of speech: runs/stage1.sh AUDIO_FOLDER OUT_FOLDER [CODEC…]
# The first CODEC is the one whose linear readouts are tried; all are measured alike. Give the others also stacked to its frame rate
# (lyra=FOLDER at 50 Hz: mel 'stack:2|mel'), since a rate in bit/s grows with the frame rate by itself. A killed run goes on where it stopped.
# PRESET=FILE.toml gives the battery other settings than conf/diag/stage1.toml, EXTRACT='--max-speakers 60' a part of the audio.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
audio=$1 out=$2; shift 2
preset=${PRESET:-$here/conf/diag/stage1.toml}
codecs=("$@"); [ ${#codecs[@]} -gt 0 ] || codecs=('pool:8|mel' 'stack:8|mel')
name() { printf '%s' "${1%%=*}" | tr -c 'A-Za-z0-9.' '-'; }
runs=()

measure() {  # STORE RUN NAME: A (direction × length, and training on rollouts: p2, r2), B (injection, anatomy: r1, r4), and the rest
    arlat diag battery "$preset" "data.latents_dir=$1" --out "$2" --name "$3"
    runs+=("$2")
}

# C: codecs side by side
for codec in "${codecs[@]}"; do
    store=$out/stores/$(name "$codec")
    # shellcheck disable=SC2086  # EXTRACT holds several words
    arlat data extract --audio "$audio" --codec "$codec" --out "$store" ${EXTRACT:-}
    measure "$store" "$out/runs/$(name "$codec")" "${codec%%=*}"
done

# D: linear readouts of the first codec, one frame each: windows of several frames overlap, which looks like predictability
first=$(name "${codecs[0]}")
for kind in pca predictive slow; do
    arlat data readout "data.latents_dir=$out/stores/$first" --kind "$kind" --dim 32 \
        --out "$out/readouts/$kind" --latents "$out/stores/$first.$kind"
    measure "$out/stores/$first.$kind" "$out/runs/$first.$kind" "$kind readout of ${codecs[0]%%=*}"
done

arlat diag decide "${runs[@]}" --out "$out/decision"
arlat diag report "${runs[@]}" --out "$out/report.html"
