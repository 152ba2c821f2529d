from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import real_log

from vla_cli.episode import Episode, load_episode, read_manifest
from vla_cli.frames import ArrayFrames
from vla_cli.synchrony.latency import Estimate, align, estimate_latency, motion_energy, pool, speed

PERIOD = 0.1  # of the tabletop's camera, seconds


def loaded(episodes: Path) -> Iterator[Episode]:
    for row in read_manifest(episodes):
        yield load_episode(episodes / row["file"])


def late(episode: Episode, seconds: float) -> Episode:
    """The same demonstration with a camera whose stamps are late."""
    streams = [replace(s, timestamps=s.timestamps + seconds * (s.role == "image")) for s in episode.streams]
    return replace(episode, streams=streams)


@pytest.fixture(scope="module")
def demonstrations(episodes: Path) -> list[Episode]:
    found = []
    for episode in loaded(episodes):
        episode.streams = [replace(s, values=np.asarray(s.values)) for s in episode.streams]
        found.append(episode)
    return found


@pytest.mark.parametrize("seconds", [-0.13, 0.0, 0.04, 0.05, 0.21])
def test_a_known_latency_is_found_within_half_a_frame(demonstrations: list[Episode], seconds: float) -> None:
    found = [estimate_latency(late(episode, seconds)) for episode in demonstrations]
    sure = [estimate for estimate in found if estimate.confident]
    assert len(sure) >= 0.8 * len(found)
    wrong = [estimate for estimate in sure if abs(estimate.seconds - seconds) > PERIOD / 2]
    assert len(wrong) <= 1  # one has two moves alike
    pooled = pool(found)
    assert pooled.confident and abs(pooled.seconds - seconds) < PERIOD / 10


def test_a_slower_camera_is_late_as_told(demonstrations: list[Episode]) -> None:
    found = []
    for episode in demonstrations:
        slow = [
            replace(s, values=s.values[::2], timestamps=s.timestamps[::2] + 0.15) if s.role == "image" else s
            for s in episode.streams
        ]
        found.append(estimate_latency(replace(episode, streams=slow)))
    assert abs(pool(found).seconds - 0.15) < PERIOD


def test_pictures_that_show_no_motion_give_no_answer(demonstrations: list[Episode]) -> None:
    rng = np.random.default_rng(0)
    found = []
    for episode in demonstrations:
        streams = [
            replace(s, values=rng.integers(90, 110, s.values.shape, np.uint8)) if s.role == "image" else s
            for s in episode.streams
        ]
        found.append(estimate_latency(replace(episode, streams=streams)))
    assert sum(estimate.confident for estimate in found) <= 0.05 * len(found)
    assert not pool(found).confident


@pytest.mark.parametrize(
    ("role", "change", "reason"),
    [
        ("image", lambda v: np.repeat(v[:1], len(v), axis=0), "do not change"),
        ("state", lambda v: np.zeros_like(v), "no state that moves"),
    ],
)
def test_too_little_motion_is_refused(demonstrations: list[Episode], role: str, change, reason: str) -> None:
    streams = [replace(s, values=change(s.values)) if s.role == role else s for s in demonstrations[0].streams]
    found = estimate_latency(replace(demonstrations[0], streams=streams))
    assert not found.confident and np.isnan(found.seconds) and reason in found.reason


def test_a_latency_beyond_the_search_is_not_believed(demonstrations: list[Episode]) -> None:
    found = [estimate_latency(late(episode, 0.8), longest=0.3) for episode in demonstrations]
    assert not pool(found).confident


def test_energy_is_the_same_block_by_block(demonstrations: list[Episode]) -> None:
    pictures = demonstrations[0].of_role("image")[0].values
    expected = np.concatenate([motion_energy(pictures[i : i + 2]) for i in range(len(pictures) - 1)])
    assert len(pictures) > 16 and np.array_equal(motion_energy(ArrayFrames(pictures)), expected)


def test_pooling_takes_the_median_and_wants_agreement() -> None:
    def sure(seconds: float) -> Estimate:
        return Estimate(seconds, 0.8, True, "", PERIOD)

    found = pool([sure(0.05), sure(0.06), sure(0.4)])
    assert found.seconds == 0.06 and "a quarter of a picture's time off: 25 ms" in found.reason
    assert not pool([sure(-0.4), sure(0.1), sure(0.5)]).confident
    assert not pool([sure(0.05)]).confident
    assert not pool([]).confident


def test_a_real_recording_moves_its_estimate_by_what_it_is_delayed(tmp_path: Path) -> None:
    from vla_cli.configs import IngestConfig
    from vla_cli.stages import ingest

    source = real_log("gr00t_lerobot_v2/robot_sim.PickNPlace")
    ingest.run(IngestConfig(source=source, out=tmp_path / "episodes", format="lerobot"))
    found: dict[float, list[Estimate]] = {0.0: [], 0.1: []}
    for episode in loaded(tmp_path / "episodes"):
        camera, moving = episode.of_role("image")[0], speed(episode.of_role("state"))
        energy, times = motion_energy(camera.values), (camera.timestamps[1:] + camera.timestamps[:-1]) / 2
        assert moving is not None
        for seconds, estimates in found.items():
            estimates.append(align((times + seconds, energy), moving))
    before, after = pool(found[0.0]), pool(found[0.1])
    assert before.confident and abs(before.seconds) < 0.025
    assert abs(after.seconds - before.seconds - 0.1) < 0.01


def test_of_too_short_an_overlap_no_correlation_is_told() -> None:
    times, values = np.arange(13) / 10, np.random.default_rng(0).uniform(size=13)
    found = align((times, values), (times + 0.35, values))
    assert not found.confident and "go on together for fewer than 12 steps" in found.reason
