"""Robust regression: outliers do not move it, and its standard errors are honest."""

import numpy as np

from vla_cli.calibration.robust import NotIdentified, robust_fit

SLOPE = np.array([[1.0, -0.5], [0.3, 2.0]])


def points(noise: float, seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2))
    return x, x @ SLOPE + np.array([0.2, -1.0]) + rng.normal(0, noise, (count, 2))


def test_a_quarter_of_wild_points_does_not_move_the_fit() -> None:
    x, y = points(0.01, 0)
    y[::4] = np.random.default_rng(1).uniform(-20, 20, y[::4].shape)
    fit = robust_fit(x, y)
    assert np.abs(fit.slope - SLOPE).max() < 0.01
    assert np.abs(fit.intercept - [0.2, -1.0]).max() < 0.01
    assert 0.65 < fit.kept < 0.8
    assert fit.explained.min() > 0.99


def test_noise_alone_explains_nothing() -> None:
    rng = np.random.default_rng(0)
    fit = robust_fit(rng.normal(size=(400, 2)), rng.normal(size=(400, 1)))
    assert fit.explained[0] < 0.1


def test_standard_errors_are_those_of_repeated_experiments() -> None:
    fits = [robust_fit(*points(0.5, seed)) for seed in range(80)]
    scatter = np.std([fit.slope for fit in fits], axis=0)
    claimed = np.mean([fit.slope_error for fit in fits], axis=0)
    assert np.abs(claimed / scatter - 1).max() < 0.25
    far = np.array([3.0, -3.0])
    scatter = np.std([far @ fit.slope + fit.intercept for fit in fits], axis=0)
    assert np.abs(np.mean([fit.error_at(far) for fit in fits], axis=0) / scatter - 1).max() < 0.25


def test_a_refusal_says_what_was_seen_and_what_it_takes() -> None:
    refused = NotIdentified("the arm stands still", "a demonstration that moves it")
    assert (refused.found, refused.wanted) == ("the arm stands still", "a demonstration that moves it")
    assert str(refused) == "the arm stands still; it takes a demonstration that moves it"
