"""The flow policy on the embedded base: it must be π0 as transformers runs it, and guidance must be what it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PI0Config, PI0ForConditionalGeneration, PI0Processor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vla_cli.errors import ConfigError, InputError
from vla_cli.guidance import Guidance, combine
from vla_cli.policies.checkpoint import load_base, load_config, load_prompts, locate_base
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.policies.flow_matching import flow_losses, prepare_images, sample_chunk, sample_time
from vla_cli.policies.modalities import is_unused, lora_targets, modality_of, parameter_groups
from vla_cli.synchrony.synchronise import square

PUT, OTHER = "put the red block on the left plate", "put the blue ball on the front plate"


@pytest.fixture(scope="module")
def policy(base: Path) -> FlowPolicy:
    return load(str(base), device="cpu")


@pytest.fixture(scope="module")
def observation() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 1, 60, 60, 3), np.uint8)
    return images, rng.uniform(0, 1, (3, 4)).astype(np.float32)


def contrast(negative: str, weight: float) -> Guidance:
    return Guidance("contrast", weight, (negative,))


def noise_for(policy: FlowPolicy, batch: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(policy.noise_shape(batch)).astype(np.float32)


def test_our_sampling_is_transformers_own(policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray]) -> None:
    batch = policy.collate(*observation, [PUT, OTHER, "pick up the red block"])
    noise = torch.from_numpy(noise_for(policy))
    ours = sample_chunk(policy.flow, batch, noise, steps=5)
    theirs = policy.model.sample_actions(
        state=batch.state,
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        noise=noise,
        attention_mask=batch.attention_mask,
        pixel_attention_mask=batch.camera_mask,
        num_steps=5,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_our_loss_is_transformers_own_where_nothing_is_padded(
    policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray]
) -> None:
    batch = policy.collate(*observation, [PUT] * 3, np.zeros((3, 8, 3), np.float32), np.ones((3, 8), bool))
    assert batch.actions is not None and batch.mask is not None
    batch.mask = torch.ones_like(batch.mask)
    generator = torch.Generator().manual_seed(3)
    ours = flow_losses(policy.flow, batch, draws=1, generator=generator)
    generator.manual_seed(3)
    noise = torch.randn(batch.actions.shape, generator=generator)
    uniform = torch.rand(3, generator=generator)
    config = policy.config
    time = uniform ** (1 / config.time_sampling_beta_alpha) * config.time_sampling_scale + config.time_sampling_offset
    theirs = policy.model(
        state=batch.state,
        noise=noise,
        timestep=time,
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        pixel_attention_mask=batch.camera_mask,
        attention_mask=batch.attention_mask,
        actions=batch.actions,
    ).loss.mean((1, 2))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_padded_steps_do_not_count(policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    actions = rng.uniform(-1, 1, (3, 8, 3)).astype(np.float32)
    real = np.ones((3, 8), bool)
    real[:, 5:] = False
    batch = policy.collate(*observation, [PUT] * 3, actions, real)
    assert batch.mask is not None and batch.actions is not None
    assert batch.mask[..., 3:].sum() == 0, "padded dimensions are masked"
    loss = policy.losses(batch, draws=1, generator=torch.Generator().manual_seed(0))
    # by hand: the mean squared error over the five real steps and three real dimensions only
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.actions.shape, generator=generator)
    time = sample_time(policy.config, 3, generator)
    noisy = time[:, None, None] * noise + (1 - time[:, None, None]) * batch.actions
    velocity = policy.flow.velocity(policy.flow.prefix(batch).past_key_values, batch, noisy, time)
    error = (velocity - (noise - batch.actions))[:, :5, :3] ** 2
    torch.testing.assert_close(loss, error.mean((1, 2)), rtol=1e-4, atol=1e-6)
    whole = policy.collate(*observation, [PUT] * 3, actions, np.ones((3, 8), bool))
    assert (policy.losses(whole, draws=1, generator=torch.Generator().manual_seed(0)) != loss).any()


def test_several_noise_draws_share_a_prefix_and_change_nothing_else(
    policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray]
) -> None:
    """The mean over K draws with a shared prefix is the mean over K separate passes with the same noise."""
    batch = policy.collate(*observation, [PUT] * 3, np.zeros((3, 8, 3), np.float32), np.ones((3, 8), bool))
    assert batch.actions is not None
    cache = policy.flow.prefix(batch).past_key_values
    cache.batch_repeat_interleave(2)
    noisy = torch.randn((6, *batch.actions.shape[1:]), generator=torch.Generator().manual_seed(1))
    time = torch.rand(6, generator=torch.Generator().manual_seed(2))
    shared = policy.flow.velocity(cache, batch, noisy, time)
    for draw in range(2):
        own = policy.flow.prefix(batch).past_key_values
        alone = policy.flow.velocity(own, batch, noisy[draw::2], time[draw::2])
        torch.testing.assert_close(shared[draw::2], alone, rtol=0, atol=1e-5)


def test_images_are_prepared_as_the_siglip_processor_does() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 60, 60, 3), np.uint8)
    theirs = SiglipImageProcessorPil(size={"height": 60, "width": 60})(list(images), return_tensors="pt")
    torch.testing.assert_close(prepare_images(images, 60), theirs["pixel_values"], rtol=0, atol=1e-6)


def test_images_of_another_size_are_resized(policy: FlowPolicy) -> None:
    assert prepare_images(np.zeros((1, 90, 120, 3), np.uint8), 60).shape == (1, 3, 60, 60)


def test_prompts_are_laid_out_as_the_pi0_processor_does(base: Path, policy: FlowPolicy) -> None:
    images = SiglipImageProcessorPil(size={"height": 60, "width": 60})
    images.image_seq_length = 36
    theirs = PI0Processor(images, policy.prompts.tokenizer)(
        images=[np.zeros((60, 60, 3), np.uint8)], text=[PUT], padding="longest", max_length=80
    )
    ids, mask = policy.prompts([PUT], cameras=1)
    assert ids.tolist() == torch.as_tensor(theirs["input_ids"]).tolist()
    assert mask.tolist() == torch.as_tensor(theirs["attention_mask"]).tolist()


def test_unknown_words_are_named(policy: FlowPolicy) -> None:
    assert policy.prompts.unknown_words("put the teapot on the left plate") == ["teapot"]


def test_only_the_unused_parameters_get_no_gradient(base: Path) -> None:
    model, prompts, _ = load_base(str(base))
    policy = FlowPolicy(model, prompts, load(str(base), device="cpu").spec, "cpu")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 1, 60, 60, 3), np.uint8)
    batch = policy.collate(images, np.zeros((2, 4)), [PUT, OTHER], np.ones((2, 8, 3)), np.ones((2, 8), bool))
    policy.losses(batch, draws=2, generator=torch.Generator().manual_seed(0)).mean().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    unused = {name for name, _ in model.named_parameters() if is_unused(name, model.config)}
    # a constant added to all keys leaves the attention as it is: their biases' gradients are zero, or rounding
    key_biases = {name for name in silent if name.endswith("k_proj.bias")}
    assert silent - key_biases == unused


def test_the_full_size_model_resolves_on_the_meta_device() -> None:
    """What works on the miniature names the right parts of `lerobot/pi0_base`, without its weights."""
    with torch.device("meta"):
        model = PI0ForConditionalGeneration(PI0Config())
    targets = lora_targets(model)
    config = model.config
    vision = config.vlm_config.vision_config.num_hidden_layers
    language = config.vlm_config.text_config.num_hidden_layers
    action = config.dit_config.num_hidden_layers
    by_modality = {m: sum(modality_of("." + t) == m for t in targets) for m in ("vision", "language", "action")}
    assert by_modality == {"vision": 6 * vision + 1, "language": 7 * (language - 1) + 2, "action": 7 * action + 1}
    groups = parameter_groups(model)
    named = sum(len(names) for names in groups.values())
    unused = [name for name, _ in model.named_parameters() if is_unused(name, config)]
    assert named + len(unused) == len(list(model.named_parameters()))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert 2.7e9 < sum(sizes[name] for names in groups.values() for name in names) < 3.4e9
    assert all(not is_unused(t, config) for t in targets)


def test_guidance_of_one_is_plain_and_of_zero_is_the_trained_prompt(
    policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray]
) -> None:
    noise = noise_for(policy)
    plain = policy.act(*observation, [OTHER] * 3, noise)
    trained = policy.act(*observation, [PUT] * 3, noise)
    guided = {w: policy.act(*observation, [OTHER] * 3, noise, guidance=contrast(PUT, w)) for w in (0.0, 1.0, 0.999999)}
    np.testing.assert_array_equal(guided[1.0], plain)
    np.testing.assert_allclose(guided[0.999999], plain, atol=1e-3)
    np.testing.assert_allclose(guided[0.0], trained, atol=1e-5)
    assert np.abs(plain - trained).max() > 1e-3, "the two prompts must matter for this test to mean anything"


def test_swapping_the_prompts_is_one_minus_the_weight(
    policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray]
) -> None:
    noise = noise_for(policy)
    there = policy.act(*observation, [OTHER] * 3, noise, guidance=contrast(PUT, 1.7))
    back = policy.act(*observation, [PUT] * 3, noise, guidance=contrast(OTHER, -0.7))
    np.testing.assert_allclose(there, back, atol=1e-4)


def test_one_step_of_guidance_is_linear_in_the_weight(
    policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray]
) -> None:
    noise = noise_for(policy)
    one, two, three = (
        policy.act(*observation, [OTHER] * 3, noise, steps=1, guidance=contrast(PUT, w)) for w in (1.5, 2.0, 2.5)
    )
    np.testing.assert_allclose(two - one, three - two, atol=1e-4)


def test_identical_prompts_are_refused(policy: FlowPolicy, observation: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="nothing to contrast"):
        policy.act(*observation, [PUT] * 3, noise_for(policy), guidance=contrast(PUT, 2.0))


def test_combine_is_the_papers_convention() -> None:
    assert combine(1.0, 3.0, 1.0) == 3.0 and combine(1.0, 3.0, 0.0) == 1.0 and combine(1.0, 3.0, 2.0) == 5.0


def test_a_missing_base_is_one_clear_error() -> None:
    with pytest.raises(InputError, match=r"neither a directory nor a hub model.*sample_data/base"):
        locate_base("no/such-base")


def test_a_base_with_truncated_weights_is_one_clear_error(base: Path, tmp_path: Path) -> None:
    for file in base.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_base(str(tmp_path))


def test_another_models_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="'llama'"):
        load_config(tmp_path)


@pytest.mark.parametrize("key", [None, "hidden_size", "model_type"])
def test_a_config_that_cannot_be_is_refused(base: Path, tmp_path: Path, key: str | None) -> None:
    document = json.loads((base / "config.json").read_text())
    if key is not None:
        document["vlm_config"]["text_config"][key] = 1e308
    (tmp_path / "config.json").write_text(json.dumps(document if key else None))
    with pytest.raises(InputError, match=r"config\.json (cannot be used|is of a 'None' model)"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "size"),
    [
        ("", "max_action_dim", -3),
        ("", "chunk_size", 0),
        ("", "num_inference_steps", -1),
        ("", "max_state_dim", 10**13),
        ("vision_config", "image_size", -60),
        ("dit_config", "num_attention_heads", 0),
    ],
)
def test_a_size_that_no_model_has_is_refused(base: Path, tmp_path: Path, part: str, key: str, size: int) -> None:
    document = json.loads((base / "config.json").read_text())
    parts = {"": document, "dit_config": document["dit_config"], **document["vlm_config"]}
    parts[part][key] = size
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"config\.json cannot be used \(.*{key} is {size}\)"):
        load_config(tmp_path)


def test_weights_that_would_be_left_out_or_that_are_no_numbers_are_refused(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    document = json.loads((base / "config.json").read_text())
    document["vlm_config"]["text_config"]["num_hidden_layers"] = 2
    (copy / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"0 missing .* 9 of layers that it does not have"):
        load_base(str(copy))
    shutil.copy(base / "config.json", copy)
    weights = load_file(base / "model.safetensors")
    weights["action_out_proj.bias"][3] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"not finite: 1 tensors hold NaN.*action_out_proj\.bias"):
        load_base(str(copy))


def test_weights_in_several_files_and_of_half_precision_are_a_base_too(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    weights = {name: value.bfloat16() for name, value in load_file(copy / "model.safetensors").items()}
    (copy / "model.safetensors").unlink()
    places = {name: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(places.values()):
        part = {name: weights[name] for name in weights if places[name] == file}
        save_file(part, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model, _, files = load_base(str(copy))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.action_out_proj.weight, weights["action_out_proj.weight"].float())
    shard = copy / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard, metadata={"format": "pt"})
    assert locate_base(str(copy)).reference.digest != files.reference.digest
    for part in (whole[:-1], b"version https://git-lfs.github.com/spec/v1\n"):
        shard.write_bytes(part)
        with pytest.raises(InputError, match=r"cannot be loaded: .*model-00002-of-00002.* is cut short"):
            locate_base(str(copy))
    shard.unlink()
    with pytest.raises(InputError, match=r"of the 2 files .*index\.json names, 1 is not there \(model-00002"):
        locate_base(str(copy))
    index = copy / "model.safetensors.index.json"
    index.write_text("[]")
    with pytest.raises(InputError, match="no weight_map"):
        locate_base(str(copy))
    index.unlink()
    with pytest.raises(InputError, match=r"neither model\.safetensors nor"):
        locate_base(str(copy))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", '{"a": 1', "No tokenizer for base"),
        ("tokenizer.json", '{"a": 1}', "No tokenizer for base"),
        ("tokenizer.json", "", "No tokenizer for base"),
        ("tokenizer_config.json", "[]", "No tokenizer for base"),
        ("tokenizer_config.json", '{"tokenizer_class": "TokenizersBackend"}', "no token for the beginning"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused_without_weights(
    base: Path, tmp_path: Path, name: str, text: str, said: str
) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    (copy / name).write_text(text)
    with pytest.raises(InputError, match=said):
        load_prompts(locate_base(str(copy)))


def test_a_tokenizer_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    document = json.loads((base / "tokenizer.json").read_text())
    document["model"]["vocab"]["teapot"] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    shutil.copy(base / "tokenizer_config.json", tmp_path)
    prompts = load_prompts(locate_base(str(base)), str(tmp_path))
    assert prompts.words(PUT)
    with pytest.raises(InputError, match=r"'lift the teapot' the token 5000, but the base knows"):
        prompts.words("lift the teapot")
    with pytest.raises(InputError, match="stands for a piece of a picture"):
        load_prompts(locate_base(str(base))).words("lift the <image>")


def test_a_prompt_longer_than_any_that_pi0_knows_is_said(base: Path) -> None:
    prompts = load_prompts(locate_base(str(base)))
    assert prompts.beyond_usual([]) == prompts.beyond_usual([PUT, "put " * 46]) == []
    (said,) = prompts.beyond_usual([PUT, "put " * 47])
    assert "1 of 2 instructions have more than 48 tokens (the longest 49: 'put put" in said


def test_lerobots_config_of_the_full_model_is_understood(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": "pi0", "chunk_size": 50, "n_action_steps": 50}')
    config = load_config(tmp_path)
    assert (config.chunk_size, config.max_action_dim, config.vlm_config.text_config.hidden_size) == (50, 32, 2048)


def test_a_base_without_a_tokenizer_takes_one_from_elsewhere(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((base / name).read_bytes())
    with pytest.raises(InputError, match="--tokenizer"):
        load_base(str(bare))
    _, prompts, _ = load_base(str(bare), tokenizer=str(base))
    assert prompts.words(PUT) == load(str(base), device="cpu").prompts.words(PUT)


def test_what_was_trained_belongs_to_the_deployment(base: Path, adapter: Path, calibrated: Path) -> None:
    """Pictures of the base's own domain get the bare base's actions, those of the deployment the adapter's."""
    bare, adapted = load(str(base), device="cpu"), load(str(base), adapter, device="cpu")
    calibration = load(str(base), calibrated, device="cpu").calibration
    assert calibration is not None and calibration.by_picture
    rng = np.random.default_rng(0)
    own, here = (
        np.clip(rng.normal(median, 3, (2, 1, 60, 60, 3)), 0, 255).astype(np.uint8)
        for median in (calibration.base_medians[0], calibration.medians[0])
    )
    state, words = rng.uniform(0, 1, (4, 4)).astype(np.float32), [PUT, OTHER, PUT, OTHER]
    noise = noise_for(bare, 4)
    plain = adapted.act(here, state[2:], words[2:], noise[2:])
    adapted.calibrate(calibration)
    mixed = adapted.act(np.concatenate([own, here]), state, words, noise)
    np.testing.assert_array_equal(mixed[:2], bare.act(own, state[:2], words[:2], noise[:2]))
    assert not np.array_equal(mixed[2:], plain)
    adapted.calibrate(None)
    np.testing.assert_array_equal(adapted.act(here, state[2:], words[2:], noise[2:]), plain)


def test_a_wide_picture_is_prepared_as_preprocess_did(base: Path, calibrated: Path) -> None:
    """What the robot's camera gives and what the dataset holds of it lead to the same actions."""
    wide = np.random.default_rng(0).integers(0, 256, (2, 1, 45, 80, 3), np.uint8)
    prepared = np.stack([square(picture, 60) for picture in wide[:, 0]])[:, None]
    state = np.full((2, 4), 0.5, np.float32)
    for adapter in (None, calibrated):
        policy = load(str(base), adapter, device="cpu")
        noise = noise_for(policy, 2)
        stretched = policy.act(wide, state, [PUT, OTHER], noise)
        as_trained = policy.act(prepared, state, [PUT, OTHER], noise)
        assert not np.array_equal(stretched, as_trained)
        policy.spec = replace(policy.spec, squared=60)
        np.testing.assert_array_equal(policy.act(wide, state, [PUT, OTHER], noise), as_trained)
        np.testing.assert_array_equal(policy.act(prepared, state, [PUT, OTHER], noise), as_trained)
