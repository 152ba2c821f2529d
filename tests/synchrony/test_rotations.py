import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cli.synchrony.rotations import (
    WIDTHS,
    convert,
    from_rotation,
    interpolate,
    make_continuous,
    make_positive,
    to_rotation,
)

KINDS = sorted(WIDTHS)
seeds = st.integers(0, 2**32 - 1)


def turning(steps: int, seed: int, size: float = 0.3) -> Rotation:
    """A path of rotations that turns by up to `size` radians a step."""
    rng = np.random.default_rng(seed)
    path = [Rotation.random(rng=rng)]
    for _ in range(steps - 1):
        path.append(Rotation.from_rotvec(rng.uniform(-size, size, 3)) * path[-1])
    return Rotation.concatenate(path)


def apart(one: Rotation, other: Rotation) -> float:
    return float((one * other.inv()).magnitude().max())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seeds, st.booleans())
def test_every_kind_survives_every_other(kind: str, seed: int, degrees: bool) -> None:
    rotation = Rotation.random(20, rng=np.random.default_rng(seed))
    values = from_rotation(rotation, kind, degrees=degrees)
    assert values.shape == (20, WIDTHS[kind])
    for other in KINDS:
        back = convert(convert(values, kind, other, degrees=degrees), other, kind, degrees=degrees)
        assert apart(to_rotation(back, kind, degrees=degrees), rotation) < 1e-6


def test_the_kinds_mean_what_their_sources_say() -> None:
    quarter = Rotation.from_rotvec([[0, 0, np.pi / 2]])
    half = np.sqrt(0.5)
    assert np.allclose(from_rotation(quarter, "quaternion-wxyz"), [[half, 0, 0, half]])
    assert np.allclose(from_rotation(quarter, "quaternion-xyzw"), [[0, 0, half, half]])
    assert np.allclose(from_rotation(quarter, "axis-angle", degrees=True), [[0, 0, 90]])
    assert np.allclose(from_rotation(quarter, "rotation-6d"), [[0, -1, 0, 1, 0, 0]])  # rows, as PyTorch3D
    # Fixed axes in turn: the later angle turns what the earlier one has turned.
    both = Rotation.from_euler("z", 0.3) * Rotation.from_euler("y", 0.2) * Rotation.from_euler("x", 0.1)
    assert apart(to_rotation(np.array([[0.1, 0.2, 0.3]]), "euler-xyz"), both) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(seeds)
def test_interpolating_at_the_own_clock_changes_no_bit(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    clock = np.cumsum(rng.uniform(0.05, 0.15, 12))
    values = from_rotation(turning(12, seed), kind) * (1.0 if kind in ("axis-angle", "euler-xyz") else 1.7)
    assert interpolate(clock, values, clock, kind).tobytes() == values.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_steady_turn_stays_steady(kind: str) -> None:
    axis = np.array([1.0, 2.0, -2.0]) / 3
    clock, ticks = np.arange(0, 4, 0.5), np.arange(0, 3.5, 0.07)
    turn = Rotation.from_rotvec(clock[:, None] * 1.3 * axis)  # passes half a turn, where angles jump
    found = interpolate(clock, from_rotation(turn, kind), ticks, kind)
    assert apart(to_rotation(found, kind), Rotation.from_rotvec(ticks[:, None] * 1.3 * axis)) < 1e-6
    if kind in ("axis-angle", "euler-xyz"):
        assert np.abs(found).max() <= np.pi + 1e-9


@pytest.mark.parametrize("kind", ["axis-angle", "euler-xyz"])
def test_angles_that_go_on_beyond_half_a_turn_go_on_between_samples(kind: str) -> None:
    clock, ticks = np.arange(0, 8, 0.5), np.arange(0, 7.5, 0.1)
    values = np.stack([0 * clock, 0 * clock, 0.9 * clock], axis=1)
    assert np.allclose(interpolate(clock, values, ticks, kind)[:, 2], 0.9 * ticks, atol=1e-9)


def test_slerp_takes_the_short_way_whatever_the_signs() -> None:
    ends = from_rotation(Rotation.from_rotvec([[0, 0, 0.0], [0, 0, 0.4]]), "quaternion-xyzw")
    for sign in (1, -1):
        found = interpolate(np.array([0.0, 1.0]), ends * [[1], [sign]], np.array([0.5]), "quaternion-xyzw")
        assert apart(to_rotation(found, "quaternion-xyzw"), Rotation.from_rotvec([[0, 0, 0.2]])) < 1e-9


def test_of_doubled_stamps_the_last_counts() -> None:
    values = from_rotation(turning(4, 0), "quaternion-xyzw")
    found = interpolate(np.array([0.0, 1.0, 1.0, 2.0]), values, np.array([1.0]), "quaternion-xyzw")
    assert np.array_equal(found[0], values[2])


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_injected_changes_of_sign_are_undone_and_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clean = from_rotation(turning(30, seed), "quaternion-xyzw")
    clean, _ = make_continuous(clean)
    signs = np.where(rng.random(30) < 0.3, -1.0, 1.0)
    signs[0] = 1.0
    found, count = make_continuous(clean * signs[:, None])
    assert np.array_equal(found, clean)
    assert count == np.sum(np.diff(signs) != 0)
    assert make_continuous(found)[1] == 0


def test_w_is_made_positive_in_both_orders() -> None:
    values = np.array([[-0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, -0.5]])
    assert np.array_equal(np.sign(make_positive(values, "quaternion-wxyz")[:, 0]), [1, 1])
    assert np.array_equal(np.sign(make_positive(values, "quaternion-xyzw")[:, 3]), [1, 1])


@pytest.mark.parametrize(
    ("kind", "row"), [("quaternion-xyzw", [0, 0, 0, 0]), ("rotation-6d", [1, 0, 0, 2, 0, 0]), ("rotation-6d", [0] * 6)]
)
def test_what_means_no_rotation_is_refused(kind: str, row: list[float]) -> None:
    with pytest.raises(ValueError, match=r"length 0|empty or parallel"):
        to_rotation(np.array([row], float), kind)
