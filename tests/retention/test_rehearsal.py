"""Rehearsal: replayed pictures take the demonstrations' style, and nothing else about them changes."""

from __future__ import annotations

import numpy as np
import pytest

from vla_cli.dataset import Demonstration
from vla_cli.errors import ConfigError
from vla_cli.retention import RETENTION, Context
from vla_cli.retention.rehearsal import Rehearsal, channel_style, match_style, warp
from vla_cli.windows import Windows


def windows(level: int, spread: int, instruction: str, frames: int = 12) -> Windows:
    rng = np.random.default_rng(level)
    images = np.clip(rng.normal(level, spread, (frames, 24, 24, 3)), 0, 255).astype(np.uint8)
    state, actions = rng.normal(size=(frames, 4)), rng.normal(size=(frames, 3))
    demo = Demonstration("demo", {"top": images}, state.astype("f4"), actions.astype("f4"), [instruction])
    return Windows([demo], ["top"], chunk=4)


def context() -> Context:
    return Context(demonstrations=windows(60, 10, "new"), replay=windows(180, 30, "old"))


def test_matched_images_have_the_wanted_style() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(120, 20, (5, 2, 16, 16, 3)).astype(np.float32)
    wanted = channel_style(rng.normal(70, 8, (5, 2, 16, 16, 3)))
    np.testing.assert_allclose(channel_style(match_style(images, wanted)), wanted, rtol=1e-3)


def test_replayed_windows_look_like_the_demonstrations_and_say_what_they_said() -> None:
    method = Rehearsal(fraction=0.5, style_probability=1.0)
    method.prepare(context())
    drawn = method.draw(np.random.default_rng(0), 8)
    assert abs(drawn.images.mean() - 60) < 3, "the demonstrations' mean"
    assert abs(drawn.images.std() - 10) < 3, "the demonstrations' spread"
    assert set(drawn.instructions) == {"old"}
    plain = windows(180, 30, "old")
    originals = plain.gather(range(len(plain)))
    for state, action in zip(drawn.state, drawn.actions, strict=True):
        which = np.flatnonzero((originals.state == state).all(1))
        assert len(which) == 1 and (originals.actions[which[0]] == action).all()


def test_without_style_the_pictures_are_untouched() -> None:
    method = Rehearsal(style_probability=0.0)
    method.prepare(context())
    drawn = method.draw(np.random.default_rng(0), 6)
    assert abs(drawn.images.mean() - 180) < 3


def test_a_warp_by_nothing_changes_nothing_and_a_quarter_turn_turns() -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, 1, 9, 9, 3)).astype(np.float32)
    still = warp(images, np.zeros(2), np.ones(2), np.zeros((2, 2)))
    np.testing.assert_allclose(still, images, atol=1e-3)
    turned = warp(images, np.full(2, np.pi / 2), np.ones(2), np.zeros((2, 2)))
    np.testing.assert_allclose(turned[0, 0], np.rot90(images[0, 0], 1), atol=1e-2)


@pytest.mark.parametrize(("fraction", "batch", "share"), [(0.25, 32, 8), (0.75, 32, 24), (0.01, 8, 1), (0.99, 8, 7)])
def test_both_sides_get_at_least_one_window(fraction: float, batch: int, share: int) -> None:
    assert Rehearsal(fraction=fraction).share(batch) == share


def test_rehearsal_without_data_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"--replay"):
        Rehearsal().prepare(Context(windows(60, 10, "new"), None))


def test_unknown_and_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="'share'"):
        Rehearsal(share=0.5)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Rehearsal(fraction=1.5)


@pytest.mark.parametrize("name", list(RETENTION))
def test_every_method_answers_the_training_loops_calls(name: str) -> None:
    method = RETENTION.get(name)()
    method.prepare(context())
    share = method.share(16)
    assert 0 <= share < 16
    assert len(method.draw(np.random.default_rng(0), share)) == share
    assert isinstance(method.facts(), dict)
