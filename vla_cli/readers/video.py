"""Video files, decoded by PyAV (the extra `lerobot`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_cli.errors import MissingDependency
from vla_cli.readers.pictures import LARGEST_PICTURE


def require_av() -> None:
    """Raise MissingDependency unless PyAV can be imported."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise MissingDependency("av", extra="lerobot", purpose="Reading a log with video files") from None


def decode_video(path: Path, most: int) -> np.ndarray:
    """Decode a video to [T, H, W, 3] uint8 RGB, T at most `most`.

    Raises:
        ValueError: it cannot be opened, breaks off within a frame, or has no frames.
    """
    import av
    from av.error import FFmpegError

    frames: np.ndarray | None = None
    done = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > LARGEST_PICTURE:
                raise ValueError(f"{path.name} claims {stream.width}x{stream.height} pixels")
            for frame in container.decode(stream):
                picture = frame.to_ndarray(format="rgb24")
                if frames is None:
                    frames = np.empty((most, *picture.shape), np.uint8)
                frames[done] = picture
                done += 1
                if done == most:
                    break
    except (FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path.name} cannot be decoded after frame {done} ({error})") from None
    if frames is None:
        raise ValueError(f"{path.name} has no frames")
    return frames[:done]
