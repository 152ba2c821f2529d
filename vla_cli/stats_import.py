"""Statistics that other tools wrote, as ours: what the base was trained with, so that it can be fed the same way.

    file                     layout
    norm_stats.json          {"norm_stats": {"state": {mean, std, q01, q99}, "actions": {...}}}                 openpi
    dataset_statistics.json  {DATASET: {"action": {mean, std, min, max, q01, q99, mask}, "proprio": {...}}}      OpenVLA
    policy.json, stats.json  ours

    method      formula of `normalise`                     e
    z-score     (x - mean) / (std + e)                     1e-6 openpi, 1e-8 OpenVLA
    quantile    2 (x - q01) / (q99 - q01 + e) - 1          a dimension whose mask is False is left alone

Both formulas are a shift and a scale, so that `Statistics` says them exactly: of a quantile file `mean` is the middle
of q01 and q99 and `std` is half their distance. Sources: openpi transforms.py `Normalize`; OpenVLA
prismatic/vla/datasets/rlds/utils/data_utils.py `normalize_action_and_proprio` (it also clips to [-1, 1], which we do
not: a value outside is for `preflight` to find, not to hide).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.adapter import FILE_NAME as POLICY_FILE
from vla_cli.adapter import load_spec
from vla_cli.errors import ConfigError, InputError
from vla_cli.files import read_json
from vla_cli.stats import FILE_NAME as STATS_FILE
from vla_cli.stats import DatasetStatistics, Statistics

METHODS = ("z-score", "quantile")
OPENPI_FILE, OPENVLA_FILE = "norm_stats.json", "dataset_statistics.json"
OPENPI_EPSILON, OPENVLA_EPSILON = 1e-6, 1e-8
_NORMAL_Q99 = 2.326  # standard deviations from the mean to the 99% quantile of a normal distribution


@dataclass(frozen=True, eq=False)
class Imported:
    """Statistics from elsewhere.

    Attributes:
        state: [S], or None where the file has none (the base saw no state).
        actions: [A].
        source: where they are from, in words.
        state_names, action_names: one a dimension where the file names them, else empty.
        notes: what was filled in or is different there, plain sentences.
    """

    state: Statistics | None
    actions: Statistics
    source: str
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse_statistics(text: str) -> tuple[Path, str, str] | None:
    """What PATH[:DATASET][@METHOD] names: (path, data set, method), the last two empty where left out; None: no path.

    A path may have colons and at signs itself: the longest that is there counts.
    """
    if Path(text).exists():
        return Path(text), "", ""
    rest, at, method = text.rpartition("@")
    rest, method = (rest, method) if at else (text, "")
    if rest and Path(rest).exists():
        return Path(rest), "", method
    path, _, dataset = rest.rpartition(":")
    return (Path(path), dataset, method) if path and Path(path).exists() else None


def statistics_file(text: str) -> Path | None:
    """The file that `import_named` reads; None where nothing is there.

    Raises:
        ConfigError, InputError: a directory holds none, or several.
    """
    named = parse_statistics(text)
    return None if named is None else _file_in(named[0]) if named[0].is_dir() else named[0]


def import_named(text: str) -> Imported:
    """Statistics as `--stats-from` names them: PATH[:DATASET][@METHOD], e.g. `dataset_statistics.json:bridge_orig`.

    Raises:
        ConfigError, InputError: as for `import_statistics`.
    """
    named = parse_statistics(text)
    if named is not None:
        path, dataset, method = named
        return import_statistics(path, dataset=dataset, method=method)
    raise InputError(
        f"There are no statistics at '{text}'",
        expected=f"PATH[:DATASET][@METHOD] with a file ({', '.join(_FILES)}) or a directory that holds one",
    )


def import_statistics(path: Path, *, dataset: str = "", method: str = "") -> Imported:
    """Read statistics of any of the layouts above.

    Args:
        path: the file, or a directory (a base, a dataset) that holds one.
        dataset: which of several data sets of an OpenVLA file.
        method: "z-score" or "quantile"; empty where the file leaves no choice. OpenVLA's default is the quantile.

    Raises:
        InputError: the file is missing or malformed.
        ConfigError: the data set or the method must be named, or does not exist.
    """
    if method and method not in METHODS:
        raise ConfigError(f"The normalisation is '{method}'", expected=f"one of: {', '.join(METHODS)}")
    file = _file_in(path) if path.is_dir() else path
    if file.name == POLICY_FILE:
        _no_choice(file, dataset, method)
        spec = load_spec(file.parent)
        names = tuple(spec.state_names), tuple(spec.action_names)
        return Imported(spec.state, spec.actions, f"the base's {POLICY_FILE}", *names)
    document = read_json(file)
    if not isinstance(document, dict) or not document:
        raise InputError(f"{file} holds no statistics", expected=f"the layout of one of: {', '.join(_FILES)}")
    if "norm_stats" in document and _is_openpi(document["norm_stats"]):
        _no_choice(file, dataset, "")
        return _openpi(document["norm_stats"], file, method)
    if "state" in document and "actions" in document:
        _no_choice(file, dataset, method)
        ours = DatasetStatistics.from_json({"images": {}, **document})
        return Imported(ours.state, ours.actions, str(file))
    # A published OpenVLA model has them in its config.json, under norm_stats.
    return _openvla(document.get("norm_stats", document), file, dataset, method or "quantile")


def freeze(
    base: Statistics,
    names: Sequence[str],
    *,
    vector: str,
    base_names: Sequence[str] = (),
    dims: Sequence[int] | None = None,
) -> Statistics:
    """The base's statistics for a dataset's dimensions, unchanged: for `--stats-from`.

    A base that is wider only by padding (dimensions at the end that never moved) is cut, as openpi's `Normalize` does.

    Args:
        base: [B].
        names: of the dataset's dimensions, D.
        vector: "state" or "action".
        base_names: of the base's dimensions, where they are known.
        dims: which of the base's dimensions the dataset's are, in order; None for the same.

    Returns:
        [D].

    Raises:
        ConfigError: the dataset has other dimensions.
    """
    if dims is not None:
        outside = [index for index in dims if not 0 <= index < len(base)]
        if outside or len(dims) != len(names):
            raise ConfigError(
                f"The base's {vector} dimensions {list(dims)} are to be the dataset's {len(names)} ({_listed(names)})",
                expected=f"{len(names)} indices below {len(base)}",
            )
        return base.pick(dims)
    padded = len(base) > len(names) > 0 and bool(base.constant[len(names) :].all())
    fitted = base.pick(range(len(names))) if padded else base
    check_widths(fitted, len(names), vector, names, base_names)
    known = list(base_names[: len(names)])
    if known != list(names) and sorted(known) == sorted(names):
        raise ConfigError(
            f"The dataset's {vector} dimensions are those of the base in another order: {_listed(names)}",
            expected=_listed(known),
            hint=f"--{vector}-dims {','.join(str(list(names).index(name)) for name in known)}",
        )
    return fitted


def check_widths(
    base: Statistics, width: int, vector: str, names: Sequence[str] = (), base_names: Sequence[str] = ()
) -> None:
    """Refuse statistics of another number of dimensions than the dataset's `width`.

    Raises:
        ConfigError: naming both.
    """
    if len(base) != width:
        named = [f" ({_listed(found)})" if found else "" for found in (names, base_names)]
        raise ConfigError(
            f"The dataset has {width} {vector} dimensions{named[0]}, the statistics are of {len(base)}{named[1]}",
            expected="the same dimensions: statistics of another robot's mean nothing here",
            hint=f"--{vector}-dims to pick the dimensions that the base has, or the dataset's own statistics",
        )


_FILES = (POLICY_FILE, STATS_FILE, OPENPI_FILE, OPENVLA_FILE)


def _file_in(directory: Path) -> Path:
    for name in _FILES:
        if (directory / name).is_file():
            return directory / name
    # openpi's checkpoints have assets/<robot>/norm_stats.json
    found = sorted((directory / "assets").rglob(OPENPI_FILE))
    if len(found) > 1:
        raise ConfigError(
            f"{directory} holds several {OPENPI_FILE}: {', '.join(str(f.relative_to(directory)) for f in found)}",
            hint="name the file itself",
        )
    if not found:
        raise InputError(f"{directory} holds no statistics", expected=f"one of: {', '.join(_FILES)}")
    return found[0]


def _no_choice(file: Path, dataset: str, method: str) -> None:
    if dataset:
        raise ConfigError(f"{file} has the statistics of one data set only, and no '{dataset}'", expected="no name")
    if method:
        raise ConfigError(f"{file} says itself how to normalise", expected=f"no '{method}'")


def _is_openpi(parts: Any) -> bool:
    return isinstance(parts, dict) and any(
        isinstance(parts.get(key), dict) and "mean" in parts[key] for key in ("state", "actions", "action")
    )


def _openpi(parts: Mapping[str, Any], file: Path, method: str) -> Imported:
    key = "actions" if "actions" in parts else "action"
    if key not in parts:
        raise InputError(f"{file} has no statistics of actions", expected='"norm_stats": {"state", "actions"}')
    has_quantiles = all(parts[k].get("q01") is not None for k in ("state", key) if isinstance(parts.get(k), dict))
    if not method and has_quantiles:
        raise ConfigError(
            f"{file} does not say how its base normalises, and has what both ways need",
            expected="z-score (openpi's pi0) or quantile (pi0-FAST and pi0.5)",
            hint=f"{file}@z-score or {file}@quantile",
        )
    notes: list[str] = []
    made = {
        name: _statistics(parts[k], f"{file}: {k}", method or "z-score", OPENPI_EPSILON, notes)
        for name, k in (("state", "state"), ("actions", key))
        if k in parts
    }
    return Imported(made.get("state"), made["actions"], f"{file} (openpi, {method or 'z-score'})", notes=tuple(notes))


def _openvla(document: Any, file: Path, dataset: str, method: str) -> Imported:
    parts = document.items() if isinstance(document, dict) else ()
    sets = {name: part for name, part in parts if isinstance(part, dict) and "action" in part}
    if not sets:
        raise InputError(f"{file} holds no statistics that are known", expected=f"a layout of: {', '.join(_FILES)}")
    if not dataset and len(sets) > 1:
        raise ConfigError(
            f"{file} has the statistics of {len(sets)} data sets: {_listed(list(sets))}",
            expected="the one that the robot is nearest to",
            hint=f"{file}:{next(iter(sets))}",
        )
    name = dataset or next(iter(sets))
    if name not in sets:
        raise ConfigError(f"{file} has no data set '{name}'", expected=f"one of: {_listed(list(sets))}")
    notes = ["OpenVLA clips what it normalises to [-1, 1]; here it is not clipped."] if method == "quantile" else []
    actions = _statistics(sets[name]["action"], f"{file}: {name}.action", method, OPENVLA_EPSILON, notes)
    state, proprio = None, sets[name].get("proprio")
    if proprio is not None:
        state = _statistics(proprio, f"{file}: {name}.proprio", method, OPENVLA_EPSILON, notes)
        if state.constant.all():
            state = None
            notes.append(f"{file}: {name}.proprio is empty: the base was trained without a state.")
    return Imported(state, actions, f"{file}, {name} (OpenVLA, {method})", notes=tuple(notes))


def _statistics(part: Any, where: str, method: str, epsilon: float, notes: list[str]) -> Statistics:
    """One vector's; what the base never saw move is constant: both formulas map it to one number, whatever it is."""
    if not isinstance(part, dict):
        raise InputError(f"{where} is a {type(part).__name__}", expected="{mean, std, q01, q99}")
    mean, std = (_vector(part, key, where) for key in ("mean", "std"))
    if np.any(std < 0):
        raise InputError(f"{where} has a negative std")
    quantiles = part.get("q01") is not None and part.get("q99") is not None
    if method == "quantile" and not quantiles:
        raise InputError(f"{where} has no quantiles", expected="q01 and q99", hint="@z-score")
    low, high = (_vector(part, key, where) for key in ("q01", "q99")) if quantiles else _normal(mean, std, where, notes)
    if np.any(low > high):
        raise InputError(f"{where} has a q01 above its q99")
    least = _vector(part, "min", where) if part.get("min") is not None else low
    most = _vector(part, "max", where) if part.get("max") is not None else high
    if len({len(vector) for vector in (mean, std, low, high, least, most)}) != 1:
        raise InputError(f"{where} has lists of different lengths", expected="one value a dimension in each")
    constant = (std == 0) if method == "z-score" else (low == high) & (least == most)
    mask = np.asarray(part.get("mask") or np.ones(len(mean)), bool)
    if mask.shape != mean.shape:
        raise InputError(f"{where} has a mask of {len(mask)} dimensions", expected=str(len(mean)))
    half = (high - low + epsilon) / 2
    centre, scale = (mean, std + epsilon) if method == "z-score" else (low + half, half)
    return Statistics(
        mean=np.where(constant, mean, centre),
        std=np.where(constant, 1.0, scale),
        min=least,
        max=most,
        q01=low,
        q99=high,
        constant=constant,
        mask=mask | constant,  # OpenVLA's zeros_mask: a dimension that never moves is 0 even where it is masked
    )


def _normal(mean: np.ndarray, std: np.ndarray, where: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    notes.append(f"{where} has no quantiles: those of a normal distribution with its mean and std stand in for them.")
    return mean - _NORMAL_Q99 * std, mean + _NORMAL_Q99 * std


def _vector(part: Mapping[str, Any], key: str, where: str) -> np.ndarray:
    try:
        values = np.asarray(part[key], np.float64)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{where} has no list of numbers '{key}'", expected="one value a dimension") from None
    if values.ndim != 1 or not np.all(np.isfinite(values)):
        raise InputError(f"{where}: '{key}' is not a list of finite numbers", expected="one value a dimension")
    return values


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
