"""Faults put into recorded demonstrations are found where they are, and clean ones are not accused."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import real_log

from vla_cli.episode import Stream
from vla_cli.errors import CheckFailed, ConfigError
from vla_cli.files import to_json
from vla_cli.frames import ArrayFrames, Frames
from vla_cli.logs import Options
from vla_cli.quality import CHECKS, assess, document, examine, exclusions, gate, judge, motion_of
from vla_cli.quality.facts import Finding
from vla_cli.readers import READERS, opened

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import quality as benchmark  # noqa: E402
from quality_faults import (  # noqa: E402
    FAULTS,
    NOISE,
    cut_short,
    dawdled,
    frozen_pictures,
    glitch,
    moving,
    put,
    shortened,
    still,
    stream,
)

NAMES = [check.name for check in CHECKS]


@pytest.fixture(scope="module")
def clean(recorded, facts) -> benchmark.CleanSet:
    return benchmark.CleanSet("sample data", recorded, facts)


def graver(findings) -> list[Finding]:
    return [f for f in findings if f.severity != "info"]


def of(findings, check: str, episode: str | None = None) -> list[Finding]:
    return [f for f in findings if f.check == check and episode in (None, f.episode)]


def test_the_sample_demonstrations_are_not_accused(facts):
    assert graver(judge(facts)) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_put_into_sample_data_is_found_on_its_frames(fault, clean):
    trials = [benchmark.attempt(fault, clean, np.random.default_rng([4, seed])) for seed in range(3)]
    assert all(trial.found for trial in trials)


def test_a_dimension_that_hardly_ever_changes_is_found(clean):
    assert all(benchmark.constants(clean, np.random.default_rng(seed)).found for seed in range(5))


def test_the_benchmark_finds_faults_and_no_others():
    """The small version; `python benchmarks/quality.py` is the whole one."""
    result = benchmark.run(sets=1, episodes=6, trials=2, seed=5, faults=FAULTS[2:6])
    assert [row["of"] for row in result["recall"]] == [2] * 5
    assert sum(row["count"] for row in result["recall"]) >= 9
    assert {row["name"] for row in result["false_alarms"]} == set(NAMES)
    assert sum(row["count"] for row in result["false_alarms"]) == len(result["accused"]) == 0
    page = benchmark.markdown(result, "command")
    assert "lost pictures" in page and "Wilson" in page


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_finding_is_a_plain_sentence_with_its_place_and_figure(fault, recorded, facts):
    spoilt = fault.inject(recorded[3], np.random.default_rng(0)).episode
    found = of(assess(spoilt, None, facts), fault.check)
    assert found
    for finding in found:
        assert finding.message.startswith(f"{finding.episode}: ") and finding.message.endswith(".")
        assert "\n" not in finding.message and len(finding.message) < 320
        assert finding.value is not None
        assert len(finding.frames) == len(finding.seconds) or finding.check == "timestamps"
        if finding.stream and finding.frames:
            length = len(next(s for s in spoilt.streams if s.name == finding.stream))
            assert all(0 <= first <= last < length for first, last in finding.frames)
        to_json(finding.document())


def test_slow_and_hesitant_operators_are_not_at_fault(recorded):
    rng = np.random.default_rng(0)
    slow = [still(e, int(moving(e)[len(moving(e)) // 2]), 1 + i % 5, rng) for i, e in enumerate(recorded)]
    assert graver(judge([examine(episode) for episode in slow])) == []


def test_an_episode_of_usual_length_that_is_far_slower_is_told_by_its_speed(recorded, facts):
    slow = dawdled(recorded[3], np.random.default_rng(0)).episode
    finding = of(assess(shortened(slow, 0, facts[3].frames), None, facts), "length")[0]
    assert finding.value is not None and finding.value > 3
    assert "times slower than the others" in finding.message


def test_idle_counts_from_seven_frames_on(recorded, facts):
    rng = np.random.default_rng(0)
    for count in (5, 6, 7, 12):
        paused = still(recorded[2], int(moving(recorded[2])[3]), count, rng)
        assert bool(of(assess(paused, None, facts), "idle")) == (count >= 7)


def test_heads_and_tails_are_not_idle(recorded, facts):
    rng = np.random.default_rng(0)
    episode = still(recorded[4], 1, 20, rng)
    episode = still(episode, len(stream(episode, "action")) - 1, 20, rng)
    assert of(assess(episode, None, facts), "idle") == []


def test_frozen_pictures_of_an_arm_that_stands_still_are_no_fault(recorded):
    episode = still(recorded[0], 1, 10, np.random.default_rng(0))
    camera = stream(episode, "image")
    pictures = camera.values.copy()
    pictures[1:9] = pictures[1]
    assert of(examine(put(episode, replace(camera, values=pictures))).findings, "frozen") == []


def test_a_single_repeat_and_a_single_lost_picture_are_worth_knowing_only(recorded):
    episode = recorded[1]
    camera = stream(episode, "image")
    pictures, t = camera.values.copy(), int(moving(episode)[5])
    pictures[t] = pictures[t - 1]
    found = examine(put(episode, replace(camera, values=pictures))).findings
    assert [f.severity for f in of(found, "frozen")] == ["info"]


def test_noise_of_encoders_and_a_darker_room_are_no_faults(recorded):
    rng = np.random.default_rng(1)
    noisy = []
    for episode in recorded:
        position, camera = stream(episode, "state", "robot0_eef_pos"), stream(episode, "image")
        values = (position.values + rng.normal(0, 5e-4, position.values.shape)).astype(np.float32)
        dark = (0.4 * camera.values + rng.normal(0, NOISE, camera.values.shape)).clip(0, 255).astype(np.uint8)
        noisy.append(put(episode, replace(position, values=values), replace(camera, values=dark)))
    assert graver(judge([examine(episode) for episode in noisy])) == []


def test_states_on_a_clock_of_their_own_are_judged_on_that_of_the_actions(recorded):
    """Resampling to the same clock is the identity; a faster state stream gives the same motion."""
    episode = recorded[0]
    motion = motion_of(episode)
    names = [stream(episode, "state", name) for name in ("robot0_eef_pos", "robot0_gripper")]
    assert np.array_equal(motion.state, np.concatenate([s.values for s in names], axis=1))
    assert np.array_equal(motion.actions, stream(episode, "action").values)
    position = names[0]
    clock = np.sort(np.concatenate([position.timestamps, (position.timestamps[1:] + position.timestamps[:-1]) / 2]))
    values = np.stack([np.interp(clock, position.timestamps, c) for c in position.values.T], axis=1)
    faster = put(episode, Stream("state", position.name, values, clock, {}))
    assert np.allclose(motion_of(faster).state, motion.state, atol=1e-6)


class Counted(ArrayFrames):
    """Pictures that count how often they are read."""

    passes = 0

    def blocks(self) -> Iterator[np.ndarray]:
        type(self).passes += 1
        return super().blocks()


def test_pictures_are_read_once_and_their_packing_does_not_matter(recorded, facts):
    episode = recorded[0]
    camera = stream(episode, "image")
    held: Frames = Counted(camera.values)
    assert examine(put(episode, replace(camera, values=held))) == facts[0]
    assert Counted.passes == 1


def test_a_dimension_hardly_used_is_not_accused_of_its_first_move(recorded, facts):
    """The usual top step is the set's, not only the episode's."""
    position = stream(recorded[0], "state", "robot0_eef_pos")
    values = position.values.copy()
    values[:, 1] = 0.5 + 1e-4 * np.sin(np.arange(len(values)))
    values[6:, 1] += 0.05
    alone = put(recorded[0], replace(position, values=values))
    assert of(assess(alone, None, facts), "spikes") == []


def test_of_two_copies_the_later_is_left_out(recorded, facts):
    copy = replace(recorded[5], name="copied")
    findings = judge([*facts, examine(copy)])
    (found,) = of(findings, "duplicates")
    assert (found.episode, found.also) == ("copied", (recorded[5].name,))
    assert list(exclusions(findings, ["duplicates"])) == ["copied"]
    assert exclusions(findings, ["idle"]) == {}


def test_exclusion_names_the_reason_and_refuses_unknown_checks(recorded, facts):
    spoilt = examine(frozen_pictures(recorded[7], np.random.default_rng(0)).episode)
    findings = judge([spoilt if f.name == spoilt.name else f for f in facts])
    reasons = exclusions(findings, ["frozen", "black"])
    assert list(reasons) == [recorded[7].name]
    assert "repeats the picture before" in reasons[recorded[7].name]
    with pytest.raises(ConfigError, match=r"There is no check 'frosen'.*frozen"):
        exclusions(findings, ["frosen"])


def test_the_gate_stops_at_its_severity(recorded, facts):
    spoilt = examine(glitch(recorded[7], np.random.default_rng(0)).episode)
    findings = judge([spoilt if f.name == spoilt.name else f for f in facts])
    gate(findings, "error")
    gate(findings, "never")
    gate(judge(facts), "warning")
    with pytest.raises(CheckFailed, match=r"spikes.*demo_7: state") as caught:
        gate(findings, "warning")
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_the_document_has_the_table_and_every_finding(recorded, facts):
    spoilt = examine(frozen_pictures(recorded[7], np.random.default_rng(0)).episode)
    every = [spoilt if f.name == spoilt.name else f for f in facts]
    findings = judge(every)
    found = json.loads(to_json(document(findings, every)))
    assert [row["name"] for row in found["checks"]] == NAMES
    assert len(found["findings"]) == len(findings)
    (row,) = [row for row in found["checks"] if row["name"] == "frozen"]
    assert row["episodes"] == 1 and row["findings"]["warning"] == 1
    assert len(found["episodes"]) == len(recorded)
    assert to_json(found) == to_json(json.loads(to_json(document(judge(every), every))))


def test_every_check_says_what_it_looks_for_and_where_its_thresholds_come_from():
    assert len(set(NAMES)) == len(NAMES)
    for check in CHECKS:
        assert check.looks_for and (check.inspect is None) != (check.compare is None)
        assert check.explain.__doc__ and len(check.explain.__doc__) > 60


def test_few_episodes_and_none_are_judged_without_others(facts):
    assert judge([]) == []
    assert document([], [])["episodes"] == []
    for count in (1, 2, 3):
        assert graver(judge(facts[:count])) == []


def test_an_episode_without_state_and_one_of_two_frames_can_be_examined(recorded):
    blind = replace(recorded[0], streams=[s for s in recorded[0].streams if s.role != "state"])
    short = replace(
        recorded[0],
        streams=[replace(s, values=s.values[:2], timestamps=s.timestamps[:2]) for s in recorded[0].streams],
    )
    for episodes in ([blind] * 6, [short] * 6):
        assert judge([examine(replace(e, name=f"e{i}")) for i, e in enumerate(episodes)]) is not None


def test_where_all_recordings_end_in_motion_none_is_accused_and_the_set_is_told(recorded):
    rng = np.random.default_rng(0)
    facts = [examine(cut_short(episode, rng).episode) for episode in recorded]
    findings = of(judge(facts), "early_cut")
    (told,) = [f for f in findings if f.episode == ""]
    assert told.severity == "info" and "episodes end in full motion" in told.message
    assert len(findings) <= 3


def test_real_recordings_from_bridge_are_not_accused():
    """Looked at by hand: excerpts of ten steps, sharp and moving, from three cameras each."""
    with opened(READERS.get("rlds"), real_log("bridge_v2_rlds"), Options(), lambda message: None) as log:
        excerpts = [log.read(entry) for entry in log.entries()[:8]]
        assert graver(judge([examine(episode) for episode in excerpts])) == []
