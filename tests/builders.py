"""Small logs in each format, written with the formats' own libraries, and helpers to compare directories."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from vla_cli.errors import VlaError
from vla_cli.files import partial_path
from vla_cli.progress import Progress
from vla_cli.readers.tfrecord import crc32c, mask

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
ENV_ARGS = {"env_name": "tabletop", "type": 2, "env_kwargs": {"control_freq": 10, "shift": "V"}}


def real_log(name: str) -> Path:
    """A real recording, or a visible skip."""
    path = REAL / name
    if not path.exists():
        pytest.skip(f"the real recording {path} is not here")
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def assert_refused(error: type[VlaError], out: Path, call, *fragments: str) -> None:
    """The call fails with that error, in one paragraph that has the fragments, and leaves no output behind."""
    before = contents(out) if out.is_dir() else None
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert caught.type is error
    assert "\n" not in text and len(text) < 1500
    for fragment in fragments:
        assert fragment in text
    assert (contents(out) if out.is_dir() else None) == before
    assert not partial_path(out).exists()


class InterruptAfter(Progress):
    """Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.left -= steps
        if self.left <= 0:
            raise KeyboardInterrupt


@contextmanager
def short_episodes() -> Iterator[None]:
    """Tabletop episodes of three chunks: enough for what is asked and written, not for what policies do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vla_cli.worlds.tabletop.environment.EPISODE_STEPS", 12)
        yield


def motion(steps: int, seed: int = 0, size: int = 12) -> dict[str, np.ndarray]:
    """A demonstration that moves in every step: pictures, a pose of 3, a gripper of 1, and 4 actions."""
    rng = np.random.default_rng(seed)
    position = np.cumsum(rng.uniform(0.01, 0.03, (steps, 3)), axis=0)
    gripper = (np.arange(steps) > steps // 2).astype(np.float64)[:, None]
    return {
        "camera": rng.integers(0, 256, (steps, size, size, 3), np.uint8),
        "position": position,
        "gripper": gripper,
        "actions": np.concatenate([rng.normal(0, 0.02, (steps, 3)), gripper], axis=1),
    }


def robomimic_log(path: Path, demos: int = 3, steps: int = 20, env_args: dict | None = ENV_ARGS, **changes) -> Path:
    """A robomimic file; `changes` may replace the function that alters one demo group: `alter(index, group)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args)
        for index in range(demos):
            parts = motion(steps, seed=index)
            group = data.create_group(f"demo_{index}")
            group.attrs["num_samples"] = steps
            group.attrs["ep_meta"] = json.dumps({"lang": "put the red cube in the bowl"})
            group["actions"] = parts.pop("actions")
            for key, values in parts.items():
                group[f"obs/{key}"] = values
            changes.get("alter", lambda index, group: None)(index, group)
        file["mask/operator_ada"] = np.array([f"demo_{i}".encode() for i in range(0, demos, 2)])
        file["mask/operator_bo"] = np.array([f"demo_{i}".encode() for i in range(1, demos, 2)], dtype="S8")
    return path


def replace(group: h5py.Group, key: str, values: np.ndarray) -> None:
    del group[key]
    group[key] = values


def lerobot_log(root: Path, episodes: int = 3, steps: int = 15, cameras: tuple[str, ...] = ("front",), **info) -> Path:
    """A LeRobot v2.1 directory with H.264 videos of smooth pictures."""
    keys = [f"observation.images.{camera}" for camera in cameras]
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "gripper"]},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["dx", "grip"]}},
        **{key: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channel"]} for key in keys},
    }
    document = {
        "codebase_version": "v2.1",
        "fps": 10,
        "total_episodes": episodes,
        "total_frames": episodes * steps,
        "total_chunks": 1,
        "chunks_size": 1000,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
        **info,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(document))
    write_lines(root / "meta/tasks.jsonl", [{"task_index": 0, "task": "push the lever"}])
    listed = [{"episode_index": i, "tasks": ["push the lever"], "length": steps} for i in range(episodes)]
    write_lines(root / "meta/episodes.jsonl", listed)
    for index in range(episodes):
        write_table(root / f"data/chunk-000/episode_{index:06d}.parquet", lerobot_columns(index, steps))
        for key in keys:
            write_video(root / f"videos/chunk-000/{key}/episode_{index:06d}.mp4", smooth_video(steps, index))
    return root


def lerobot_columns(index: int, steps: int) -> dict[str, list]:
    parts = motion(steps, seed=index)
    return {
        "observation.state": np.concatenate([parts["position"][:, :1], parts["gripper"]], 1).astype("f4").tolist(),
        "action": parts["actions"][:, 2:].astype("f4").tolist(),
        "timestamp": (np.arange(steps) / 10).tolist(),
        "episode_index": [index] * steps,
        "task_index": [0] * steps,
    }


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: Path, columns: dict[str, list]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def smooth_video(steps: int, seed: int = 0, height: int = 32, width: int = 48) -> np.ndarray:
    """Pictures a codec can keep: gradients that change slowly."""
    t, y, x = np.meshgrid(np.arange(steps), np.arange(height), np.arange(width), indexing="ij")
    channels = [2 * x + t, 3 * y + 2 * t, x + y + 20 * seed]
    return np.clip(np.stack(channels, axis=-1) + 40, 0, 255).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def png(picture: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def rlds_example(steps: int, seed: int = 0, **changes) -> dict:
    """The features of one episode as TFDS flattens them."""
    parts = motion(steps, seed)
    features = {
        "steps/action": parts["actions"].astype("f4").reshape(-1),
        "steps/observation/state": parts["position"].astype("f4").reshape(-1),
        "steps/observation/image_0": [png(frame) for frame in parts["camera"]],
        "steps/language_instruction": [b"open the drawer"] * steps,
        "steps/is_first": np.eye(1, steps, dtype=np.int64)[0],
        "episode_metadata/has_image_0": np.array([1]),
    }
    return {key: value for key, value in {**features, **changes}.items() if value is not None}


def rlds_log(root: Path, examples: list[dict], name: str = "toy", split: str = "train", episodes: int = 0) -> Path:
    """A TFDS version directory with one shard."""
    root.mkdir(parents=True)
    tensor = {"dtype": "float32", "encoding": "none"}
    steps = {
        "action": {"tensor": {"shape": {"dimensions": ["4"]}, **tensor}},
        "language_instruction": {"text": {}},
        "observation": features_dict(
            state={"tensor": {"shape": {"dimensions": ["3"]}, **tensor}},
            image_0={"image": {"shape": {"dimensions": ["12", "12", "3"]}, "dtype": "uint8"}},
        ),
    }
    document = features_dict(steps={"sequence": {"feature": features_dict(**steps), "length": "-1"}})
    (root / "features.json").write_text(json.dumps(document))
    lengths = [str(episodes or len(examples))]
    (root / "dataset_info.json").write_text(json.dumps({"splits": [{"name": split, "shardLengths": lengths}]}))
    write_records(rlds_shard(root, name, split), [example_bytes(example) for example in examples])
    return root


def rlds_shard(root: Path, name: str = "toy", split: str = "train") -> Path:
    return root / f"{name}-{split}.tfrecord-00000-of-00001"


def features_dict(**features) -> dict:
    return {"featuresDict": {"features": features}}


def write_records(path: Path, payloads: list[bytes]) -> None:
    with path.open("wb") as stream:
        for payload in payloads:
            head = struct.pack("<Q", len(payload))
            stream.write(head + mask(crc32c(head)) + payload + mask(crc32c(payload)))


def example_bytes(features: dict) -> bytes:
    """Serialise a tf.Example by protobuf's wire format."""
    entries = b"".join(field(1, field(1, name.encode()) + field(2, feature(value))) for name, value in features.items())
    return field(1, entries)


def feature(value) -> bytes:
    if isinstance(value, list):
        return field(1, b"".join(field(1, item) for item in value))
    if value.dtype.kind == "f":
        return field(2, field(1, value.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(item) & 0xFFFFFFFFFFFFFFFF) for item in value)))


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])
