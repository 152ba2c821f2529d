"""The closed-loop suite on the embedded base policy: it follows instructions, and the count is honest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_cli.guidance import Guidance
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.report import Rollout
from vla_cli.suites.closed_loop import count, run
from vla_cli.worlds.tabletop.world import TabletopWorld


@pytest.fixture(scope="module")
def policy(base: Path) -> FlowPolicy:
    return load(str(base), device="cpu")


def test_the_base_policy_follows_instructions_in_its_own_domain(policy: FlowPolicy) -> None:
    """The small version of benchmarks/base_policy.py."""
    findings = run({"base": policy}, TabletopWorld("base"), episodes=100, seed=11, conditions=["base-domain"], films=0)
    success = findings.rows[0]
    assert success.value >= 0.87
    assert {r.instruction.split()[0] for r in findings.rollouts} >= {"put", "pick", "place", "grab"}


def test_without_words_it_does_not_do_the_named_task_more_than_by_chance(policy: FlowPolicy) -> None:
    asked = ["trained", "empty-instruction", "do-nothing"]
    findings = run({"base": policy}, TabletopWorld("base"), episodes=60, seed=12, conditions=asked, films=0)
    success = {row.condition: row.value for row in findings.rows if row.metric == "success"}
    assert success["trained"] >= 0.85
    assert success["empty-instruction"] <= 0.35, "four objects and four plates: chance is far below"
    assert success["do-nothing"] == 0.0
    assert not findings.warnings


def test_two_names_of_one_policy_do_the_same(policy: FlowPolicy) -> None:
    """Scenes, pixel noise and flow noise are shared: only the policy may make a difference."""
    world = TabletopWorld("V")
    findings = run({"a": policy, "b": policy}, world, episodes=6, seed=3, conditions=["novel-both"], films=1)
    did = {name: [(r.did, r.steps) for r in findings.rollouts if r.policy == name] for name in ("a", "b")}
    assert did["a"] == did["b"]
    assert (findings.films[0].frames == findings.films[1].frames).all()


def test_another_seed_shows_other_scenes(policy: FlowPolicy) -> None:
    asked: dict[str, Any] = {"episodes": 1, "conditions": ["base-domain"], "films": 1}
    first, second = (
        run({"base": policy}, TabletopWorld("base"), seed=seed, **asked).films[0].frames[0].astype(int)
        for seed in (0, 1)
    )
    # things stand elsewhere: far more than the camera's noise
    assert (np.abs(first - second).max(-1) > 40).mean() > 0.02


def test_the_empty_prompt_guides_the_trained_instruction_too_and_a_contrast_does_not(policy: FlowPolicy) -> None:
    world = TabletopWorld("V")
    trained = world.cases("trained", 1, 0)[0].instruction
    adapted = FlowPolicy(policy.model, policy.prompts, replace(policy.spec, instructions=["go", trained]), "cpu")
    names = ("plain", "contrast", "null")
    guidance = {"contrast": Guidance("contrast", 2.5, ("go",)), "null": Guidance("null", 2.5, ("",))}
    findings = run(
        dict.fromkeys(names, adapted), world, episodes=4, seed=3, conditions=["trained"], guidance=guidance, films=4
    )
    pictures = {name: [f.frames for f in findings.films if f.policy == name] for name in names}

    def same(a: str, b: str) -> bool:
        return all(np.array_equal(x, y) for x, y in zip(pictures[a], pictures[b], strict=True))

    assert same("plain", "contrast"), "it is another wording of what was trained"
    assert not same("plain", "null")


def test_facts_that_mean_nothing_are_not_counted() -> None:
    rollouts = [
        Rollout("p", "c", i, "", success=i < 3, grounded=None, locked=i % 2 == 0 if i < 4 else None, did="", steps=1)
        for i in range(6)
    ]
    rows = {row.metric: (row.k, row.n) for row in count(rollouts)}
    assert rows == {"success": (3, 6), "locked": (2, 4)}
