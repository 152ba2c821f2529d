"""The harness of the lock-in benchmark (`benchmarks/lock_in.py`): cells in, one table out.

tasks     which tasks and evaluation seeds: lists fixed before the first run
rows      what is compared: `lock_in_rows.yaml`
cells     what determines a cell, and its file
data      demonstrations of a cell, through the ingest and preprocess stages
jobs      fine-tunes once and evaluates every row that shares the adapter
schedule  order, worker processes, time budget, resuming
results   cells of a plan as `lock_in.json`
published cells of another run's `lock_in.json` taken over as finished
goals     the goals, and whether they are met
render    `lock_in.md` and `lock_in.svg` from `lock_in.json` alone

Importing it sets what must stand before torch is imported anywhere: processes of one thread each that do not spin for
each other's core (spinning makes them a hundred times slower), nothing fetched, and no chatter.
"""

import os

for name, value in {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(name, value)
