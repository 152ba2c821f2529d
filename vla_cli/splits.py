"""Which episodes are held out: whole episodes, never single frames, so that no frame's neighbour gives it away.

Near-duplicates (one demonstration saved twice, or cut in two) are given as groups of names and never parted: a held-out
copy of a trained episode measures memory. Groups that share a name are one group.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from vla_cli.errors import ConfigError

LEAST_FOR_ONE = 5  # from this many episodes on, one is held out whatever the share
FRACTION, OPERATOR = "fraction", "operator"
_NAMED = "vla collect-ingest SOURCE --out EPISODES --overwrite --operator NAME, a log an operator"
UNKNOWN = "unknown"

Kind = tuple[str, ...]
"""What an episode is of: (operator, instruction); the instruction comes last."""


def parse_split(text: str) -> tuple[str, str]:
    """`--split` as its way and an operator's name or "": "fraction", "operator" or "operator:NAME".

    Raises:
        ConfigError: it is of another form.
    """
    way, colon, name = text.partition(":")
    if way not in (FRACTION, OPERATOR) or (colon and (way == FRACTION or not name)):
        raise ConfigError(f"--split is '{text}'", expected=f"{FRACTION}, {OPERATOR} or {OPERATOR}:NAME")
    return way, name


def count_held_out(episodes: int, share: float) -> int:
    """How many of `episodes` a share holds out: rounded, at least 1 of 5 or more, never all."""
    if share <= 0:
        return 0
    least = 1 if episodes >= LEAST_FOR_ONE else 0
    return min(max(least, round(share * episodes)), max(episodes - 1, 0))


def split_episodes(
    kinds: Mapping[str, Kind], share: float, seed: int, groups: Sequence[Collection[str]] = ()
) -> tuple[list[str], list[str]]:
    """Split episodes into those to train on and those held out.

    Each kind (an operator with an instruction) gives its fair part, as far as numbers allow, and the last episode of a
    kind, or else of an instruction, stays in training while there is any other choice: an instruction that is never
    trained cannot be judged. A group that is larger than what is still to be held out stays in training, so that groups
    make the held-out part smaller rather than larger, unless it would be empty: then the smallest group is held out.

    Args:
        kinds: episode name to its kind, in order.
        share: 0..1.
        seed: equal seeds give equal splits.
        groups: names that must stay on one side.

    Returns:
        train and valid, disjoint, each in the order of `kinds`; valid is empty when all are one group.
    """
    chance = random.Random(seed)
    pools: dict[Kind, list[list[str]]] = {}
    for unit in _units(list(kinds), groups):
        pools.setdefault(kinds[unit[0]], []).append(unit)
    sizes = Counter(kinds.values())
    for pool in pools.values():
        chance.shuffle(pool)
    order = sorted(pools)
    chance.shuffle(order)
    wanted = count_held_out(len(kinds), share)
    valid: set[str] = set()
    while len(valid) < wanted:
        fitting = [(kind, unit) for kind in order for unit in pools[kind] if len(unit) <= wanted - len(valid)]
        if not fitting and not valid:
            smallest = min((len(unit) for pool in pools.values() for unit in pool if len(unit) < len(kinds)), default=0)
            fitting = [(kind, unit) for kind in order for unit in pools[kind] if len(unit) == smallest]
        if not fitting:
            break
        trained = Counter(kind for name, kind in kinds.items() if name not in valid)
        held = {kind: sizes[kind] - trained[kind] for kind in sizes}
        # The kind that is farthest below its fair part of the held-out episodes; the last of a shuffled pool.
        due = {kind: wanted * sizes[kind] / len(kinds) - held[kind] for kind in order}
        spare = _sparing(fitting, kinds, trained)
        best = max((kind for kind, _ in spare), key=lambda kind: due[kind])
        chosen = next(unit for kind, unit in reversed(spare) if kind == best)
        pools[best].remove(chosen)
        valid.update(chosen)
    return _sides(kinds, valid)


def check_operator(people: Collection[str], operator: str) -> None:
    """Refuse to hold out an operator who cannot be, whatever else the episodes are.

    Args:
        people: the operators whose names are known.
        operator: whom to hold out; "" for any.

    Raises:
        ConfigError: there are fewer than two, or not that one.
    """
    if operator and operator not in people:
        known = ", ".join(sorted(people)) or "none"
        raise ConfigError(f"--split names the operator '{operator}'", expected=f"one of: {known}")
    if len(people) < 2:
        only = f"all who are named are '{next(iter(people))}'" if people else "no episode says who demonstrated"
        raise ConfigError(
            f"No operator can be held out: {only}", expected="two or more", hint=f"--split {FRACTION}, or {_NAMED}"
        )


def hold_out_operator(
    kinds: Mapping[str, Kind], seed: int, operator: str = "", groups: Sequence[Collection[str]] = ()
) -> tuple[list[str], list[str]]:
    """Hold out all episodes of one operator: does the policy work on what another person would show?

    Unless named, an operator is drawn of those without whom every instruction is still trained (of all, if there is
    none). Groups that reach into the operator's episodes are held out whole, other operators' episodes with them.

    Args:
        kinds: episode name to (operator, ..., instruction), in order.
        seed: equal seeds draw the same operator.
        operator: whom to hold out; "" to draw.
        groups: names that must stay on one side.

    Returns:
        train and valid, disjoint, each in the order of `kinds`; neither is empty.

    Raises:
        ConfigError: there is only one operator, not that one, or nothing is left to train on; or for some episodes
            nobody has said who demonstrated: they may be the held-out operator's.
    """
    counts = Counter(kind[0] for kind in kinds.values())
    people = sorted(name for name in counts if name != UNKNOWN)
    if counts[UNKNOWN] and people and (not operator or operator in people):
        raise ConfigError(
            f"{counts[UNKNOWN]} of {len(kinds)} episodes do not say who demonstrated, maybe the one held out",
            expected="an operator for each episode",
            hint=_NAMED,
        )
    check_operator(people, operator)
    units = _units(list(kinds), groups)
    left = {person: _without(person, kinds, units) for person in people}
    instructions = {kind[-1] for kind in kinds.values()}
    able = [person for person in people if {kinds[name][-1] for name in left[person]} == instructions]
    able = able or [person for person in people if left[person]] or people
    chosen = operator or random.Random(seed).choice(able)
    if not left[chosen]:
        raise ConfigError(
            f"Without '{chosen}' nothing is left to train on: all other episodes are near-duplicates of theirs",
            hint=f"--split {FRACTION}",
        )
    return _sides(kinds, set(kinds) - set(left[chosen]))


def _without(person: str, kinds: Mapping[str, Kind], units: Sequence[Sequence[str]]) -> list[str]:
    """The episodes of the groups that have none of a person's."""
    return [name for unit in units if all(kinds[other][0] != person for other in unit) for name in unit]


def _sides(kinds: Mapping[str, Kind], valid: set[str]) -> tuple[list[str], list[str]]:
    return [name for name in kinds if name not in valid], [name for name in kinds if name in valid]


def _sparing(
    fitting: list[tuple[Kind, list[str]]], kinds: Mapping[str, Kind], trained: Counter[Kind]
) -> list[tuple[Kind, list[str]]]:
    """Those that leave each of their kinds in training; else each of their instructions; else all."""
    taught = Counter[str]()
    for kind, count in trained.items():
        taught[kind[-1]] += count

    def leaves_kinds(unit: list[str]) -> bool:
        return all(trained[kind] > count for kind, count in Counter(kinds[name] for name in unit).items())

    def leaves_instructions(unit: list[str]) -> bool:
        return all(taught[text] > count for text, count in Counter(kinds[name][-1] for name in unit).items())

    for leaves in (leaves_kinds, leaves_instructions):
        kept = [(kind, unit) for kind, unit in fitting if leaves(unit)]
        if kept:
            return kept
    return fitting


def _units(names: Sequence[str], groups: Sequence[Collection[str]]) -> list[list[str]]:
    """The episodes that go together, in order: groups joined where they share a name, all others alone."""
    leader = {name: name for name in names}

    def first_of(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for group in groups:
        members = [name for name in names if name in group]
        for name in members[1:]:
            leader[first_of(name)] = first_of(members[0])
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(first_of(name), []).append(name)
    return list(units.values())
