"""Is each demonstration sound? Every check in one closed table, in two phases.

    examine(episode)   looks at one episode, and keeps the little that is needed to compare it
    judge(all facts)   adds what only shows beside the other episodes; gives every finding

A finding is a fact with its place and figure, not a verdict: slow or hesitant demonstrators are not at fault. What is
done about it is the user's choice: a fix (`fixes`), leaving the episode out (`exclusions`), or stopping
(`gate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vla_cli.episode import Episode, UnusableError, native_rate
from vla_cli.errors import CheckFailed, ConfigError
from vla_cli.quality import answers
from vla_cli.quality import checks as compared
from vla_cli.quality import motion as moving
from vla_cli.quality import pictures as seen
from vla_cli.quality import spikes as course
from vla_cli.quality.facts import SEVERITIES, EpisodeFacts, Finding, Motion, Severity, motion_of
from vla_cli.quality.rates import at_one_rate

__all__ = ["CHECKS", "Check", "EpisodeFacts", "Finding", "Motion", "examine", "gate", "judge", "motion_of"]
MOST_NAMED = 3


@dataclass(frozen=True)
class Evidence:
    """An episode as the checks see it: its pictures measured in one pass."""

    episode: Episode
    motion: Motion
    pictures: dict[str, seen.PictureFacts]


Inspect = Callable[[Evidence], Iterable[Finding]]
Compare = Callable[[Sequence[EpisodeFacts]], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: as in findings and options.
        severity: the gravest it gives; milder cases of the same may be "info".
        looks_for: in words.
        fix: what `--fix NAME` does, or "".
        explain: the function whose docstring states thresholds and sources.
        inspect: finds it in one episode, or None.
        compare: finds it beside the other episodes, or None.
    """

    name: str
    severity: Severity
    looks_for: str
    fix: str
    explain: Callable[..., Any]
    inspect: Inspect | None = None
    compare: Compare | None = None


def _cameras(check: Callable[..., Iterable[Finding]]) -> Inspect:
    def inspect(e: Evidence) -> Iterator[Finding]:
        for camera in e.episode.of_role("image"):
            yield from check(e.episode.name, camera, e.pictures[camera.name])

    return inspect


def _frozen(e: Evidence) -> Iterator[Finding]:
    for camera in e.episode.of_role("image"):
        yield from seen.frozen(e.episode.name, camera, e.pictures[camera.name], e.motion)


def _dropped(e: Evidence) -> Iterator[Finding]:
    for camera in e.episode.of_role("image"):
        yield from seen.dropped(e.episode.name, camera)
    yield from moving.silent(e.episode)


CHECKS: tuple[Check, ...] = (
    Check(
        "timestamps",
        "error",
        "clocks that go backwards or repeat a time",
        "leaves out samples that are not later than all before them",
        moving.timestamps,
        lambda e: moving.timestamps(e.episode),
    ),
    Check(
        "dropped",
        "warning",
        "holes in the clock of a camera or of a vector",
        "",
        seen.dropped,
        _dropped,
    ),
    Check(
        "black",
        "error",
        "black or blank pictures",
        "cuts those moments out of the episode",
        seen.black,
        _cameras(seen.black),
    ),
    Check(
        "frozen",
        "warning",
        "the same picture again while the arm moves",
        "cuts the repeats out of the episode",
        seen.frozen,
        _frozen,
    ),
    Check("blur", "warning", "pictures far less sharp than usual in the episode", "", seen.blur, _cameras(seen.blur)),
    Check(
        "focus",
        "warning",
        "a camera less sharp in a whole episode than in the others",
        "",
        compared.focus,
        compare=compared.focus,
    ),
    Check(
        "idle",
        "warning",
        "standing still within the episode",
        "cuts each pause down to a few frames",
        moving.idle,
        lambda e: moving.idle(e.episode.name, e.motion),
    ),
    Check(
        "noop",
        "info",
        "commands that do nothing within the episode",
        "cuts those frames out of the episode",
        moving.noop,
        lambda e: moving.noop(e.episode.name, e.motion),
    ),
    Check(
        "spikes",
        "warning",
        "single states far off, and jumps",
        "replaces single states far off by interpolation; jumps stay",
        course.spikes,
        compare=lambda facts: compared.unusual(facts, "spikes"),
    ),
    Check("jerk", "warning", "a state that shakes", "", course.jerk, lambda e: course.jerk(e.episode)),
    Check(
        "chatter",
        "warning",
        "a gripper command that undoes itself at once",
        "median-filters the gripper command",
        moving.chatter,
        lambda e: moving.chatter(e.episode, e.motion.rate_hz),
    ),
    Check(
        "saturation",
        "info",
        "commands at an end of their range for long",
        "",
        moving.saturation,
        compare=compared.at_limit,
    ),
    Check(
        "clipping",
        "warning",
        "commands cut off while the arm goes on",
        "",
        answers.clipping,
        compare=answers.clipping,
    ),
    Check(
        "offset",
        "warning",
        "commands and motion of different times",
        "",
        answers.offset,
        compare=answers.offset,
    ),
    Check(
        "early_cut",
        "warning",
        "an end in full motion, or elsewhere than all others",
        "",
        compared.early_cut,
        compare=compared.early_cut,
    ),
    Check(
        "length",
        "warning",
        "episodes far longer or shorter than the others",
        "",
        compared.duration,
        compare=compared.duration,
    ),
    Check(
        "duplicates",
        "warning",
        "two episodes that are one",
        "",
        compared.duplicates,
        compare=compared.duplicates,
    ),
    Check(
        "constant",
        "warning",
        "dimensions whose 1st and 99th percentile are the same",
        "",
        compared.constant,
        compare=compared.constant,
    ),
)
"""Every check there is, in the order of a report."""


def examine(episode: Episode, motion: Motion | None = None) -> EpisodeFacts:
    """What an episode shows by itself, and what is needed to judge it beside the others.

    Each camera is decoded once, a block at a time.

    Args:
        episode: as recorded, with action and image streams.
        motion: its numbers on one clock; None for `motion_of(episode)`.

    Raises:
        ValueError: a picture cannot be decoded.
        UnusableError: states and actions have less than two steps of time in common.
    """
    motion = motion or motion_of(episode)
    if len(motion) < 2:
        raise UnusableError("its states and actions overlap in time by less than two steps")
    evidence = Evidence(episode, motion, {s.name: seen.measure(s) for s in episode.of_role("image")})
    first, last = compared.moving_part(motion)
    return EpisodeFacts(
        name=episode.name,
        operator=episode.operator,
        instruction=episode.instructions[0] if episode.instructions else "",
        frames=last - first + 1,
        seconds=float(motion.timestamps[last] - motion.timestamps[first]),
        rate_hz=motion.rate_hz,
        rates={f"state/{s.name}": native_rate(s) for s in episode.of_role("state")},
        findings=[f for check in CHECKS if check.inspect for f in check.inspect(evidence)],
        suspects=[*course.spikes(episode), *moving.saturation(episode)],
        usual=course.top_steps(episode) | moving.limits(episode),
        switches=moving.switches(episode),
        state_names=list(motion.state_names),
        path=compared.path(motion),
        thumbnails={name: facts.thumbnails.tolist() for name, facts in evidence.pictures.items()},
        sharpness={name: round(float(np.median(facts.sharpness)), 4) for name, facts in evidence.pictures.items()},
        end=compared.ending(motion),
        lag=answers.lag_curve(motion),
        gains=answers.gains(motion),
        gains_hz=motion.rate_hz,
        spread=compared.spread(motion),
    )


def judge(facts: Sequence[EpisodeFacts]) -> list[Finding]:
    """Every finding of all episodes, by episode in their order (the whole set first), then in the order of `CHECKS`."""
    found = [f for fact in facts for f in fact.findings]
    even = at_one_rate(facts)
    found += [f for check in CHECKS if check.compare for f in check.compare(even)]
    places = {"": -1} | {fact.name: i for i, fact in enumerate(facts)}
    ranks = {check.name: i for i, check in enumerate(CHECKS)}
    return sorted(found, key=lambda f: (places[f.episode], ranks[f.check], f.stream))


def assess(episode: Episode, motion: Motion | None, others: Sequence[EpisodeFacts]) -> list[Finding]:
    """The findings on one episode beside others that were examined before."""
    own = examine(episode, motion)
    return [f for f in judge([*(o for o in others if o.name != own.name), own]) if f.episode == own.name]


def gate(findings: Iterable[Finding], fail_on: Severity | Literal["never"] = "error") -> None:
    """Stop where a finding is at least that grave.

    Raises:
        CheckFailed: one is; the gravest are named.
    """
    if fail_on == "never":
        return
    bad = [f for f in findings if SEVERITIES.index(f.severity) >= SEVERITIES.index(fail_on)]
    if not bad:
        return
    bad.sort(key=lambda f: -SEVERITIES.index(f.severity))
    counts = ", ".join(f"{n} {name}" for name, n in Counter(f.check for f in bad).most_common())
    raise CheckFailed(
        f"{len(bad)} finding(s) stand against these demonstrations ({counts}): "
        + " ".join(f.message for f in bad[:MOST_NAMED]),
        hint="--fix or --exclude with the names of checks, or without --strict",
    )


def exclusions(findings: Iterable[Finding], checks: Sequence[str]) -> dict[str, str]:
    """Episodes to leave out for what named checks found (info aside), each with its reason.

    Of two near-duplicates the later one goes.

    Raises:
        ConfigError: there is no such check.
    """
    known = [check.name for check in CHECKS]
    unknown = [name for name in checks if name not in known]
    if unknown:
        raise ConfigError(f"There is no check '{unknown[0]}'", expected=f"of: {', '.join(known)}")
    found: dict[str, list[str]] = {}
    for f in findings:
        if f.episode and f.check in checks and f.severity != "info":
            found.setdefault(f.episode, []).append(f.message.removeprefix(f"{f.episode}: "))
    return {name: " ".join(reasons) for name, reasons in found.items()}


def document(findings: Sequence[Finding], facts: Sequence[EpisodeFacts]) -> dict[str, Any]:
    """What goes into quality.json: the table of checks with counts, every finding, and each episode's figures."""
    rows = [
        {
            "name": check.name,
            "severity": check.severity,
            "looks_for": check.looks_for,
            "fix": check.fix,
            "episodes": len({f.episode for f in findings if f.check == check.name and f.severity != "info"}),
            "findings": {s: sum(f.check == check.name and f.severity == s for f in findings) for s in SEVERITIES},
        }
        for check in CHECKS
    ]
    episodes = [
        {
            "name": f.name,
            "frames": f.frames,
            "seconds": round(f.seconds, 6),
            "sharpness": f.sharpness,
            "end_speed": round(float(speed), 4),
            "lag": f.lag["lags"][int(np.argmax(f.lag["agreement"]))] if f.lag else None,
        }
        for f, speed in zip(facts, compared.end_speeds(at_one_rate(facts)) if facts else [], strict=True)
    ]
    return {"checks": rows, "findings": [f.document() for f in findings], "episodes": episodes}
