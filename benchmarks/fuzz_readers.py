"""Damaged and hostile logs by the thousand, read by every reader: only our errors may come out.

    python benchmarks/fuzz_readers.py [--per-format N] [--seed S] [--formats a,b] [--keep DIR]

Log number i of a format is damaged with the seed S + i, so one that broke a promise is made again by its seed alone
(`--per-format 1 --seed ...`). Without `--per-format` it is 20 000 logs altogether. See `tests/fuzzing.py` for what
"read" and the promise are. Exits 1 on a violation, after writing what was read to `--keep`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzzing import Fuzzer, Job, Variant, Verdict, make, variants  # pyright: ignore[reportMissingImports]

ALTOGETHER = 20_000
EPISODES, STEPS = 2, 4
SHOWN = 10  # violations a format that are printed; all are counted


@dataclass
class Row:
    """What came of one format's logs."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    worst_seconds: float = 0.0
    worst_memory: int = 0
    partly: int = 0
    violations: list[Verdict] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self.outcomes[verdict.outcome] += 1
        if verdict.outcome != "read":
            self.errors[verdict.error] += 1
        self.partly += verdict.outcome == "read" and verdict.skipped > 0
        self.worst_seconds = max(self.worst_seconds, verdict.seconds)
        self.worst_memory = max(self.worst_memory, verdict.grown)
        if verdict.outcome == "violation":
            self.violations.append(verdict)

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {count}" for name, count in sorted(self.errors.items()))
        return (
            f"{self.name:24} {self.outcomes.total():6} {self.outcomes['read']:6} {self.partly:6}"
            f" {self.outcomes['refused']:8} {self.outcomes['violation']:6} {self.worst_seconds:7.2f}"
            f" {self.worst_memory >> 20:6}  {errors}"
        )


def fuzz(variant: Variant, seeds: range, fuzzer: Fuzzer, folder: Path, keep: Path) -> Row:
    """Read one format's damaged logs, and keep those that broke a promise."""
    row, healthy = Row(variant.name), variant.write(folder / variant.name.replace(":", "_"), EPISODES, STEPS)
    (whole,) = fuzzer.run([Job(variant.name, variant.format, str(healthy), None)])
    if whole.outcome != "read" or whole.skipped:
        whole.outcome = "violation"
        row.add(whole)
    jobs = (Job(variant.name, variant.format, str(healthy), seed) for seed in seeds)
    for verdict in _in_portions(jobs, fuzzer):
        row.add(verdict)
        if verdict.outcome == "violation":
            make(healthy, keep / f"{variant.name.replace(':', '_')}_{verdict.job.seed}", verdict.job.seed)
    return row


def _in_portions(jobs: Iterator[Job], fuzzer: Fuzzer) -> Iterator[Verdict]:
    portion: list[Job] = []
    for job in jobs:
        portion.append(job)
        if len(portion) == 100:
            yield from fuzzer.run(portion)
            portion = []
    yield from fuzzer.run(portion)


def main() -> None:
    """Fuzz and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--per-format", type=int, help="damaged logs a format; 20 000 altogether when not given")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first log")
    parser.add_argument("--formats", default="", help="formats or variants, with commas; all when not given")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where to put logs that broke a promise")
    args = parser.parse_args()
    chosen = variants(filter(None, args.formats.split(",")))
    count = args.per_format or -(-ALTOGETHER // max(1, len(chosen)))
    head = f"{'format':24} {'logs':>6} {'read':>6} {'partly':>6} {'refused':>8} {'broken':>6} {'worst s':>7} {'MiB':>6}"
    print(head + "  our errors, by class", flush=True)
    rows, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Fuzzer(Path(folder), args.workers) as fuzzer:
        for variant in chosen:
            rows.append(fuzz(variant, range(args.seed, args.seed + count), fuzzer, Path(folder), args.keep))
            print(rows[-1], flush=True)
    for row in rows:
        for verdict in row.violations[:SHOWN]:
            print(verdict)
    logs, broken = (sum(f(row) for row in rows) for f in (lambda r: r.outcomes.total(), lambda r: len(r.violations)))
    print(f"{logs} logs in {time.monotonic() - started:.0f} s, {broken} broke a promise")
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
