from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cli.splits import count_held_out, split_episodes

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
