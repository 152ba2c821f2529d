"""The parts of a calibration by name, and which of them are on."""

from __future__ import annotations

from collections.abc import Iterable

PARTS = ("look", "camera", "action", "delay", "timing")


def parts_on(
    *,
    looks: Iterable[object],
    warps: Iterable[object],
    ratio: object,
    delays: Iterable[int],
    limits: Iterable[float | None],
) -> list[str]:
    """The parts that change something, by their entries alone: those of a `Calibration`, or of its JSON document.

    Args:
        looks, warps: one a camera, None (or empty) where it is left alone.
        ratio: of the commands, None where they are left alone.
        delays: further control steps that each gripper needs.
        limits: of the speeds, None where the base's own stays.
    """
    on = {
        "look": any(looks),
        "camera": any(warps),
        "action": ratio is not None,
        "delay": any(delay > 0 for delay in delays),
        "timing": any(limit is not None for limit in limits),
    }
    return [part for part in PARTS if on[part]]
