"""What is counted in frames or steps means the same at every rate."""

from dataclasses import replace

import numpy as np
import pytest
from builders import motion

from vla_cli.episode import Episode, Stream, UnusableError
from vla_cli.operators.habits import Record, habits_of, space_of
from vla_cli.quality import examine, judge, motion_of
from vla_cli.quality.fixes import repair
from vla_cli.quality.motion import idle_runs
from vla_cli.quality.rates import at_one_rate


def reach(index: int, rate: float, delay: float = 0.0, seconds: float = 6.0, **names: str) -> Episode:
    """A smooth way there and back on three axes, commanded `delay` seconds ahead; pictures of noise."""
    rng = np.random.default_rng(index)
    clock = np.arange(round(seconds * rate)) / rate
    size, phase = rng.uniform(0.3, 1, 3), rng.uniform(0, 0.3, 3)

    def place(times: np.ndarray) -> np.ndarray:
        progress = np.clip(times, 0, seconds - 1) / (seconds - 1)
        return size * np.sin(np.pi * progress[:, None] ** (1 + phase)) ** 2

    position, commands = place(clock), place(clock + delay + 1 / rate) - place(clock + delay)
    pictures = np.random.default_rng(index).integers(0, 256, (len(clock), 6, 6, 3), np.uint8)
    streams = [
        Stream("image", "cam", pictures, clock),
        Stream("state", names.get("state", "pose"), position, clock, {"names": ["x", "y", "z"]}),
        Stream("action", names.get("action", "command"), commands, clock, {"names": ["dx", "dy", "dz"]}),
    ]
    return Episode(f"e{index}", streams, ["go"], operator="ada")


def graver(episodes: list[Episode], *checks: str) -> list[str]:
    found = judge([examine(episode) for episode in episodes])
    return [f.message for f in found if f.severity != "info" and (not checks or f.check in checks)]


def test_episodes_of_two_rates_are_not_accused_of_their_rate() -> None:
    rates = [10.0] * 7 + [30.0] * 3
    assert graver([reach(i, rate, delay=0.2) for i, rate in enumerate(rates)], "offset", "length", "early_cut") == []


def test_another_delay_is_found_whatever_the_rate() -> None:
    episodes = [reach(i, 10.0 if i < 7 else 30.0, delay=0.0 if i == 8 else 0.4) for i in range(10)]
    (told,) = graver(episodes, "offset")[1:]  # the first is of the whole set: 0.4 s are late
    assert told.startswith("e8: ") and "(0.40 s) after it" in told


def test_commands_that_are_cut_off_are_found_at_a_rate_that_few_episodes_have() -> None:
    episodes = [reach(i, 10.0 if i < 7 else 30.0) for i in range(9)]
    assert graver(episodes, "clipping") == []
    for cut in (episodes[2], episodes[8]):
        command = cut.streams[2]
        command.values = np.clip(command.values, *(sign * 0.4 * np.abs(command.values).max() for sign in (-1, 1)))
    assert {message.split(":")[0] for message in graver(episodes, "clipping")} == {"e2", "e8"}
    assert {message.split(":")[0] for message in graver(episodes[:7] + episodes[8:], "clipping")} == {"e2", "e8"}


def test_commands_that_have_nothing_to_do_with_the_motion_do_not_tell_a_delay() -> None:
    """Of short episodes some lag always agrees a little."""
    clock, episodes = np.arange(20) / 10, []
    for seed in (0, 6, 7, 8, 9):
        parts = motion(20, seed)
        values = {"camera": ("image", parts["camera"]), "position": ("state", parts["position"])}
        values["action"] = ("action", parts["actions"])
        streams = [Stream(role, name, own, clock) for name, (role, own) in values.items()]  # type: ignore[arg-type]
        episodes.append(Episode(f"e{seed}", streams, ["go"]))
    assert graver(episodes, "offset") == []


def test_a_set_of_one_rate_stays_as_it_is() -> None:
    facts = [examine(reach(i, 10.0)) for i in range(3)]
    assert at_one_rate(facts) == facts and at_one_rate([]) == []


def test_a_slow_motion_at_a_high_rate_is_not_idle() -> None:
    """An insertion: 3% of the range within two seconds, which --fix idle would have cut out."""
    clock = np.arange(0, 8, 0.02)
    x = np.interp(clock, [0, 3, 5, 8], [0, 0.5, 0.53, 1.0])[:, None] * [1.0, 0.5, 0.2]
    streams = [Stream("state", "pose", x, clock), Stream("action", "command", x, clock)]
    assert idle_runs(motion_of(Episode("slow", streams, []))) == ()
    record = Record(name="slow", operator="", instruction="", state=x, actions=x, rate_hz=50.0)
    assert habits_of(record, space_of([record])).idle == 0


def test_a_camera_slower_than_the_control_loop_is_not_frozen_and_a_freeze_of_it_is() -> None:
    """10 pictures a second beside 30 steps: cutting the repeats out would leave a third of the commands."""
    slow, hung = reach(0, 30.0), reach(1, 30.0)
    for episode, stop in ((slow, None), (hung, 90)):
        camera = episode.streams[0]
        camera.values = camera.values[np.arange(len(camera)) // 3 * 3].copy()
        if stop:
            camera.values[stop : stop + 12] = camera.values[stop - 1]
    told = [f for f in examine(slow).findings if f.check == "frozen"]
    assert [(f.severity, f.frames) for f in told] == [("info", ())] and "--rate 10" in told[0].message
    assert repair(slow, told, ["frozen"]) == (slow, {})
    told = [f for f in examine(hung).findings if f.severity == "warning"]
    assert [(f.check, f.frames) for f in told] == [("frozen", ((88, 101),))]


@pytest.mark.parametrize(("turn", "said"), [(2 * np.pi, "angle wraps"), (360.0, "angle wraps"), (2.5, "one step.")])
def test_an_angle_that_wraps_is_told_as_what_it_is(turn: float, said: str) -> None:
    episode = reach(0, 10.0)
    yaw = np.linspace(0.4, 0.6, 60) * turn
    pose = episode.streams[1]
    pose.values = np.concatenate([pose.values, np.where(yaw > turn / 2, yaw - turn, yaw)[:, None]], axis=1)
    pose.attributes["names"] = ["x", "y", "z", "yaw"]
    (told,) = graver([episode], "spikes")
    assert "state yaw jumps in frame 30" in told and said in told


def test_of_two_episodes_a_copy_is_found() -> None:
    """A held-out copy of the one that is trained on measures memory."""
    one, other = reach(0, 10.0), reach(1, 10.0)
    assert graver([one, other], "duplicates") == []
    (told,) = graver([one, replace(one, name="copy")], "duplicates")
    assert told.startswith("copy: nearly the same as e0")


def test_a_spike_is_found_although_a_command_has_the_states_name() -> None:
    episodes = [reach(i, 10.0, state="arm", action="arm") for i in range(6)]
    for episode in episodes:
        episode.streams[2].values = episode.streams[1].values + 5.0  # absolute, and far larger than any step
    episodes[2].streams[1].values[30, 0] += 2.0
    assert [m.split(":")[0] for m in graver(episodes, "spikes")] == ["e2"]


def test_a_silent_state_is_told_and_a_shared_clock_only_once() -> None:
    episodes = [reach(i, 10.0) for i in range(5)]
    kept = np.r_[0:25, 40:60]
    for stream in episodes[1].streams[1:2]:
        stream.values, stream.timestamps = stream.values[kept], stream.timestamps[kept] + 0.004
    for stream in episodes[3].streams:
        stream.values, stream.timestamps = stream.values[kept], stream.timestamps[kept]
    told = graver(episodes, "dropped")
    assert len(told) == 2
    assert told[0].startswith("e1: state pose is silent 1 time(s), 1.60 s at most") and "never measured" in told[0]
    assert told[1].startswith("e3: camera cam lost")


@pytest.mark.parametrize("late", [100.0, 0.0])
def test_streams_that_do_not_meet_are_told_in_words(late: float) -> None:
    episode = reach(0, 10.0)
    for stream in episode.streams:
        if late:
            stream.timestamps = stream.timestamps + (late if stream.role == "state" else 0.0)
        else:
            stream.values, stream.timestamps = stream.values[:1], stream.timestamps[:1]
    with pytest.raises(UnusableError, match="overlap in time by less than two steps"):
        examine(episode)
