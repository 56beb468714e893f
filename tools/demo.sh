#!/usr/bin/env bash
# The whole program once: a streaming diffusion policy and the diffusion baseline, on the same demonstrations with the
# same network, compared on the same starts. Arguments go to both trainings; those that begin with `policy.` concern
# the streaming policy alone. For example: make demo ARGS="policy.k=1 seed=1"
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

# Show a command and its output, and keep the run directory that its last line names.
run=
embodied_run() {
    echo
    echo "\$ embodied $*"
    local log
    log=$(mktemp)
    embodied "$@" | tee "$log"
    run=$(dirname "$(tail -n 1 "$log")")
    rm -f "$log"
}

shared=()
for argument in "$@"; do
    [[ $argument == policy.* ]] || shared+=("$argument")
done

embodied_run train policy=sdp "$@"
sdp=$run
embodied_run train policy=diffusion "${shared[@]}"
diffusion=$run

evaluations=()
embodied_run eval "$diffusion" policy.sampler=ddpm policy.calls=100
evaluations+=("$run")
for calls in 16 4; do
    embodied_run eval "$diffusion" policy.sampler=ddim policy.calls=$calls
    evaluations+=("$run")
done
for k in 2 1; do
    embodied_run eval "$sdp" policy.k=$k
    evaluations+=("$run")
done
embodied_run compare "${evaluations[@]}"
