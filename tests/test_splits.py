import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cli.errors import ConfigError
from vla_cli.splits import count_held_out, hold_out_operator, parse_split, split_episodes

KINDS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(KINDS, st.floats(0, 0.9), st.integers(0, 9))
def test_every_episode_is_on_exactly_one_side(kinds: list, share: float, seed: int) -> None:
    named = {f"e{i}": kind for i, kind in enumerate(kinds)}
    train, valid = split_episodes(named, share, seed)
    assert sorted(train + valid) == sorted(named) and not set(train) & set(valid)
    assert len(valid) == count_held_out(len(named), share) and train
    assert (train, valid) == split_episodes(named, share, seed)


def test_each_kind_gives_its_part() -> None:
    named = {f"e{i}": (("ada", "bo")[i % 2], "lift") for i in range(20)}
    _, valid = split_episodes(named, 0.2, seed=3)
    assert len(valid) == 4 and sorted(named[name][0] for name in valid) == ["ada", "ada", "bo", "bo"]


def test_the_last_episode_of_an_instruction_stays_in_training() -> None:
    named = {f"e{i}": ("ada", "lift" if i else "rare") for i in range(10)}
    for seed in range(20):
        assert "e0" in split_episodes(named, 0.3, seed)[0]


def test_few_episodes() -> None:
    assert [count_held_out(n, 0.1) for n in (1, 4, 5, 10, 30)] == [0, 0, 1, 1, 3]
    assert count_held_out(10, 0.0) == 0 and count_held_out(2, 0.9) == 1


def test_seeds_differ() -> None:
    named = {f"e{i}": ("ada", "lift") for i in range(20)}
    assert len({tuple(split_episodes(named, 0.1, seed)[1]) for seed in range(10)}) > 3


GROUPS = st.lists(st.sets(st.integers(0, 45).map("e{}".format), max_size=5), max_size=5)


def unbroken(groups, train: list[str], valid: list[str]) -> bool:
    return not any(set(group) & set(train) and set(group) & set(valid) for group in groups)


@settings(max_examples=150, deadline=None)
@given(KINDS, st.floats(0, 0.9), st.integers(0, 9), GROUPS)
def test_near_duplicates_stay_on_one_side(kinds: list, share: float, seed: int, groups: list) -> None:
    named = {f"e{i}": kind for i, kind in enumerate(kinds)}
    train, valid = split_episodes(named, share, seed, groups)
    assert sorted(train + valid) == sorted(named) and not set(train) & set(valid) and train
    assert unbroken(groups, train, valid)
    assert (train, valid) == split_episodes(named, share, seed, list(reversed(groups)))
    smallest = 1 + max((len(group) for group in groups), default=0) * len(groups)
    assert len(valid) <= max(count_held_out(len(named), share), smallest)


@settings(max_examples=100, deadline=None)
@given(KINDS, st.floats(0, 0.9), st.integers(0, 9))
def test_every_instruction_stays_in_training_while_that_is_possible(kinds: list, share: float, seed: int) -> None:
    named = {f"e{i}": kind for i, kind in enumerate(kinds)}
    train, _ = split_episodes(named, share, seed)
    trained, kinds_trained = {named[name][-1] for name in train}, {named[name] for name in train}
    if len(train) >= len({kind[-1] for kind in kinds}):
        assert trained == {kind[-1] for kind in kinds}
    if len(train) >= len(set(kinds)):
        assert kinds_trained == set(kinds)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=1, max_size=5), st.integers(0, 9))
def test_pairs_of_copies_do_not_take_an_instruction_out_of_training(counts: list[int], seed: int) -> None:
    named = {f"{text}{i}": ("ada", str(text)) for text, count in enumerate(counts) for i in range(count)}
    groups = [{f"{text}0", f"{text}1"} for text in range(len(counts))]
    train, valid = split_episodes(named, 0.2, seed, groups)
    alone = sum(counts) - 2 * len(counts)
    wanted = count_held_out(len(named), 0.2)
    if alone >= wanted:
        assert {named[name] for name in train} == set(named.values()) and bool(valid) == (wanted > 0)
    assert unbroken(groups, train, valid)


def test_when_all_are_copies_of_one_nothing_can_be_held_out() -> None:
    named = {f"e{i}": ("ada", "lift") for i in range(6)}
    assert split_episodes(named, 0.3, 0, [set(named)]) == (list(named), [])
    # chained groups are one group, and names that are not there are passed over
    chain = [{"e0", "e1", "gone"}, {"e1", "e2"}, {"e3", "e2"}, {"e4", "e5"}]
    assert split_episodes(named, 0.2, 0, chain)[1] == ["e4", "e5"]


def test_groups_of_one_change_nothing() -> None:
    chance = random.Random(0)
    named = {f"e{i}": (chance.choice("ab"), chance.choice("xyz")) for i in range(30)}
    for seed in range(5):
        assert split_episodes(named, 0.2, seed, [{"e3"}, set()]) == split_episodes(named, 0.2, seed)


@settings(max_examples=100, deadline=None)
@given(KINDS, st.integers(0, 9), GROUPS)
def test_a_held_out_operator_is_in_no_training_episode(kinds: list, seed: int, groups: list) -> None:
    named = {f"e{i}": kind for i, kind in enumerate(kinds)}
    people = {kind[0] for kind in kinds}
    try:
        train, valid = hold_out_operator(named, seed, groups=groups)
    except ConfigError:
        assert len(people) < 2 or groups
        return
    assert sorted(train + valid) == sorted(named) and not set(train) & set(valid) and train and valid
    assert unbroken(groups, train, valid) and len({named[name][0] for name in train}) < len(people)
    assert (train, valid) == hold_out_operator(named, seed, groups=groups)
    if not groups:
        assert len({named[name][0] for name in valid}) == 1


def test_an_operator_without_whom_an_instruction_is_lost_is_not_drawn() -> None:
    named = {f"e{i}": (("ada", "bo", "cy")[i % 3], "lift") for i in range(9)} | {"e9": ("bo", "rare")}
    drawn = {named[hold_out_operator(named, seed)[1][0]][0] for seed in range(20)}
    assert drawn == {"ada", "cy"}
    assert [named[name][0] for name in hold_out_operator(named, 0, "bo")[1]] == ["bo"] * 4


def test_an_operator_that_cannot_be_held_out_is_refused() -> None:
    one = {f"e{i}": ("ada", "lift") for i in range(3)}
    with pytest.raises(ConfigError, match="all who are named are 'ada'"):
        hold_out_operator(one, 0)
    with pytest.raises(ConfigError, match="one of: ada"):
        hold_out_operator(one, 0, "bo")
    with pytest.raises(ConfigError, match="no episode says"):
        hold_out_operator({"e0": ("unknown", "lift")}, 0)
    with pytest.raises(ConfigError, match="1 of 4 episodes do not say"):
        hold_out_operator(one | {"e3": ("unknown", "lift")}, 0, "ada")
    with pytest.raises(ConfigError, match="near-duplicates"):
        hold_out_operator(one | {"e3": ("bo", "lift")}, 0, "bo", [{"e0", "e1"}, {"e1", "e2", "e3"}])


def test_ways_to_split_are_parsed() -> None:
    assert parse_split("fraction") == ("fraction", "") and parse_split("operator") == ("operator", "")
    assert parse_split("operator:ada b") == ("operator", "ada b")
    for text in ("", "frames", "fraction:x", "operator:"):
        with pytest.raises(ConfigError, match="--split is"):
            parse_split(text)
