"""Whether a camera or the light has moved since the demonstrations, judged by their own spread.

Each quantity of a deployment (mean of its m scenes) is held against the same quantity of the n episodes:

    t = (mean there - mean here) / (s * sqrt(1/m + 1/n))        s: deviation over episodes, Student's t with n - 1

and a camera has moved if any quantity is beyond its threshold and large enough to matter. The thresholds share out
`FALSE_ALARM` by weight (S. Holm, Scand. J. Statist. 6, 1979), most of it to the pose, which is the hardest to see and
does the most harm; several cameras share it again. So the false alarm of a whole comparison is at most 5% as long as
values spread no heavier than normal over episodes.

"Same" is said only where `POWER` of the changes that matter would have been seen; otherwise the answer is how many
scenes it takes. A scene is one arrangement of things on the table: ten pictures of one scene tell hardly more than
three, since what varies is how things were put down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special  # not stats, whose Student's t is the same numbers and half a second of loading

from vla_cli.fingerprint import CameraFingerprint, Fingerprint
from vla_cli.fingerprint.glimpses import Features, observe
from vla_cli.frames import Frames

Verdict = Literal["moved", "same", "cannot tell"]
FALSE_ALARM, POWER = 0.05, 0.9
LEAST_EPISODES = 3
LEAST_PICTURES = 3
"""Pictures of a scene under which its median still shows the sensor's noise and half of a moving arm."""
MOST_SCENES = 50
"""Scenes beyond which nobody is asked for more."""
SEEN = 0.85
"""Share of a move that registration reports where only what is put down by hand tells it; see `registration`."""
POOR_FIT = 4.0
"""Deviations over episodes by which the residual is larger where a registration is not to be relied on."""
_POSE, _WHOLE = ("right", "down", "turn", "zoom"), ("edges", "features")


@dataclass(frozen=True)
class Rule:
    """How one quantity is judged.

    Attributes:
        share: of `FALSE_ALARM`.
        floor: deviation over episodes below which none is believed: of few episodes it can come out far too small.
        least: change below which nobody minds, however certain it is.
        matters: change that must be seen before "same" is said; None where that is not asked.
        one_sided: only an increase counts.
    """

    share: float
    floor: float
    least: float
    matters: float | None = None
    one_sided: bool = False


def rules(size: tuple[int, int]) -> dict[str, Rule]:
    """The rules for pictures of (height, width); a move of 5% of the longer edge, or of 5 degrees, matters.

    Cameras moved by centimetres took policies from 95% to below 30% in LIBERO-Plus (arXiv 2510.13626). The shares sum
    to 1.
    """
    edge = max(size)
    return {
        "right": Rule(0.16, 0.003 * edge, 0.012 * edge, 0.05 * edge),
        "down": Rule(0.16, 0.003 * edge, 0.012 * edge, 0.05 * edge),
        "turn": Rule(0.26, 0.15, 0.7, 5.0),
        "zoom": Rule(0.08, 0.004, 0.02, 0.10),
        "brightness": Rule(0.08, 0.006, 0.03, 0.10),
        "warmth": Rule(0.06, 0.006, 0.03, 0.15),
        "tint": Rule(0.06, 0.006, 0.03, 0.15),
        "sharpness": Rule(0.06, 0.05, 0.2),
        "edges": Rule(0.04, 0.1, 0.4, one_sided=True),
        "features": Rule(0.04, 0.1, 0.4, one_sided=True),
    }


@dataclass(frozen=True)
class Change:
    """One quantity of one camera.

    Attributes:
        quantity: a name of `fingerprint.QUANTITIES`.
        amount: the change, in the quantity's unit.
        p: chance of one at least as large among the demonstrations' own spread.
        level: the threshold on `p`.
        moved: beyond the threshold, and large enough to matter.
        words: the change in words.
        scenes_needed: scenes after which a change that matters is seen; 0 where these are enough, None where no number
            is.
    """

    quantity: str
    amount: float
    p: float
    level: float
    moved: bool
    words: str
    scenes_needed: int | None = 0

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "amount": round(self.amount, 6), "p": float(f"{self.p:.3g}")}


@dataclass(frozen=True)
class CameraComparison:
    """One camera's verdict; `sentence` says it in words, `scenes_needed` is the most that any quantity asks for."""

    camera: str
    verdict: Verdict
    sentence: str
    changes: tuple[Change, ...]
    scenes: int
    pictures: int
    scenes_needed: int | None = 0

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "changes": [change.document() for change in self.changes]}


@dataclass(frozen=True)
class Comparison:
    """Every camera's verdict; `unseen` names those of which the deployment shows nothing, `unknown` the reverse."""

    cameras: tuple[CameraComparison, ...]
    unseen: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Moved if any camera has, same if all are."""
        found = {camera.verdict for camera in self.cameras}
        if "moved" in found:
            return "moved"
        return "same" if found == {"same"} and not self.unseen else "cannot tell"

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        cameras = [camera.document() for camera in self.cameras]
        return {"verdict": self.verdict, "cameras": cameras, "unseen": list(self.unseen), "unknown": list(self.unknown)}


def compare(
    fingerprint: Fingerprint,
    pictures: Mapping[str, Sequence[np.ndarray | Frames]],
    features: Features | None = None,
) -> Comparison:
    """Compare a deployment with the demonstrations.

    Args:
        fingerprint: of the demonstrations.
        pictures: for each camera its scenes, each uint8 RGB [T, H, W, 3]; see `deployment.load_pictures`.
        features: the same frozen vision tower that the fingerprint was made with; None leaves features out.

    Raises:
        ValueError: a picture cannot be decoded, or has another shape than the demonstrations' (height by width).
    """
    known = [camera for camera in sorted(pictures) if camera in fingerprint.cameras and len(pictures[camera])]
    return Comparison(
        cameras=tuple(_judge(c, fingerprint.cameras[c], pictures[c], features, len(known)) for c in known),
        unseen=tuple(sorted(set(fingerprint.cameras) - set(known))),
        unknown=tuple(sorted(set(pictures) - set(fingerprint.cameras))),
    )


def _judge(
    camera: str, base: CameraFingerprint, scenes: Sequence[np.ndarray | Frames], features: Features | None, cameras: int
) -> CameraComparison:
    height, width = base.size
    reference, found, residuals, count, fewest = base.reference(), [], [], 0, math.inf
    for pictures in scenes:
        high, wide = pictures.shape[1:3]
        if abs(high * width / (wide * height) - 1) > 0.02:
            raise ValueError(f"camera {camera} has {wide}x{high} pixels, not the shape of the demos' {width}x{height}")
        scene = observe(pictures, features, reduced=base.backdrop.shape[:2])
        values, residual = base.measure(scene, reference)
        found.append(values)
        residuals.append(residual)
        count, fewest = count + scene.pictures, min(fewest, scene.pictures)
    episodes = len(base.residual)
    if episodes < LEAST_EPISODES:
        sentence = f"Camera {camera}: cannot tell; {base.episodes} episodes show no spread, it takes {LEAST_EPISODES}."
        return CameraComparison(camera, "cannot tell", sentence, (), len(scenes), count, None)
    shown = {name: np.array([values[name] for values in found]) for name in base.values if name in found[0]}
    of_size = rules(base.size)
    changes = tuple(_change(n, of_size[n], base.values[n], shown[n], cameras, base.size) for n in shown)
    fit = float(np.mean(residuals) - base.residual.mean()) / max(float(base.residual.std(ddof=1)), 0.01)
    return _conclude(camera, changes, len(scenes), count, fewest < LEAST_PICTURES, fit > POOR_FIT)


def _change(name: str, rule: Rule, there: np.ndarray, here: np.ndarray, cameras: int, size: tuple[int, int]) -> Change:
    """Judge one quantity: `there` [n] over the episodes, `here` [m] over the scenes."""
    n, m = len(there), len(here)
    spread = max(float(there.std(ddof=1)), rule.floor)
    amount = float(here.mean() - there.mean())
    t = amount / (spread * math.sqrt(1 / m + 1 / n))
    p = float(special.stdtr(n - 1, -t)) if rule.one_sided else 2 * float(special.stdtr(n - 1, -abs(t)))
    level = rule.share * FALSE_ALARM / cameras
    moved = p < level and (amount if rule.one_sided else abs(amount)) >= rule.least
    needed = _scenes_needed(rule, spread, n, m, level)
    return Change(name, amount, p, level, moved, words(name, amount, size), needed)


def _scenes_needed(rule: Rule, spread: float, n: int, m: int, level: float) -> int | None:
    """Scenes after which a change that matters is seen with `POWER`; 0 where m are enough, None where none are."""
    if rule.matters is None:
        return 0
    reach = float(special.stdtrit(n - 1, POWER) - special.stdtrit(n - 1, level / 2)) * spread
    left = (SEEN * rule.matters / reach) ** 2 - 1 / n
    if left <= 0:
        return None
    needed = math.ceil(1 / left - 1e-9)
    return 0 if needed <= m else needed if needed <= MOST_SCENES else None


def _conclude(
    camera: str, changes: tuple[Change, ...], scenes: int, pictures: int, few: bool, poor_fit: bool
) -> CameraComparison:
    moved = [change for change in changes if change.moved]
    if moved:
        posed = any(change.quantity in _POSE for change in moved)
        # when the camera has moved, edges and features differ because of that
        said = [c for c in moved if not (posed and c.quantity in _WHOLE)]
        listed = "; ".join(change.words for change in said)
        listed += "; the pictures hardly match any more, so that the amounts are rough" if poor_fit else ""
        sentence = f"Camera {camera} has changed since the demonstrations: {listed}."
        return CameraComparison(camera, "moved", sentence, changes, scenes, pictures)
    short = [change for change in changes if change.scenes_needed != 0]
    if not short and not few:
        sentence = f"Camera {camera} shows what the demonstrations show: neither it nor the light has moved."
        return CameraComparison(camera, "same", sentence, changes, scenes, pictures)
    if any(change.scenes_needed is None for change in short):
        names = ", ".join(change.quantity for change in short if change.scenes_needed is None)
        why = f"its {names} varies too much over the episodes (too few, or a camera that does not stand still)"
        return CameraComparison(
            camera, "cannot tell", f"Camera {camera}: cannot tell; {why}.", changes, scenes, pictures, None
        )
    needed = max([scenes, *(change.scenes_needed or 0 for change in short)])
    scenes_of = f"{needed} scene{'s' if needed > 1 else ''} of {LEAST_PICTURES} or more pictures each"
    why = f"it takes {scenes_of}, every scene in a folder of its own"
    sentence = f"Camera {camera}: cannot tell yet from {pictures} pictures of {scenes} scene(s); {why}."
    return CameraComparison(camera, "cannot tell", sentence, changes, scenes, pictures, needed)


def words(quantity: str, amount: float, size: tuple[int, int]) -> str:
    """A change in words, for pictures of (height, width)."""
    if quantity in ("right", "down"):
        edge = size[1] if quantity == "right" else size[0]
        ways = ("to the right", "to the left") if quantity == "right" else ("down", "up")
        side = "width" if quantity == "right" else "height"
        return (
            f"the view has shifted about {abs(amount):.{0 if abs(amount) >= 10 else 1}f} pixels "
            f"{ways[amount < 0]} ({abs(amount) / edge:.0%} of the {side})"
        )
    if quantity == "turn":
        return f"the view has turned by about {abs(amount):.1f} degrees {'counter-' * (amount > 0)}clockwise"
    factor = math.exp(amount)
    if quantity == "zoom":
        return f"things appear {abs(factor - 1):.0%} {'larger' if amount > 0 else 'smaller'}"
    if quantity == "brightness":
        return f"it is {abs(factor - 1):.0%} {'brighter' if amount > 0 else 'darker'}"
    if quantity == "warmth":
        return f"the light is {'warmer' if amount > 0 else 'cooler'} (red against blue {factor - 1:+.0%})"
    if quantity == "tint":
        return f"the light is {'greener' if amount > 0 else 'pinker'} (green against the rest {factor - 1:+.0%})"
    if quantity == "sharpness":
        return f"it is {'sharper' if amount > 0 else 'blurred'} ({factor:.0%} of the demonstrations' sharpness)"
    if quantity == "edges":
        return "edges lie elsewhere in the picture (something large was added, moved or taken away)"
    return "the frozen vision tower sees something else"
