import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_cli.episode import load_episode, read_manifest
from vla_cli.errors import ConfigError
from vla_cli.operators import Operators, examine
from vla_cli.operators.habits import BINS, Record, habits_of, space_of
from vla_cli.quality.facts import motion_of

RATE = 10.0


def reach(
    rng, operator="ada", *, name="e", instruction="lift", seconds=4.0, side=0.0, yaw=0.0, noise=0.03, dwell=0
) -> Record:
    """A reach to a place at (1, 0) and back, from a side (in radians), with a turned hand that grips there."""
    frames = round(seconds * RATE * (1 + noise * rng.standard_normal()))
    way = (1 - np.cos(np.linspace(0, np.pi, frames)))[:, None] / 2
    goal = np.array([1.0, 0.0, 0.1]) + noise * rng.standard_normal(3)
    begin = goal + np.array([-np.cos(side), np.sin(side), 0.3]) + noise * rng.standard_normal(3)
    there = begin + way * (goal - begin)
    path = np.concatenate([there, np.repeat(there[-1:], 5 + dwell, axis=0), there[::-1]])
    turned = Rotation.from_euler("z", yaw + noise * rng.standard_normal()).as_rotvec()
    closed = (np.arange(len(path)) >= frames + 2).astype(float)[:, None]
    state = np.concatenate([path, np.tile(turned, (len(path), 1)), closed], axis=1)
    actions = np.concatenate([np.diff(path, axis=0, append=path[-1:]), closed], axis=1)
    return Record(
        name=name,
        operator=operator,
        instruction=instruction,
        state=state.astype(np.float32),
        actions=actions.astype(np.float32),
        rate_hz=RATE,
        gripper=3,
    )


def examined(records: list[Record]) -> Operators:
    return examine(records, position=(0, 1, 2), rotation=(3, "axis-angle"))


def pair(**habit) -> list[Record]:
    """Ten demonstrations of ada's and ten of bo's, who has a habit of his own."""
    rng = np.random.default_rng(0)
    return [reach(rng, **({"operator": "bo"} | habit if i % 2 else {})) for i in range(20)]


def resolved(found: Operators) -> set[str]:
    return {one.figure for one in found.differences if one.is_resolved}


def test_figures_of_one_demonstration_are_those_it_was_made_with() -> None:
    record = reach(np.random.default_rng(0), noise=0.0, side=0.5, yaw=0.7, dwell=5)
    found = habits_of(record, space_of([record], position=(0, 1, 2), rotation=(3, "axis-angle")))
    way = np.array([np.cos(0.5), -np.sin(0.5), -0.3])
    assert found.approach is not None and found.grasp is not None
    assert np.allclose(found.approach, way / np.linalg.norm(way), atol=1e-3)
    assert found.grasp.magnitude() == pytest.approx(0.7, abs=1e-5)
    assert found.seconds == pytest.approx(8.9, abs=0.2) and found.profile.shape == (BINS,)
    assert found.profile.mean() == pytest.approx(found.speed)
    assert found.idle == pytest.approx(10 / 89, abs=0.06)


@pytest.mark.parametrize(
    ("habit", "figure", "words"),
    [
        ({"seconds": 8.0}, "speed", "'bo' moves at 0.5"),
        ({"side": 1.2}, "approach", "different sides"),
        ({"yaw": 0.8}, "grasp", "turn the hand differently"),
        ({"dwell": 40}, "idle", "stands still"),
    ],
)
def test_a_habit_is_found_and_said(habit: dict, figure: str, words: str) -> None:
    found = examined(pair(**habit))
    assert figure in resolved(found)
    assert any(words in sentence for sentence in found.sentences)
    one = next(d for d in found.differences if d.figure == figure)
    assert abs(one.effect) > 2 and one.p <= one.corrected < 0.05


def test_two_speeds_come_with_a_warning_and_not_with_praise() -> None:
    said = " ".join(examined(pair(seconds=8.0)).sentences)
    assert "2507.06219" in said and "one pace" in said


def test_names_drawn_at_random_are_seldom_told_apart() -> None:
    alarms = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        records = [reach(rng, str(rng.choice(["ada", "bo"]))) for _ in range(14)]
        alarms += bool(resolved(examined(records)))
    assert alarms <= 4  # 5% of 30 is 1.5; more than 4 has a chance of 2%


def test_tasks_are_not_taken_for_hands() -> None:
    rng = np.random.default_rng(1)
    tasks = {"lift": 0.0, "push": 1.5}
    apart = [reach(rng, who, instruction=text, side=tasks[text]) for who, text in [("ada", "lift"), ("bo", "push")] * 8]
    found = examined(apart)
    assert found.differences == [] and "cannot be told from their tasks" in found.sentences[-1]
    # unequal shares of two tasks, equal hands
    shares = [("ada", "lift")] * 8 + [("ada", "push")] * 2 + [("bo", "lift")] * 2 + [("bo", "push")] * 8
    mixed = [reach(rng, who, instruction=text, side=tasks[text]) for who, text in shares]
    assert resolved(examined(mixed)) == set()
    assert {one.episodes for one in examined(mixed).differences} == {(10, 10)}


def test_one_operator_is_told_of_the_habit() -> None:
    rng = np.random.default_rng(0)
    found = examined([reach(rng) for _ in range(20)])
    assert found.differences == [] and len(found.sentences) == 1
    said = found.sentences[0]
    assert said.startswith("All 20 demonstrations are by one operator, 'ada': from one to the next the speed varies by")
    assert "will copy this habit" in said and "degrees" in said
    spread = found.profiles[0].speed_spread
    assert spread is not None and 0.02 < spread < 0.08
    uneven = examined([reach(rng, seconds=float(s)) for s in np.linspace(2, 8, 20)])
    assert "several speeds" in uneven.sentences[0]
    assert "says who made it" in examined([reach(rng, "unknown") for _ in range(3)]).sentences[0]
    assert "habits" in examined([reach(rng)]).sentences[0]


def test_spreads_are_within_an_instruction() -> None:
    rng = np.random.default_rng(0)
    one = examined([reach(rng, side=0.2) for _ in range(16)]).profiles[0]
    two = examined([reach(rng, instruction=str(i % 2), side=0.2 + i % 2) for i in range(16)]).profiles[0]
    assert one.approach_spread is not None and two.approach_spread is not None
    assert two.approach_spread < 2 * one.approach_spread < 10
    assert one.path_spread is not None and two.path_spread is not None and two.path_spread < 2 * one.path_spread


def test_the_result_does_not_depend_on_order_and_is_json() -> None:
    records = pair(seconds=6.0)
    found = examined(records).document()
    assert json.loads(json.dumps(found, allow_nan=False)) == examined(records).document()
    back = examined(records[::-1]).document()
    assert back["sentences"] == found["sentences"] and back["profiles"] == found["profiles"]


def test_unknown_operators_are_counted_and_not_compared() -> None:
    rng = np.random.default_rng(0)
    found = examined([*pair(), *(reach(rng, "unknown") for _ in range(3))])
    assert {(one.a, one.b) for one in found.differences} == {("ada", "bo")}
    assert any("3 demonstrations" in sentence for sentence in found.sentences)


def test_little_is_asked_of_the_data() -> None:
    records = pair(seconds=8.0)
    bare = [replace(r, state=np.zeros((len(r.state), 0)), gripper=None) for r in records]
    found = examine(bare)
    assert found.profiles[0].approach is None and "speed" in resolved(found)
    assert {"speed"} <= resolved(examine(records))  # nothing known of the columns
    still = [replace(r, state=np.ones_like(r.state)) for r in records]
    assert examine(still).profiles[0].idle == 1.0
    short = [replace(r, state=r.state[:1], actions=r.actions[:1]) for r in records]
    assert json.dumps(examine(short).document(), allow_nan=False)
    assert examine([]).sentences == []
    with pytest.raises(ConfigError, match="columns below 7"):
        examine(records, position=(0, 9))
    with pytest.raises(ConfigError, match="sideways"):
        examine(records, rotation=(3, "sideways"))


def test_the_two_operators_of_the_sample_demonstrations_are_told_apart(episodes) -> None:
    records = []
    for row in read_manifest(episodes):
        episode = load_episode(episodes / row["file"])
        motion = motion_of(episode)
        records.append(
            Record(
                name=episode.name,
                operator=episode.operator,
                instruction=episode.instructions[0],
                state=motion.state,
                actions=motion.actions,
                rate_hz=motion.rate_hz,
                gripper=2,
            )
        )
    found = examine(records)
    profiles = {profile.operator: profile for profile in found.profiles}
    assert set(profiles) == {"alice", "bob"} and profiles["alice"].grasps == profiles["alice"].episodes
    # bob was recorded at 0.7 of alice's speed, along x first (worlds.tabletop.recording.OPERATORS)
    assert {"speed"} <= resolved(found)
    assert 0.5 < profiles["bob"].speed / profiles["alice"].speed < 0.9
    alone = examine([replace(record, operator="alice") for record in records])
    assert "All 20 demonstrations are by one operator" in alone.sentences[0]
