"""Methods that keep old abilities while a policy learns a new task. A new one is a file here and a line in the table.

A method is built from its options in the recipe and answers these calls of the training loop:

    share(batch_size)            how many windows of each batch it fills itself
    prepare(context)             once, before training; raises ConfigError when something it needs is missing
    draw(rng, count)             those windows
    facts()                      what it did, for run.json
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vla_cli.lookup import Table
from vla_cli.windows import Samples, Windows

RETENTION = Table("retention method", {"rehearsal": "vla_cli.retention.rehearsal:Rehearsal"})


@dataclass
class Context:
    """What a retention method may look at.

    Attributes:
        demonstrations: windows of the new task.
        replay: windows of base-domain data, when given.
    """

    demonstrations: Windows
    replay: Windows | None


class Retention(Protocol):
    """The calls of the training loop; see the module's docstring."""

    def share(self, batch_size: int) -> int:
        """How many windows of each batch this method fills."""
        ...

    def prepare(self, context: Context) -> None:
        """Look at the data once, before training."""
        ...

    def draw(self, rng: np.random.Generator, count: int) -> Samples:
        """Draw the method's own windows."""
        ...

    def facts(self) -> dict[str, Any]:
        """What was done, as JSON values."""
        ...
