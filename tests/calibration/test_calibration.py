"""A deployment's transforms together: what the base would see and command, on disk and back, and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deployments import CAMERA, base_facts, fitted, pair, robot, shown, swept

from vla_cli.calibration import (
    PARTS,
    Calibration,
    DomainFacts,
    calibrate,
    load_domain,
    measure_domain,
    save_domain,
)
from vla_cli.dataset import Demonstration
from vla_cli.errors import InputError
from vla_cli.files import write_json
from vla_cli.synchrony.synchronise import square
from vla_cli.worlds.tabletop.shifts import DOMAINS


def stored(calibration: Calibration, directory: Path) -> Calibration:
    """Written to disk and read again."""
    write_json(directory / "calibration.json", calibration.document())
    calibration.save(directory)
    return Calibration.load(json.loads((directory / "calibration.json").read_text()), directory)


def frames(shift: str, seed: int = 9) -> np.ndarray:
    """[N, 1, 60, 60, 3] of episodes that were not demonstrated."""
    return np.concatenate([d.images[CAMERA] for d in shown(shift, 3, seed)])[:, None]


@pytest.mark.parametrize(
    ("shift", "parts"),
    [
        ("V", {"look", "camera", "action"}),
        ("T", {"look", "camera", "action"}),
        ("S", {"look", "camera", "action", "timing"}),
    ],
)
def test_a_deployment_gets_the_parts_that_differ(shift: str, parts: set[str]) -> None:
    found = fitted(shift)
    assert set(found.parts) == parts
    assert found.skipped == {}
    assert found.ratio == pytest.approx(np.diag(DOMAINS[shift].gain), abs=0.01)


@pytest.mark.parametrize(("shift", "left"), [("V", 3.0), ("W", 4.0), ("T", 6.0)])
def test_the_base_sees_what_it_would_see_in_its_own_domain(shift: str, left: float) -> None:
    here, there = pair(shift)
    before = np.abs(here.astype(float) - there).mean()
    after = np.abs(fitted(shift).observe(here[:, None])[:, 0].astype(float) - there).mean()
    assert after < left < 0.1 * before


@pytest.mark.parametrize("shift", ["V", "T", "S", "D"])
def test_a_stored_calibration_acts_identically(shift: str, tmp_path: Path) -> None:
    found = stored(fitted(shift), tmp_path)
    assert found.document() == fitted(shift).document()
    rng = np.random.default_rng(0)
    actions, state = rng.uniform(-1, 1, (9, 8, 3)).astype(np.float32), rng.choice([-1.0, 1.0], (9, 4))
    assert np.allclose(found.command(actions, state), fitted(shift).command(actions, state), atol=1e-4)
    (tmp_path / "again").mkdir()
    again = stored(found, tmp_path / "again")
    images = frames(shift)[::3]
    assert np.array_equal(again.observe(images), found.observe(images))
    assert np.array_equal(again.command(actions, state), found.command(actions, state))
    assert np.array_equal(again.is_here(images), found.is_here(images))
    # six digits are written: against what was fitted, a grey level may round the other way
    differs = np.abs(found.observe(images).astype(int) - fitted(shift).observe(images))
    assert differs.max() <= 1 and (differs > 0).mean() < 1e-3


def test_a_damaged_calibration_is_refused(tmp_path: Path) -> None:
    fitted("V").save(tmp_path)
    document = fitted("V").document()
    for damaged in ({k: v for k, v in document.items() if k != "delay"}, {**document, "timing": {"fast": 1}}):
        with pytest.raises(InputError, match="malformed"):
            Calibration.load(damaged, tmp_path)
    (tmp_path / "calibration" / f"table_{CAMERA}.png").unlink()
    with pytest.raises(InputError, match="malformed"):
        Calibration.load(document, tmp_path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"ratio": [[1.0]]}, "ratio is 1 x 1, not 2 x 2"),
        ({"ratio": [[0.0, 0.0], [0.0, 1.0]]}, "ratio cannot be divided by"),
        ({"limit": None}, "limit is not the largest command"),
        ({"actions": None}, "actions is null, but there is a ratio"),
        ({"warps": []}, "warps has 0 entries for 1 camera"),
        ({"medians": [[1, 2]]}, "no colour of three channels"),
        ({"delay": -1}, "a delay is below 0"),
        ({"timing": {"open": "slow", "closed": 0, "closing": 0, "opening": None}}, "open is slow.*closed is 0, not"),
        ({"bars": [[60, 0, 0, 0]]}, "leave no picture"),
        ({"image_size": [224, 224]}, "has 60 x 60 pixels, not 224 x 224"),
    ],
)
def test_an_edit_that_cannot_be_applied_is_refused_before_the_robot_acts(
    edit: dict[str, object], said: str, tmp_path: Path
) -> None:
    fitted("V").save(tmp_path)
    with pytest.raises(InputError, match=said):
        Calibration.load({**fitted("V").document(), **edit}, tmp_path)


@pytest.mark.parametrize("parts", [(), ("look",), ("action", "camera")])
def test_parts_that_are_not_asked_for_are_left_out_by_name(parts: tuple[str, ...]) -> None:
    found = calibrate(shown("V"), [CAMERA], base_facts(), parts)
    assert set(found.parts) == set(parts)
    assert found.skipped == {part: "not asked for" for part in PARTS if part not in parts}


def test_without_parts_nothing_changes() -> None:
    found = calibrate(shown("V"), [CAMERA], base_facts(), ())
    images, actions = frames("V")[:3], np.random.default_rng(0).uniform(-1, 1, (3, 8, 3)).astype(np.float32)
    assert np.array_equal(found.observe(images), images)
    assert np.array_equal(found.command(actions, np.zeros((3, 4))), actions)


def test_facts_that_are_unknown_leave_their_parts_out_with_the_reason() -> None:
    nothing = DomainFacts([None], [None], base_facts().medians, None, None, {"action": "the actions are targets"})
    found = calibrate(shown("V"), [CAMERA], nothing)
    assert found.parts == []
    assert set(found.skipped) == set(PARTS)
    assert found.skipped["action"] == found.skipped["delay"] == "the actions are targets"
    without_speeds = calibrate(shown("V"), [CAMERA], replace(base_facts(), speeds=None))
    assert set(without_speeds.skipped) == {"timing"}
    assert {"look", "camera", "action"} <= set(without_speeds.parts)


def test_demonstrations_that_do_not_show_it_leave_the_part_out_and_say_what_to_show() -> None:
    found = calibrate(swept(0.0), [CAMERA], base_facts())
    assert "in every direction" in found.skipped["camera"]
    assert "along each axis" in found.skipped["action"]
    assert "close and open" in found.skipped["delay"]
    assert found.warps == [None] and found.ratio is None and found.delay == 0


def test_a_saturated_camera_leaves_the_look_out_and_the_rest_in() -> None:
    found = calibrate(shown(replace(DOMAINS["V"], light=(4.0, 4.0, 4.0)), 6), [CAMERA], base_facts())
    assert "saturated" in found.skipped["look"]
    assert "action" in found.parts and found.by_picture


@pytest.mark.parametrize("shift", ["V", "W"])
def test_a_part_is_undone_by_editing_its_entry(shift: str, tmp_path: Path) -> None:
    fitted(shift).save(tmp_path)
    document = fitted(shift).document()
    images, actions = frames(shift)[:3], np.full((3, 8, 3), 0.3, np.float32)
    edited = {**document, "looks": [None], "warps": [None], "ratio": None}
    found = Calibration.load(edited, tmp_path)
    assert found.parts == []
    assert np.array_equal(found.observe(images), images)
    assert np.array_equal(found.command(actions, np.zeros((3, 4))), actions)


@pytest.mark.parametrize("shift", ["V", "W", "T"])
def test_deployment_and_base_are_told_apart(shift: str) -> None:
    found = fitted(shift)
    assert found.by_picture
    assert found.is_here(frames(shift)).mean() >= 0.99
    assert found.is_here(frames("base")).mean() <= 0.01


def test_for_one_deployment_only_the_transforms_stay_on_in_any_light(tmp_path: Path) -> None:
    by_picture = fitted("W")
    found = stored(replace(by_picture, only_here=True), tmp_path)
    brighter = np.clip(frames("W") * 1.8, 0, 255).astype(np.uint8)
    assert by_picture.is_here(brighter).mean() < 0.1, "else this test shows nothing"
    assert found.is_here(brighter).all() and found.is_here(frames("base")).all()
    assert found.document()["on"] == "always" and not found.by_picture
    apart = np.abs(found.observe(brighter).astype(int) - by_picture.observe(frames("W")))
    assert np.median(apart) <= 1, "the change of the light is undone"


def test_when_it_is_on_is_said_in_one_of_two_ways(tmp_path: Path) -> None:
    document = fitted("V").document()
    fitted("V").save(tmp_path)
    with pytest.raises(InputError, match="on is sometimes"):
        Calibration.load({**document, "on": "sometimes"}, tmp_path)


def test_where_the_domains_look_alike_the_transforms_stay_on() -> None:
    weaker = replace(DOMAINS["base"], gain=(0.7, 0.8))
    found = calibrate(shown(weaker), [CAMERA], base_facts())
    assert "action" in found.parts and not found.by_picture
    assert found.is_here(frames("base")).all()
    assert found.document()["on"] == "always"


def with_wrist(shift: str, seed: int = 0) -> list[Demonstration]:
    """A second camera, whose brightness follows what it passes over."""
    rng, found = np.random.default_rng(seed), []
    for d in shown(shift, 4):
        bright = 120 * np.exp(rng.normal(0, 0.3, (len(d), 1, 1, 1)))
        wrist = np.clip(np.broadcast_to(bright, (len(d), 60, 60, 3)), 5, 249).astype(np.uint8)
        found.append(replace(d, images={CAMERA: d.images[CAMERA], "wrist": wrist}))
    return found


def test_only_cameras_that_know_their_own_pictures_say_where_they_are(tmp_path: Path) -> None:
    """Else the transforms would come and go with what the wrist passes over, in the very demonstrations."""
    front = base_facts()
    both = replace(
        front, looks=[*front.looks, None], cameras=[*front.cameras, None], medians=[*front.medians, np.full(3, 100.0)]
    )
    for shift, by in (("V", (0,)), ("base", ())):
        here = with_wrist(shift)
        found = calibrate(here, [CAMERA, "wrist"], both, ("action",))
        again = stored(found, tmp_path)
        images = np.concatenate([np.stack([d.images[CAMERA], d.images["wrist"]], axis=1) for d in here])
        assert found.told_by == by and found.by_picture is bool(by)
        assert found.is_here(images).mean() > 0.99 and again.is_here(images).mean() > 0.99
    assert calibrate(shown("V"), [CAMERA], front, ()).told_by is None


def test_commands_displace_this_robot_as_the_bases_displace_its_own() -> None:
    found = fitted("V")
    wished = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 8, 3)).astype(np.float32)
    given = found.command(wished, np.zeros((4, 4)))
    assert given[..., :2] * DOMAINS["V"].gain == pytest.approx(wished[..., :2], abs=1e-3)
    assert np.array_equal(given[..., 2], wished[..., 2])


def test_a_demonstration_is_told_as_the_base_would_have_done_it() -> None:
    shift, found = shown("D")[0], fitted("D")
    told = found.demonstration(shift)
    assert found.delay == 2
    assert told.images[CAMERA].shape == shift.images[CAMERA].shape
    assert np.array_equal(told.images[CAMERA], found.observe(shift.images[CAMERA][:, None])[:, 0])
    assert told.actions[:, :2] == pytest.approx(shift.actions[:, :2] * DOMAINS["D"].gain, abs=1e-3)
    # the base's gripper acts at once: its command is named when this robot's takes effect
    assert np.array_equal(told.actions[2:, 2], shift.actions[:-2, 2])
    closed = shift.state[1:, 2] > 0
    assert np.array_equal(told.actions[:-1, 2][2:] > 0, closed[2:])
    assert np.array_equal(told.state, shift.state) and told.instructions == shift.instructions


def test_a_base_without_domain_facts_is_measured_and_stored(tmp_path: Path) -> None:
    assert load_domain(tmp_path) is None
    facts = measure_domain(shown("base"), [CAMERA])
    assert facts.unknown == {}
    save_domain(facts, tmp_path)
    again = load_domain(tmp_path)
    assert again is not None and again.document() == DomainFacts.from_document(facts.document()).document()
    (tmp_path / "domain.json").write_text("{}")
    with pytest.raises(InputError, match="malformed"):
        load_domain(tmp_path)


def test_what_cannot_be_measured_of_a_base_is_named() -> None:
    facts = measure_domain(robot(np.eye(2) * 0.05), [CAMERA])
    assert facts.actions is not None and facts.looks == [None] and facts.cameras == [None]
    assert "saturated" in facts.unknown[f"look of {CAMERA}"]
    assert "stands still" in facts.unknown[f"camera {CAMERA}"]


def letterboxed(pictures: np.ndarray, rows: int) -> np.ndarray:
    """The middle rows of pictures [N, 60, 60, 3], padded with black as preprocess pads a wide camera's."""
    top = (60 - rows) // 2
    return np.stack([square(np.ascontiguousarray(picture[top : top + rows]), 60) for picture in pictures])


@pytest.mark.parametrize("rows", [45, 34])
def test_black_bars_are_left_out_of_the_fit_and_shown_as_they_are(rows: int, tmp_path: Path) -> None:
    demonstrations = [replace(d, images={CAMERA: letterboxed(d.images[CAMERA], rows)}) for d in shown("W")]
    found = stored(calibrate(demonstrations, [CAMERA], base_facts()), tmp_path)
    assert {"look", "camera", "action"} <= set(found.parts)
    here, there = (letterboxed(pictures, rows) for pictures in pair("W"))
    seen = found.observe(here[:, None])[:, 0]
    above = (60 - rows) // 2
    assert found.bars == [(above, 60 - rows - above, 0, 0)]
    assert not seen[:, :above].any() and not seen[:, above + rows :].any()
    before, after = (np.abs(pictures.astype(float) - there).mean() for pictures in (here, seen))
    assert after < 5.0 < 0.2 * before
    assert found.is_here(here[:, None]).all() and not found.is_here(there[:, None]).any()


def test_black_bars_are_no_colour_of_the_bases() -> None:
    boxed = [replace(d, images={CAMERA: letterboxed(d.images[CAMERA], 34)}) for d in shown("base")]
    look = measure_domain(boxed, [CAMERA]).looks[0]
    # the gripper is dark too, but the plates are the commonest of what stands on the table
    assert look is not None and look.palette[0].min() > 200
