#!/usr/bin/env bash
# The five stages, from raw demonstrations to a measured, exported adapter, with two other ways to fine-tune beside it.
#
#   examples/pipeline.sh [WORK_DIRECTORY]            default: demo_out
#
# Steps and episodes can be made smaller from outside: STEPS=20 EPISODES=10 examples/pipeline.sh /tmp/smoke
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work="${1:-demo_out}"
vla="${VLA:-.venv/bin/vla}"
samples=sample_data
steps=(${STEPS:+--steps "$STEPS"})

# 1. Raw logs to episodes. robomimic's layout holds no language: the caller states the instruction.
"$vla" collect-ingest "$samples/demonstrations.hdf5" --out "$work/episodes" --overwrite \
    --instruction "put the red block on the left plate"

# 2. One clock, idle frames trimmed, split by episode, statistics.
"$vla" preprocess "$work/episodes" --out "$work/dataset" --overwrite

# 3. The plain fine-tune (control arm) and DeLock, side by side with ours, one core each. Ours needs no data but the
#    demonstrations: it calibrates, and trains weights only where that is not enough.
"$vla" finetune "$work/dataset" --base "$samples/base" --out "$work/naive" --recipe naive --overwrite "${steps[@]}" &
control=$!
"$vla" finetune "$work/dataset" --base "$samples/base" --out "$work/steerable" --recipe steerable --overwrite \
    "${steps[@]}"
"$vla" finetune "$work/dataset" --base "$samples/base" --out "$work/delock" --recipe delock --overwrite "${steps[@]}"
wait "$control"

# 4. All beside their base: the same scenes, the same seeds, fresh ones. DeLock is guided as its policy.json says.
"$vla" eval-steer "$work/naive" "$work/delock" "$work/steerable" --out "$work/report" \
    --episodes "${EPISODES:-100}" --seed 2026 --overwrite

# 5. What the robot loads, reloaded and compared with the adapter's own actions.
"$vla" export-adapter "$work/steerable" --report "$work/report" --merge --out "$work/bundle" --overwrite

echo "The report: $work/report/report.html    The bundle: $work/bundle"
