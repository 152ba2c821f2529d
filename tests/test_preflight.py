import json

import numpy as np
import pytest
from builders import real_log
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_cli.adapter import load_spec
from vla_cli.configs import IngestConfig
from vla_cli.episode import load_episode, read_manifest
from vla_cli.errors import ConfigError
from vla_cli.preflight import LIMIT, Mismatch, preflight
from vla_cli.quality.facts import motion_of
from vla_cli.stages import ingest
from vla_cli.stats import compute
from vla_cli.stats_import import freeze, import_statistics

NAMES = ["x", "roll", "gripper"]
TIME = np.linspace(0, 20, 400)
BASE = np.stack([0.4 + 0.2 * np.sin(TIME), 0.8 * np.cos(TIME), (np.sin(TIME) < -0.5).astype(float)], axis=1)


def judged(values: np.ndarray, base: np.ndarray = BASE, vector: str = "state", names=NAMES) -> list[Mismatch]:
    return preflight(compute(base), compute(values), names, vector=vector, values=[values[:150], values[150:]])


def changed(dimension: int, change) -> np.ndarray:
    values = BASE.copy()
    values[:, dimension] = change(values[:, dimension])
    return values


def test_the_bases_own_kind_of_data_are_not_accused() -> None:
    assert judged(BASE) == [] and judged(0.5 * BASE + 0.1) == []
    assert preflight(compute(BASE), compute(BASE), NAMES, vector="state") == []


@pytest.mark.parametrize(
    ("dimension", "change", "words"),
    [
        (0, lambda x: 1000 * x, "millimetres where the base has metres"),
        (0, lambda x: 100 * x, "centimetres"),
        (1, np.degrees, "degrees where the base has radians"),
        (0, lambda x: x + 3.0, "another zero: the data lie 3"),
        (0, lambda x: x + np.pi, "half a turn"),
        (2, lambda x: 255 * x, "the gripper in other units"),
        (1, lambda x: np.where(np.arange(400) == 7, 90.0, x), "a spike or a glitch"),
    ],
)
def test_an_injected_mistake_is_named_in_the_dimension_where_it_is(dimension: int, change, words: str) -> None:
    found = judged(changed(dimension, change))
    assert [(m.dimension, m.kind) for m in found] == [(dimension, "beyond")]
    assert words in found[0].message and NAMES[dimension] in found[0].message
    assert abs(found[0].worst) > LIMIT and json.dumps(found[0].document())


def test_the_share_and_the_worst_value_are_exact() -> None:
    values = BASE.copy()
    values[:40, 0] = 9.0
    (found,) = judged(values)
    assert found.share == pytest.approx(0.1) and found.value == 9.0 and found.severity == "error"
    assert found.worst == pytest.approx(compute(BASE).normalise(np.array([9.0, 0, 0]))[0])
    assert "10% of the frames" in found.message
    values = BASE.copy()
    values[3, 0] = 9.0
    assert judged(values)[0].severity == "warning"


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (30, 3), elements=st.floats(-30, 30)))
def test_statistics_alone_find_the_same_dimensions_and_never_overstate_the_share(values: np.ndarray) -> None:
    exact = judged(values)
    bounded = preflight(compute(BASE), compute(values), NAMES, vector="state")
    assert {(m.dimension, m.kind) for m in exact} == {(m.dimension, m.kind) for m in bounded}
    shares = {m.dimension: m.share for m in exact if m.kind == "beyond"}
    for mismatch in bounded:
        if mismatch.kind == "beyond":
            # a quantile lies between two frames, so that 1% may be a little less than one of them
            assert mismatch.share <= shares[mismatch.dimension] + 1 / len(values)
    beyond = {int(i) for i in np.flatnonzero((np.abs(compute(BASE).normalise(values)) > LIMIT).any(axis=0))}
    assert beyond == set(shares)


def test_the_case_of_openpi_814(tmp_path) -> None:
    vector = {
        "mean": [0.3, 1.569],
        "std": [0.1, 3e-4],
        "q01": [0.03, 1.568642928333805],
        "q99": [0.93, 1.5696224851423788],
    }
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps({"norm_stats": {"actions": vector}}), encoding="utf-8")
    base = import_statistics(path, method="quantile").actions
    deltas = 0.01 * np.stack([np.sin(TIME), np.cos(TIME)], axis=1)
    found = preflight(base, compute(deltas), ["gripper", "joint_5"], vector="action", values=[deltas])
    worst = found[0]
    assert worst.name == "joint_5" and worst.severity == "error" and worst.share == 1.0 and worst.worst < -3000
    assert "all but dead" in worst.message


def test_changes_in_place_of_absolute_values_are_recognised() -> None:
    absolute = np.stack([1.5 + 0.2 * np.sin(TIME)], axis=1)
    changes = np.diff(absolute, axis=0, append=absolute[-1:])
    (found,) = judged(changes, absolute, "action", ["joint"])
    assert "--actions absolute" in found.message
    (found,) = judged(absolute, changes, "action", ["joint"])
    assert "--actions delta" in found.message


def test_a_dimension_that_the_base_made_constant_is_lost() -> None:
    base = BASE.copy()
    base[:, 1] = 0.3
    assert [(m.kind, m.name, m.severity) for m in judged(BASE, base)] == [("lost", "roll", "error")]
    assert judged(base, base) == []


def test_a_dimension_that_hardly_moves_is_worth_knowing() -> None:
    found = judged(changed(1, np.radians))
    assert [(m.kind, m.severity) for m in found] == [("still", "info")]
    assert "radians where the base has degrees" in found[0].message
    fixed = judged(changed(1, lambda x: 0 * x))
    assert "stands still" in fixed[0].message and fixed[0].causes == ()


def test_a_gripper_of_the_other_polarity_is_suspected_and_another_dimension_is_not() -> None:
    assert [m.kind for m in judged(changed(2, lambda x: 1 - x))] == []  # 67% and 33%: no telling
    rarely = BASE.copy()
    rarely[:, 2] = np.arange(400) < 60
    flipped = rarely.copy()
    flipped[:, 2] = 1 - rarely[:, 2]
    assert [m.kind for m in judged(flipped, rarely)] == ["mirrored"]
    assert judged(flipped, rarely, names=["x", "roll", "switch"]) == []


def test_freezing_picks_cuts_padding_and_keeps_every_bit() -> None:
    base = compute(BASE)
    assert freeze(base, NAMES, vector="state").to_json() == base.to_json()
    assert freeze(base, ["roll"], vector="state", dims=[1]).mean.tolist() == [base.mean[1]]
    padded = compute(np.concatenate([BASE, np.zeros((400, 5))], axis=1))
    assert freeze(padded, NAMES, vector="state").to_json() == base.to_json()


def test_other_dimensions_are_refused_naming_both() -> None:
    base = compute(BASE)
    with pytest.raises(
        ConfigError, match=r"2 action dimensions \(a, b\), the statistics are of 3 \(x, roll, gripper\)"
    ):
        freeze(base, ["a", "b"], vector="action", base_names=NAMES)
    with pytest.raises(ConfigError, match=r"another order.*--state-dims 1,0,2"):
        freeze(base, ["roll", "x", "gripper"], vector="state", base_names=NAMES)
    with pytest.raises(ConfigError, match="indices below 3"):
        freeze(base, ["a"], vector="state", dims=[3])
    with pytest.raises(ConfigError, match="dimensions"):
        preflight(base, compute(BASE[:, :2]), NAMES, vector="state")


def test_the_sample_demonstrations_fit_the_sample_base(episodes, base) -> None:
    spec = load_spec(base)
    motions = [motion_of(load_episode(episodes / row["file"])) for row in read_manifest(episodes)]
    states, names = [motion.state for motion in motions], list(motions[0].state_names)
    frozen = freeze(spec.state, names, vector="state", base_names=spec.state_names)
    found = preflight(frozen, compute(np.concatenate(states)), names, vector="state", values=states)
    assert [m for m in found if m.severity != "info"] == []
    degrees = [np.degrees(state) for state in states]
    found = preflight(frozen, compute(np.concatenate(degrees)), names, vector="state", values=degrees)
    assert {m.dimension for m in found if m.severity == "error"} >= {0, 1}


def test_a_gripper_that_closes_further_is_not_taken_for_other_units() -> None:
    base = np.stack([np.clip(np.linspace(0.55, 1.3, 400), 0.6, 1.0)], axis=1)
    base[398:] = 0.4
    data = np.stack([np.where(np.arange(400) % 9, 1.0, 0.1)], axis=1)
    (found,) = judged(data, base, names=["gripper"])
    assert found.kind == "beyond" and found.causes == ("a wider motion than the base was shown",)


def test_real_halves_fit_each_other_and_millimetres_do_not(tmp_path) -> None:
    out = tmp_path / "episodes"
    ingest.run(IngestConfig(source=real_log("bridge_v2_rlds"), out=out))
    motions = [motion_of(load_episode(out / row["file"])) for row in read_manifest(out)]
    base = compute(np.concatenate([m.state for m in motions[::2]]))
    states, names = [m.state for m in motions[1::2]], motions[0].state_names
    found = preflight(base, compute(np.concatenate(states)), names, vector="state", values=states)
    assert {m.name for m in found if m.severity == "error"} <= {"gripper"}
    wide = [state * [1000, 1000, 1000, 1, 1, 1, 1] for state in states]
    found = preflight(base, compute(np.concatenate(wide)), names, vector="state", values=wide)
    told = {m.name for m in found if "millimetres where the base has metres" in m.message}
    assert told == {"x", "y", "z"}
