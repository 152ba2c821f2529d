"""Several adapters over one base: each acts as it does alone, and elsewhere the base acts as it always did."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_cli.adapter import ADAPTER_WEIGHTS, PolicySpec, load_spec, save_spec
from vla_cli.configs import ExportConfig
from vla_cli.errors import InputError
from vla_cli.policies import POLICIES, flow, task_adapters
from vla_cli.policies.task_adapters import TaskAdapters
from vla_cli.router import load_router
from vla_cli.stages import export

RED, BALL, OTHER = "put the red block on the left plate", "put the green ball on the right plate", "wave"


def retrained(adapter: Path, out: Path, instruction: str) -> Path:
    """The adapter with other weights, as if it had been trained on another instruction."""
    shutil.copytree(adapter, out)
    tensors = load_file(out / ADAPTER_WEIGHTS)
    save_file({k: -3 * v if "lora_B" in k else v for k, v in tensors.items()}, out / ADAPTER_WEIGHTS)
    rename(out, instruction)
    return out


def rename(adapter: Path, instruction: str) -> None:
    spec = load_spec(adapter)
    save_spec(PolicySpec(**{**vars(spec), "instructions": [instruction]}), adapter)


@pytest.fixture(scope="module")
def adapters(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return shutil.copytree(adapter, folder / "red.v1"), retrained(adapter, folder / "ball", BALL)


@pytest.fixture(scope="module")
def bundle(adapters: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export.run(ExportConfig(adapter=adapters[0], beside=adapters[1:], out=out))
    return out


def observe(policy: flow.FlowPolicy | TaskAdapters, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 1, 60, 60, 3), np.uint8)
    return images, rng.random((count, 4)), rng.standard_normal(policy.noise_shape(count), np.float32)


def test_each_acts_as_alone_and_the_base_elsewhere(bundle: Path, base: Path, adapters: tuple[Path, Path]) -> None:
    together = task_adapters.load(base, bundle, device="cpu")
    alone = [flow.load(base, path, device="cpu") for path in adapters] + [flow.load(base, device="cpu")]
    images, state, noise = observe(together, 6)
    # in any order, and each more than once: what was switched is switched back
    asked = [BALL, OTHER, RED, RED, OTHER, BALL]
    acted = together.act(images, state, asked, noise)
    for policy, instruction in zip(alone, (RED, BALL, OTHER), strict=True):
        which = [i for i, text in enumerate(asked) if text == instruction]
        expected = policy.act(images[which], state[which], [instruction] * 2, noise[which])
        np.testing.assert_array_equal(acted[which], expected)
    assert len({acted[i].tobytes() for i in range(6)}) == 6
    np.testing.assert_array_equal(together.act(images, state, asked, noise), acted)


def test_the_backbone_is_in_memory_once(bundle: Path, base: Path, adapters: tuple[Path, Path]) -> None:
    together = task_adapters.load(base, bundle, device="cpu")
    bare = sum(p.numel() for p in flow.load(base, device="cpu").model.parameters())
    added = sum(t.numel() for path in adapters for t in load_file(path / ADAPTER_WEIGHTS).values())
    assert sum(p.numel() for p in together.model.parameters()) == bare + added


def test_it_says_who_is_asked_and_why(bundle: Path, base: Path) -> None:
    together = task_adapters.load(base, bundle, device="cpu")
    assert isinstance(together, TaskAdapters)
    assert [together.route(text).adapter for text in (RED, "place the green ball onto the right plate", OTHER)] == [
        *("red.v1", "ball"),
        None,
    ]
    assert together.route("place the green ball onto the right plate").why == f"it means '{BALL}'"
    # the tiny tokenizer does not know the word: nothing could tell it from another
    assert "does not know 'sesame'" in together.route("sesame").why


def test_refusing_bundles_name_what_they_know(adapters: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    export.run(ExportConfig(adapter=adapters[0], elsewhere="refuse", out=tmp_path / "bundle"))
    policy = task_adapters.load(base, tmp_path / "bundle", device="cpu")
    images, state, noise = observe(policy, 2)
    policy.act(images, state, [RED, RED], noise)
    with pytest.raises(InputError) as caught:
        policy.act(images, state, [RED, BALL], noise)
    assert BALL in str(caught.value) and RED in str(caught.value) and "refuses" in str(caught.value)


def test_elsewhere_the_base_acts_behind_the_calibration(
    adapters: tuple[Path, Path], calibrated: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(calibrated, tmp_path / "calibrated")
    rename(tmp_path / "calibrated", BALL)
    export.run(ExportConfig(adapter=adapters[0], beside=(tmp_path / "calibrated",), out=tmp_path / "bundle"))
    # of two adapters, the one that has a calibration
    assert load_router(tmp_path / "bundle").place == "calibrated"
    together = task_adapters.load(base, tmp_path / "bundle", device="cpu")
    behind = flow.load(base, tmp_path / "calibrated", device="cpu")
    images, state, noise = observe(together, 2)
    for instruction in (OTHER, BALL):
        expected = behind.act(images, state, [instruction] * 2, noise)
        np.testing.assert_array_equal(together.act(images, state, [instruction] * 2, noise), expected)
    trained = flow.load(base, adapters[0], device="cpu")
    expected = trained.act(images, state, [RED] * 2, noise)
    np.testing.assert_array_equal(together.act(images, state, [RED] * 2, noise), expected)


def test_a_member_that_lost_a_key_is_refused(bundle: Path, base: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "bundle")
    file = broken / "adapters" / "ball" / ADAPTER_WEIGHTS
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != max(tensors)}, file)
    with pytest.raises(InputError, match="dropped or changed"):
        task_adapters.load(base, broken, device="cpu")


def test_another_base_is_refused(bundle: Path, base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="trained on base"):
        task_adapters.load(other, bundle, device="cpu")


def test_each_family_loads_its_own(bundle: Path, adapters: tuple[Path, Path], base: Path) -> None:
    with pytest.raises(InputError, match="several adapters"):
        flow.load(base, bundle, device="cpu")
    spec = load_spec(bundle)
    policy = POLICIES.get(spec.family)(base, device="cpu", spec=spec)
    assert isinstance(policy, flow.FlowPolicy) and policy.spec.family == "flow"
    alone = flow.load(base, bundle / "adapters" / "ball", device="cpu")
    assert alone.spec.instructions == load_spec(adapters[1]).instructions


def test_words_are_read_without_the_adapters(bundle: Path, base: Path) -> None:
    together = task_adapters.load(base, bundle, device="cpu")
    assert isinstance(together, TaskAdapters)
    bare = flow.load(base, device="cpu")
    texts = [RED, BALL, OTHER]
    read = task_adapters.reading_of(next(iter(together.members.values())))(texts)
    np.testing.assert_array_equal(read, task_adapters.reading_of(bare)(texts))
    np.testing.assert_allclose(np.linalg.norm(read, axis=1), 1.0)
    # one text reads the same beside others
    np.testing.assert_array_equal(task_adapters.reading_of(bare)(texts[1:2]), read[1:2])
    assert torch.is_grad_enabled()
