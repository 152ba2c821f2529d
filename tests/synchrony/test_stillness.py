import numpy as np
import pytest

from vla_cli.synchrony.stillness import moves


def test_a_slow_motion_moves_at_every_rate() -> None:
    for rate in (5.0, 10.0, 50.0, 200.0):
        clock = np.arange(0, 8, 1 / rate)
        slow = np.interp(clock, [2, 6], [0, 0.06])[:, None]  # 15 mm/s: 0.3 mm a step at 50 Hz
        found = moves(slow, 1e-3, rate)[:, 0]
        assert found.shape == (len(clock) - 1,)
        assert found[(clock[:-1] > 2.2) & (clock[:-1] < 5.7)].all()
        assert not found[(clock[:-1] < 1.8) | (clock[:-1] > 6.2)].any()


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_of_a_few_frames_there_are_a_few_steps(steps: int) -> None:
    assert moves(np.zeros((steps, 2)), 0.1, 100.0).shape == (max(steps - 1, 0), 2)


def test_at_ten_hertz_and_less_every_step_is_judged_by_itself() -> None:
    values = np.random.default_rng(0).normal(size=(30, 3))
    assert np.array_equal(moves(values, 0.5, 10.0), np.abs(np.diff(values, axis=0)) > 0.5)
