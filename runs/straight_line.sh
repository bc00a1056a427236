#!/usr/bin/env bash
# The main job as its single steps: runs/straight_line.sh AUDIO_FOLDER OUT_FOLDER [CODEC…]
set -euo pipefail
audio=$1 out=$2; shift 2
codecs=("$@"); [ ${#codecs[@]} -gt 0 ] || codecs=('stack:8|mel' 'pool:8|mel')

reports=()
for codec in "${codecs[@]}"; do
    name=$(printf '%s' "$codec" | tr -c 'A-Za-z0-9.\n' '-')
    arlat data extract --audio "$audio" --codec "$codec" --out "$out/$name.store"
    arlat diag battery "data.latents_dir=$out/$name.store" --out "$out/$name.run"
    reports+=("$out/$name.run")
done
arlat diag report "${reports[@]}" --out "$out/report.html"
