"""LeRobot v2.0, v2.1 and v3.0: a directory of Parquet tables and videos; `meta/info.json` says which version.

`observation.state` becomes the state, `action` the action, other vectors of numbers keep the role "other"; cameras lose
the prefix `observation.images.`. LeRobot does not say what the numbers mean (absolute or delta, which gripper value is
open) nor which way up a picture is, beyond the names of a vector's dimensions, which are carried. Versions: see
`lerobot_v2` and `lerobot_v3`. Needs pyarrow and PyAV (the extra `lerobot`).
"""

from __future__ import annotations

from pathlib import Path

from vla_cli.readers import Log, Options, Reader, Warn
from vla_cli.readers.lerobot_meta import V3, is_lerobot, load_metadata
from vla_cli.readers.lerobot_parquet import require_pyarrow
from vla_cli.readers.lerobot_v2 import V2Log
from vla_cli.readers.lerobot_v3 import V3Log
from vla_cli.video import require_av


def open_log(path: Path, options: Options, warn: Warn) -> Log:
    """Open a directory of any version.

    Raises:
        InputError: the metadata are damaged or of another version, or lead out of the directory.
        MissingDependency: pyarrow or PyAV is missing.
    """
    metadata = load_metadata(path)
    require_pyarrow()
    if metadata.videos:
        require_av()
    log: Log = V3Log(metadata, warn) if metadata.info["codebase_version"] in V3 else V2Log(metadata)
    for message in metadata.warnings:
        warn(message)
    return log


READER = Reader("a directory with LeRobot's meta/info.json", is_lerobot, open_log)
