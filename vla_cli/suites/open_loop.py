"""Open loop: how far the predicted actions are from the recorded ones, on held-out episodes.

This is an indicator of fit, not of obedience: a policy can match every recorded action and still be deaf. Two controls
help to read it: the same frames under no words and under nonsense. A policy whose error does not change with the
instruction is not shown to listen.

`action_error` of an episode: mean over windows, noise draws, real steps and dimensions of |predicted - recorded|, in
standard deviations of the recorded actions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_cli.dataset import Dataset, Demonstration
from vla_cli.progress import SILENT, Progress
from vla_cli.report import Condition, mean_row
from vla_cli.report.paired import compare_errors
from vla_cli.suites import Actor, Findings
from vla_cli.suites.kept import NOTHING_KEPT, Kept
from vla_cli.windows import Samples, Windows

CONDITIONS = {
    "trained": "the recorded instruction",
    "empty-instruction": "no words at all (control)",
    "nonsense-instruction": "words without meaning (control)",
}
NONSENSE = "florb zint wug daxing blicket"
WINDOWS_PER_EPISODE = 24
NOISE_DRAWS = 4


def run(
    policies: Mapping[str, Actor],
    dataset: Dataset,
    *,
    seed: int,
    episodes: int,
    progress: Progress = SILENT,
    kept: Kept = NOTHING_KEPT,
) -> Findings:
    """Measure every policy on the dataset's held-out episodes (on all of them, with a warning, when none is held out).

    Args:
        policies: name to policy.
        dataset: recorded episodes on the control clock.
        seed: of the flow noise, shared by all policies.
        episodes: at most this many episodes.
        progress: told after every policy and condition.
        kept: errors that an earlier, interrupted evaluation has measured; those of this one are kept there too.
    """
    findings = Findings(conditions=[Condition(name, asked) for name, asked in CONDITIONS.items()])
    chosen = dataset.split("valid")
    if not chosen:
        chosen = dataset.demonstrations
        findings.warnings.append("No episode is held out: the error is measured on the training episodes themselves.")
    chosen = chosen[:episodes]
    progress.start("comparing with recorded actions", len(policies) * len(CONDITIONS))
    errors: dict[tuple[str, str], list[float]] = {}
    for name, policy in policies.items():
        for condition in CONDITIONS:
            finished = kept.load(name, condition)
            measured = finished[0] if finished else [_error(policy, d, dataset, condition, seed) for d in chosen]
            if finished is None:
                kept.save(name, condition, measured)
            errors[name, condition] = measured
            findings.rows.append(mean_row(name, condition, "action_error", errors[name, condition]))
            progress.advance(1, error=findings.rows[-1].value)
    findings.comparisons = compare_errors(errors)
    return findings


def _error(policy: Actor, demonstration: Demonstration, dataset: Dataset, condition: str, seed: int) -> float:
    chunk = policy.noise_shape(1)[1]
    windows = Windows([demonstration], dataset.cameras, chunk)
    samples = windows.gather(windows.spread(WINDOWS_PER_EPISODE))
    words = {"empty-instruction": "", "nonsense-instruction": NONSENSE}
    if condition in words:
        samples.instructions = [words[condition]] * len(samples)
    rng = np.random.default_rng([seed, len(demonstration)])
    return float(np.mean([_distance(policy, samples, rng, dataset) for _ in range(NOISE_DRAWS)]))


def _distance(policy: Actor, samples: Samples, rng: np.random.Generator, dataset: Dataset) -> float:
    noise = rng.standard_normal(policy.noise_shape(len(samples)), np.float32)
    predicted = policy.act(samples.images, samples.state, samples.instructions, noise)
    statistics = dataset.statistics.actions
    moving = ~statistics.constant
    gap = np.abs(predicted - samples.actions)[..., moving] / statistics.std[moving]
    return float(gap[samples.real_steps].mean())
