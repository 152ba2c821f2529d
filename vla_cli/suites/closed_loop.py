"""Closed loop: the policies act in a world, all from the same scenes, with the same pixel noise and flow noise.

Every condition is one batch of episodes. Success, grounding and locked behaviour are counted apart (methods.md 4), with
Wilson intervals. The do-nothing control is run like any policy: if it scores, no other number counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from zlib import crc32

import numpy as np

from vla_cli.adapter import PolicySpec
from vla_cli.errors import ConfigError, InputError
from vla_cli.guidance import Guidance, is_guided
from vla_cli.progress import SILENT, Progress
from vla_cli.report import DO_NOTHING, Condition, Film, Rollout, Row, count_row
from vla_cli.report.paired import compare_rollouts
from vla_cli.suites import Actor, Findings
from vla_cli.suites.kept import NOTHING_KEPT, Kept
from vla_cli.worlds.contract import CONDITIONS, Case, World

FILM_FRAMES = 8
HIGHEST_DO_NOTHING = 0.05


def run(
    policies: Mapping[str, Actor],
    world: World,
    *,
    episodes: int,
    seed: int,
    conditions: Sequence[str] = (),
    guidance: Mapping[str, Guidance | None] | None = None,
    films: int = 2,
    workers: int = 1,
    progress: Progress = SILENT,
    kept: Kept = NOTHING_KEPT,
) -> Findings:
    """Run every policy under every condition.

    Args:
        policies: name to policy, in the order of the report.
        world: where.
        episodes: a condition.
        seed: of scenes, pixel noise and flow noise; shared by all policies.
        conditions: which; empty for all that the world can ask.
        guidance: policy name to its guidance; those that are not named (the base) are prompted plainly.
        films: episodes a condition kept as pictures.
        workers: how many runs (a policy under a condition) go on at once; it changes nothing but the time.
        progress: told after every condition.
        kept: runs that an earlier, interrupted evaluation has finished; those of this one are kept there too.

    Raises:
        ConfigError: an unknown condition.
        InputError: a policy does not fit the world.
    """
    for name, policy in policies.items():
        check_fits(name, policy.spec, world)
    findings = Findings()
    asked = []
    for condition, why_not in asked_conditions(world, conditions).items():
        if why_not is None:
            asked.append(condition)
        else:
            findings.warnings.append(f"The condition {condition} was left out: {why_not}.")
    runs = []
    for condition in asked:
        cases = world.cases(condition, episodes, seed)
        examples = tuple(dict.fromkeys(case.instruction for case in cases))[:3]
        findings.conditions.append(Condition(condition, CONDITIONS[condition], examples))
        runs.extend((name, policy, condition, cases) for name, policy in policies.items())
    progress.start("evaluating", len(runs))

    def one(run: tuple[str, Actor, str, list[Case]]) -> _Finished:
        name, policy, condition, cases = run
        finished = _restore(kept, name, condition)
        if finished is None:
            how = (guidance or {}).get(name)
            finished = _run_condition(name, policy, world, condition, cases, seed, how, films)
            _keep(kept, name, condition, finished)
        return finished

    # torch and NumPy let go of the interpreter lock while they compute; results come back in order
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for rollouts, shown in pool.map(one, runs):
            rows = count(rollouts)
            findings.rollouts.extend(rollouts)
            findings.films.extend(shown)
            findings.rows.extend(rows)
            progress.advance(1, success=rows[0].value)
    findings.comparisons = compare_rollouts(findings.rollouts, findings.conditions)
    _check_controls(findings)
    return findings


_Finished = tuple[list[Rollout], list[Film]]


def _keep(kept: Kept, policy: str, condition: str, finished: _Finished) -> None:
    rollouts, films = finished
    frames = {str(i): film.frames for i, film in enumerate(films)}
    kept.save(policy, condition, [asdict(rollout) for rollout in rollouts], frames)


def _restore(kept: Kept, policy: str, condition: str) -> _Finished | None:
    found = kept.load(policy, condition)
    if found is None:
        return None
    document, frames = found
    rollouts = [Rollout(**rollout) for rollout in document]
    return rollouts, [_film(rollouts[i], frames[str(i)]) for i in range(len(frames))]


def check_fits(name: str, spec: PolicySpec, world: World) -> None:
    """Refuse a policy that was made for another robot than the world's.

    Raises:
        InputError: dimensions or cameras are not as many.
    """
    widths = (len(spec.state_names), len(spec.action_names), len(spec.cameras))
    wanted = (world.state_width, world.action_width, 1)
    if widths != wanted:
        raise InputError(
            f"Policy '{name}' has {widths[0]} state and {widths[1]} action dimensions and {widths[2]} camera(s), "
            f"but the world {world.label} has {wanted[0]}, {wanted[1]} and {wanted[2]}",
            hint="--world none --dataset DATASET for the open-loop report on the robot's own recordings",
        )


def asked_conditions(world: World, conditions: Sequence[str]) -> dict[str, str | None]:
    """The conditions that were asked for, all when none is named; each to None, or to why this world cannot ask it.

    Raises:
        ConfigError: the world knows no such condition.
    """
    possible = world.conditions()
    unknown = [c for c in conditions if c not in possible]
    if unknown:
        raise ConfigError(f"There is no condition '{unknown[0]}'", expected=f"one of {', '.join(possible)}")
    return {c: why_not for c, why_not in possible.items() if not conditions or c in conditions}


def _run_condition(
    name: str,
    policy: Actor,
    world: World,
    condition: str,
    cases: Sequence[Case],
    seed: int,
    guidance: Guidance | None,
    films: int,
) -> _Finished:
    """One policy under one condition: its rollouts, and the first few episodes as pictures."""
    environment = world.environment(condition, cases, seed)
    observation, _ = environment.reset()
    # one stream of flow noise a condition, whatever the policy: the runs are paired
    rng = np.random.default_rng([seed, crc32(condition.encode())])
    frames = [observation["image"][:films].copy()]
    ended = np.zeros(len(cases), bool)
    while not ended.all():
        noise = rng.standard_normal(policy.noise_shape(len(cases)), np.float32)
        chunk = _act(policy, observation, cases, noise, guidance, np.flatnonzero(~ended), still=condition == DO_NOTHING)
        observation, _, terminated, truncated, _ = environment.step_chunk(chunk[:, : policy.spec.execute_steps])
        ended = terminated | truncated
        frames.append(observation["image"][:films].copy())
    rollouts = [
        Rollout(name, condition, i, case.instruction, o.success, o.grounded, o.locked, o.did, o.steps)
        for i, (case, o) in enumerate(zip(cases, world.outcomes(environment, cases, condition), strict=True))
    ]
    shown = [np.stack([f[i] for f in frames]) for i in range(min(films, len(cases)))]
    return rollouts, [_film(rollouts[i], _excerpt(pictures)) for i, pictures in enumerate(shown)]


def _act(
    policy: Actor,
    observation: Mapping[str, np.ndarray],
    cases: Sequence[Case],
    noise: np.ndarray,
    guidance: Guidance | None,
    running: np.ndarray,
    *,
    still: bool,
) -> np.ndarray:
    """Chunks for the `running` episodes; zeros for those that have ended, and for all when `still`."""
    chunk = np.zeros((len(cases), noise.shape[1], len(policy.spec.action_names)), np.float32)
    if still:
        return chunk
    guided = np.array([is_guided(guidance, case.instruction, policy.spec.instructions) for case in cases])
    for which, how in ((running[~guided[running]], None), (running[guided[running]], guidance)):
        if len(which):
            words = [cases[i].instruction for i in which]
            images, state = observation["image"][which, None], observation["state"][which]
            chunk[which] = policy.act(images, state, words, noise[which], guidance=how)
    return chunk


def _excerpt(frames: np.ndarray) -> np.ndarray:
    """A few frames from the first to the last that differs from the one before."""
    moving = [i for i in range(1, len(frames)) if not np.array_equal(frames[i], frames[i - 1])]
    last = moving[-1] if moving else 0
    return frames[np.unique(np.linspace(0, last, FILM_FRAMES).round().astype(int))]


def _film(rollout: Rollout, frames: np.ndarray) -> Film:
    return Film(
        rollout.policy,
        rollout.condition,
        rollout.episode,
        rollout.instruction,
        rollout.did,
        rollout.success,
        frames,
    )


def count(rollouts: Sequence[Rollout]) -> list[Row]:
    """Rows for one policy under one condition: success, and grounding and locked where they mean something."""
    policy, condition = rollouts[0].policy, rollouts[0].condition
    rows = [count_row(policy, condition, "success", sum(r.success for r in rollouts), len(rollouts))]
    for metric, facts in (("grounding", [r.grounded for r in rollouts]), ("locked", [r.locked for r in rollouts])):
        known = [fact for fact in facts if fact is not None]
        if known:
            rows.append(count_row(policy, condition, metric, sum(known), len(known)))
    return rows


def _check_controls(findings: Findings) -> None:
    for row in findings.rows:
        if row.condition == DO_NOTHING and row.metric == "success" and row.value > HIGHEST_DO_NOTHING:
            findings.warnings.append(
                f"A policy that does nothing succeeds in {row.k} of {row.n} episodes: the success test of this world "
                "is too easy, and no success figure here counts."
            )
            return
