"""`vla export-adapter`: what is exported acts as the adapter does, or is not exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import assert_refused, contents
from safetensors.torch import load_file, save_file

from vla_cli.adapter import ADAPTER_WEIGHTS, load_spec, save_spec
from vla_cli.bundle import Outcome, verify_digests, write_card
from vla_cli.configs import ExportConfig, FinetuneConfig, SteerConfig
from vla_cli.dataset import load_dataset
from vla_cli.errors import InputError
from vla_cli.files import read_json
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


@pytest.mark.usefixtures("brief")
def test_the_card_holds_facts_and_no_blanks(adapter: Path, tmp_path: Path) -> None:
    asked = ("trained", "novel-concept")
    steer.run(SteerConfig(adapters=(adapter,), out=tmp_path / "report", episodes=2, conditions=asked))
    export.run(ExportConfig(adapter=adapter, out=tmp_path / "bundle", report=tmp_path / "report"))
    card = (tmp_path / "bundle" / "README.md").read_text()
    for fact in ("put the red block on the left plate", "novel-concept", "sha256:", "10 Hz", "PeftModel"):
        assert fact in card
    assert "More Information Needed" not in card
    assert (tmp_path / "bundle" / "report" / "report.html").is_file()


@pytest.mark.usefixtures("brief")
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
    # and the bundle is measured as the adapter is
    outcomes = []
    for policy in ("n", "bundle"):
        ask = SteerConfig(adapters=(tmp_path / policy,), out=tmp_path / f"of-{policy}", episodes=2)
        steer.run(replace(ask, conditions=("trained",)))
        outcomes.append((ask.out / "rollouts.jsonl").read_bytes())
    assert outcomes[0] == outcomes[1]


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


@pytest.fixture(scope="module")
def moved(dataset: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle and base of an adapter whose tokenizer came from elsewhere, on a machine where that place is not."""
    here, there = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("robot")
    bare = here / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "policy.json"):
        shutil.copyfile(base / name, bare / name)
    shutil.copytree(base, here / "words", ignore=shutil.ignore_patterns("*.safetensors", "policy.json"))
    train = FinetuneConfig(dataset=dataset, base=str(bare), tokenizer=str(here / "words"), out=here / "adapter")
    finetune.run(replace(train, recipe="lora", steps=2, batch_size=4))
    config = ExportConfig(adapter=here / "adapter", out=here / "bundle", merge=True)
    assert "tokenizer" in export.plan(config)["parts"]
    assert export.run(config)["max_abs_action_difference"]["merged"] < 1e-3
    shutil.move(here / "bundle", there / "bundle")
    shutil.move(bare, there / "base")
    shutil.rmtree(here)
    return there


def test_a_tokenizer_from_elsewhere_goes_with_the_bundle(moved: Path, base: Path) -> None:
    bundle = moved / "bundle"
    for policy in (load(str(moved / "base"), bundle, device="cpu"), load(str(bundle / "merged"), device="cpu")):
        assert policy.prompts.words("put the red block") == load(str(base), device="cpu").prompts.words(
            "put the red block"
        )
    assert {"tokenizer/tokenizer.json", "merged/tokenizer.json"} <= set(read_json(bundle / "digests.json"))
    assert read_json(bundle / "policy.json")["tokenizer"] == "./tokenizer"
    assert read_json(bundle / "merged" / "policy.json")["tokenizer"] == ""
    assert "the tokenizer in `tokenizer/` of this bundle" in (bundle / "README.md").read_text()


@pytest.mark.usefixtures("brief")
def test_a_bundle_with_its_own_tokenizer_is_measured_beside_its_base(moved: Path, tmp_path: Path) -> None:
    ask = SteerConfig(adapters=(moved / "bundle",), base=str(moved / "base"), out=tmp_path / "report", episodes=1)
    steer.run(replace(ask, conditions=("trained",)))
    assert (tmp_path / "report" / "report.json").is_file()


def test_a_merged_model_with_its_own_tokenizer_is_a_base_to_train(moved: Path, dataset: Path, tmp_path: Path) -> None:
    train = FinetuneConfig(dataset=dataset, base=str(moved / "bundle" / "merged"), out=tmp_path / "again")
    finetune.run(replace(train, recipe="lora", steps=1, batch_size=2))
    assert load_spec(tmp_path / "again").tokenizer == ""
    # an older merged model names the place that its tokenizer was taken from
    older = shutil.copytree(moved / "bundle" / "merged", tmp_path / "older")
    (older / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    shutil.copyfile(older / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    save_spec(replace(load_spec(older), tokenizer=str(tmp_path)), older)
    finetune.run(replace(train, base=str(older), out=tmp_path / "third", recipe="lora", steps=1, batch_size=2))
    assert load_spec(tmp_path / "third").tokenizer == str(tmp_path)


def test_a_base_whose_tokenizer_was_changed_is_refused(adapter: Path, base: Path, tmp_path: Path) -> None:
    """The base's digest knows its weights alone, and a red block would become a blue one."""
    swapped = shutil.copytree(base, tmp_path / "swapped")
    words = read_json(swapped / "tokenizer.json")
    ids = words["model"]["vocab"]
    ids["red"], ids["blue"] = ids["blue"], ids["red"]
    (swapped / "tokenizer.json").write_text(json.dumps(words))
    config = ExportConfig(adapter=adapter, base=str(swapped), out=tmp_path / "bundle")
    assert_refused(InputError, config.out, lambda: export.run(config), "not the one that the policy was trained with")
    # adapters of earlier versions name no tokenizer, and are loaded as they were
    older = shutil.copytree(adapter, tmp_path / "older")
    document = read_json(older / "policy.json")
    assert document.pop("tokenizer_digest").startswith("sha256:")
    (older / "policy.json").write_text(json.dumps(document))
    assert load(str(swapped), older, device="cpu").spec.tokenizer_digest == ""


def test_merged_holds_no_statistics_but_the_policys_own(dataset: Path, base: Path, tmp_path: Path) -> None:
    """A base with other units: the demonstrations' statistics are used, and no file beside them says otherwise."""
    from transformers import PI0Processor

    other = shutil.copytree(base, tmp_path / "base")
    lerobot = ["policy_postprocessor.json", "policy_preprocessor.json", "policy_preprocessor_step_5.safetensors"]
    for name in lerobot:
        (other / name).write_text("{}")
    own = load_spec(other)
    save_spec(replace(own, actions=replace(own.actions, std=own.actions.std / 100)), other)
    train = FinetuneConfig(dataset=dataset, base=str(other), out=tmp_path / "adapter")
    finetune.run(replace(train, recipe="lora", steps=1, batch_size=2))
    assert load_spec(tmp_path / "adapter").statistics_from == "dataset"
    export.run(ExportConfig(adapter=tmp_path / "adapter", out=tmp_path / "bundle", merge=True))
    merged = tmp_path / "bundle" / "merged"
    spec, processor = load_spec(merged), PI0Processor.from_pretrained(merged)
    raw = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    theirs = processor.normalize(torch.from_numpy(raw), "state").numpy()
    np.testing.assert_allclose(theirs, spec.state.normalise(raw), rtol=1e-3, atol=1e-4)
    assert not [name for name in [*lerobot, "evaluation.json"] if (merged / name).exists()]
    card, record = (tmp_path / "bundle" / "README.md").read_text(), read_json(tmp_path / "bundle" / "run.json")
    assert "LeRobot cannot feed merged/" in card and any("LeRobot" in text for text in record["warnings"])
    for name in [*lerobot, "evaluation.json"]:
        assert f"`merged/` is without the base's `{name}`" in card
        assert f"merged/{name}" in [entry["name"] for entry in record["skipped"]]


def test_merged_keeps_the_bases_statistics_where_they_are_used(adapter: Path, base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "base")
    (other / "policy_preprocessor.json").write_text("{}")
    export.run(ExportConfig(adapter=adapter, base=str(other), out=tmp_path / "bundle", merge=True))
    assert (tmp_path / "bundle" / "merged" / "policy_preprocessor.json").is_file()
    assert read_json(tmp_path / "bundle" / "merged" / "processor_config.json") == read_json(
        base / "processor_config.json"
    )


PICTURE = "calibration/table_agentview_image.png"


@pytest.fixture(scope="module")
def bundle(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibrated base as a bundle, merged too."""
    out = tmp_path_factory.mktemp("export") / "bundle"
    summary = export.run(ExportConfig(adapter=calibrated, out=out, merge=True))
    assert summary["kind"] == "frozen"
    assert summary["max_abs_action_difference"] == {"adapter": 0.0, "merged": 0.0}
    assert summary["base_changed_by"] > 0.1, "the probes must be taken for pictures of this deployment"
    return out


def test_a_calibrated_base_is_exported_without_weights(bundle: Path, calibrated: Path) -> None:
    assert not list(bundle.glob("*.safetensors"))
    assert (bundle / PICTURE).read_bytes() == (calibrated / PICTURE).read_bytes()
    assert {PICTURE, f"merged/{PICTURE}"} <= set(read_json(bundle / "digests.json"))
    assert verify_digests(bundle) == len(contents(bundle)) - 1
    planned = export.plan(ExportConfig(adapter=calibrated, out=bundle, merge=True, overwrite=True))
    assert planned["parts"] == ["policy.json", "calibration", "merged"]
    assert planned["calibration"] == ["look", "camera", "action"]


def test_a_bundle_is_no_adapter_to_export_again(bundle: Path, adapter: Path, tmp_path: Path) -> None:
    again = ExportConfig(adapter=bundle, out=tmp_path / "again")
    assert_refused(InputError, again.out, lambda: export.run(again), r"is a bundle, written by export-adapter")
    # what serves as a base is inside it
    with pytest.raises(InputError, match=r"is a bundle.*--base \S+/merged"):
        export.run(ExportConfig(adapter=adapter, base=str(bundle), out=tmp_path / "other"))


def test_a_changed_picture_of_the_table_is_noticed(bundle: Path, tmp_path: Path) -> None:
    tampered = shutil.copytree(bundle, tmp_path / "bundle")
    pixels = bytearray((tampered / PICTURE).read_bytes())
    pixels[-20] ^= 1
    (tampered / PICTURE).write_bytes(pixels)
    with pytest.raises(InputError, match=r"table_agentview_image\.png was changed"):
        verify_digests(tampered)
    measured = SteerConfig(adapters=(tampered,), out=tmp_path / "report")
    assert_refused(InputError, measured.out, lambda: steer.run(measured), "table_agentview_image.png was changed")
    (tampered / "digests.json").write_text("[]")
    with pytest.raises(InputError, match=r"digests\.json is malformed"):
        verify_digests(tampered)


def test_bundle_and_merged_model_act_through_the_calibration_in_the_deployment_alone(
    bundle: Path, base: Path, dataset: Path
) -> None:
    bare = load(str(base), device="cpu")
    policies = [load(str(base), bundle, device="cpu"), load(str(bundle / "merged"), device="cpu")]
    demonstration = load_dataset(dataset).demonstrations[0]
    here = demonstration.images["agentview_image"][:1][None]
    there = np.clip(here * (np.array(policies[0].spec.calibration["base_medians"][0]) / np.median(here)), 0, 255)
    noise = np.random.default_rng(0).standard_normal(bare.noise_shape(1), np.float32)
    state, asked = demonstration.state[:1], ["put the blue ball on the left plate"]
    for policy in policies:
        assert policy.calibration is not None and policy.calibration.parts == ["look", "camera", "action"]
        changed = policy.act(here, state, asked, noise) - bare.act(here, state, asked, noise)
        assert np.abs(changed).max() > 1e-3
        base_domain = there.astype(np.uint8)
        assert np.array_equal(policy.act(base_domain, state, asked, noise), bare.act(base_domain, state, asked, noise))


def test_the_card_says_what_was_calibrated_and_how_to_load_it(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    for fact in (
        "No weight was trained",
        "light gains on red 1.00",
        "of 60 x 60, turned by 6.1 degrees counter-clockwise",
        "gain matrix [0.800 0.000; 0.000 0.850]",
        "nearer to this deployment's",
        "from vla_cli.policies.flow import load",
        'policy = load("',
    ):
        assert fact in card, fact
    assert "import PeftModel" not in card
    merged = load_spec(bundle / "merged")
    assert merged.kind == "base" and merged.calibration == load_spec(bundle).calibration


def test_a_merged_calibrated_model_is_a_base_to_calibrate_again(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    """Its weights still are the base's, so the base's domain.json goes with them and gives the same transforms."""
    again = tmp_path / "again"
    finetune.run(FinetuneConfig(dataset=dataset, base=str(bundle / "merged"), out=again, recipe="calibrate"))
    assert load_spec(again).calibration == load_spec(bundle).calibration


def test_weights_trained_behind_a_calibration_are_exported_with_it(dataset: Path, base: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "both.yaml"
    recipe.write_text("method: lora\ncalibrate: true\nsteps: 2\nbatch_size: 4\n")
    trained = tmp_path / "adapter"
    finetune.run(FinetuneConfig(dataset=dataset, base=str(base), out=trained, recipe=str(recipe)))
    own = load_spec(trained)
    own.calibration["delay"], own.calibration["timing"]["closed"] = 2, 0.4
    own.calibration["parts"] += ["delay", "timing"]
    save_spec(replace(own, guidance={"kind": "null", "weight": 1.4, "why": "a test"}), trained)
    summary = export.run(ExportConfig(adapter=trained, out=tmp_path / "bundle", merge=True))
    assert summary["max_abs_action_difference"]["adapter"] == 0.0
    assert summary["max_abs_action_difference"]["merged"] < 1e-3
    assert (tmp_path / "bundle" / "merged" / "domain.json").is_file()
    card = (tmp_path / "bundle" / "README.md").read_text()
    for fact in (
        "`PeftModel` does not apply the calibration and the default guidance",
        "## Warnings of the export",
        "merged/ acts with the trained weights in the base's own domain too",
        "measured on this deployment's pictures alone",
        "other pictures are left alone, and the trained weights are switched off for them.",
        "import PeftModel",
        "2 control steps later",
        "with closed fingers 0.40",
        "Default guidance at test time: null, weight 1.4 (a test)",
    ):
        assert fact in card, fact


def test_weights_trained_in_full_behind_a_calibration_act_everywhere(dataset: Path, base: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "both.yaml"
    recipe.write_text("method: full\ncalibrate: true\nsteps: 1\nbatch_size: 2\n")
    train = FinetuneConfig(dataset=dataset, base=str(base), out=tmp_path / "adapter", recipe=str(recipe))
    finetune.run(train)
    export.run(ExportConfig(adapter=train.out, out=tmp_path / "bundle"))
    warned = "acts with the trained weights in the base's own domain too"
    assert any(warned in text for text in read_json(tmp_path / "bundle" / "run.json")["warnings"])
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert warned in card and "measured on this deployment's pictures alone" not in card
    assert 'policy = load("path/to/this/bundle/merged")' in card


def test_the_card_of_a_guided_policy_can_be_followed(adapter: Path, base: Path, tmp_path: Path) -> None:
    """Its code runs as it stands, and guides what `vla eval-steer` guides."""
    guided = shutil.copytree(adapter, tmp_path / "guided")
    guidance = {"kind": "contrast", "weight": 1.5, "why": "a test"}
    save_spec(
        replace(load_spec(guided), guidance=guidance, early_stopping={"why": "step 2 was best"}, quantized="nf4"),
        guided,
    )
    export.run(ExportConfig(adapter=guided, out=tmp_path / "bundle"))
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "`PeftModel` does not apply the default guidance" in card
    assert "- early stopping: step 2 was best" in card
    assert "- quantised: the base's linear layers were held in 4 bits (NF4)" in card
    drift = read_json(adapter / "run.json")["facts"]["change"]["drift"]
    assert f"- training moved the weights by vision {100 * drift['vision']:.2g}%" in card and drift["vision"] > 0
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/bundle", str(tmp_path / "bundle"))
    plain = load(str(base), adapter, device="cpu")
    known = {
        "images": np.zeros((1, 1, 60, 60, 3), np.uint8),
        "state": np.zeros((1, 4), np.float32),
        "noise": np.zeros(plain.noise_shape(1), np.float32),
    }
    for instruction, is_guided in ((plain.spec.instructions[0], False), ("put the blue ball on the left plate", True)):
        names = {**known, "instruction": instruction}
        exec(code, names)
        unguided = plain.act(known["images"], known["state"], [instruction], known["noise"])
        assert np.array_equal(names["actions"], unguided) is not is_guided


@pytest.mark.parametrize(("part", "key"), [("action", "ratio"), ("camera", "warps"), ("delay", "delay")])
def test_a_part_taken_out_by_hand_is_said_to_be_left_out(calibrated: Path, tmp_path: Path, part: str, key: str) -> None:
    edited = shutil.copytree(calibrated, tmp_path / "edited")
    spec = load_spec(edited)
    spec.calibration["parts"] = ["look", "camera", "action", "delay", "timing"]
    spec.calibration[key] = {"warps": [None], "delay": 0}.get(key)
    write_card(tmp_path, spec, read_json(edited / "run.json"), None, Outcome())
    card = (tmp_path / "README.md").read_text()
    assert f"- left out: {part} (policy.json holds none)" in card and "- **look**" in card
    assert "- left out: timing (policy.json holds none)" in card and "0 control steps" not in card


def test_the_card_says_how_late_each_gripper_is(calibrated: Path, tmp_path: Path) -> None:
    spec = load_spec(calibrated)
    second = {"state": 3, "command": 3, "sign": 1, "delay": 2, "middle": [0.0, 0.0]}
    spec.calibration.update(parts=["look", "delay"], delay=1, other_grippers=[second])
    write_card(tmp_path, spec, read_json(calibrated / "run.json"), None, Outcome())
    card = (tmp_path / "README.md").read_text()
    assert "- **delay**: the gripper acts 1 control steps later" in card
    assert "- **delay**: the gripper of action dimension 3 acts 2 control steps later" in card


def test_weights_trained_on_the_deployment_itself_leave_the_bases_domain_behind(adapter: Path, tmp_path: Path) -> None:
    export.run(ExportConfig(adapter=adapter, out=tmp_path / "bundle", merge=True))
    assert not (tmp_path / "bundle" / "merged" / "domain.json").exists()


def test_an_adapter_that_is_the_base_itself_is_refused(calibrated: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(calibrated, tmp_path / "empty")
    save_spec(replace(load_spec(empty), calibration={}), empty)
    assert_refused(
        InputError,
        tmp_path / "bundle",
        lambda: export.run(ExportConfig(adapter=empty, out=tmp_path / "bundle")),
        "no weights and no calibration",
        "--recipe lora",
    )


def test_a_calibration_without_its_picture_is_refused(calibrated: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(calibrated, tmp_path / "broken")
    (broken / PICTURE).unlink()
    assert_refused(
        InputError,
        tmp_path / "bundle",
        lambda: export.run(ExportConfig(adapter=broken, out=tmp_path / "bundle")),
        "calibration",
        "malformed",
    )


def test_the_training_runs_warnings_go_with_the_bundle(calibrated: Path, tmp_path: Path) -> None:
    warned = shutil.copytree(calibrated, tmp_path / "warned")
    run = read_json(warned / "run.json")
    (warned / "run.json").write_text(json.dumps({**run, "warnings": ["something to know"]}))
    export.run(ExportConfig(adapter=warned, out=tmp_path / "bundle"))
    assert read_json(tmp_path / "bundle" / "run.json")["warnings"] == ["something to know"]
    assert "- something to know" in (tmp_path / "bundle" / "README.md").read_text()
