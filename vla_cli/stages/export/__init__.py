"""`vla export-adapter`: an adapter becomes a bundle for the robot, reloaded and compared before it is published.

preparation   adapter, base and report: what a run would refuse is refused before a weight is loaded
bundling      one adapter's bundle
several       several adapters over one base, each for its own task, with the router that says which is asked
"""

from __future__ import annotations

import shutil
from typing import Any

from vla_cli.adapter import FILE_NAME as SPEC_FILE
from vla_cli.adapter import MERGED, TOKENIZER
from vla_cli.bundle import ADAPTER_FILES
from vla_cli.calibration import FOLDER as CALIBRATION
from vla_cli.configs import ExportConfig
from vla_cli.files import building, check_output, check_resumable, is_complete, read_json
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.stages.export.bundling import write_bundle
from vla_cli.stages.export.preparation import STAGE, Prepared, prepare
from vla_cli.stages.export.several import Several, prepare_several, write_several


def plan(config: ExportConfig) -> dict[str, Any]:
    """What a run would do, as JSON values (`--dry-run`)."""
    prepared = _prepare(config)
    parts = prepared.parts if isinstance(prepared, Several) else _parts(config, prepared)
    return {
        "stage": STAGE,
        "dry_run": True,
        "out": str(config.out),
        "kind": prepared.spec.kind,
        "calibration": prepared.spec.calibration.get("parts", []),
        "parts": parts,
    }


def _parts(config: ExportConfig, prepared: Prepared) -> list[str]:
    spec = prepared.spec
    merged = config.merge or spec.kind == "full"
    pictures = [CALIBRATION] if (config.adapter / CALIBRATION).is_dir() else []
    words = [TOKENIZER] if spec.tokenizer else []
    weights = ADAPTER_FILES if spec.is_beside_base else ()
    return [*weights, SPEC_FILE, *words, *pictures, *([MERGED] if merged else [])]


def run(config: ExportConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Write `bundle/`.

    Raises:
        ConfigError: options that cannot be, or an output in the way.
        InputError: adapter, base or report that cannot be used, or a bundle that does not act as its adapter.
    """
    prepared = _prepare(config)
    spec, request = prepared.spec, prepared.request
    if not is_complete(config.out, request, resume=config.resume):
        with building(config.out, request, overwrite=config.overwrite, resume=config.resume) as partial:
            # a resumed export starts over: there is nothing slow to keep
            for entry in [p for p in partial.iterdir() if p.name != "request.json"]:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            if isinstance(prepared, Several):
                write_several(prepared, partial, progress)
            else:
                write_bundle(config, prepared, partial, progress)
    document = read_json(config.out / RUN_FILE)
    for name, difference in document["facts"]["max_abs_action_difference"].items():
        progress.note(f"{name} reloaded: maximum absolute action difference {difference:.3g}")
    return {"stage": STAGE, "out": str(config.out), "kind": spec.kind, **document["facts"], **document["counts"]}


def _prepare(config: ExportConfig) -> Prepared | Several:
    """Check the options, and read all that they name but weights."""
    check_output(config.out, overwrite=config.overwrite, resume=config.resume, inputs=config.inputs())
    prepared = prepare_several(config) if config.beside or config.elsewhere else prepare(config)
    check_resumable(config.out, prepared.request, resume=config.resume)
    return prepared
