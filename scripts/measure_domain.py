"""Measure what calibration needs to know about a base policy's own domain, and put it beside the base as `domain.json`.

    vla collect-ingest sample_data/rehearsal.hdf5 --out /tmp/e && vla preprocess /tmp/e --out /tmp/d
    python scripts/measure_domain.py /tmp/d --base sample_data/base

The dataset is of the base's own domain, over many tasks (made by collect-ingest and preprocess). A base without a
`domain.json` is measured from `vla finetune --replay` each time instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_cli.calibration import FILE_NAME, measure_domain, save_domain
from vla_cli.dataset import load_dataset


def main() -> None:
    """Parse the command line, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--base", type=Path, default=Path("sample_data/base"))
    args = parser.parse_args()
    dataset = load_dataset(args.dataset)
    facts = measure_domain(dataset.demonstrations, dataset.cameras)
    save_domain(facts, args.base)
    for what, why in facts.unknown.items():
        print(f"not measured: {what}: {why}")
    print(args.base / FILE_NAME)


if __name__ == "__main__":
    main()
