import tracemalloc

import numpy as np
import pytest
from builders import png, smooth_video, write_video
from PIL import Image

from vla_cli.contact_sheet import BOX, MOST_ROWS, ContactSheet, evenly
from vla_cli.frames import BLOCK, ArrayFrames, Frames, PictureFrames, VideoFrames
from vla_cli.video import probe

LEFT, TOP = 176, 6
"""Where the first picture of the first row begins."""


def counted(steps: int, height: int = 30, width: int = 40) -> np.ndarray:
    """Pictures of one colour each, which tells the step."""
    return np.broadcast_to(np.arange(steps, dtype=np.uint8)[:, None, None, None], (steps, height, width, 3))


def colours(path, columns: int) -> list[int]:
    sheet = Image.open(path)
    return [sheet.getpixel((LEFT + k * (BOX[0] + 6) + 5, TOP + 5))[0] for k in range(columns)]


class Endless(Frames):
    """Pictures made as they are asked for, and how many were."""

    def __init__(self, length: int) -> None:
        super().__init__((length, 120, 160, 3))
        self.made = 0

    def blocks(self):
        for begin in range(0, len(self), BLOCK):
            count = min(BLOCK, len(self) - begin)
            self.made += count
            yield np.full((count, 120, 160, 3), begin % 256, np.uint8)

    def cut(self, length: int) -> Frames:
        return Endless(length)


@pytest.mark.parametrize(
    ("length", "columns", "steps"),
    [(1, 8, [0]), (3, 8, [0, 1, 2]), (9, 5, [0, 2, 4, 6, 8]), (100, 2, [0, 99]), (100, 1, [0])],
)
def test_steps_are_evenly_spaced_with_both_ends(length, columns, steps) -> None:
    assert evenly(length, columns).tolist() == steps


def test_each_picture_stands_where_its_step_belongs(tmp_path) -> None:
    sheet = ContactSheet(columns=5)
    sheet.add("demo_0", "front", counted(201), np.arange(201) / 10)
    sheet.save(tmp_path / "sheet.png")
    assert colours(tmp_path / "sheet.png", 5) == [0, 50, 100, 150, 200]


def test_every_way_of_keeping_pictures_gives_the_same_sheet(tmp_path) -> None:
    plain = counted(40)
    packed = [png(np.ascontiguousarray(picture)) for picture in plain]
    for name, frames in {
        "array": plain,
        "frames": ArrayFrames(np.concatenate([plain[:7], plain]), start=7),
        "pictures": PictureFrames(packed.__getitem__, 40, "front"),
    }.items():
        sheet = ContactSheet()
        sheet.add("demo_0", "front", frames, np.arange(40) / 10)
        sheet.save(tmp_path / f"{name}.png")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_video_is_shown_from_first_to_last(tmp_path) -> None:
    pictures = smooth_video(30)
    write_video(tmp_path / "film.mp4", pictures)
    _, shape = probe(tmp_path / "film.mp4")
    sheet = ContactSheet(columns=2)
    sheet.add("demo_0", "front", VideoFrames(tmp_path / "film.mp4", shape), np.arange(30) / 10)
    sheet.save(tmp_path / "sheet.png")
    shown = colours(tmp_path / "sheet.png", 2)
    assert abs(shown[0] - int(pictures[0, 1, 1, 0])) < 12 and abs(shown[1] - int(pictures[-1, 1, 1, 0])) < 12


def test_the_same_pictures_give_the_same_bytes(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        sheet = ContactSheet()
        for camera in ("front", "wrist"):
            sheet.add("demo_0", camera, smooth_video(20), np.arange(20) / 10)
        sheet.save(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_longer_episode_takes_no_more_memory() -> None:
    peaks = []
    for length in (300, 3000):
        frames, sheet = Endless(length), ContactSheet()
        tracemalloc.start()
        sheet.add("demo_0", "front", frames, np.arange(length) / 10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert frames.made == length
    assert peaks[1] < 1.2 * peaks[0]


def test_plain_pictures_are_read_one_by_one() -> None:
    class Source:
        shape = (10_000, 30, 40, 3)
        asked = 0

        def __getitem__(self, wanted: slice) -> np.ndarray:
            Source.asked += wanted.stop - wanted.start
            return np.zeros((wanted.stop - wanted.start, 30, 40, 3), np.uint8)

    sheet = ContactSheet()
    sheet.add("demo_0", "front", ArrayFrames(Source()), np.arange(10_000) / 10)
    assert Source.asked == 8


def test_damaged_pictures_are_told_and_leave_a_row(tmp_path) -> None:
    packed = [png(np.zeros((8, 8, 3), np.uint8))] * 5 + [b"no picture"]
    sheet = ContactSheet()
    with pytest.raises(ValueError, match="step 5"):
        sheet.add("demo_0", "front", PictureFrames(packed.__getitem__, 6, "front"), np.arange(6) / 10)
    sheet.add("demo_1", "front", counted(6), np.arange(6) / 10)
    sheet.save(tmp_path / "sheet.png")
    assert len(sheet) == 2


def test_a_full_sheet_counts_what_it_leaves_out() -> None:
    sheet = ContactSheet(columns=1)
    for index in range(MOST_ROWS + 3):
        sheet.add(f"demo_{index}", "front", counted(1), np.zeros(1))
    assert len(sheet) == MOST_ROWS and sheet.left_out == 3


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_any_label_and_any_size_can_be_drawn(tmp_path, size) -> None:
    sheet = ContactSheet()
    sheet.add("long " * 10_000, "\x1b[31m\n\ud800 机器人", np.zeros((2, *size, 3), np.uint8), np.zeros(0))
    sheet.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as shown:
        assert shown.width < 2000 and shown.height < 400


def test_an_empty_sheet_is_not_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        ContactSheet().save(tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="no pictures"):
        ContactSheet().add("demo_0", "front", np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0))
    assert list(tmp_path.iterdir()) == []
