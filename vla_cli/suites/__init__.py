"""Evaluations. Each is a file with `run(policies, ...) -> Findings`; the report knows rows, not suites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np

from vla_cli.adapter import PolicySpec
from vla_cli.guidance import Guidance
from vla_cli.lookup import Table
from vla_cli.report import Condition, Film, Paired, Rollout, Row

SUITES = Table(
    "suite",
    {
        "closed-loop": "vla_cli.suites.closed_loop:run",
        "open-loop": "vla_cli.suites.open_loop:run",
        "answers": "vla_cli.suites.answers:run",
    },
)


class Actor(Protocol):
    """The part of a policy that an evaluation needs.

    Attributes:
        spec: how to feed it.
        draws_noise: whether what it does depends on the noise that it is given.
    """

    spec: PolicySpec

    @property
    def draws_noise(self) -> bool:
        """See the class."""
        ...

    def act(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        noise: np.ndarray,
        *,
        steps: int | None = None,
        guidance: Guidance | None = None,
    ) -> np.ndarray:
        """Action chunks [B, T, A] in raw units; see `policies.policy.Policy.act`."""
        ...

    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        """Shape of the noise that `act` starts from."""
        ...


@dataclass
class Findings:
    """What a suite found.

    Attributes:
        rows: the figures.
        conditions: those that were run, in order.
        rollouts: one an episode.
        films: a few episodes as pictures.
        comparisons: of two policies each, on the same episodes.
        warnings: sentences to read before believing a figure.
    """

    rows: list[Row] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    comparisons: list[Paired] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take over what another suite found for the same policies."""
        for part in fields(self):
            getattr(self, part.name).extend(getattr(other, part.name))
