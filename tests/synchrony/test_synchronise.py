import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cli.configs import format_indices, parse_indices
from vla_cli.episode import Episode, Skipped, Stream
from vla_cli.errors import ConfigError
from vla_cli.synchrony.synchronise import Synchronised, SyncOptions, clean_rate, motion, square, synchronise


def numbered(clock: np.ndarray) -> np.ndarray:
    """Pictures whose colour is their index."""
    return np.broadcast_to(np.arange(len(clock), dtype=np.uint8)[:, None, None, None], (len(clock), 8, 8, 3)).copy()


def episode(camera: np.ndarray, state: np.ndarray, action: np.ndarray) -> Episode:
    """Streams on the given clocks: the state is 2t and a gripper that closes at 1 s, the action is its own index."""
    values = np.stack([2 * state, (state > 1).astype(float)], axis=1)
    commands = np.arange(len(action), dtype=np.float32)[:, None]
    streams = [
        Stream("image", "cam", numbered(camera), camera),
        Stream("state", "pose", values, state),
        Stream("action", "action", commands, action),
    ]
    return Episode("one", streams, ["go"], operator="ada")


def sync(one: Episode, **options) -> Synchronised:
    result = synchronise(one, SyncOptions(**{"rate": 10.0, "cameras": ("cam",), "keep_idle": True, **options}))
    assert isinstance(result, Synchronised), result
    return result


def test_a_shared_clock_is_kept_whatever_its_jitter() -> None:
    clock = np.arange(30) / 10 + np.random.default_rng(0).uniform(-0.02, 0.02, 30)
    one = episode(clock, clock, clock)
    result = sync(one)
    assert not result.resampled
    assert np.array_equal(result.demonstration.actions[:, 0], np.arange(30))
    assert np.array_equal(result.demonstration.images["cam"][:, 0, 0, 0], np.arange(30))
    assert np.array_equal(result.demonstration.state, one.streams[1].values.astype(np.float32))


def test_streams_on_their_own_clocks_meet_on_one() -> None:
    one = episode(camera=np.arange(0, 3, 0.2), state=np.arange(0.05, 3, 0.02), action=np.arange(0, 3, 0.1))
    result = sync(one)
    ticks = 0.05 + np.arange(len(result.demonstration)) / 10  # the overlap begins with the state, the last to start
    assert result.resampled and ticks[-1] <= 2.8 + 1e-9
    assert np.array_equal(result.demonstration.images["cam"][:, 0, 0, 0], np.floor(ticks / 0.2 + 0.01))
    assert np.allclose(result.demonstration.state[:, 0], 2 * ticks, atol=1e-6)
    assert set(np.unique(result.demonstration.state[:, 1])) == {0.0, 1.0}
    # Every tick is midway between two commands: the earlier one each time, none twice and none never.
    assert np.array_equal(result.demonstration.actions[:, 0], np.arange(len(ticks)))


def test_a_camera_never_sees_ahead() -> None:
    one = episode(camera=np.arange(0, 3, 0.33), state=np.arange(0, 3, 0.1), action=np.arange(0, 3, 0.1))
    frames = sync(one).demonstration.images["cam"][:, 0, 0, 0]
    assert np.all(frames * 0.33 <= np.arange(len(frames)) / 10 + 0.003)


def test_commands_are_never_blended_when_the_rate_changes() -> None:
    clock = np.arange(0, 3, 0.05)
    for rate in (5.0, 7.3, 40.0):
        result = sync(episode(clock, clock, clock), rate=rate)
        assert np.array_equal(result.demonstration.actions, np.round(result.demonstration.actions))
        assert any("another distance" in note for note in result.notes)


def test_an_angle_that_wraps_is_held_not_blended() -> None:
    clock = np.arange(0, 2, 0.1)
    one = episode(clock, clock, clock)
    angle = np.where(clock < 1, 3.0 + clock / 10, -3.1 + clock / 10)[:, None]
    one.streams[1].values = angle
    result = sync(one, rate=20.0)
    assert np.abs(result.demonstration.state).min() > 2.8


def test_a_hole_in_a_shared_clock_is_resampled_and_told() -> None:
    clock = np.concatenate([np.arange(10), np.arange(20, 30)]) / 10
    result = sync(episode(clock, clock, clock))
    assert result.resampled and result.gaps == 1 and len(result.demonstration) == 30
    assert any("silent 1 time(s), 1.10 s" in note for note in result.notes)


def test_streams_that_do_not_overlap_are_skipped() -> None:
    one = episode(np.arange(0, 1, 0.1), np.arange(5, 6, 0.1), np.arange(0, 1, 0.1))
    result = synchronise(one, SyncOptions(rate=10, cameras=("cam",)))
    assert isinstance(result, Skipped) and "overlap" in result.reason


def test_a_missing_camera_is_skipped_with_those_there_are() -> None:
    clock = np.arange(5) / 10
    result = synchronise(episode(clock, clock, clock), SyncOptions(rate=10, cameras=("wrist",)))
    assert isinstance(result, Skipped) and "no camera wrist (it has cam)" in result.reason


def test_idle_head_and_tail_go_but_for_a_few_frames() -> None:
    clock = np.arange(40) / 10
    one = episode(clock, clock, clock)
    one.streams[1].values = np.clip(clock - 1.0, 0, 1.5)[:, None]  # moves from frame 10 to frame 25
    one.streams[2].values = np.zeros((40, 1))
    result = sync(one, keep_idle=False)
    assert (result.idle_head, result.idle_tail) == (9, 13)
    assert len(result.demonstration) == 18
    assert result.demonstration.images["cam"][0, 0, 0, 0] == 9


def test_a_gripper_command_alone_is_motion() -> None:
    state, action = np.zeros((20, 3)), np.zeros((20, 2))
    action[12:, 1] = 1.0
    assert motion(state, action) == (10, 14)


@pytest.mark.parametrize("grippers", [None, [1]])
@pytest.mark.parametrize("kind", ["ramp", "three values"])
def test_a_release_at_the_end_is_motion_whatever_values_it_takes(kind: str, grippers: list[int] | None) -> None:
    steps, state = np.arange(60), np.zeros((60, 2))
    state[:40, 0] = np.linspace(0, 1, 40)
    state[40:, 0] = 1.0
    ramp = np.clip((steps - 45) / 8, 0, 1)
    levels = np.where(steps < 5, 0.0, np.where(steps < 48, 1.0, -1.0))
    gripper, end = (ramp, 55) if kind == "ramp" else (levels, 50)
    assert motion(state, np.stack([state[:, 0], gripper], axis=1), grippers=grippers) == (0, end)


@pytest.mark.parametrize("rate", [10, 100, 500])
def test_how_fast_something_moves_and_not_how_often_it_is_measured_makes_it_motion(rate: int) -> None:
    seconds = np.arange(20 * rate + 1) / rate
    state = np.clip(seconds - 5, 0, 10)[:, None] * [0.005, -0.004]  # a slow insertion, 5 mm/s from 5 s to 15 s
    start, stop = motion(state, np.zeros((len(seconds), 1)), rate=rate)
    assert 4.7 < start / rate <= 5.0 and 15.0 <= stop / rate < 15.4
    noise = np.random.default_rng(0).uniform(0, 5e-5, state.shape)
    assert motion(noise, np.zeros((len(seconds), 1)), rate=rate) == (0, 0)


def test_noise_below_the_floor_is_no_motion() -> None:
    state = np.random.default_rng(0).uniform(0, 5e-5, (20, 3))
    assert motion(state, np.zeros((20, 1))) == (0, 0)


def test_an_episode_in_which_nothing_moves_is_skipped_unless_kept() -> None:
    clock = np.arange(10) / 10
    one = episode(clock, clock, clock)
    one.streams[1].values, one.streams[2].values = np.ones((10, 2)), np.ones((10, 1))
    result = synchronise(one, SyncOptions(rate=10, cameras=("cam",)))
    assert isinstance(result, Skipped) and "--keep-idle" in result.reason
    assert len(sync(one).demonstration) == 10


def test_without_state_nothing_is_trimmed() -> None:
    assert motion(np.zeros((7, 0)), np.zeros((7, 2))) == (0, 7)


def test_dimensions_are_picked_and_named() -> None:
    clock = np.arange(8) / 10
    one = episode(clock, clock, clock)
    one.streams.append(Stream("state", "arm", np.arange(24.0).reshape(8, 3), clock, {"names": ["x", "y", "z"]}))
    result = sync(one, state_dims="4,0-1")
    assert result.state_names == ["pose[1]", "arm.x", "arm.y"]
    assert result.demonstration.state[1].tolist() == [0.0, 3.0, 4.0]
    with pytest.raises(ConfigError, match="--action-dims"):
        sync(one, action_dims="0-3")


@pytest.mark.parametrize(
    ("measured", "clean"), [(9.98, 10), (29.97, 30), (20.00002, 20), (12.5, 12.5), (14.8, 15), (0.7, 0.7), (49.5, 50)]
)
def test_measured_rates_become_clean_ones(measured: float, clean: float) -> None:
    assert clean_rate(measured) == pytest.approx(clean)


def test_pictures_are_padded_with_black_and_resized() -> None:
    picture = np.full((10, 20, 3), 200, np.uint8)
    result = square(picture, 10)
    assert result.shape == (10, 10, 3) and result.dtype == np.uint8
    assert result[0].max() == 0 and result[5].min() == 200 and result[-1].max() == 0
    exact = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    assert square(exact, 10) is exact


def posed(steps: int = 40, **stated) -> Episode:
    """A pose of 3 positions, a quaternion and a gripper that is high when open; commands are the next pose."""
    clock = np.arange(steps) / 10
    rng = np.random.default_rng(0)
    turns = Rotation.from_rotvec(np.cumsum(rng.uniform(0, 0.1, (steps, 3)), axis=0)).as_quat()
    gripper = (clock < 2).astype(float)[:, None]
    pose = np.concatenate([np.cumsum(rng.uniform(0, 0.02, (steps, 3)), axis=0), turns, gripper], axis=1)
    facts = {"rotation": "quaternion-xyzw", "units": "m", "gripper": "open-high", "frame": "base", **stated}
    one = episode(clock, clock, clock)
    one.streams[1] = Stream("state", "pose", pose, clock, facts)
    one.streams[2] = Stream(
        "action", "action", np.concatenate([pose[1:], pose[-1:]]), clock, {"mode": "absolute", **facts}
    )
    return one


def test_options_are_off_by_default_and_change_nothing_on_the_own_clock() -> None:
    one = posed()
    result = sync(one)
    assert result.demonstration.state.tobytes() == one.streams[1].values.astype(np.float32).tobytes()
    assert result.demonstration.actions.tobytes() == one.streams[2].values.astype(np.float32).tobytes()
    assert result.notes == [] and result.action_mode == "absolute"


def test_rotations_turn_and_grippers_hold_between_samples() -> None:
    state = sync(posed(), rate=20.0).demonstration.state
    assert np.allclose(np.linalg.norm(state[:, 3:7], axis=1), 1, atol=1e-6)
    assert set(np.unique(state[:, 7])) == {0.0, 1.0}


def test_quaternions_that_change_sign_are_mended_and_told() -> None:
    one, broken = posed(), posed()
    broken.streams[1].values[10:20, 3:7] *= -1
    result = sync(broken)
    assert np.array_equal(result.demonstration.state, sync(one).demonstration.state)
    assert any("change sign 2 time(s)" in note for note in result.notes)


def test_where_the_hands_rotation_stands_is_told_as_long_as_it_is_whole() -> None:
    assert sync(posed()).rotation == (3, "quaternion-xyzw", False)
    assert sync(posed(), state_dims="1-7").rotation == (2, "quaternion-xyzw", False)
    assert sync(posed(), state_dims="0-5").rotation is None
    assert sync(posed(rotation="unknown")).rotation is None


def test_a_late_camera_is_put_back_and_nothing_else_moves() -> None:
    one = posed()
    result = sync(one, latency={"camera": 0.2})
    assert np.array_equal(result.demonstration.images["cam"][:, 0, 0, 0], np.arange(2, 40))
    assert np.array_equal(result.demonstration.actions, one.streams[2].values[:38].astype(np.float32))
    with pytest.raises(ConfigError, match="--latency elbow"):
        sync(one, latency={"elbow": 0.2})


def test_the_source_of_each_frame_is_told() -> None:
    one = episode(camera=np.arange(0, 3, 0.2), state=np.arange(0, 3, 0.1), action=np.arange(0, 3, 0.1))
    result = sync(one)
    assert np.array_equal(result.frame_indices["cam"], result.demonstration.images["cam"][:, 0, 0, 0])
    assert np.sum(np.diff(result.frame_indices["cam"]) == 0) == 14  # every other frame is the one before
    assert np.allclose(result.ticks, np.arange(29) / 10)


def test_frames_in_a_gap_are_counted_and_its_time_told() -> None:
    clock = np.concatenate([np.arange(10), np.arange(20, 30)]) / 10
    result = sync(episode(clock, clock, clock))
    assert result.ticks_in_gaps == 10 and np.flatnonzero(result.in_gap).tolist() == list(range(10, 20))
    assert {fault.kind for fault in result.clock_faults} == {"gap"} and len(result.clock_faults) == 3
    assert sync(posed()).clock_faults == [] and sync(posed()).ticks_in_gaps == 0


def test_a_clock_that_runs_backwards_is_skipped_with_its_time() -> None:
    one = posed()
    one.streams[1].timestamps = one.streams[1].timestamps.copy()
    one.streams[1].timestamps[20] = 1.0
    result = synchronise(one, SyncOptions(rate=10, cameras=("cam",)))
    assert isinstance(result, Skipped) and "state stream 'pose' runs backwards 1 time(s) (at 1.90 s)" in result.reason


def test_actions_are_made_what_is_asked_for() -> None:
    one = posed()
    plain, delta, following = (sync(one, actions=a) for a in ("as-recorded", "delta", "next-state"))
    pose = one.streams[1].values
    assert delta.action_mode == "delta"
    assert np.allclose(delta.demonstration.actions[:-1, :3], np.diff(pose[:, :3], axis=0), atol=1e-6)
    assert np.all(delta.demonstration.actions[:, 6] > 0.9)  # small turns, w near 1
    assert np.array_equal(following.demonstration.actions[:-1], plain.demonstration.state[1:])
    assert following.action_names == plain.state_names
    assert {len(x.demonstration) for x in (plain, delta, following)} == {40}
    with pytest.raises(ConfigError, match="mode"):
        clock = np.arange(10) / 10
        sync(episode(clock, clock, clock), actions="delta")
    with pytest.raises(ConfigError, match="--actions is 'other'"):
        sync(one, actions="other")


def test_grippers_are_low_when_open_if_asked() -> None:
    one = posed()
    result = sync(one, gripper="normalise")
    for name, recorded in (("state", one.streams[1]), ("actions", one.streams[2])):
        assert np.array_equal(getattr(result.demonstration, name)[:, 7], 1 - recorded.values[:, 7])
    assert sum("mirrored" in note for note in result.notes) == 2


def test_next_states_have_the_grippers_of_the_states() -> None:
    one = posed()
    one.streams[1].values[:, 7] = 1.0  # open all the time, while it closes to -1 in other episodes
    ranges = {"state/pose": (-1.0, 1.0)}
    result = sync(one, actions="next-state", gripper="normalise", gripper_ranges=ranges).demonstration
    assert np.all(result.state[:, 7] == -1) and np.all(result.actions[:, 7] == -1)


def test_what_float32_cannot_hold_leaves_its_episode_out_and_not_the_whole_dataset_undone() -> None:
    one = posed()
    one.streams[1].values = one.streams[1].values.astype(np.float64)
    one.streams[1].values[4, 0] = np.finfo(np.float64).max
    result = synchronise(one, SyncOptions(rate=10.0, cameras=("cam",), keep_idle=True))
    assert isinstance(result, Skipped) and "1.798e+308, which float32 cannot hold (1 such" in result.reason


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_same_clock_gives_the_same_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clock = np.arange(20) / 10 + rng.uniform(-0.02, 0.02, 20)
    one = episode(clock, clock, clock)
    one.streams[1].values = rng.normal(size=(20, 4)).astype(np.float32)
    one.streams[2].values = rng.normal(size=(20, 3)).astype(np.float32)
    result = sync(one)
    assert result.demonstration.state.tobytes() == one.streams[1].values.tobytes()
    assert result.demonstration.actions.tobytes() == one.streams[2].values.tobytes()


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 60), min_size=1))
def test_index_lists_survive_their_text(indices: set[int]) -> None:
    ordered = sorted(indices)
    assert parse_indices(format_indices(ordered), 61, "--x") == ordered
