"""A cell: one row on one shift, task and seed. What determines it, and the file that holds what came out.

    WORK/cells/V/report-0/seed-0/lora-3f2a9c0d11e2.json

    {"label": "lora", "method": "lora", "base_data": false, "shift": "V", "task": "report:0", "seed": 0,
     "evaluation_seed": 20000, "digest": ..., "determinants": {...}, "machine": processor and cores,
     "seconds": {"train": wall, "train_cpu": CPU, "evaluate": wall},
     "conditions": {"trained": {"success": "1101...", "grounding": "1101...", "locked": "----..."}, ...}}

An outcome is one character an episode: 1 yes, 0 no, - does not apply. The digest is of what determines the result:
recipe, guidance, demonstrations, domain, episodes and base; not the version of the tool.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lock_in_harness.rows import MethodRow
from lock_in_harness.tasks import BenchTask
from vla_cli.files import read_json, to_json, write_json
from vla_cli.worlds.tabletop.shifts import DOMAINS, Domain

CONDITIONS = ("trained", "paraphrase", "novel-concept", "novel-spatial", "novel-both", "base-domain")
NOVEL = ("novel-concept", "novel-spatial", "novel-both")
METRICS = ("success", "grounding", "locked")
NOT_APPLICABLE = "-"


@dataclass(frozen=True)
class Cell:
    """One cell to fill.

    Attributes:
        row: the method.
        shift: a key of `DOMAINS`.
        task: the demonstrated task and its table.
        seed: of demonstrations, fine-tuning and evaluation.
        episodes: a condition.
        training: what determines the adapter, or None for the base itself.
        base: digest of the base policy.
    """

    row: MethodRow
    shift: str
    task: BenchTask
    seed: int
    episodes: int
    training: dict[str, Any] | None
    base: str

    def determinants(self) -> dict[str, Any]:
        """What determines the result, as JSON values."""
        return {
            "base": self.base,
            "training": self.training,
            "guidance": self.row.guidance,
            "domain": domain_document(self.shift),
            "layout": self.task.layout.document(),
            "task": self.task.task.document(),
            "evaluation_seed": self.task.evaluation_seed(self.seed),
            "episodes": self.episodes,
        }

    @property
    def digest(self) -> str:
        """Of the determinants."""
        return digest_of(self.determinants())

    def path(self, work: Path) -> Path:
        """Where its result is, or will be."""
        place = work / "cells" / self.shift / self.task.name.replace(":", "-") / f"seed-{self.seed}"
        return place / f"{self.row.label}-{self.digest}.json"

    def done(self, work: Path) -> bool:
        """Whether its result is there."""
        return self.path(work).is_file()

    def load(self, work: Path) -> dict[str, Any]:
        """Its result.

        Raises:
            InputError: it is not there, or is damaged.
        """
        return read_json(self.path(work))

    def save(self, work: Path, conditions: dict[str, dict[str, str]], seconds: dict[str, float]) -> None:
        """Write its result, whole or not at all."""
        path = self.path(work)
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "label": self.row.label,
            "method": self.row.name,
            "base_data": self.row.base_data,
            "shift": self.shift,
            "task": self.task.name,
            "seed": self.seed,
            "evaluation_seed": self.task.evaluation_seed(self.seed),
            "episodes": self.episodes,
            "digest": self.digest,
            "determinants": self.determinants(),
            "machine": machine(),
            "seconds": seconds,
            "conditions": conditions,
        }
        write_json(path, document)


def digest_of(document: Any) -> str:
    """Twelve hexadecimal digits of SHA-256 over the JSON of a document."""
    return hashlib.sha256(to_json(_ordered(document)).encode()).hexdigest()[:12]


def _ordered(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _ordered(document[key]) for key in sorted(document)}
    return [_ordered(item) for item in document] if isinstance(document, list | tuple) else document


def domain_document(shift: str) -> dict[str, Any]:
    """In what a domain differs from the defaults: a new kind of shift leaves the cells of the others as they are."""
    domain, default = DOMAINS[shift], Domain()
    changed = {f.name for f in fields(domain) if getattr(domain, f.name) != getattr(default, f.name)}
    return {key: value for key, value in asdict(domain).items() if key in changed}


def outcome_string(facts: Sequence[bool | None]) -> str:
    """One character an episode."""
    return "".join(NOT_APPLICABLE if fact is None else "01"[bool(fact)] for fact in facts)


def count(outcomes: str) -> tuple[int, int]:
    """Successes and episodes of an outcome string, those that do not apply left out."""
    return outcomes.count("1"), len(outcomes) - outcomes.count(NOT_APPLICABLE)


def machine() -> str:
    """Processor and cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"
