#!/usr/bin/env bash
# What this library does on a GPU (or on what else jax finds), in ten minutes, as one JSON object.
#
#   benchmarks/on_gpu.sh [--model=clip-vit-b16] [--steps=3] [--seconds=4] [--episodes="1 2 4 8 16"]
#                        [--limit=590] [--parts=DIR] [--only="step eager"] [--python=python]
#                        > on_gpu.json
#
# Needs an environment with a recent jax for the device; what else is missing pip installs, torch
# and peft excepted: without them the peers are left out, with one line that says so. Every part has
# a time of its own and fails alone: the object then holds its error. The parts' outputs and logs
# stay in DIR, and a part that succeeded there is not run again: so parts can be run in several
# turns (--only). What a part measures, its own file in this folder says.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

model=clip-vit-b16 steps=3 each=4 episodes="1 2 4 8 16" limit=590 python=${PYTHON:-python} parts="" only=""
for option in "$@"; do
  value=${option#*=}
  case $option in
    --model=*) model=$value ;;
    --steps=*) steps=$value ;;
    --seconds=*) each=$value ;;
    --episodes=*) episodes=$value ;;
    --limit=*) limit=$value ;;
    --parts=*) parts=$value ;;
    --only=*) only=" $value " ;;
    --python=*) python=$value ;;
    *) echo "error: $option: no such option; the first lines of $0 list them." >&2; exit 2 ;;
  esac
done
parts=$(mkdir -p "${parts:=$(mktemp -d)}" && cd "$parts" && pwd) || exit 1
if [ -n "$(ls -A "$parts")" ] && ! [ -e "$parts/order" ]; then
  echo "error: --parts=$parts is not empty; give a directory of its own." >&2
  exit 2
fi
touch "$parts/order"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# wanted NAME: asked for and not there yet; it then has a place in the order.
wanted() {
  [ -z "$only" ] || [[ $only == *" $1 "* ]] || return 1
  [ "$(cat "$parts/$1.code" 2>/dev/null)" != 0 ] || return 1
  grep -qx "$1" "$parts/order" || echo "$1" >>"$parts/order"
}

# part NAME SECONDS COMMAND…: at most so many seconds, and none after the end of the whole.
part() {
  local name=$1 box=$2 left=$((limit - SECONDS)) code=124
  shift 2
  wanted "$name" || return 0
  ((box < left)) || box=$left
  echo "$(date +%T) $name, at most $((box > 0 ? box : 0)) s" >&2
  if ((box > 0)); then
    timeout --kill-after=10 "$box" "$@" >"$parts/$name.json" 2>"$parts/$name.log"
    code=$?
  fi
  ((code == 124 || code == 137)) && echo "out of time" >>"$parts/$name.log"
  echo "$code" >"$parts/$name.code"
  ((code == 0)) || echo "  failed: $(tail -n 1 "$parts/$name.log")" >&2
}

# left_out NAME WHY
left_out() {
  wanted "$1" || return 0
  echo "$2" >"$parts/$1.log"
  echo 1 >"$parts/$1.code"
  echo "$1 is left out: $2" >&2
}

needs="import mdtrap_jax.experiments.finetune, mdtrap_jax.experiments.heads"
if ! "$python" -c "$needs" 2>/dev/null; then
  echo "installing what is missing" >&2
  timeout 120 "$python" -m pip install --quiet --retries 1 -e . >&2 ||
    { echo "error: pip could not install what mdtrap_jax needs (pip install -e .)." >&2; exit 1; }
fi
peers=""
if ! "$python" -c "import torch, peft, transformers" 2>/dev/null; then
  peers="torch or peft is missing: pip install torch peft"
elif nvidia-smi -L >/dev/null 2>&1 &&
  ! "$python" -c "import torch; raise SystemExit(not torch.cuda.is_available())" 2>/dev/null; then
  peers="this torch has no CUDA: install the build for GPUs"
fi

throughput=("$python" -m benchmarks.throughput "--model=$model" "--steps=$steps")
peer=("$python" -m benchmarks.peer_torch "--model=$model" "--steps=$steps")
part step 150 "${throughput[@]}"
if [ -z "$peers" ]; then
  part eager 90 "${peer[@]}" --side=eager
  part heads 120 "$python" -m benchmarks.heads "--seconds=$each"
else
  left_out eager "$peers"
  left_out heads "$peers"
fi
part parity 90 "$python" -m benchmarks.parity
for count in $episodes; do
  part "episodes_$count" 60 "${throughput[@]}" "--episodes=$count"
done
if [ -z "$peers" ]; then
  part compiled 150 "${peer[@]}" --side=compiled
else
  left_out compiled "$peers"
fi
exec "$python" -m benchmarks.gather "$parts"
