"""Which episodes are held out: whole episodes, never single frames, so that no frame's neighbour gives it away."""

from __future__ import annotations

import random
from collections.abc import Mapping

LEAST_FOR_ONE = 5  # from this many episodes on, one is held out whatever the share


def count_held_out(episodes: int, share: float) -> int:
    """How many of `episodes` a share holds out: rounded, at least 1 of 5 or more, never all."""
    if share <= 0:
        return 0
    least = 1 if episodes >= LEAST_FOR_ONE else 0
    return min(max(least, round(share * episodes)), max(episodes - 1, 0))


def split_episodes(kinds: Mapping[str, tuple[str, ...]], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split episodes into those to train on and those held out.

    Each kind (an operator with an instruction) gives its fair part, as far as numbers allow, and the last episode of a
    kind stays in training while there is any other choice: an instruction that is never trained cannot be judged.

    Args:
        kinds: episode name to its kind, in order.
        share: 0..1.
        seed: equal seeds give equal splits.

    Returns:
        train and valid, disjoint, each in the order of `kinds`.
    """
    chance = random.Random(seed)
    pools: dict[tuple[str, ...], list[str]] = {}
    for name, kind in kinds.items():
        pools.setdefault(kind, []).append(name)
    sizes = {kind: len(pool) for kind, pool in pools.items()}
    for pool in pools.values():
        chance.shuffle(pool)
    order = sorted(pools)
    chance.shuffle(order)
    wanted = count_held_out(len(kinds), share)
    valid: set[str] = set()
    while len(valid) < wanted:
        spare = [kind for kind in order if len(pools[kind]) > 1] or [kind for kind in order if pools[kind]]
        # The kind that is farthest below its fair part of the held-out episodes.
        due = max(spare, key=lambda kind: wanted * sizes[kind] / len(kinds) - (sizes[kind] - len(pools[kind])))
        valid.add(pools[due].pop())
    return [name for name in kinds if name not in valid], [name for name in kinds if name in valid]
