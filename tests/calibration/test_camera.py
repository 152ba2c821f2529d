"""The camera's map is found from what moves, and refused where the demonstrations do not show it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from deployments import CAMERA, base_facts, domain_of, shown, swept, true_map
from PIL import Image

from vla_cli.calibration import calibrate
from vla_cli.calibration.camera import CameraMap, between, fit_camera, warp
from vla_cli.calibration.robust import NotIdentified
from vla_cli.dataset import Demonstration
from vla_cli.worlds.tabletop.shifts import Domain

TURNED = Domain(rotation=25.0, zoom=0.9, offset=(2.0, -1.5))
PLACES = np.array([(x, y) for x in (0.1, 0.5, 0.9) for y in (0.1, 0.5, 0.9)])


def largest_error(found: CameraMap, domain: Domain, places: np.ndarray = PLACES) -> float:
    """As a share of the picture's edge; over the whole table when nothing else is said."""
    return float(np.abs(found.project(places) - true_map(domain).project(places)).max())


def visited(domain: str | Domain) -> np.ndarray:
    """[N, 2] where the gripper has been."""
    return np.concatenate([d.state[:, :2] for d in shown(domain)])


def with_pictures(demonstrations: tuple[Demonstration, ...], change) -> list[Demonstration]:
    return [replace(d, images={CAMERA: np.stack([change(d, t) for t in range(len(d))])}) for d in demonstrations]


def scaled(size: int):
    def change(d: Demonstration, t: int) -> np.ndarray:
        return np.asarray(Image.fromarray(d.images[CAMERA][t]).resize((size, size), Image.Resampling.BICUBIC))

    return change


@pytest.mark.parametrize("domain", [TURNED, "V", "Y"])
def test_a_turned_zoomed_and_shifted_camera_is_found_within_a_percent(domain: str | Domain) -> None:
    found = fit_camera(shown(domain), CAMERA, (0, 1))
    assert largest_error(found, domain_of(domain), visited(domain)) < 0.01
    # one object was carried to one plate: most of the table is extrapolated
    assert largest_error(found, domain_of(domain)) < 0.02
    assert found.error < 0.01


@pytest.mark.parametrize(("deviation", "tolerance"), [(0.002, 0.01), (0.005, 0.015)])
def test_noise_in_the_measured_positions_is_averaged_out(deviation: float, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    noisy = []
    for d in shown(TURNED):
        state = d.state.copy()
        state[:, :2] += rng.normal(0, deviation, (len(d), 2))
        noisy.append(replace(d, state=state))
    assert largest_error(fit_camera(noisy, CAMERA, (0, 1)), TURNED, visited(TURNED)) < tolerance


def test_the_map_does_not_depend_on_the_pictures_size() -> None:
    large = with_pictures(shown(TURNED)[:6], scaled(224))
    assert large[0].images[CAMERA].shape[1:] == (224, 224, 3)
    small, large_map = (fit_camera(d, CAMERA, (0, 1)) for d in (shown(TURNED)[:6], large))
    assert largest_error(large_map, TURNED, visited(TURNED)) < 0.01
    assert np.abs(small.project(PLACES) - large_map.project(PLACES)).max() < 0.01


def test_a_wrist_camera_is_refused() -> None:
    def follow(d: Demonstration, t: int) -> np.ndarray:
        column, row = np.round(60 * (0.5 - true_map(TURNED).project(d.state[t : t + 1, :2])[0])).astype(int)
        return np.roll(d.images[CAMERA][t], (row, column), axis=(0, 1))

    with pytest.raises(NotIdentified, match="wrist") as refused:
        fit_camera(with_pictures(shown(TURNED), follow), CAMERA, (0, 1))
    assert CAMERA in str(refused.value)


def test_random_pictures_are_refused() -> None:
    rng = np.random.default_rng(0)
    random = with_pictures(shown(TURNED), lambda d, t: rng.integers(0, 256, (60, 60, 3)).astype(np.uint8))
    with pytest.raises(NotIdentified, match="stands still"):
        fit_camera(random, CAMERA, (0, 1))


@pytest.mark.parametrize("angle", [0.0, 45.0])
def test_movement_along_one_line_only_is_refused_by_what_to_demonstrate(angle: float) -> None:
    with pytest.raises(NotIdentified, match="in every direction"):
        fit_camera(swept(angle), CAMERA, (0, 1))


def test_too_few_frames_ask_for_more_demonstrations() -> None:
    with pytest.raises(NotIdentified, match="more demonstrations"):
        fit_camera(shown("V")[:1], CAMERA, (0, 1))


def test_two_cameras_are_fitted_apart() -> None:
    twice = [replace(d, images={"front": d.images[CAMERA], "side": np.rot90(d.images[CAMERA], axes=(1, 2))})
             for d in shown(TURNED)[:6]]  # fmt: skip
    front, side = (fit_camera(twice, name, (0, 1)) for name in ("front", "side"))
    assert largest_error(front, TURNED, visited(TURNED)) < 0.01
    # a quarter turn to the left: column = row, row = 1 - column
    seen = front.project(PLACES)
    assert np.abs(side.project(PLACES) - np.c_[seen[:, 1], 1 - seen[:, 0]]).max() < 1e-3
    facts = base_facts()
    both = replace(facts, looks=facts.looks * 2, cameras=facts.cameras * 2, medians=facts.medians * 2)
    found = calibrate(twice, ["front", "side"], both)
    assert [w is not None for w in found.warps] == [True, True]
    images = np.stack([twice[0].images["front"][:3], twice[0].images["side"][:3]], axis=1)
    as_base = found.observe(images).astype(float)
    inner = as_base[:, :, 15:-15, 15:-15]
    # a quarter turn puts other things outside the picture; in the middle both show the same table
    assert np.abs(inner[:, 0] - inner[:, 1]).mean() < 4.0


def test_between_equal_maps_is_the_identity_and_warping_changes_nothing() -> None:
    camera = true_map(TURNED)
    linear, shift = between(camera, camera)
    assert np.allclose(linear, np.eye(2)) and np.allclose(shift, 0)
    pictures = shown("V")[0].images[CAMERA][:4].astype(np.float32)
    assert np.abs(warp(pictures, camera, camera) - pictures).max() < 1e-2


def test_between_takes_a_place_in_the_bases_picture_to_the_same_place_here() -> None:
    base, here = true_map(Domain()), true_map(TURNED)
    linear, shift = between(base, here)
    assert np.allclose(base.project(PLACES) @ linear.T + shift, here.project(PLACES))


def test_warping_there_and_back_returns_the_middle_of_the_picture() -> None:
    row, column = np.mgrid[:60, :60] / 60
    smooth = 128 + 60 * np.stack([np.sin(7 * row), np.cos(6 * column), np.sin(5 * (row + column))], -1)
    base, here = true_map(Domain()), true_map(TURNED)
    back = warp(warp(smooth[None].astype(np.float32), base, here), here, base)
    assert np.abs(back[0] - smooth)[18:-18, 18:-18].max() < 2.0


def test_a_map_survives_its_document() -> None:
    camera = fit_camera(shown("V"), CAMERA, (0, 1))
    again = CameraMap.from_document(camera.document())
    assert np.array_equal(again.matrix, camera.matrix) and np.array_equal(again.offset, camera.offset)


def test_the_map_between_cameras_does_not_depend_on_where_the_positions_frame_begins() -> None:
    """Two tilted cameras see three positions; the frame's origin is the table's, the robot's or the room's."""
    rng = np.random.default_rng(0)
    base, here = (CameraMap(rng.uniform(-1, 1, (2, 3)), np.full(2, 0.5)) for _ in range(2))
    near, places = np.zeros(3), rng.uniform(-0.2, 0.2, (40, 3))
    found = []
    for origin in (near, np.array([0.5, 0.0, 0.47]), np.array([2.0, 1.0, 0.8])):
        moved = [replace(m, offset=m.offset - m.matrix @ origin, centre=near + origin) for m in (base, here)]
        moved = [CameraMap.from_document(m.document()) for m in moved]
        found.append(base.project(places) @ between(*moved)[0].T + between(*moved)[1])
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0])
    # the demonstrations' middle is drawn where this camera sees it
    assert between(*moved)[0] @ base.offset + between(*moved)[1] == pytest.approx(here.offset)


def test_a_third_position_is_mapped_about_the_middle_of_the_demonstrations() -> None:
    deep = [replace(d, state=np.c_[d.state[:, :2], d.state[:, :1] + d.state[:, 1:2] ** 2]) for d in shown(TURNED)]
    found = fit_camera(deep, CAMERA, (0, 1, 2))
    assert found.centre is not None and len(found.centre) == 3
    assert np.abs(found.centre[:2] - visited(TURNED).mean(0)).max() < 0.2
    assert fit_camera(shown(TURNED), CAMERA, (0, 1)).centre is None


def seen_with_rotations(matrix: np.ndarray, unit: float, turns: float, seed: int) -> list[Demonstration]:
    """A dot that moves in three directions, 0.2 m each in some unit, and a gripper that also turns by up to `turns`."""
    rng, found = np.random.default_rng(seed), []
    rows, columns = np.mgrid[:30, :30] + 0.5
    for i in range(5):
        steps = np.cumsum(rng.normal(0, 1, (40, 6)), axis=0)
        where = steps / np.abs(steps).max(axis=0) * np.array([0.2, 0.2, 0.2, *[turns] * 3])
        pixel = 30 * (where[:, :3] @ matrix.T + 0.5)
        dot = (columns - pixel[:, :1, None]) ** 2 + (rows - pixel[:, 1:, None]) ** 2 < 8
        images = np.repeat(np.where(dot, 30, 180).astype(np.uint8)[..., None], 3, axis=-1)
        state = (where * np.array([unit] * 3 + [1] * 3)).astype(np.float32)
        found.append(Demonstration(f"turns_{i}", {CAMERA: images}, state, state, []))
    return found


@pytest.mark.parametrize("unit", [1.0, 1000.0], ids=["metres", "millimetres"])
def test_rotations_that_move_nothing_in_the_picture_are_no_positions(unit: float) -> None:
    matrices = np.array([[1.2, 0.1, 0.05], [-0.1, -1.1, 0.6]]), np.array([[1.1, 0.25, 0.02], [-0.3, -1.0, 0.55]])
    base = fit_camera(seen_with_rotations(matrices[0], unit, 0.5, 0), CAMERA, range(6))
    assert base.matrix.any(axis=0).tolist() == [True] * 3 + [False] * 3
    base = CameraMap.from_document(base.document())
    # here the gripper hardly turns
    here = fit_camera(seen_with_rotations(matrices[1], unit, 1e-3, 1), CAMERA, range(6), base)
    true = [CameraMap(matrix, np.full(2, 0.5), centre=np.zeros(3)) for matrix in matrices]
    assert np.abs(between(base, here)[0] - between(*true)[0]).max() < 0.05
    assert np.abs(here.matrix[:, :3] * unit - matrices[1]).max() < 0.05


def test_a_position_that_matters_and_is_not_shown_is_asked_for() -> None:
    matrix = np.array([[1.2, 0.1, 0.05], [-0.1, -1.1, 0.6]])
    shown_all = seen_with_rotations(matrix, 1.0, 0.5, 0)
    base = fit_camera(shown_all, CAMERA, range(6))
    flat = seen_with_rotations(matrix * np.array([1, 1, 0]), 1.0, 0.5, 1)
    level = np.array([1, 1, 1e-3, 1, 1, 1], np.float32)
    with pytest.raises(NotIdentified, match="in every direction"):
        fit_camera([replace(d, state=d.state * level) for d in flat], CAMERA, range(6), base)
