"""Table, lighting and colours: found without knowing the things on the table, and left alone where nothing differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deployments import CAMERA, base_facts, domain_of, fitted, pair, shown

from vla_cli.calibration.look import Look, LookTransform, fit_look, measure_look
from vla_cli.calibration.palette import colour_modes, match_palette
from vla_cli.calibration.robust import NotIdentified
from vla_cli.calibration.table import basis
from vla_cli.worlds.tabletop.render import SIZE
from vla_cli.worlds.tabletop.shifts import DOMAINS, Domain
from vla_cli.worlds.tabletop.surface import falloff

BASE = domain_of("base")


def base_look() -> Look:
    look = base_facts().looks[0]
    assert look is not None
    return look


def look_of(domain: str | Domain, count: int = 10) -> LookTransform:
    return fit_look([d.images[CAMERA] for d in shown(domain, count)], base_look())


def fitted_look(shift: str) -> LookTransform:
    look = fitted(shift).looks[0]
    assert look is not None
    return look


@pytest.mark.parametrize("shift", ["V", "W", "S"])
def test_the_light_is_found_by_the_things_colours(shift: str) -> None:
    found = fitted_look(shift)
    assert found.light_from == "palette"
    assert np.abs(found.light * domain_of(shift).light - 1).max() < 0.05


@pytest.mark.parametrize("shift", ["V", "W", "T"])
def test_the_table_becomes_the_bases_table(shift: str) -> None:
    found = fitted_look(shift)
    assert found.backdrop is not None
    unseen = np.isnan(found.backdrop).any(-1)
    assert unseen.mean() < 0.2
    bare = np.nan_to_num(found.backdrop)[None]
    assert np.abs(found.apply(bare)[0][~unseen] - base_look().table).max() < 1.0


@pytest.mark.parametrize("factors", [(0.6, 0.6, 0.6), (1.3, 1.2, 1.1)])
def test_light_that_changes_after_the_demonstrations_is_undone(factors: tuple[float, float, float]) -> None:
    found = fitted_look("W")
    pictures = np.concatenate([d.images[CAMERA][::8] for d in shown("W", 4)]).astype(np.float32)
    changed = np.clip(pictures * np.array(factors, np.float32), 0, 255)
    apart = np.abs(found.apply(changed) - found.apply(pictures)).mean()
    assert apart < 4.0
    # and without a change nothing is done at all
    assert found.backdrop is not None
    np.testing.assert_array_equal(found._in_the_demonstrations_light(pictures), pictures)


def test_light_that_falls_off_across_the_picture_is_found() -> None:
    domain = replace(DOMAINS["W"], gradient=0.4)
    found = look_of(domain)
    field = np.exp(basis(SIZE, SIZE) @ found.lighting).reshape(SIZE, SIZE, 1)
    # what is left of the light after the correction, everywhere and in every channel
    left = found.light / field * falloff(SIZE, 0.4)[..., None] * np.array(domain.light)
    assert np.abs(left - 1).max() < 0.05


@pytest.mark.parametrize("shift", ["V", "W", "T"])
def test_things_keep_their_hue(shift: str) -> None:
    found = fitted_look(shift)
    frames = np.concatenate([d.images[CAMERA][::4] for d in shown(shift)])
    corrected = found.apply(frames)
    # the things of the demonstrated scene, found by their own channels: red, green and blue dominate nothing else
    for channel, colour in ((0, (217, 31, 31)), (1, (25, 153, 46)), (2, (31, 64, 217))):
        others = [c for c in range(3) if c != channel]
        strong = corrected[..., channel] > 1.8 * corrected[..., others].max(-1)
        assert strong.mean() > 0.003
        seen = np.median(corrected[strong], axis=0)
        assert np.linalg.norm(seen / seen.sum() - np.array(colour) / sum(colour)) < 0.08


@pytest.mark.parametrize("shift", ["V", "W"])
def test_a_repainted_plate_is_known_as_the_bases_plate(shift: str) -> None:
    found = fitted_look(shift)
    assert found.landmark is not None
    domain = domain_of(shift)
    here, there = found.landmark
    assert np.abs(here - 255 * np.array(domain.plate) * domain.light).max() < 6
    assert np.abs(there - 255 * np.array(BASE.plate)).max() < 6


@pytest.mark.parametrize("count", [3, 5, 10])
def test_the_bases_own_look_is_hardly_changed(count: int) -> None:
    found = look_of("base", count)
    assert np.abs(found.light - 1).max() < 0.02
    assert np.abs(found.lighting).max() < 0.01
    # all its colours are known: patches of table that were never seen are no landmark
    assert found.landmark is None
    pictures = pair("base")[0]
    changed = np.abs(found.apply(pictures) - pictures).max(-1)
    assert changed.mean() < 4.0
    assert (changed > 25).mean() < 0.03


def test_a_camera_that_moves_shows_no_table_and_leaves_white_balance() -> None:
    videos = []
    for i in range(6):
        moved = replace(DOMAINS["T"], rotation=6.0 + 4 * i, offset=(3.0 * (i % 3) - 3, 4.0 * (i % 2)))
        videos.append(shown(moved, 1, i)[0].images[CAMERA])
    found = fit_look(videos, base_look())
    assert found.backdrop is None and found.light_from == "table"
    assert np.abs(found.light * found.median / base_look().table - 1).max() < 1e-6
    assert np.array_equal(found.lighting, np.zeros(6))


def carried(seed: int, count: int = 6) -> list[np.ndarray]:
    """Videos of a camera on the wrist: a strip of gripper below, and whatever it passes over."""
    rng, videos = np.random.default_rng(seed), []
    for _ in range(count):
        world = np.kron(rng.integers(60, 220, (24, 24, 3)), np.ones((8, 8, 1)))
        corners = np.clip(np.cumsum(rng.normal(0, 3, (30, 2)), axis=0) + 60, 0, 130).astype(int)
        seen = np.stack([world[a : a + 60, b : b + 60] for a, b in corners])
        seen[:, 40:] = (90, 60, 40)
        videos.append(np.clip(seen + rng.normal(0, 2, seen.shape), 0, 255).astype(np.uint8))
    return videos


def test_the_gripper_that_a_wrist_camera_sees_is_no_table() -> None:
    found, picture = fit_look(carried(1), Look(np.full(3, 99.0), np.empty((0, 3)), np.empty(0))), carried(2, 1)[0]
    assert found.backdrop is None and found.light_from == "table"
    assert np.abs(found.apply(picture)[:, 40:].mean((0, 1, 2)) - picture[:, 40:].mean((0, 1, 2))).max() < 30


def test_the_black_corners_of_a_round_picture_are_no_table() -> None:
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    inside = rows**2 + columns**2 < (SIZE / 2) ** 2
    found = fit_look([d.images[CAMERA] * inside[:, :, None] for d in shown("V")], base_look())
    assert found.light_from == "palette" and np.abs(found.light * domain_of("V").light - 1).max() < 0.05
    assert found.backdrop is not None and np.isnan(found.backdrop[~inside]).all(axis=-1).mean() > 0.9


def test_things_that_are_never_moved_are_not_taken_for_table() -> None:
    for videos in ([shown("V")[0].images[CAMERA]], [d.images[CAMERA] for d in shown("V")[:1] * 6]):
        found = fit_look(videos, base_look())
        assert found.backdrop is None and found.light_from == "table"


def test_a_saturated_picture_is_refused() -> None:
    with pytest.raises(NotIdentified, match="saturated"):
        look_of(replace(DOMAINS["V"], light=(4.0, 4.0, 4.0)), 3)


@pytest.mark.parametrize("shift", ["V", "T"])
def test_a_saved_look_acts_the_same(shift: str, tmp_path: Path) -> None:
    found = fitted_look(shift)
    found.save_backdrop(tmp_path / "table.png")
    again = LookTransform.load(found.document(), tmp_path / "table.png")
    pictures = shown(shift)[0].images[CAMERA]
    # the numbers are written with six digits, to be read by people
    assert np.abs(again.apply(pictures) - found.apply(pictures)).max() < 1e-2
    assert again.backdrop is not None and found.backdrop is not None
    assert np.array_equal(again.backdrop, found.backdrop, equal_nan=True)
    # and once saved, it is the same for good
    again.save_backdrop(tmp_path / "again.png")
    third = LookTransform.load(again.document(), tmp_path / "again.png")
    assert np.array_equal(third.apply(pictures), again.apply(pictures))
    assert third.document() == again.document() == found.document()


def test_the_bases_look_is_measured_from_its_own_domain() -> None:
    look = measure_look([d.images[CAMERA] for d in shown("base")])
    assert np.abs(look.table - 255 * np.array(BASE.background)).max() < 3
    # the plates' colour is the commonest of the things'
    assert np.abs(look.palette[0] - 255 * np.array(BASE.plate)).max() < 6
    again = Look.from_document(look.document())
    assert np.allclose(again.palette, look.palette, atol=1e-3)


def test_the_gain_onto_a_palette_is_found_in_spite_of_a_foreign_colour() -> None:
    palette, light = base_look().palette, np.array([1.2, 1.4, 1.7])
    modes = np.concatenate([palette[[0, 1, 2, 4, 5]] / light, [[90.0, 60.0, 110.0]]])
    found, matched = match_palette(modes, palette)
    assert np.abs(found / light - 1).max() < 0.05
    assert matched >= 4


def test_modes_of_colour_are_the_commonest_first() -> None:
    rng = np.random.default_rng(0)
    colours, counts = np.array([[200.0, 30.0, 30.0], [30.0, 60.0, 210.0]]), (700, 300)
    pixels = np.concatenate([c + rng.normal(0, 2, (n, 3)) for c, n in zip(colours, counts, strict=True)])
    modes, shares = colour_modes(pixels)
    assert np.abs(modes - colours).max() < 2
    assert shares == pytest.approx([0.7, 0.3], abs=0.02)


@pytest.mark.parametrize("count", [1, 5])
def test_a_table_too_unlike_the_bases_is_no_measure_of_the_light(count: int) -> None:
    black = replace(BASE, background=(0.06, 0.06, 0.06))
    grey = [np.repeat(d.images[CAMERA].mean(-1, keepdims=True), 3, -1).astype(np.uint8) for d in shown(black, count)]
    with pytest.raises(NotIdentified, match="too far apart to tell the light"):
        fit_look(grey, base_look())
