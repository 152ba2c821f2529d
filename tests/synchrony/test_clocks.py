import numpy as np
import pytest

from vla_cli.episode import Stream
from vla_cli.errors import ConfigError
from vla_cli.synchrony.clocks import clock_faults, control_ticks, delayed, fault_notes, in_gaps


def stream(clock: np.ndarray, role: str = "state", name: str = "pose") -> Stream:
    return Stream(role, name, np.zeros((len(clock), 1)), np.asarray(clock, float))  # type: ignore[arg-type]


def test_clean_clocks_are_not_accused() -> None:
    rng = np.random.default_rng(0)
    for rate in (5, 10, 30, 200):
        clock = np.arange(400) / rate + rng.normal(0, 0.15 / rate, 400)
        assert clock_faults(stream(np.sort(clock))) == []


def test_every_injected_fault_is_found_with_its_time() -> None:
    clock = np.arange(100) / 10
    clock[30:] += 0.75
    clock[60] = clock[59]
    clock[80] = clock[79] - 0.2
    found = [(fault.kind, round(fault.start, 6), round(fault.seconds, 6)) for fault in clock_faults(stream(clock))]
    assert found[:2] == [("gap", 2.9, 0.85), ("doubled", 6.65, 0.0)]
    assert found[2] == ("backwards", 8.65, -0.2) and ("gap", 8.45, 0.4) in found
    notes = fault_notes(clock_faults(stream(clock)), 0.0)
    assert "state stream 'pose' is silent 2 time(s), 0.85 s at most (at 2.90, 8.45 s)" in notes
    assert "state stream 'pose' has the same time stamp twice 1 time(s) (at 6.65 s)" in notes
    assert "the clock of state stream 'pose' runs backwards 1 time(s) (at 8.65 s)" in notes


def test_ticks_in_a_gap_are_those_between_its_ends() -> None:
    clock = np.concatenate([np.arange(10), np.arange(20, 30)]) / 10
    inside = in_gaps(np.arange(30) / 10, clock_faults(stream(clock)))
    assert np.flatnonzero(inside).tolist() == list(range(10, 20))


def test_latency_is_taken_off_by_name_before_role() -> None:
    clock = np.arange(5) / 10
    streams = [stream(clock, "image", "front"), stream(clock, "image", "wrist"), stream(clock, "action", "a")]
    found = delayed(streams, {"camera": 0.05, "wrist": 0.1})
    assert [round(one.timestamps[0], 6) for one in found] == [-0.05, -0.1, 0.0]
    assert found[2] is streams[2] and streams[0].timestamps[0] == 0.0
    for wrong in ({"elbow": 0.1}, {"camera": float("nan")}):
        with pytest.raises(ConfigError, match=r"--latency (elbow|camera)"):
            delayed(streams, wrong)


def test_a_late_camera_leaves_the_control_loop_its_own_steps() -> None:
    clock = np.arange(20) / 10 + np.random.default_rng(0).uniform(0, 0.02, 20)
    recorded = [stream(clock, "image", "front"), stream(clock, "action", "a")]
    ticks, resampled = control_ticks(recorded, delayed(recorded, {"camera": 0.15}), 1, 10.0)
    assert resampled and np.array_equal(ticks, clock[clock <= clock[-1] - 0.15 + 0.002])
