"""A fingerprint accuses a camera or a light that has moved, says what, and leaves other episodes of the same alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vla_cli.episode import load_episode, read_manifest
from vla_cli.errors import InputError
from vla_cli.fingerprint import FILE_NAME, Accumulator, Fingerprint, load_fingerprint, save_fingerprint
from vla_cli.fingerprint.deployment import load_pictures
from vla_cli.fingerprint.glimpses import Features
from vla_cli.fingerprint.registration import Reference
from vla_cli.fingerprint.verdict import CameraComparison, compare, rules
from vla_cli.worlds.tabletop.environment import Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.shifts import DOMAINS, Domain
from vla_cli.worlds.tabletop.world import DEFAULT_LAYOUT, DEFAULT_TASK

CAMERA = "agentview_image"


def recorded(domain: Domain, count: int, seed: int) -> list[np.ndarray]:
    """Pictures [14, 60, 60, 3] of newly drawn scenes, in which the expert goes about its task."""
    rng = np.random.default_rng(seed)
    env = TabletopVectorEnv([Start(DEFAULT_LAYOUT.draw(rng), DEFAULT_TASK) for _ in range(count)], domain, seed=seed)
    pictures = [env.reset()[0]["image"]]
    for _ in range(13):
        pictures.append(env.step(env.expert())[0]["image"])
    return list(np.stack(pictures, axis=1))


@pytest.fixture(scope="module")
def made() -> dict[str, Fingerprint]:
    """Fingerprints of a plain and of a wooden table."""
    return {name: fingerprint_of(recorded(DOMAINS[name], 16, 0)) for name in ("V", "T")}


def fingerprint_of(episodes: list[np.ndarray], features: Features | None = None) -> Fingerprint:
    maker = Accumulator(features)
    for pictures in episodes:
        maker.add(CAMERA, pictures)
    return maker.result()


def moved(domain: Domain, right: float = 0.0, down: float = 0.0, turn: float = 0.0) -> Domain:
    x, y = domain.offset
    return replace(domain, offset=(x + right, y + down), rotation=domain.rotation + turn)


def judged(fingerprint: Fingerprint, scenes: list[np.ndarray]) -> CameraComparison:
    return compare(fingerprint, {CAMERA: [pictures[3:8] for pictures in scenes]}).cameras[0]


def found(result: CameraComparison) -> set[str]:
    return {change.quantity for change in result.changes if change.moved}


@pytest.mark.parametrize("table", ["V", "T"])
def test_other_scenes_of_the_same_are_not_accused(made: dict[str, Fingerprint], table: str) -> None:
    scenes = recorded(DOMAINS[table], 18, 1)
    verdicts = [judged(made[table], scenes[i : i + 3]).verdict for i in range(0, 18, 3)]
    assert verdicts.count("moved") == 0
    assert verdicts.count("same") >= 5


@pytest.mark.parametrize("table", ["V", "T"])
@pytest.mark.parametrize(
    ("change", "quantity", "words"),
    [
        ({"right": 3.0}, "right", "to the right"),
        ({"down": -3.0}, "down", "up"),
        ({"turn": 5.0}, "turn", " counter-clockwise"),
        ({"turn": -5.0}, "turn", " clockwise"),
    ],
)
def test_a_camera_moved_by_three_pixels_or_five_degrees_is_seen(
    made: dict[str, Fingerprint],
    table: str,
    change: dict[str, float],
    quantity: str,
    words: str,
) -> None:
    scenes = recorded(moved(DOMAINS[table], **change), 6, 2)
    results = [judged(made[table], scenes[i : i + 3]) for i in range(0, 6, 3)]
    assert [result.verdict for result in results] == ["moved"] * 2
    assert all(quantity in found(result) and words in result.sentence for result in results)
    amounts = [c.amount for result in results for c in result.changes if c.quantity == quantity]
    assert abs(np.mean(amounts)) == pytest.approx(abs(next(iter(change.values()))), rel=0.4)


@pytest.mark.parametrize(
    ("spoil", "quantity", "words"),
    [
        (lambda p: p * 0.9, "brightness", "10% darker"),
        (lambda p: p * 1.1, "brightness", "10% brighter"),
        (lambda p: p * [1.05, 1.0, 0.95], "warmth", "warmer"),
        (lambda p: p * [0.95, 1.05, 0.95], "tint", "greener"),
        (lambda p: ndimage.gaussian_filter(p, (0, 1.5, 1.5, 0)), "sharpness", "blurred"),
    ],
)
def test_light_colour_and_focus_are_seen_and_called_by_their_names(
    made: dict[str, Fingerprint], spoil: object, quantity: str, words: str
) -> None:
    assert callable(spoil)
    scenes = recorded(DOMAINS["V"], 3, 3)
    result = judged(made["V"], [np.clip(spoil(v.astype(np.float32)), 0, 255).astype(np.uint8) for v in scenes])
    assert found(result) == {quantity}
    assert words in result.sentence


def test_one_scene_of_a_plain_table_is_not_enough_and_it_says_how_many_are(made: dict[str, Fingerprint]) -> None:
    scenes = recorded(DOMAINS["V"], 4, 1)
    result = judged(made["V"], scenes[:1])
    assert result.verdict == "cannot tell"
    assert result.scenes_needed in (2, 3, 4)
    assert f"it takes {result.scenes_needed} scenes" in result.sentence
    assert judged(made["V"], scenes[: result.scenes_needed]).verdict == "same"
    assert judged(made["T"], recorded(DOMAINS["T"], 1, 1)).verdict == "same"


def test_a_camera_that_never_stands_still_is_not_judged() -> None:
    rng = np.random.default_rng(0)
    domains = [moved(DOMAINS["T"], *rng.uniform(-12, 6, 2), rng.uniform(-25, 25)) for _ in range(11)]
    scenes = [v for i, domain in enumerate(domains) for v in recorded(domain, 1, i)]
    result = judged(fingerprint_of(scenes[:8]), scenes[8:])
    assert result.verdict == "cannot tell"
    assert result.scenes_needed is None
    assert "does not stand still" in result.sentence


def test_two_episodes_show_no_spread() -> None:
    maker = Accumulator()
    rng = np.random.default_rng(0)
    for _ in range(2):
        maker.add(CAMERA, rng.integers(0, 255, (5, 24, 32, 3)).astype(np.uint8))
    result = judged(maker.result(), [np.zeros((8, 24, 32, 3), np.uint8)])
    assert (result.verdict, result.changes) == ("cannot tell", ())


def test_saved_and_loaded_it_judges_alike_and_equal_demonstrations_give_equal_bytes(
    made: dict[str, Fingerprint], tmp_path: Path
) -> None:
    for name, fingerprint in (("a", made["V"]), ("b", fingerprint_of(recorded(DOMAINS["V"], 16, 0)))):
        (tmp_path / name).mkdir()
        save_fingerprint(fingerprint, tmp_path / name)
    assert (tmp_path / "a" / FILE_NAME).read_bytes() == (tmp_path / "b" / FILE_NAME).read_bytes()
    scenes = [v[:5] for v in recorded(DOMAINS["W"], 2, 1)]
    loaded = load_fingerprint(tmp_path / "a")
    assert compare(loaded, {CAMERA: scenes}).document() == compare(made["V"], {CAMERA: scenes}).document()


@pytest.mark.parametrize("text", ["{}", '{"schema_version": 1, "cameras": {"a": {"size": [1, 2]}}}', "[1]", "nonsense"])
def test_a_damaged_fingerprint_is_refused_in_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        load_fingerprint(tmp_path)
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(InputError, match=FILE_NAME):
        load_fingerprint(tmp_path)


def test_features_of_a_frozen_tower_count_where_both_have_them() -> None:
    def tower(pictures: np.ndarray) -> np.ndarray:
        return pictures.reshape(len(pictures), 6, 10, 6, 10, 3).mean((2, 4)).reshape(len(pictures), -1)

    made = fingerprint_of(recorded(DOMAINS["V"], 8, 0), tower)
    same = {CAMERA: [v[:5] for v in recorded(DOMAINS["V"], 3, 1)]}
    other = {CAMERA: [v[:5, ::-1] for v in recorded(DOMAINS["T"], 3, 1)]}
    assert "features" not in found(compare(made, same, tower).cameras[0])
    assert "features" in found(compare(made, other, tower).cameras[0])
    assert "features" not in {change.quantity for change in compare(made, other).cameras[0].changes}


def test_registration_finds_a_known_pose_whatever_the_light() -> None:
    rng = np.random.default_rng(0)
    scene = ndimage.gaussian_filter(rng.uniform(0, 255, (140, 160, 3)), (2.5, 2.5, 0))
    scene = (scene - scene.min()) * (200 / np.ptp(scene)) + 20
    for right, down, turn in ((0, 0, 0), (3, -2, 0), (-9, 6, 0), (1.5, 2.5, 5), (0, 0, -17)):
        spin = np.exp(-1j * np.deg2rad(turn))  # clockwise on the screen is positive where rows run down
        y, x = np.mgrid[:48, :64]
        places = ((x - 31.5) + 1j * (y - 23.5) - complex(right, down)) / spin
        at = np.stack([places.imag + 69.5, places.real + 79.5])
        seen = np.stack([ndimage.map_coordinates(scene[..., i], at, order=1) for i in range(3)], -1)
        pose = Reference(scene[46:94, 48:112], np.zeros((48, 64))).register(seen * [0.8, 0.9, 1.0])
        assert (pose.right, pose.down, pose.turn) == pytest.approx((right, down, turn), abs=0.25)
        assert pose.gain == pytest.approx([0.8, 0.9, 1.0], abs=0.03)
        assert pose.zoom == pytest.approx(1.0, abs=0.01)


def test_every_picture_of_many_episodes_is_bounded_in_memory() -> None:
    maker = Accumulator()
    rng = np.random.default_rng(0)
    for _ in range(150):
        maker.add(CAMERA, rng.integers(0, 255, (2, 8, 8, 3)).astype(np.uint8))
    assert len(maker._kept[CAMERA]) <= 64
    assert maker.result().cameras[CAMERA].episodes == 150


def test_the_shares_of_the_false_alarm_sum_to_one() -> None:
    assert sum(rule.share for rule in rules((60, 60)).values()) == pytest.approx(1.0)


class TestLoading:
    """A folder of pictures, folders by camera and scene, episodes."""

    @staticmethod
    def fill(folder: Path, count: int = 3, suffix: str = "png") -> None:
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((6, 8, 3), 10 * i, np.uint8)).save(folder / f"frame_{i}.{suffix}")

    def test_a_folder_of_pictures_is_one_scene_in_the_order_of_its_numbers(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "frames", 12)
        (only,) = load_pictures(tmp_path / "frames", ["wrist"])["wrist"]
        assert np.asarray(only)[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]

    def test_folders_are_cameras_where_they_are_called_so_and_scenes_otherwise(self, tmp_path: Path) -> None:
        for name in ("top", "wrist/one", "wrist/two"):
            self.fill(tmp_path / "a" / name, suffix="jpg")
        shown = load_pictures(tmp_path / "a", ["top", "wrist", "side"])
        assert {camera: len(scenes) for camera, scenes in shown.items()} == {"top": 1, "wrist": 2}
        assert len(load_pictures(tmp_path / "a" / "wrist", ["front"])["front"]) == 2
        with pytest.raises(InputError, match="whose pictures"):
            load_pictures(tmp_path / "a" / "wrist" / "one", ["top", "wrist"])

    def test_episodes_are_scenes_and_the_sample_demonstrations_have_not_moved_against_themselves(
        self, episodes: Path
    ) -> None:
        maker = Accumulator()
        for row in read_manifest(episodes):
            for stream in load_episode(episodes / row["file"]).of_role("image"):
                maker.add(stream.name, stream.values)
        fingerprint = maker.result()
        result = compare(fingerprint, load_pictures(episodes, list(fingerprint.cameras)))
        assert result.verdict != "moved"
        assert result.cameras[0].scenes == len(read_manifest(episodes))

    @pytest.mark.parametrize("what", ["nothing", "empty", "text", "broken"])
    def test_what_cannot_be_used_is_refused_in_words(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "frames"
        if what != "nothing":
            path.mkdir()
        if what == "text":
            (path / "notes.txt").write_text("hello")
        if what == "broken":
            (path / "a.png").write_bytes(b"\x89PNG nothing")
        with pytest.raises(InputError, match="frames"):
            load_pictures(path, ["wrist"])

    def test_another_shape_of_picture_is_refused(self, made: dict[str, Fingerprint]) -> None:
        with pytest.raises(ValueError, match="80x60"):
            compare(made["V"], {CAMERA: [np.zeros((3, 60, 80, 3), np.uint8)]})
