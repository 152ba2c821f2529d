"""What the demonstrations' cameras saw: enough to tell later whether a camera or the light has moved.

For each camera a fingerprint holds what stands still (the median picture over episodes, reduced to 64 pixels, and how
much each pixel varies) and, for each episode, ten quantities measured against the other episodes:

    right, down   pixels of the camera's own picture by which the view's content lies further right, down
    turn          degrees counter-clockwise, as the picture shows it
    zoom          log of the factor by which things appear larger
    brightness    log of the factor on the light, of what stands still: mean of red, green and blue
    warmth        log of red against blue         tint   log of green against the mean of red and blue
    sharpness     log of the variance of the Laplacian (J. Pech-Pacheco et al., ICPR 2000), full size,
                  less what the light does to it
    edges         log distance of the edge layout: gradient energy by orientation on a grid (N. Dalal and B. Triggs,
                  CVPR 2005) from the episodes' mean
    features      log cosine distance of a frozen vision tower's features from the episodes' mean, where given

The spread of these values over episodes is what thresholds are calibrated by (see `verdict`): a lab's own
way of putting things down, its arm, its sensor's noise and its daylight are in it.

An episode's values come from a glimpse of a few pictures in a row, at another place in each episode: that is what a
deployment shows, and a median over a whole episode would promise a precision that it does not have.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_cli.errors import InputError
from vla_cli.files import read_json, write_json
from vla_cli.fingerprint.glimpses import Features, Scene, edge_layout, median_picture, observe
from vla_cli.fingerprint.registration import Pose, Reference
from vla_cli.frames import Frames
from vla_cli.provenance import not_an_artefact

FILE_NAME = "fingerprint.json"
SCHEMA_VERSION = 1
QUANTITIES = ("right", "down", "turn", "zoom", "brightness", "warmth", "tint", "sharpness", "edges", "features")
MOST_EPISODES = 64
"""Episodes kept of each camera; of more, every second is left out, again and again: memory stays bounded."""
FOLDS = 5
_SPREAD_STEPS = 2.0  # a grey level, as the spread is stored in 8 bits


@dataclass(frozen=True)
class CameraFingerprint:
    """One camera.

    Attributes:
        size: (height, width) of its pictures.
        episodes: how many were seen; the values are of at most `MOST_EPISODES` of them.
        backdrop: [h, w, 3] uint8 median over episodes.
        spread: [h, w] float32 grey levels, standard deviation over episodes.
        values: quantity to float64 [n], one per episode kept; empty with fewer than three.
        residual: [n] how badly each episode fits the others, 0 to 1.
        edges: [E] mean edge layout (see `edge_layout`). features: [F] mean features, or None.
    """

    size: tuple[int, int]
    episodes: int
    backdrop: np.ndarray
    spread: np.ndarray
    values: Mapping[str, np.ndarray]
    residual: np.ndarray
    edges: np.ndarray
    features: np.ndarray | None

    def measure(self, scene: Scene, reference: Reference) -> tuple[dict[str, float], float]:
        """The quantities of a scene, reduced to this fingerprint's backdrop, and its residual.

        Args:
            scene: see `observe`.
            reference: this camera's `reference()`, which is made once for many scenes.
        """
        means = {"edges": self.edges, "features": self.features}
        return _values(scene, scene.background, reference.register(scene.background), means, self.size)

    def reference(self) -> Reference:
        """What pictures are registered against."""
        return Reference(self.backdrop, self.spread)

    def backdrop_png(self) -> bytes:
        """The picture of what stands still, reduced, as PNG."""
        return _png(self.backdrop)

    def document(self) -> dict[str, Any]:
        """As JSON values; the pictures are PNG in base64. Colour is the backdrop's, RGB in 0..255."""
        pixels = self.backdrop.reshape(-1, 3).astype(np.float64)
        return {
            "size": list(self.size),
            "episodes": self.episodes,
            "colour_mean": pixels.mean(0).round(3).tolist(),
            "colour_covariance": np.cov(pixels.T).round(3).tolist(),
            "values": {name: values.tolist() for name, values in self.values.items()},
            "residual": self.residual.tolist(),
            "edges": self.edges.tolist(),
            "features": None if self.features is None else self.features.tolist(),
            "backdrop_png": base64.b64encode(self.backdrop_png()).decode("ascii"),
            "spread_png": base64.b64encode(_png(np.round(self.spread * _SPREAD_STEPS).astype(np.uint8))).decode(),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> CameraFingerprint:
        """Inverse of `document`."""
        spread = _unpng(document["spread_png"]).astype(np.float32) / np.float32(_SPREAD_STEPS)
        backdrop = _unpng(document["backdrop_png"])
        if backdrop.shape != (*spread.shape, 3):
            raise ValueError("a backdrop and its spread differ in size")
        features = document["features"]
        return cls(
            size=(int(document["size"][0]), int(document["size"][1])),
            episodes=int(document["episodes"]),
            backdrop=backdrop,
            spread=spread,
            values={
                name: np.array(document["values"][name], float) for name in QUANTITIES if name in document["values"]
            },
            residual=np.array(document["residual"], float),
            edges=np.array(document["edges"], float),
            features=None if features is None else np.array(features, float),
        )


@dataclass(frozen=True)
class Fingerprint:
    """Every camera's fingerprint, by name."""

    cameras: Mapping[str, CameraFingerprint]

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        cameras = {name: self.cameras[name].document() for name in sorted(self.cameras)}
        return {"schema_version": SCHEMA_VERSION, "cameras": cameras}


def save_fingerprint(fingerprint: Fingerprint, directory: Path) -> None:
    """Write `fingerprint.json`; equal fingerprints give equal bytes."""
    write_json(directory / FILE_NAME, fingerprint.document())


def load_fingerprint(directory: Path) -> Fingerprint:
    """Inverse of `save_fingerprint`.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    path = directory / FILE_NAME
    hint = "vla preprocess with --overwrite to make the dataset again"
    if not path.is_file():
        raise not_an_artefact(directory, FILE_NAME, "preprocess")
    document = read_json(path)
    try:
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {document['schema_version']}, not {SCHEMA_VERSION}")
        return Fingerprint({k: CameraFingerprint.from_document(v) for k, v in document["cameras"].items()})
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
        raise InputError(f"{path} is no fingerprint ({error})", hint=hint) from None


@dataclass
class Accumulator:
    """Makes a fingerprint from episodes, one at a time.

    Args:
        features: of a frozen vision tower, computed on the glimpse; None leaves them out.
    """

    features: Features | None = None
    _kept: dict[str, list[tuple[int, Scene]]] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    _stride: dict[str, int] = field(default_factory=dict)

    def add(self, camera: str, pictures: np.ndarray | Frames) -> None:
        """Add one episode's pictures, uint8 RGB [T, H, W, 3].

        Raises:
            ValueError: one cannot be decoded, there are none, or they have another size than the episodes before.
        """
        number, stride = self._seen.get(camera, 0), self._stride.get(camera, 1)
        self._seen[camera] = number + 1
        if number % stride:
            return
        kept = self._kept.setdefault(camera, [])
        # the golden ratio's multiples are spread evenly whatever their number
        scene = observe(pictures, self.features, place=(number * 0.618034) % 1.0)
        if kept and kept[0][1].size != scene.size:
            raise ValueError(f"camera {camera} has pictures of {scene.size} after pictures of {kept[0][1].size} pixels")
        kept.append((number, scene))
        if len(kept) > MOST_EPISODES:
            self._stride[camera] = 2 * stride
            self._kept[camera] = [pair for pair in kept if pair[0] % (2 * stride) == 0]

    def result(self) -> Fingerprint:
        """The fingerprint of what was added."""
        cameras = sorted(self._kept)
        return Fingerprint({c: _camera([s for _, s in self._kept[c]], self._seen[c]) for c in cameras})


def _camera(scenes: list[Scene], seen: int) -> CameraFingerprint:
    """The fingerprint of one camera; each scene is measured against the folds that it is not in."""
    backdrop, spread = _standing(scenes)
    layouts = np.stack([edge_layout(s.glimpse) for s in scenes])
    towers = None if scenes[0].features is None else np.stack([s.features for s in scenes if s.features is not None])
    values: dict[str, list[float]] = {}
    residual = np.zeros(len(scenes))
    folds = np.arange(len(scenes)) % FOLDS
    for fold in range(min(FOLDS, len(scenes)) if len(scenes) >= 3 else 0):
        inside, others = folds == fold, folds != fold
        reference = Reference(*_standing([scenes[i] for i in np.flatnonzero(others)]))
        means = {"edges": layouts[others].mean(0), "features": None if towers is None else towers[others].mean(0)}
        for i in np.flatnonzero(inside):
            pose = reference.register(scenes[i].glimpse)
            found, residual[i] = _values(scenes[i], scenes[i].glimpse, pose, means, scenes[i].size)
            for name, value in found.items():
                values.setdefault(name, [0.0] * len(scenes))[i] = value
    return CameraFingerprint(
        size=scenes[0].size,
        episodes=seen,
        backdrop=backdrop,
        spread=spread,
        values={name: np.round(values[name], 6) for name in QUANTITIES if name in values},
        residual=residual.round(6) if values else np.empty(0),
        edges=layouts.mean(0).round(6),
        features=None if towers is None else towers.mean(0).round(6),
    )


def _standing(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """What stands still [h, w, 3] uint8, and how still [h, w] float32, both as they are stored."""
    backgrounds = np.stack([s.background for s in scenes])
    # the plain deviation: a robust one is blind to what happens in a third of the episodes
    spread = backgrounds.astype(np.float32).std(0).max(-1)
    steps = np.minimum(np.ceil(spread * np.float32(_SPREAD_STEPS)), 255)
    return median_picture(list(backgrounds)), (steps / np.float32(_SPREAD_STEPS)).astype(np.float32)


def _values(
    scene: Scene, picture: np.ndarray, pose: Pose, means: Mapping[str, np.ndarray | None], size: tuple[int, int]
) -> tuple[dict[str, float], float]:
    """A scene's quantities, in the order of `QUANTITIES`, and its residual."""
    red, green, blue = np.log(np.maximum(pose.gain, 1e-3)).tolist()
    found = {
        "right": pose.right * size[1] / picture.shape[1],
        "down": pose.down * size[0] / picture.shape[0],
        "turn": pose.turn,
        "zoom": float(np.log(pose.zoom)),
        "brightness": (red + green + blue) / 3,
        "warmth": red - blue,
        "tint": green - (red + blue) / 2,
    }
    if scene.size == size:  # resampled pictures have another sharpness
        found["sharpness"] = scene.sharpness - 2 * found["brightness"]
    layouts = {"edges": edge_layout(picture), "features": scene.features}
    for name, layout in layouts.items():
        mean = means[name]
        if layout is not None and mean is not None:
            norm = float(np.linalg.norm(layout) * np.linalg.norm(mean))
            found[name] = float(np.log(max(1 - float(layout @ mean) / max(norm, 1e-12), 1e-6)))
    return found, pose.residual


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _unpng(text: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as picture:
        return np.asarray(picture)
