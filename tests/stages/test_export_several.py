"""`vla export-adapter --beside`: adapters that fit together go into one bundle, which can be measured and looked at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import assert_refused
from safetensors.torch import load_file, save_file

from vla_cli.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PolicySpec, load_spec, save_spec
from vla_cli.bundle import verify_digests
from vla_cli.configs import ExportConfig, FinetuneConfig, InspectConfig, SteerConfig
from vla_cli.errors import ConfigError, InputError, VlaError
from vla_cli.files import read_json
from vla_cli.policies import flow, task_adapters
from vla_cli.stages import export, finetune, inspect, steer

RED, BALL = "put the red block on the left plate", "put the green ball on the right plate"


def renamed(adapter: Path, out: Path, **changes: object) -> Path:
    """A copy of an adapter whose `policy.json` says otherwise."""
    shutil.copytree(adapter, out)
    save_spec(PolicySpec(**{**vars(load_spec(adapter)), "instructions": [BALL], **changes}), out)
    return out


@pytest.fixture(scope="module")
def other(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renamed(adapter, tmp_path_factory.mktemp("adapters") / "ball")


@pytest.fixture(scope="module")
def bundle(adapter: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export.run(ExportConfig(adapter=adapter, beside=(other,), out=out))
    return out


@pytest.mark.usefixtures("brief")
def test_a_bundle_is_whole_measured_and_looked_at(adapter: Path, other: Path, bundle: Path, tmp_path: Path) -> None:
    config = ExportConfig(adapter=adapter, beside=(other,), out=tmp_path / "bundle")
    parts = export.plan(config)["parts"]
    assert not config.out.exists()
    summary = export.run(config)
    assert summary["kind"] == "routed" and summary["max_abs_action_difference"] == {adapter.name: 0.0, "ball": 0.0}
    assert all((config.out / part).exists() for part in parts)
    assert verify_digests(config.out) == sum(p.is_file() for p in config.out.rglob("*")) - 1
    assert summary["files"] == sum(p.is_file() for p in config.out.rglob("*"))
    member = config.out / "adapters" / "ball" / "policy.json"
    whole = member.read_bytes()
    member.write_bytes(whole + b" ")
    with pytest.raises(InputError, match="was changed"):
        verify_digests(config.out)
    member.write_bytes(whole)
    card = (config.out / "README.md").read_text()
    assert all(fact in card for fact in (RED, BALL, "task_adapters import load", summary["router"]))
    # the same request gives the same bytes
    assert {p.relative_to(bundle): p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == {
        p.relative_to(config.out): p.read_bytes() for p in config.out.rglob("*") if p.is_file()
    }
    told = inspect.run(InspectConfig(path=config.out))
    assert told["counts"]["adapters"] == 2 and not told["warnings"]
    assert len(told["contents"]["weights"]) == 2
    asked = ("trained", "novel-concept")
    steer.run(SteerConfig(adapters=(config.out, adapter), out=tmp_path / "report", episodes=2, conditions=asked))
    report = read_json(tmp_path / "report" / "report.json")
    assert isinstance(report, dict)
    assert any(f"1 to {adapter.name} and " in w and "to the base" in w for w in report["warnings"]), report["warnings"]
    rollouts = [json.loads(line) for line in (tmp_path / "report" / "rollouts.jsonl").read_text().splitlines()]
    by = {
        (policy, condition): [
            {k: v for k, v in r.items() if k != "policy"}
            for r in rollouts
            if (r["policy"], r["condition"]) == (policy, condition)
        ]
        for policy in ("base", "routed", "lora")
        for condition in asked
    }
    assert by["routed", "trained"] == by["lora", "trained"] and by["routed", "trained"]
    assert by["routed", "novel-concept"] == by["base", "novel-concept"]


def test_without_a_world_a_bundle_of_several_is_refused(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    ask = SteerConfig(adapters=(bundle,), out=tmp_path / "report", world="none", dataset=dataset)
    assert_refused(ConfigError, tmp_path / "report", lambda: steer.run(ask), "several adapters")


def _edited(key: str, value: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        save_spec(PolicySpec(**{**vars(load_spec(path)), key: value}), path)

    return edit


def _trains_outright(path: Path) -> None:
    document = json.loads((path / ADAPTER_CONFIG).read_text())
    (path / ADAPTER_CONFIG).write_text(json.dumps({**document, "modules_to_save": ["vision_tower"]}))


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (_edited("instructions", ["place the red block onto the left plate"]), ConfigError, "trained on one task"),
        (_edited("instructions", []), ConfigError, "on no instruction"),
        (_edited("kind", "full"), InputError, "cannot be switched"),
        (_edited("rate_hz", 5.0), InputError, "rate_hz is 10.0 and 5.0"),
        (_edited("cameras", ["wrist"]), InputError, "cameras is"),
        (_trains_outright, InputError, "same parts of the base outright"),
        (lambda path: (path / ADAPTER_CONFIG).write_text("{"), InputError, "cannot be read"),
    ],
)
def test_adapters_that_do_not_fit_together_are_refused(
    edit: Callable[[Path], object], error: type[VlaError], said: str, adapter: Path, other: Path, tmp_path: Path
) -> None:
    wrong = shutil.copytree(other, tmp_path / "wrong")
    edit(wrong)
    config = ExportConfig(adapter=adapter, beside=(wrong,), out=tmp_path / "bundle")
    assert_refused(error, config.out, lambda: export.plan(config), said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"merge": True}, "--merge makes one model"),
        ({"report": Path("report")}, "--report is about one adapter"),
        ({"elsewhere": "moon"}, "one of base, refuse"),
    ],
)
def test_options_that_mean_nothing_for_several_are_refused(
    changes: dict, said: str, adapter: Path, other: Path, tmp_path: Path
) -> None:
    config = ExportConfig(adapter=adapter, beside=(other,), out=tmp_path / "bundle", **changes)
    assert_refused(ConfigError, config.out, lambda: export.run(config), said)


def test_adapters_of_one_name_are_refused(adapter: Path, tmp_path: Path) -> None:
    twin = renamed(adapter, tmp_path / adapter.name)
    config = ExportConfig(adapter=adapter, beside=(twin,), out=tmp_path / "bundle")
    assert_refused(ConfigError, config.out, lambda: export.run(config), "told apart by name")


def test_vision_that_was_trained_outright_is_switched_too(dataset: Path, base: Path, tmp_path: Path) -> None:
    train = FinetuneConfig(
        dataset=dataset, base=str(base), out=tmp_path / "one", recipe="delock", steps=2, batch_size=2
    )
    finetune.run(train)
    two = renamed(train.out, tmp_path / "two")
    tensors = load_file(two / ADAPTER_WEIGHTS)
    save_file({k: -v if "lora_B" in k else 0.9 * v for k, v in tensors.items()}, two / ADAPTER_WEIGHTS)
    config = ExportConfig(adapter=train.out, beside=(two,), out=tmp_path / "bundle")
    # measured with each adapter's own weights, and with the base's own where neither is asked
    assert export.run(config)["max_abs_action_difference"] == {"one": 0.0, "two": 0.0}
    said = read_json(config.out / "run.json")
    assert isinstance(said, dict) and any("guidance (contrast) is left out" in text for text in said["warnings"])
    together, bare = task_adapters.load(base, config.out, device="cpu"), flow.load(base, device="cpu")
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (1, 1, 60, 60, 3), np.uint8), rng.random((1, 4))
    noise = rng.standard_normal(bare.noise_shape(1), np.float32)
    acted = {text: together.act(*seen, [text], noise) for text in (RED, BALL, "wave")}
    np.testing.assert_array_equal(acted["wave"], bare.act(*seen, ["wave"], noise))
    assert not np.array_equal(acted[RED], acted[BALL])
