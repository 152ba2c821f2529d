"""A fix removes its finding, changes nothing else, counts what it changed, and applied twice equals once."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_cli.episode import Episode, UnusableError, load_episode, save_episode
from vla_cli.errors import ConfigError
from vla_cli.quality import CHECKS, examine, judge
from vla_cli.quality.fixes import FIXES, KEEP_IDLE, PickedFrames, parse_fixes, repair

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from quality_faults import FAULTS, moving, put, still, stream  # noqa: E402

FIXABLE = [fault for fault in FAULTS if fault.check in FIXES]


@pytest.fixture(scope="module")
def recorded(recorded) -> list[Episode]:
    """Half of them are enough here."""
    return recorded[:10]


def findings_of(episode: Episode, facts) -> list:
    own = examine(episode)
    return [f for f in judge([own if f.name == own.name else f for f in facts]) if f.episode == own.name]


def same(one: Episode, other: Episode) -> bool:
    return all(
        np.array_equal(a.timestamps, b.timestamps) and np.array_equal(np.asarray(a.values), np.asarray(b.values))
        for a, b in zip(one.streams, other.streams, strict=True)
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fault", FIXABLE, ids=lambda fault: fault.name)
def test_a_fix_removes_its_finding_and_twice_is_once(fault, seed, recorded, facts):
    spoilt = fault.inject(recorded[seed], np.random.default_rng(seed)).episode
    findings = [f for f in findings_of(spoilt, facts) if f.check == fault.check]
    if not findings:
        pytest.skip("this one was not found: see the recall of the benchmark")
    before = [np.array(s.values) for s in spoilt.streams]
    fixed, counts = repair(spoilt, findings, [fault.check])
    assert counts[fault.check] > 0
    assert all(np.array_equal(s.values, values) for s, values in zip(spoilt.streams, before, strict=True))
    left = [f for f in findings_of(fixed, facts) if f.check == fault.check]
    assert [f for f in left if f.severity != "info" or fault.check == "noop"] == []
    again, more = repair(fixed, left, [fault.check])
    assert same(again, fixed) and more == {}


def test_clean_episodes_stay_as_they_are(recorded, facts):
    for episode in recorded:
        fixed, counts = repair(episode, [f for f in findings_of(episode, facts) if f.check != "noop"], FIXES)
        assert counts == {} and same(fixed, episode)


def test_glitches_come_back_to_where_they_were(recorded, facts):
    position = stream(recorded[1], "state", "robot0_eef_pos")
    values, t = position.values.copy(), int(moving(recorded[1])[4])
    values[t, 0] += 0.6
    spoilt = put(recorded[1], replace(position, values=values))
    fixed, counts = repair(spoilt, findings_of(spoilt, facts), ["spikes"])
    mended = stream(fixed, "state", "robot0_eef_pos").values
    assert counts == {"spikes": 1}
    assert np.isclose(mended[t, 0], (position.values[t - 1, 0] + position.values[t + 1, 0]) / 2, atol=1e-6)
    assert np.array_equal(np.delete(mended, t, axis=0), np.delete(position.values, t, axis=0))
    assert mended.dtype == position.values.dtype


def test_a_gripper_that_flutters_closes_once(recorded, facts):
    action = stream(recorded[0], "action")
    values = action.values.copy()
    flip = int(np.flatnonzero(np.diff(values[:, 2]))[0]) + 1
    values[flip - 5, 2] *= -1
    spoilt = put(recorded[0], replace(action, values=values))
    fixed, counts = repair(spoilt, findings_of(spoilt, facts), ["chatter"])
    assert counts == {"chatter": 1}
    assert np.array_equal(stream(fixed, "action").values, action.values)


def test_a_pause_is_cut_to_a_few_frames_and_the_rest_is_untouched(recorded, facts):
    episode = recorded[3]
    at = int(moving(episode)[6])
    paused = still(episode, at, 15, np.random.default_rng(0))
    fixed, counts = repair(paused, findings_of(paused, facts), ["idle"])
    lengths = {len(s) for s in fixed.streams}
    assert lengths == {len(stream(episode, "action")) + KEEP_IDLE}
    assert counts == {"idle": 15 - KEEP_IDLE}
    clock = stream(fixed, "action").timestamps
    assert np.all(np.diff(clock) > 0) and np.diff(clock).max() < 0.25
    assert all(np.array_equal(s.timestamps, clock) for s in fixed.streams)


def test_a_cut_takes_the_same_time_out_of_streams_with_other_clocks(recorded, facts):
    """A camera at half the rate of the arm loses half as many samples, and no clock gets a hole."""
    episode = recorded[5]
    camera = stream(episode, "image")
    half = replace(camera, values=camera.values[::2].copy(), timestamps=camera.timestamps[::2] + 0.01)
    half.values[4:7] = 0
    spoilt = put(episode, half)
    findings = findings_of(spoilt, facts)
    fixed, counts = repair(spoilt, findings, ["black"])
    assert counts == {"black": 3}
    assert len(stream(fixed, "image")) == len(half) - 3
    assert abs(len(stream(fixed, "action")) - (len(stream(episode, "action")) - 6)) <= 1
    for s in fixed.streams:
        steps = np.diff(s.timestamps)
        assert steps.min() > 0 and steps.max() < 1.75 * np.median(steps)


def test_several_fixes_at_once_count_each(recorded, facts):
    by_check = {fault.check: fault for fault in FIXABLE}
    episode = recorded[7]
    for seed, check in enumerate(("black", "chatter", "spikes")):
        episode = by_check[check].inject(episode, np.random.default_rng(seed)).episode
    findings = findings_of(episode, facts)
    wanted = sorted({f.check for f in findings} & set(FIXES))
    fixed, counts = repair(episode, findings, wanted)
    assert {"black", "spikes", "chatter"} <= set(counts)
    assert len({len(s) for s in fixed.streams}) == 1


def test_a_black_camera_leaves_nothing(recorded, facts):
    camera = stream(recorded[2], "image")
    spoilt = put(recorded[2], replace(camera, values=np.zeros_like(camera.values)))
    with pytest.raises(UnusableError, match=r"hardly anything is left"):
        repair(spoilt, findings_of(spoilt, facts), ["black"])


def test_a_repaired_episode_can_be_stored(recorded, facts, tmp_path):
    spoilt = next(f for f in FIXABLE if f.check == "black").inject(recorded[4], np.random.default_rng(1)).episode
    fixed, _ = repair(spoilt, findings_of(spoilt, facts), ["black"])
    save_episode(fixed, tmp_path / "fixed.hdf5")
    assert same(ordered(load_episode(tmp_path / "fixed.hdf5")), ordered(fixed))


def ordered(episode: Episode) -> Episode:
    return replace(episode, streams=sorted(episode.streams, key=lambda s: (s.role, s.name)))


def test_picked_pictures_are_those_picked(recorded):
    pictures = stream(recorded[0], "image").values
    from vla_cli.frames import ArrayFrames

    chosen = np.array([0, 3, 4, 11, 17, 18, 19, 20, 21])
    picked = PickedFrames(ArrayFrames(pictures), chosen)
    assert picked.shape == (9, *pictures.shape[1:])
    assert np.array_equal(np.asarray(picked), pictures[chosen])
    assert np.array_equal(np.asarray(picked.cut(4)), pictures[chosen[:4]])
    assert np.array_equal(np.stack(list(picked.take(np.array([1, 1, 5])))), pictures[chosen[[1, 1, 5]]])


def test_fixes_are_those_the_checks_promise_and_others_are_refused():
    assert {check.name for check in CHECKS if check.fix} == set(FIXES)
    assert parse_fixes("chatter, timestamps,idle") == ("timestamps", "chatter", "idle")
    assert parse_fixes("") == ()
    with pytest.raises(ConfigError, match=r"--fix 'blur' is not known.*idle.*--exclude"):
        parse_fixes("idle,blur")
