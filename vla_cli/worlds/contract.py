"""What a world offers to the suites: cases by condition, an environment to run them in, and what happened.

A condition is a question to the policy (the trained instruction, another object, ...). A case is one episode of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

CONDITIONS: dict[str, str] = {
    "trained": "the demonstrated instruction",
    "paraphrase": "the demonstrated task in other words",
    "novel-concept": "another object, the demonstrated place",
    "novel-spatial": "the demonstrated object, another place",
    "novel-both": "another object and another place",
    "base-domain": "the base's own tasks in its own domain, with the policy as deployed",
    "empty-instruction": "no words at all (control)",
    "nonsense-instruction": "words without meaning (control)",
    "do-nothing": "the demonstrated instruction, and a policy that never moves (control)",
}
"""Condition to what is asked of the policy, in the order of the report."""


def same_words(instruction: str) -> str:
    """An instruction as it is compared with others: the same words, whatever the spaces between them."""
    return " ".join(instruction.split())


@dataclass(frozen=True)
class Case:
    """One episode of a condition.

    Attributes:
        instruction: the words the policy is given.
        start: the world's own description of how the episode begins and which task judges it.
        trained: the world's own description of the demonstrated task, where locked behaviour can be told.
    """

    instruction: str
    start: Any
    trained: Any = None


@dataclass(frozen=True)
class Outcome:
    """What the policy did in one episode: three separate facts.

    Attributes:
        success: the task that judges the case was done.
        grounded: it went to the named object first, and what it grasped ended nearest to the named place, if one was
            named; None where nothing was named.
        locked: it did the demonstrated behaviour although something else was asked: it went to the demonstrated object
            first, or, where only another place was asked for, what it grasped ended nearest to the demonstrated one;
            None where that means nothing.
        did: a short sentence.
        steps: control steps until the end.
    """

    success: bool
    grounded: bool | None
    locked: bool | None
    did: str
    steps: int


class Environment(Protocol):
    """The part of a Gymnasium vector environment that a suite uses, with chunks of actions."""

    num_envs: int

    def reset(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """To the starts."""
        ...

    def step_chunk(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], Any, np.ndarray, np.ndarray, Any]:
        """Several control steps: `actions` [B, K, A] in raw units."""
        ...


class World(Protocol):
    """A place to evaluate in; see `vla_cli.worlds.WORLDS`.

    What is registered there is called with a variant ("" for the demonstrations' own), the demonstrations' `env_args`
    when they were recorded in this world (else None), and the instructions that were demonstrated; it raises
    ConfigError where there is no such variant.
    """

    label: str
    action_width: int
    state_width: int

    def conditions(self) -> Mapping[str, str | None]:
        """Condition to None, or to the reason why it cannot be asked here."""
        ...

    def cases(self, condition: str, episodes: int, seed: int) -> list[Case]:
        """The episodes of a condition, the same for every policy; fresh by seed."""
        ...

    def environment(self, condition: str, cases: Sequence[Case], seed: int) -> Environment:
        """An environment at the cases' starts."""
        ...

    def outcomes(self, environment: Any, cases: Sequence[Case], condition: str) -> list[Outcome]:
        """What was done, once every episode has ended."""
        ...
