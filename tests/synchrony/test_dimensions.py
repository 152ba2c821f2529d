import numpy as np
import pytest

from vla_cli.episode import Stream
from vla_cli.synchrony.dimensions import in_own_frame, parts_of, unit_tokens


def stream(width: int, name: str = "pose", role: str = "state", **attributes) -> Stream:
    values = np.random.default_rng(0).normal(size=(20, width))
    return Stream(role, name, values, np.arange(20) / 10, attributes)  # type: ignore[arg-type]


UMI = [f"robot0_eef_{part}.{i}" for part in ("pos", "rot_axis_angle") for i in range(3)] + ["robot0_gripper_width"]


@pytest.mark.parametrize(
    ("one", "rotations", "grippers"),
    [
        (stream(7, rotation="quaternion-xyzw"), (3,), ()),
        (stream(4, rotation="quaternion-wxyz"), (0,), ()),
        (stream(6, rotation="axis-angle", units="m, rad"), (3,), ()),
        (stream(9, rotation="rotation-6d"), (3,), ()),
        (stream(7, rotation="euler-xyz", units="m, rad", gripper="open-high"), (3,), (6,)),
        (stream(7, rotation="axis-angle", units="m, rad", names=UMI), (3,), (6,)),
        (stream(14, rotation="axis-angle", units="m, rad", names=[*UMI, *UMI]), (3, 10), (6, 13)),
        (stream(7, rotation="quaternion-xyzw", names=["qx", "qy", "qz", "qw", "x", "y", "z"]), (0,), ()),
        (stream(2, name="gripper_states", rotation="none", gripper="joint"), (), (0, 1)),
        (stream(2, name="robot0_gripper"), (), (0, 1)),
        (stream(7, name="gripper_pose", rotation="quaternion-xyzw"), (3,), ()),
        (stream(3, names=["x", "y", "left_gripper"]), (), (2,)),
        (stream(3, names=["x", "y", "gripper"], gripper="none"), (), ()),
        (stream(7, rotation="joints", units="rad"), (), ()),
        (stream(5), (), ()),
    ],
)
def test_parts_are_found_by_names_and_widths(one: Stream, rotations: tuple, grippers: tuple) -> None:
    parts = parts_of(one)
    assert (parts.rotations, parts.grippers, parts.notes) == (rotations, grippers, ())
    columns = [*parts.plain, *parts.grippers, *(i for block in parts.blocks for i in range(block.start, block.stop))]
    assert sorted(columns) == list(range(one.values.shape[1]))


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (stream(10, rotation="quaternion-xyzw"), "cannot be found among 10 dimensions"),
        (stream(7, rotation="axis-angle", units="normalised to [-1, 1]", gripper="open-low"), "not radians or degrees"),
        (stream(6, rotation="euler-xyz"), "'unknown' and not radians"),
        (stream(9, rotation="joints", gripper="open-high"), "no dimension is named a gripper"),
    ],
)
def test_what_cannot_be_told_is_said(one: Stream, says: str) -> None:
    parts = parts_of(one)
    assert not parts.rotations and any(says in note for note in parts.notes)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("m, rad", {"m", "rad"}),
        ("metres and degrees", {"m", "deg"}),
        ("normalised to [-1, 1]", {"normalised"}),
        ("m/s, rad/s", set()),
        ("rad, gripper 0 to 1", {"rad"}),
        ("unknown", set()),
    ],
)
def test_units_are_read_from_their_text(text: str, tokens: set[str]) -> None:
    assert unit_tokens(stream(2, units=text)) == tokens


def test_a_frame_that_moves_with_the_hand_is_told_from_one_that_stands() -> None:
    assert [in_own_frame(stream(2, frame=f)) for f in ("end-effector", "tool", "ee_link")] == [True] * 3
    assert [in_own_frame(stream(2, frame=f)) for f in ("base", "world", "unknown", "wheel")] == [False] * 4


@pytest.mark.parametrize(
    ("switching", "still", "grippers"),
    [
        ((6, 13), (), (6, 13)),
        ((13,), (6,), (6, 13)),
        ((6,), (13,), (6, 13)),
        ((), (6, 13), (6, 13)),
        ((13,), (12,), (13,)),  # both behind both poses: where the second rotation is, nobody has said
        ((13,), (6, 12), (13,)),  # or the second hand does not turn: open
        ((2, 13), (6,), (2, 13)),
        ((), (), ()),
    ],
)
def test_a_still_gripper_of_two_hands_is_found_by_its_place(switching: tuple, still: tuple, grippers: tuple) -> None:
    one = stream(14, rotation="euler-xyz", units="m, rad", gripper="open-high")
    one.values[:, list(still)] = 0.0
    one.values[:, list(switching)] = np.arange(20)[:, None] > 9
    parts = parts_of(one)
    assert (parts.grippers, parts.rotations) == (grippers, (3, 10) if grippers == (6, 13) else ())
