"""Windows: the chunk after a frame, padded and marked at the end."""

from __future__ import annotations

import numpy as np
import pytest

from vla_cli.dataset import Demonstration
from vla_cli.errors import InputError
from vla_cli.windows import Windows, join


def demonstration(frames: int, size: int = 4, camera: str = "top") -> Demonstration:
    steps = np.arange(frames, dtype=np.float32)
    images = np.zeros((frames, size, size, 3), np.uint8) + steps.astype(np.uint8)[:, None, None, None]
    return Demonstration(f"d{frames}", {camera: images}, steps[:, None], steps[:, None], ["one", "two"])


def test_a_window_holds_the_frame_and_the_actions_from_there_on() -> None:
    windows = Windows([demonstration(5), demonstration(3)], ["top"], chunk=3)
    assert len(windows) == 8
    samples = windows.gather([1, 4, 7])
    assert samples.images[:, 0, 0, 0, 0].tolist() == [1, 4, 2]
    assert samples.actions[..., 0].tolist() == [[1, 2, 3], [4, 4, 4], [2, 2, 2]]
    assert samples.real_steps.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert samples.instructions == ["two", "one", "one"], "two phrasings take turns"


def test_drawing_repeats_nothing_while_there_is_enough() -> None:
    windows = Windows([demonstration(10)], ["top"], chunk=2)
    drawn = windows.draw(np.random.default_rng(0), 10)
    assert sorted(drawn.state[:, 0].tolist()) == list(range(10))
    assert len(windows.draw(np.random.default_rng(0), 25)) == 25


def test_joining_keeps_the_order() -> None:
    windows = Windows([demonstration(4)], ["top"], chunk=2)
    assert join([windows.gather([3]), windows.gather([0])]).state[:, 0].tolist() == [3, 0]


@pytest.mark.parametrize("size", [1, 3, 4, 7, 9])
def test_parts_are_the_whole_in_order(size: int) -> None:
    windows = Windows([demonstration(7)], ["top"], chunk=2)
    whole = windows.gather(range(7))
    parts = list(whole.parts(size))
    assert all(len(part) == size for part in parts[:-1]) and len(parts[-1]) <= size
    again = join(parts)
    assert again.instructions == whole.instructions
    for key in ("images", "state", "actions", "real_steps"):
        np.testing.assert_array_equal(getattr(again, key), getattr(whole, key))


@pytest.mark.parametrize(("limit", "numbers"), [(3, [0, 4, 9]), (10, list(range(10))), (99, list(range(10))), (1, [0])])
def test_spreading_reaches_from_the_first_window_to_the_last(limit: int, numbers: list[int]) -> None:
    assert Windows([demonstration(10)], ["top"], chunk=2).spread(limit).tolist() == numbers


def test_no_frames_and_missing_cameras_are_refused() -> None:
    with pytest.raises(InputError, match="no frames"):
        Windows([demonstration(0)], ["top"], chunk=2)
    with pytest.raises(InputError, match="wrist"):
        Windows([demonstration(3)], ["wrist"], chunk=2)
