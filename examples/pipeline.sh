#!/usr/bin/env bash
# The five stages, from raw demonstrations to a measured, exported adapter, and the control arm beside it.
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
"$vla" collect-ingest "$samples/rehearsal.hdf5" --out "$work/rehearsal_episodes" --overwrite

# 2. One clock, idle frames trimmed, split by episode, statistics.
"$vla" preprocess "$work/episodes" --out "$work/dataset" --overwrite
"$vla" preprocess "$work/rehearsal_episodes" --out "$work/rehearsal" --overwrite --val-fraction 0

# 3. The plain fine-tune (control arm), and ours; side by side, one core each.
"$vla" finetune "$work/dataset" --base "$samples/base" --out "$work/naive" --recipe naive --overwrite \
    "${steps[@]}" &
control=$!
"$vla" finetune "$work/dataset" --base "$samples/base" --out "$work/rehearse" --recipe rehearse \
    --replay "$work/rehearsal" --overwrite "${steps[@]}"
wait "$control"

# 4. Both beside their base: the same scenes, the same seeds, fresh ones.
"$vla" eval-steer "$work/naive" "$work/rehearse" --out "$work/report" --episodes "${EPISODES:-100}" --seed 2026 \
    --overwrite

# 5. What the robot loads, reloaded and compared with the adapter's own actions.
"$vla" export-adapter "$work/rehearse" --report "$work/report" --merge --out "$work/bundle" --overwrite

echo "The report: $work/report/report.html    The bundle: $work/bundle"
