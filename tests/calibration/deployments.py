"""Demonstrations of tabletop deployments, made once, and robots that exist as numbers only."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from vla_cli.calibration import Calibration, DomainFacts, calibrate, load_domain
from vla_cli.calibration.camera import CameraMap
from vla_cli.dataset import Demonstration
from vla_cli.worlds.tabletop.environment import Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.recording import demonstrations
from vla_cli.worlds.tabletop.render import SIZE, camera_of
from vla_cli.worlds.tabletop.scene import Layout, draw_task
from vla_cli.worlds.tabletop.shifts import DOMAINS, Domain
from vla_cli.worlds.tabletop.world import DEFAULT_LAYOUT, DEFAULT_TASK

CAMERA = "agentview_image"
COUNT = 10
TEXTURED = 18
"""Demonstrations on a wooden table: where things stood in all of fewer, its grain was hardly seen."""
_BASE = Path(__file__).resolve().parents[2] / "sample_data" / "base"


def base_facts() -> DomainFacts:
    """As shipped beside the embedded base."""
    facts = load_domain(_BASE)
    assert facts is not None
    return facts


def domain_of(domain: str | Domain) -> Domain:
    return DOMAINS[domain] if isinstance(domain, str) else domain


@lru_cache
def shown(domain: str | Domain, count: int = COUNT, seed: int = 0) -> tuple[Demonstration, ...]:
    """Demonstrations of one instruction in a domain, as a lab records them."""
    with patch.dict(DOMAINS, {"here": domain_of(domain)}):
        found = demonstrations(DEFAULT_LAYOUT, [DEFAULT_TASK] * count, "here", np.random.default_rng(seed))
    return tuple(
        Demonstration(f"episode_{i}", {CAMERA: r.images}, r.state, r.actions, [r.instruction], r.operator)
        for i, r in enumerate(found)
    )


@lru_cache
def fitted(shift: str) -> Calibration:
    """The calibration of a shift from its demonstrations."""
    return calibrate(shown(shift, TEXTURED if DOMAINS[shift].texture else COUNT), [CAMERA], base_facts())


@lru_cache
def swept(angle: float, count: int = 6) -> tuple[Demonstration, ...]:
    """A gripper that only goes to and fro along one line, `angle` degrees to the x axis."""
    rng = np.random.default_rng(1)
    starts = []
    for _ in range(count):
        scene = Layout().draw(rng)
        starts.append(Start(replace(scene, gripper_xy=np.array([0.5, 0.5])), draw_task(scene, rng)))
    env = TabletopVectorEnv(starts, DOMAINS["V"])
    way = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    images, states, actions = [], [], []
    for t in range(16):
        seen = env.observe()
        command = np.tile(np.append((1 if t % 8 < 4 else -1) * way, -1.0), (count, 1))
        images.append(seen["image"])
        states.append(seen["state"])
        actions.append(command)
        env.step(command)
    return tuple(
        Demonstration(
            f"sweep_{i}",
            {CAMERA: np.stack(images)[:, i]},
            np.stack(states)[:, i],
            np.stack(actions)[:, i].astype(np.float32),
            ["sweep"],
        )
        for i in range(count)
    )


def robot(
    gain: np.ndarray, *, count: int = 5, steps: int = 40, delay: int = 0, noise: float = 0.0, seed: int = 0
) -> list[Demonstration]:
    """A robot that exists as numbers only: position [P], gripper; commands [K], gripper.

    Args:
        gain: [P, K] displacement in a step per command.
        delay: steps until the gripper follows.
        noise: standard deviation of the measured positions.
    """
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        commands = rng.uniform(-1, 1, (steps, gain.shape[1]))
        position = np.cumsum(np.r_[rng.uniform(0.4, 0.6, (1, gain.shape[0])), commands[:-1] @ gain.T], axis=0)
        wish = np.where((np.arange(steps) // 11) % 2 == 1, 1.0, -1.0)
        gripper = np.r_[np.full(delay + 1, -1.0), wish][:steps]
        state = np.c_[position + rng.normal(0, noise, position.shape), gripper]
        actions = np.c_[commands, wish]
        blank = np.zeros((steps, 4, 4, 3), np.uint8)
        found.append(
            Demonstration(f"robot_{i}", {CAMERA: blank}, state.astype(np.float32), actions.astype(np.float32), [])
        )
    return found


def true_map(domain: Domain) -> CameraMap:
    """Where the tabletop draws a position, as shares of the picture's edges."""
    camera = camera_of(domain)
    turn = camera.turn[0] * camera.zoom[0]
    return CameraMap(turn @ np.diag([1.0, -1.0]), 0.5 + camera.offset[0] / SIZE + turn @ np.array([-0.5, 0.5]))


def pair(domain: str | Domain, count: int = 16, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The same tables without sensor noise, as a domain shows them and as the base's own does: [N, 60, 60, 3] each."""
    rng = np.random.default_rng(seed)
    starts = [Start(DEFAULT_LAYOUT.draw(rng), DEFAULT_TASK) for _ in range(count)]
    pictures = [
        TabletopVectorEnv(starts, replace(look, noise=0.0)).observe()["image"]
        for look in (domain_of(domain), DOMAINS["base"])
    ]
    return pictures[0], pictures[1]
