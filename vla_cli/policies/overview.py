"""What policies and reports say of themselves, without loading a weight: for `vla inspect`."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from vla_cli.adapter import FILE_NAME as POLICY_FILE
from vla_cli.adapter import PolicySpec, load_spec
from vla_cli.bundle import DIGESTS, REPORT, verify_digests
from vla_cli.errors import InputError
from vla_cli.facts import ranges, statistics_facts
from vla_cli.files import read_json
from vla_cli.findings import Findings, few
from vla_cli.outline import in_bytes
from vla_cli.overview import check_small, record_facts
from vla_cli.report import REPORT_FILE, load_report, table, transposed
from vla_cli.report.verdict import answers_to_words, open_loop_comparisons, verdicts
from vla_cli.router import ADAPTERS, BASE, load_router
from vla_cli.router import FILE_NAME as ROUTER_FILE

LARGEST_CHECKED = 2**30
"""Bytes of a bundle above which its digests are not computed: that is for the robot's side, not for a look."""
_LARGEST_HEADER = 16 * 2**20
_MOST_WEIGHT_FILES = 100


def tell_policy(directory: Path, found: Findings) -> None:
    """A base or an adapter.

    Raises:
        InputError: a file of it is damaged.
    """
    facts = policy_facts(directory)
    found.contents |= facts
    found.counts["parameters"] = sum(weights["parameters"] for weights in facts["weights"])
    if "policy" in facts:
        rows = [[key, few(value)] for key, value in facts["policy"].items() if value not in ("", None, [], {})]
        found.tell("policy", ["fact", "value"], rows)
        found.tell_streams(facts["streams"])
        found.tell_ranges("statistics", ranges(facts["streams"]))
    else:
        found.warn("it has no policy.json: cameras, names, control rate and statistics are not stated")
    rows = [[w["file"], w["tensors"], w["parameters"], in_bytes(w["bytes"])] for w in facts["weights"]]
    found.tell("weights", ["file", "tensors", "parameters", "size"], rows)


def tell_bundle(directory: Path, found: Findings) -> None:
    """A bundle: its policy, whether its files are as they were written, and its report.

    Raises:
        InputError: a file of it is damaged.
    """
    tell_policy(directory, found)
    if (directory / ROUTER_FILE).is_file():
        _tell_router(directory, found)
    found.counts["files"], fault = bundle_state(directory)
    if fault:
        found.warn(fault)
    if (directory / REPORT / REPORT_FILE).is_file():
        found.contents["report"] = _report(directory / REPORT, found)


def _tell_router(directory: Path, found: Findings) -> None:
    """Which adapter is asked for what."""
    check_small(directory / ROUTER_FILE)
    router = load_router(directory)
    found.contents["router"] = router.document()
    found.counts["adapters"] = len(router.adapters)
    rows = [
        [name, few(known.instructions), len(known.phrasings), "none" if known.limit is None else round(known.limit, 3)]
        for name, known in router.adapters.items()
    ]
    found.tell("adapters", ["adapter", "trained on", "other wordings", "limit"], rows)
    done = (
        f"left to the base, behind the calibration of {router.place} where that has one"
        if router.elsewhere == BASE
        else "refused"
    )
    found.tell("what is for none of them", ["it is"], [[done]])


def tell_report(directory: Path, found: Findings) -> None:
    """A report.

    Raises:
        InputError: it is damaged.
    """
    found.contents |= _report(directory, found)


def _report(directory: Path, found: Findings) -> dict[str, Any]:
    """A report's document with its verdicts; its tables for people."""
    check_small(directory / REPORT_FILE)
    report = load_report(directory)
    judged = [{"policy": v.policy, "verdict": v.label, "sentence": v.sentence} for v in verdicts(report)]
    compared = [*answers_to_words(report), *open_loop_comparisons(report)]
    found.counts |= {"policies": len(report.policies), "conditions": len(report.conditions), "rows": len(report.rows)}
    if report.kind == "closed-loop":
        rows = [[v["policy"], v["verdict"], v["sentence"]] for v in judged]
        found.tell("verdict", ["policy", "verdict", "why"], rows)
    found.tell("beside the base", ["comparison"], [[sentence] for sentence in compared])
    for metric in report.metrics:
        found.tell(metric, *transposed(*table(report, metric)))
    for message in report.warnings:
        found.warn(message)
    return {**report.document(), "verdicts": judged if report.kind == "closed-loop" else [], "comparisons": compared}


def policy_facts(directory: Path) -> dict[str, Any]:
    """What a base, an adapter or a bundle says of itself; `policy` and `streams` when it has a `policy.json`.

    Raises:
        InputError: a file of it is damaged.
    """
    facts: dict[str, Any] = {"weights": weight_facts(directory)}
    if (directory / "config.json").is_file():
        check_small(directory / "config.json")
        config = read_json(directory / "config.json")
        facts["model"] = config.get("model_type") or config.get("type") or "unknown"
    facts["run"] = record_facts(directory)
    if not (directory / POLICY_FILE).is_file():
        return facts
    check_small(directory / POLICY_FILE)
    spec = load_spec(directory)
    document = {k: v for k, v in spec.document().items() if k not in ("schema_version", "state", "actions")}
    return {**facts, "policy": document, "streams": _policy_streams(spec)}


def _policy_streams(spec: PolicySpec) -> list[dict[str, Any]]:
    """Streams that a policy is fed and gives, in the form of `facts.merge`; ranges are those it was trained on."""
    rate, size = spec.rate_hz, spec.image_size
    images = [{"role": "image", "name": name, "shape": [size, size, 3], "rate_hz": rate} for name in spec.cameras]
    vectors = [("state", spec.state, spec.state_names), ("action", spec.actions, spec.action_names)]
    return images + [
        {
            "role": role,
            "name": role,
            "shape": [len(statistics)],
            "rate_hz": rate,
            "dimensions": statistics_facts(statistics, names),
        }
        for role, statistics, names in vectors
        if len(statistics)
    ]


def weight_facts(directory: Path) -> list[dict[str, Any]]:
    """Each safetensors file's size and its numbers of tensors and parameters, from its header alone.

    Raises:
        InputError: a header is damaged.
    """
    # those of several adapters lie in folders of their own
    files = [*sorted(directory.glob("*.safetensors")), *sorted(directory.glob(f"{ADAPTERS}/*/*.safetensors"))]
    return [{**_weights(file), "file": str(file.relative_to(directory))} for file in files[:_MOST_WEIGHT_FILES]]


def _weights(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
    (header,) = struct.unpack("<Q", start) if len(start) == 8 else (size,)
    if header > min(size - 8, _LARGEST_HEADER):
        raise InputError(f"{file} is no whole safetensors file (a header of {header} bytes in a file of {size})")
    try:
        with safe_open(file, "numpy") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read ({error})", expected="a whole safetensors file") from None
    return {"file": file.name, "bytes": size, "tensors": len(shapes), "parameters": sum(map(math.prod, shapes))}


def bundle_state(directory: Path) -> tuple[int, str]:
    """How many files a bundle lists, and what is wrong with them: empty when each is as it was written.

    Raises:
        InputError: the list itself cannot be used.
    """
    check_small(directory / DIGESTS)
    digests = read_json(directory / DIGESTS)
    names = list(digests) if isinstance(digests, dict) else [".."]
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise InputError(f"{directory / DIGESTS} names files outside of the bundle")
    total = sum((directory / name).stat().st_size for name in names if (directory / name).is_file())
    if total > LARGEST_CHECKED:
        return len(names), f"its digests were not checked: {in_bytes(total)} would have to be read"
    try:
        verify_digests(directory)
    except InputError as error:
        return len(names), error.problem
    return len(names), ""
