"""`vla export-adapter`: what is exported acts as the adapter does, or is not exported."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from builders import assert_refused, contents
from safetensors.torch import load_file, save_file

from vla_cli.adapter import ADAPTER_WEIGHTS
from vla_cli.bundle import verify_digests
from vla_cli.configs import ExportConfig, FinetuneConfig, SteerConfig
from vla_cli.errors import InputError
from vla_cli.policies.flow import load
from vla_cli.stages import export, finetune, steer


def test_a_bundle_is_whole_reloads_and_serves_as_a_base(adapter: Path, tmp_path: Path) -> None:
    summary = export.run(ExportConfig(adapter=adapter, out=tmp_path / "bundle", merge=True))
    differences = summary["max_abs_action_difference"]
    assert differences["adapter"] == 0.0
    assert differences["merged"] < 1e-3
    assert summary["base_changed_by"] > 0
    assert verify_digests(tmp_path / "bundle") == len(contents(tmp_path / "bundle")) - 1
    merged = load(str(tmp_path / "bundle" / "merged"), device="cpu")
    assert merged.spec.kind == "base" and merged.spec.instructions == ["put the red block on the left plate"]


def test_the_card_holds_facts_and_no_blanks(adapter: Path, tmp_path: Path) -> None:
    steer.run(SteerConfig(adapters=(adapter,), out=tmp_path / "report", episodes=2))
    export.run(ExportConfig(adapter=adapter, out=tmp_path / "bundle", report=tmp_path / "report"))
    card = (tmp_path / "bundle" / "README.md").read_text()
    for fact in ("put the red block on the left plate", "novel-concept", "sha256:", "10 Hz", "PeftModel"):
        assert fact in card
    assert "More Information Needed" not in card
    assert (tmp_path / "bundle" / "report" / "report.html").is_file()


def test_a_report_on_another_adapter_is_refused(adapter: Path, dataset: Path, base: Path, tmp_path: Path) -> None:
    train = FinetuneConfig(dataset=dataset, base=str(base), out=tmp_path / "o", recipe="lora", steps=2, batch_size=4)
    finetune.run(train)
    steer.run(SteerConfig(adapters=(tmp_path / "o",), out=tmp_path / "report", episodes=1, conditions=("trained",)))
    assert_refused(
        InputError,
        tmp_path / "bundle",
        lambda: export.run(ExportConfig(adapter=adapter, out=tmp_path / "bundle", report=tmp_path / "report")),
        "not this adapter",
    )


def test_full_fine_tuning_exports_the_whole_model(dataset: Path, base: Path, tmp_path: Path) -> None:
    train = FinetuneConfig(dataset=dataset, base=str(base), out=tmp_path / "n", recipe="naive", steps=2, batch_size=4)
    finetune.run(train)
    summary = export.run(ExportConfig(adapter=tmp_path / "n", out=tmp_path / "bundle"))
    assert summary["max_abs_action_difference"] == {"merged": 0.0}
    assert not (tmp_path / "bundle" / ADAPTER_WEIGHTS).exists()


def test_a_damaged_adapter_leaves_nothing_behind(adapter: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    tensors = load_file(broken / ADAPTER_WEIGHTS)
    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}, broken / ADAPTER_WEIGHTS)
    assert_refused(
        InputError,
        tmp_path / "bundle",
        lambda: export.run(ExportConfig(adapter=broken, out=tmp_path / "bundle")),
        "every delta is zero",
    )


def test_another_base_is_refused(adapter: Path, base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, other / "model.safetensors", metadata={"format": "pt"})
    assert_refused(
        InputError,
        tmp_path / "bundle",
        lambda: export.run(ExportConfig(adapter=adapter, base=str(other), out=tmp_path / "bundle")),
        "trained on base",
    )


def test_a_merged_model_reloads_with_a_tokenizer_from_elsewhere(dataset: Path, base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "policy.json"):
        shutil.copyfile(base / name, bare / name)
    train = FinetuneConfig(
        dataset=dataset, base=str(bare), tokenizer=str(base), out=tmp_path / "a", recipe="lora", steps=2, batch_size=4
    )
    finetune.run(train)
    summary = export.run(ExportConfig(adapter=tmp_path / "a", out=tmp_path / "bundle", merge=True))
    assert summary["max_abs_action_difference"]["merged"] < 1e-3
