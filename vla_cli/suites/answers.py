"""How predicted actions answer to other words, on recorded observations: an indicator of lock-in without a simulator.

Nothing acts. At frames of the recorded episodes each policy is told the demonstrated instruction, other words for it,
and other instructions that fit the moment, always from the same noises z. What is compared are chunks of predicted
actions a(words, z), in standard deviations of the recorded actions, over the frames, draws, real steps and moving
dimensions of an episode:

    response    S = (D(other) - D(reworded)) / D(seed): how far other words move the actions, in units of another seed
                (M1); 0: no further than other words for the same task
    kept        R = <da, da_base> / |da_base|^2: how far they move as the base's do (M3); 1 as there, 0 not
    agreement   share of frames and instructions where the mean chunk is nearer to what the base does when told the same
                than to what the base does under the demonstrated words (M2, the base's answer in place of geometry)
    identified  share of frames where the recorded action is predicted best under the recorded words, and not under one
                of the others (M4); equals share

    da = a(other, z) - a(shown, z);   D is a root mean square;   D(seed) that of a(shown, z) - a(shown, z') of two draws

A policy that draws no noise (one that writes the most probable token) has no D(seed), and so no response; whether a
base of that kind answers at all is told by D(other) beside D(reworded).

Definitions after methods.md 4, with actions in place of velocities, so that any family of policies can be asked, and
through its calibration. Each adapted policy is held against the base behind the same calibration. Frames before the
grasp are asked for other objects, frames while something is held for other places.

A large response need not be the right one, and a policy that fits the demonstrations is identified whether it listens
or not; `kept` and `agreement` say whether the answer goes the base's way, and are undefined where the base itself does
not answer (`NO_ANSWER`). docs/offline_score.md holds how all of them compare with what policies did in closed loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla_cli.dataset import Dataset, Demonstration
from vla_cli.language.alternatives import Alternative, not_shown
from vla_cli.language.grammar import Parsed, parse
from vla_cli.language.phrasing import paraphrases
from vla_cli.operators.grasps import gripper_dims, gripper_track, holding_frames
from vla_cli.progress import SILENT, Progress
from vla_cli.report import BASE, Condition, mean_row
from vla_cli.suites import Actor, Findings
from vla_cli.suites.kept import NOTHING_KEPT, Kept
from vla_cli.windows import Samples, Windows, join

BEFORE, HOLDING = "other-object", "other-place"
CONDITIONS = {
    BEFORE: "before the grasp, another object",
    HOLDING: "while something is held, another place",
}
EPISODES, FRAMES = 8, 3
"""How many episodes are looked at, and frames of each in either half."""
DRAWS = 8
"""Noise seeds a frame (methods.md: at least 8)."""
OTHERS = 3
"""Other instructions a frame, by turns."""
AT_ONCE = 32
"""Frames a batch."""
SHARES = ("agreement", "identified")
EPSILON = 1e-9
NO_ANSWER = 1.0
"""Response of the base below which there is nothing to keep: another seed moves its actions further than words do."""


@dataclass
class Asked:
    """Frames of one episode, and what is asked there.

    Attributes:
        episode: its name.
        samples: the frames, told what was demonstrated; N of them.
        reworded: other words for that.
        others: N lists of `OTHERS` or fewer other instructions, as many for every frame.
    """

    episode: str
    samples: Samples
    reworded: str
    others: list[list[str]]


def run(
    policies: Mapping[str, Actor],
    dataset: Dataset,
    alternatives: Sequence[Alternative],
    *,
    seed: int,
    episodes: int = EPISODES,
    references: Mapping[str, Actor] | None = None,
    progress: Progress = SILENT,
    kept: Kept = NOTHING_KEPT,
) -> Findings:
    """Measure how every policy answers to other words.

    Args:
        policies: name to policy.
        dataset: recorded episodes on the control clock, held out or not: nothing is fitted to them here.
        alternatives: what else could be asked in these scenes.
        seed: of the noise, shared by all policies and words.
        episodes: at most this many episodes, and at most `EPISODES`.
        references: name of an adapted policy to what its answers are held against; "base" for those not named.
        progress: told after every policy and condition.
        kept: what an earlier, interrupted evaluation has measured; what this one measures is kept there too.
    """
    chosen = _spread(dataset.demonstrations, min(episodes, EPISODES))
    chunk = next(iter(policies.values())).noise_shape(1)[1]
    asked = {c: [a for d in chosen if (a := _asked(d, dataset, chunk, alternatives, c))] for c in CONDITIONS}
    findings = Findings(warnings=[_nothing(c, alternatives) for c in CONDITIONS if not asked[c]])
    progress.start("asking for something else", len(policies) * sum(map(bool, asked.values())))
    for condition, frames in asked.items():
        if not frames:
            continue
        findings.conditions.append(Condition(condition, CONDITIONS[condition], _examples(frames)))
        answers = {}
        for name, policy in policies.items():
            answers[name] = _measured(policy, name, condition, frames, dataset, seed, kept)
            progress.advance(1, answer=float(np.mean([a.clearness for a in answers[name]])))
        for name, own in answers.items():
            reference = answers.get(BASE)
            if references and name in references:
                reference = _measured(references[name], f"{name}.reference", condition, frames, dataset, seed, kept)
            _tell(findings, name, condition, own, None if name == BASE else reference)
    if still := [name for name, policy in policies.items() if not policy.draws_noise]:
        findings.warnings.append(
            f"What draws no noise has no seed to measure a response in: it is not told of {', '.join(still)}."
        )
    return findings


def _tell(
    findings: Findings, name: str, condition: str, own: Sequence[_Answers], reference: Sequence[_Answers] | None
) -> None:
    """Add the rows of one policy under one condition, and say where they mean nothing."""
    noisy = all(a.draws_noise for a in own)
    figures = {"response": [a.response for a in own]} if noisy else {}
    answered = None if reference is None else float(np.mean([before.clearness for before in reference]))
    if reference is not None and answered is not None and answered >= NO_ANSWER:
        figures["kept"] = [a.kept(before) for a, before in zip(own, reference, strict=True)]
        figures["agreement"] = [a.agreement(before) for a, before in zip(own, reference, strict=True)]
    elif answered is not None:
        findings.warnings.append(
            f"{name}, {condition}: the base itself hardly answers to these instructions in these pictures (response "
            f"{answered:.2f}, where {NO_ANSWER:g} is what {'another seed' if noisy else 'a rewording'} does), so that "
            "nothing tells what is kept of it."
        )
    figures["identified"] = [a.identified for a in own]
    for metric, values in figures.items():
        within = (0.0, 1.0) if metric in SHARES else (-math.inf, math.inf)
        findings.rows.append(mean_row(name, condition, metric, values, within=within))


def _examples(frames: Sequence[Asked]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for asked in frames for texts in asked.others for text in texts))[:3]


def _spread(demonstrations: Sequence[Demonstration], count: int) -> list[Demonstration]:
    """At most so many, evenly spread."""
    rows = np.unique(np.linspace(0, len(demonstrations) - 1, count).round().astype(int))
    return [demonstrations[row] for row in rows if demonstrations[row].instructions]


def _nothing(condition: str, alternatives: Sequence[Alternative]) -> str:
    why = "no other instruction fits there" if alternatives else "no other instructions were given"
    return (
        f"The answer to other words {CONDITIONS[condition].partition(',')[0]} was not measured: {why} (--alternatives "
        "FILE: a YAML list of what else could be asked in these scenes)."
    )


# ---- what is asked where


def _asked(
    demonstration: Demonstration, dataset: Dataset, chunk: int, alternatives: Sequence[Alternative], condition: str
) -> Asked | None:
    """Frames and words of one episode under one condition; None where it has no such frame or there are no words."""
    holding = _holding(demonstration, dataset)
    # frames after the release are neither: the task is done, and whatever is asked then is asked of another scene
    rows = np.flatnonzero(holding if condition == HOLDING else ~np.maximum.accumulate(holding))
    shown = demonstration.instructions[0]
    texts = _fitting(shown, demonstration.instructions, alternatives, condition)
    if len(rows) == 0 or not texts:
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, FRAMES).round().astype(int))]
    samples = Windows([demonstration], dataset.cameras, chunk).gather(rows)
    count = min(OTHERS, len(texts))
    others = [[texts[(i * count + k) % len(texts)] for k in range(count)] for i in range(len(rows))]
    reworded = next(iter(paraphrases(shown, 1)), f"please {shown}")
    return Asked(demonstration.name, replace(samples, instructions=[shown] * len(rows)), reworded, others)


def _holding(demonstration: Demonstration, dataset: Dataset) -> np.ndarray:
    """[T] bool: whether something is in the gripper; nowhere, where no gripper is known."""
    track = gripper_track(demonstration.actions, gripper_dims(dataset.action_names, demonstration.actions))
    if track is None:
        return np.zeros(len(demonstration), bool)
    return holding_frames(track, float(track.min() + track.max()) / 2)


def _fitting(shown: str, instructions: Sequence[str], alternatives: Sequence[Alternative], condition: str) -> list[str]:
    """Other instructions that make a difference in this half of an episode.

    Another place makes none as long as the same object is to be taken first; what cannot be parsed is asked in both.
    """
    found = [a.instruction for a in not_shown(alternatives, instructions) if a.fits(condition == HOLDING)]
    if condition == HOLDING:
        return found
    own = parse(shown)
    return [text for text in found if own is None or (p := parse(text)) is None or _object(p) != _object(own)]


def _object(parsed: Parsed) -> tuple[str, tuple[str, ...]]:
    return parsed.object, parsed.attributes


# ---- what it answers


@dataclass
class _Answers:
    """One policy at the frames of one episode: N frames, D draws, K other instructions.

    Attributes:
        shown: float32 [N, T, A] mean chunk under the demonstrated words, 0 at padded steps.
        delta: float32 [K, D, N, T, A] what each other instruction changes, likewise.
        reworded, seeds: root mean squares of what other words for the same, and a second noise, change.
        identified: see the module's docstring.
        entries: draws times real steps times moving dimensions, over all frames.
    """

    shown: np.ndarray
    delta: np.ndarray
    reworded: float
    seeds: float
    identified: float
    entries: int

    @property
    def draws_noise(self) -> bool:
        """Whether a second noise changes anything."""
        return self.seeds > EPSILON

    @property
    def response(self) -> float:
        """S of the episode, where it draws noise."""
        return (_rms(self.delta, len(self.delta) * self.entries) - self.reworded) / max(self.seeds, EPSILON)

    @property
    def clearness(self) -> float:
        """How far other words move it in units of what is none: another seed, or else other words for the same."""
        if self.draws_noise:
            return self.response
        return _rms(self.delta, len(self.delta) * self.entries) / max(self.reworded, EPSILON)

    def kept(self, before: _Answers) -> float:
        """R of the episode."""
        ours, theirs = self.delta.astype(np.float64), before.delta.astype(np.float64)
        return float((ours * theirs).sum() / max(float((theirs**2).sum()), EPSILON))

    def agreement(self, before: _Answers) -> float:
        """Share of frames and instructions in which this policy goes the other's way."""
        answer = self.shown + self.delta.mean(axis=1)
        same, trained = before.shown + before.delta.mean(axis=1), before.shown
        nearer = ((answer - same) ** 2).sum(axis=(-1, -2)) < ((answer - trained) ** 2).sum(axis=(-1, -2))
        return float(nearer.mean())


def _measured(
    policy: Actor, name: str, condition: str, frames: Sequence[Asked], dataset: Dataset, seed: int, kept: Kept
) -> list[_Answers]:
    finished = kept.load(name, condition)
    if finished is not None:
        figures, arrays = finished
        return [_Answers(arrays[f"shown.{i}"], arrays[f"delta.{i}"], **of_one) for i, of_one in enumerate(figures)]
    answers = _answers(policy, frames, dataset, seed)
    figures = [{key: value for key, value in vars(a).items() if key not in ("shown", "delta")} for a in answers]
    arrays = {f"{key}.{i}": getattr(a, key) for i, a in enumerate(answers) for key in ("shown", "delta")}
    kept.save(name, condition, figures, arrays)
    return answers


def _answers(policy: Actor, frames: Sequence[Asked], dataset: Dataset, seed: int) -> list[_Answers]:
    """The answers of one policy, an entry an episode; frames of all episodes are asked together, which is faster."""
    samples = join([asked.samples for asked in frames])
    real = samples.real_steps[..., None]
    statistics = dataset.statistics.actions
    moving = ~statistics.constant
    rng = np.random.default_rng(seed)

    def scaled(actions: np.ndarray) -> np.ndarray:
        return actions[..., moving] / statistics.std[moving] * real

    def predicted(words: Sequence[str], noise: np.ndarray) -> np.ndarray:
        starts = range(0, len(samples), AT_ONCE)
        parts = [(samples[i : i + AT_ONCE], words[i : i + AT_ONCE], noise[i : i + AT_ONCE]) for i in starts]
        return scaled(np.concatenate([policy.act(p.images, p.state, list(told), z) for p, told, z in parts]))

    words = [samples.instructions, [asked.reworded for asked in frames for _ in asked.others]]
    count = min(len(texts) for asked in frames for texts in asked.others)
    words += [[texts[k] for asked in frames for texts in asked.others] for k in range(count)]
    draws = DRAWS if policy.draws_noise else 1
    noises = [rng.standard_normal(policy.noise_shape(len(samples)), np.float32) for _ in range(draws)]
    found = np.stack([np.stack([predicted(told, noise) for noise in noises]) for told in words])
    ends = np.cumsum([len(asked.samples) for asked in frames])
    recorded = scaled(samples.actions)
    return [
        _of_episode(found[:, :, end - len(asked.samples) : end], recorded[end - len(asked.samples) : end], asked)
        for asked, end in zip(frames, ends, strict=True)
    ]


def _of_episode(found: np.ndarray, recorded: np.ndarray, asked: Asked) -> _Answers:
    """Answers from chunks [2 + K, D, N, T, A] under the demonstrated words, other words for it, and K others."""
    shown, reworded, others = found[0], found[1], found[2:]
    entries = found.shape[1] * int(asked.samples.real_steps.sum()) * found.shape[-1]
    return _Answers(
        shown=shown.mean(axis=0).astype(np.float32),
        # sums depend on the order in memory, and what is kept on disk is in C order
        delta=np.ascontiguousarray(others - shown, np.float32),
        reworded=_rms(reworded - shown, entries),
        # each draw beside the next: as many differences as draws
        seeds=_rms(np.roll(shown, 1, axis=0) - shown, entries),
        identified=_identified(np.concatenate([shown[None], others]), recorded),
        entries=entries,
    )


def _rms(differences: np.ndarray, entries: int) -> float:
    return float(np.sqrt((differences.astype(np.float64) ** 2).sum() / max(entries, 1)))


def _identified(predicted: np.ndarray, recorded: np.ndarray) -> float:
    """Share of frames in which the first of the instructions predicts the recorded action best.

    Args:
        predicted: [1 + K, D, N, T, A], the demonstrated instruction first, 0 at padded steps.
        recorded: [N, T, A], likewise.
    """
    error = np.abs(predicted - recorded).mean(axis=(1, 3, 4))  # [1 + K, N]
    best = np.isclose(error, error.min(axis=0), rtol=1e-6, atol=0)
    return float((best[0] / best.sum(axis=0)).mean())
