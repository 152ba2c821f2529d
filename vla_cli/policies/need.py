"""Whether a fine-tuning needs any weights: `adapt: when-needed` asks what the calibrated base can already do."""

from __future__ import annotations

from collections.abc import Callable

from vla_cli.calibration import Calibration
from vla_cli.dataset import Dataset
from vla_cli.policies.competence import ENOUGH, measure_competence
from vla_cli.policies.policy import Policy
from vla_cli.progress import Progress
from vla_cli.provenance import RunRecord
from vla_cli.recipe import Recipe
from vla_cli.windows import Windows


def weights_needed(
    recipe: Recipe,
    dataset: Dataset,
    frozen: Callable[[], Policy],
    calibration: Calibration | None,
    *,
    statistics_from: str,
    seed: int,
    record: RunRecord,
    progress: Progress,
) -> bool:
    """Whether weights are to be trained.

    Args:
        recipe: of the run.
        dataset: its demonstrations for training are what the base is to be able to do, as recorded.
        frozen: loads the untouched base; called only where the answer depends on it.
        calibration: through which the base acts, or None.
        statistics_from: "base", or "dataset" for a robot that is new to the base, for which weights always are.
        seed: of flow noise and random pairing.
        record: the competence that was measured goes there.
        progress: is told in words.
    """
    if not recipe.trains:
        return False
    if recipe.adapt == "always" or statistics_from != "base":
        return True
    policy = frozen()
    policy.calibrate(calibration)
    windows = Windows(dataset.split("train"), policy.spec.cameras, policy.spec.chunk_size)
    closed = calibration.closed if calibration is not None else None
    found = measure_competence(policy, windows, closed=closed, seed=seed)
    record.facts["competence"] = {**found.document(), "enough": ENOUGH}
    needed = found.lowest < ENOUGH
    progress.note(
        f"the base{' as calibrated' if calibration else ''} predicts the demonstrations {found.lowest:.0%} better than "
        f"chance where it is worst ({found.worst}): "
        + ("weights are adapted" if needed else "its weights are left alone, so it cannot go deaf")
    )
    return needed
