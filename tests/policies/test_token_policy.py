"""The token policy on the embedded token base: transformers' own loss and writing, behind our statistics and words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vla_cli.adapter import TOKENS, load_spec, save_spec
from vla_cli.configs import ExportConfig, FinetuneConfig
from vla_cli.dataset import load_dataset
from vla_cli.errors import ConfigError, InputError
from vla_cli.files import read_json, write_json
from vla_cli.guidance import Guidance
from vla_cli.language.alternatives import load_alternatives
from vla_cli.policies import FAMILIES, POLICIES
from vla_cli.policies.adaptation import Layout, make_trainable, trained_parameters
from vla_cli.policies.checkpoint import family_of, load_base, locate_base
from vla_cli.policies.loading import load_policy
from vla_cli.policies.modalities import MODALITIES, is_unused, lora_targets, parameter_groups
from vla_cli.policies.response import choose_guidance, measure_response
from vla_cli.policies.token_model import centred, guided
from vla_cli.policies.tokens import TokenPolicy, load
from vla_cli.retention import Context, Step
from vla_cli.retention.distillation import PATHS, Distillation
from vla_cli.retention.merge import Merge
from vla_cli.stages import export, finetune
from vla_cli.stages.finetune.preparation import prepare
from vla_cli.suites.closed_loop import run as closed_loop
from vla_cli.windows import Samples, Windows
from vla_cli.worlds.tabletop.world import TabletopWorld

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
BASE = SAMPLES / "token_base"
PUT, OTHER, LONG = (
    "put the red block on the left plate",
    "pick up the blue ball",
    "place the red block onto the left plate",
)
LORA = Layout(dict.fromkeys(MODALITIES, 4))
DELOCK = Layout({"language": 4, "action": 4}, full=("vision",))
BOTTLENECKS = Layout({}, widths=dict.fromkeys(MODALITIES, 4))


@pytest.fixture(scope="module")
def policy() -> TokenPolicy:
    return load(str(BASE), device="cpu")


@pytest.fixture(scope="module")
def windows(dataset: Path, policy: TokenPolicy) -> Windows:
    return Windows(load_dataset(dataset).split("train"), policy.spec.cameras, policy.spec.chunk_size)


@pytest.fixture
def samples(windows: Windows) -> Samples:
    return windows.gather(windows.spread(6))


def trainable(layout: Layout) -> TokenPolicy:
    model, prompts, _ = load_base(str(BASE))
    return TokenPolicy(make_trainable(model, layout, train_heads=False, seed=0), prompts, load_spec(BASE), "cpu")


def act(policy: TokenPolicy, samples: Samples, words: list[str], guidance: Guidance | None = None) -> np.ndarray:
    noise = np.zeros(policy.noise_shape(len(samples)), np.float32)
    return policy.act(samples.images, samples.state, words, noise, guidance=guidance)


def loss_of(policy: TokenPolicy, samples: Samples) -> torch.Tensor:
    return policy.losses(policy.batch(samples), draws=1, generator=torch.Generator())


# --- the loss ---


def test_the_loss_is_transformers_own_with_every_position_of_the_prompt_masked(
    policy: TokenPolicy, samples: Samples
) -> None:
    whole = replace(samples, real_steps=np.ones_like(samples.real_steps))
    batch = policy.batch(whole)
    assert batch.bins is not None
    answer = batch.bins.flatten(1)
    inputs = policy.writer.answered(batch, answer)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -answer.shape[1] :] = answer + policy.tokens.first
    policy.model.eval()
    theirs = policy.model(**inputs, labels=labels).loss
    assert torch.allclose(loss_of(policy, whole).mean(), theirs, atol=1e-5)


def test_padded_steps_have_no_part_in_the_loss(policy: TokenPolicy, windows: Windows) -> None:
    policy.model.eval()
    last = windows.gather([len(windows) - 1])
    assert not last.real_steps.all() and last.real_steps.any()
    other = replace(last, actions=np.where(last.real_steps[..., None], last.actions, 7.0))
    assert not np.array_equal(last.actions, other.actions)
    assert torch.equal(loss_of(policy, last), loss_of(policy, other))
    real = replace(last, actions=np.where(last.real_steps[..., None], -last.actions, last.actions))
    assert not torch.equal(loss_of(policy, last), loss_of(policy, real))


def test_a_windows_loss_does_not_depend_on_who_is_beside_it(policy: TokenPolicy, samples: Samples) -> None:
    policy.model.eval()
    mixed = replace(samples, instructions=[PUT, LONG, OTHER, PUT, OTHER, LONG])
    together = loss_of(policy, mixed)
    alone = torch.cat([loss_of(policy, part) for part in mixed.parts(1)])
    assert torch.allclose(together, alone, atol=1e-4)


# --- acting ---


def test_what_is_written_is_the_most_probable_token_behind_those_before(policy: TokenPolicy, samples: Samples) -> None:
    batch = policy.collate(samples.images, samples.state, [PUT, LONG, OTHER] * 2)
    policy.model.eval()
    written = policy.writer.write(batch, 12)
    with torch.no_grad():
        logits = policy.writer.logits(batch, written)
    own = logits[..., policy.tokens.first : policy.tokens.first + policy.tokens.bins]
    assert torch.equal(own.argmax(-1), written)


def test_words_move_it_and_noise_and_neighbours_do_not(policy: TokenPolicy, samples: Samples) -> None:
    words = [PUT, LONG, OTHER] * 2
    chunk = act(policy, samples, words)
    assert chunk.shape == (6, 4, 3)
    noise = np.random.default_rng(3).standard_normal(policy.noise_shape(6)).astype(np.float32)
    assert np.array_equal(chunk, policy.act(samples.images, samples.state, words, noise))
    alone = [act(policy, part, [word]) for part, word in zip(samples.parts(1), words, strict=True)]
    assert np.array_equal(chunk, np.concatenate(alone))
    assert not np.array_equal(chunk, act(policy, samples, [OTHER] * 6))


def test_how_a_model_writes_prose_has_no_part_in_its_actions(policy: TokenPolicy, samples: Samples) -> None:
    punished = load(str(BASE), device="cpu")
    model: Any = punished.model
    model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=[1150, 1160])
    model.generation_config.update(do_sample=True, temperature=9.0, eos_token_id=1157, num_beams=2)
    words = [PUT, LONG, OTHER] * 2
    assert np.array_equal(act(punished, samples, words), act(policy, samples, words))


def test_guidance_is_plain_at_one_its_negative_at_zero_and_swaps(policy: TokenPolicy, samples: Samples) -> None:
    def at(weight: float, negative: str = PUT, asked: str = OTHER) -> np.ndarray:
        return act(policy, samples, [asked] * 6, Guidance("contrast", weight, (negative,)))

    assert np.array_equal(at(1.0), act(policy, samples, [OTHER] * 6))
    # just beside plain prompting, where the shorter prompt is asked beside a longer one
    assert np.array_equal(at(1 + 1e-7), act(policy, samples, [OTHER] * 6))
    # the negative's own words, although the prompts differ in length
    assert np.array_equal(at(0.0), act(policy, samples, [PUT] * 6))
    assert np.array_equal(at(1.7), at(1 - 1.7, OTHER, PUT))
    with pytest.raises(ConfigError, match="nothing to contrast"):
        at(2.0, OTHER, OTHER)


def test_guided_logits_are_linear_in_the_weight_and_blind_to_what_softmax_ignores() -> None:
    torch.manual_seed(0)
    positive, negative = torch.randn(2, 5, 8)
    for kind in ("contrast", "null"):
        zero, one, two = (guided(Guidance(kind, float(w), ("x",)), positive, [negative]) for w in (0, 1, 2))
        assert torch.equal(zero, negative) and torch.allclose(one, positive) and torch.allclose(two - one, one - zero)
    orthogonal = Guidance("orthogonal", 1.5, ("",))
    moved = guided(orthogonal, centred(positive + 9.0), [centred(negative - 4.0)])
    assert torch.allclose(moved, guided(orthogonal, centred(positive), [centred(negative)]), atol=1e-4)


def test_the_base_does_what_it_is_told(policy: TokenPolicy) -> None:
    found = closed_loop(
        {"base": policy}, TabletopWorld("base"), episodes=20, seed=5, conditions=["base-domain", "do-nothing"], films=0
    )
    told, idle = (row for row in found.rows if row.metric == "success")
    assert told.condition == "base-domain" and told.k >= 15 and idle.k <= 1


# --- weights ---


def test_every_parameter_sees_reads_or_acts_and_the_head_is_what_acts() -> None:
    model: Any = load_base(str(BASE))[0]
    groups = parameter_groups(model)
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert groups["action"] == ["lm_head.weight"]
    assert all(".vision_tower." in name or "projector" in name for name in groups["vision"])
    assert all(".language_model." in name for name in groups["language"])
    assert lora_targets(model, ["action"]) == ["lm_head"]


@pytest.mark.parametrize("layout", [LORA, DELOCK, BOTTLENECKS])
def test_what_is_added_changes_nothing_before_the_first_step_and_all_of_it_learns(
    policy: TokenPolicy, samples: Samples, layout: Layout
) -> None:
    adapted = trainable(layout)
    adapted.model.eval()
    policy.model.eval()
    assert torch.equal(loss_of(adapted, samples), loss_of(policy, samples))
    loss_of(adapted, samples).mean().backward()
    assert all(p.grad is not None for p in trained_parameters(adapted.model).values())


def test_every_family_is_called_what_the_table_calls_it_and_knows_its_own_alone() -> None:
    families = {name: FAMILIES.get(name) for name in FAMILIES}
    assert {name: family.name for name, family in families.items()} == {name: name for name in FAMILIES}
    assert all(name in POLICIES for name in FAMILIES)
    for directory, own in ((SAMPLES / "base", "flow"), (BASE, TOKENS)):
        document = read_json(directory / "config.json")
        assert [name for name, family in families.items() if family.recognises(document)] == [own]


def test_a_base_of_neither_family_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BASE / name, tmp_path / name)
    for kind in ("bert", "openvla"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(InputError, match=f"'{kind}' model") as caught:
            family_of(tmp_path)
        assert "pi0" in str(caught.value.expected) and "image-text-to-text" in str(caught.value.expected)
    # a model whose code would come with it is never one of ours
    remote = {**json.loads((BASE / "config.json").read_text()), "auto_map": {"AutoModel": "here.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(remote))
    with pytest.raises(InputError, match="'paligemma' model"):
        family_of(tmp_path)


def test_tokens_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="reads with its model's own processor"):
        load_base(str(BASE), tokenizer=str(SAMPLES / "base"))
    spec = load_spec(BASE)
    model, prompts, _ = load_base(str(BASE))
    with pytest.raises(InputError, match="writes 1190 different tokens"):
        TokenPolicy(model, prompts, replace(spec, action_tokens={**spec.action_tokens, "first": 1127}), "cpu")
    with pytest.raises(InputError, match="first is missing"):
        TokenPolicy(model, prompts, replace(spec, action_tokens={}), "cpu")


# --- retention ---


def context(windows: Windows, layout: Layout = LORA) -> Context:
    frozen = load(str(BASE), device="cpu")
    frozen.model.requires_grad_(False).eval()
    others = load_alternatives(SAMPLES / "alternatives.yaml")
    return Context(trainable(layout), lambda: frozen, windows, None, None, others)


def disturbed(policy: Any, size: float = 0.05) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained_parameters(policy.model).values():
            parameter.add_(size * torch.randn_like(parameter))


@pytest.mark.parametrize("path", PATHS)
def test_distillation_is_the_kl_to_the_frozen_base_and_zero_at_the_start(windows: Windows, path: str) -> None:
    given = context(windows)
    method = Distillation(path=path, windows=4)
    method.prepare(given)

    def penalty() -> torch.Tensor:
        now = Step(0, np.random.default_rng(0), torch.Generator().manual_seed(0), windows.gather(range(4)))
        found = method.penalty(now)
        return found.raw

    given.policy.model.eval()
    start = penalty()
    assert start.item() == 0.0
    start.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in trained_parameters(given.policy.model).values())
    disturbed(given.policy)
    assert penalty().item() > 0.001


def test_the_gap_is_torchs_own_kl(policy: TokenPolicy, samples: Samples) -> None:
    batch = policy.batch(samples)
    assert batch.mask is not None
    torch.manual_seed(1)
    wanted, predicted = torch.log_softmax(torch.randn(2, *batch.mask.shape, policy.tokens.bins), -1)
    each = torch.nn.functional.kl_div(predicted, wanted, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(policy.gap(predicted, wanted, batch), (each * batch.mask).sum(), atol=1e-4)


def test_merging_goes_back_to_the_base_exactly(windows: Windows, samples: Samples, policy: TokenPolicy) -> None:
    given = context(windows)
    method = Merge(alpha="auto", windows=16)
    method.prepare(given)
    disturbed(given.policy)
    method.after_training()
    sweep = method.facts()["sweep"]
    assert sweep[0]["alpha"] == 0 and sweep[0]["steer"] == 0.0 and sweep[-1]["steer"] > 0
    given.policy.scale_deltas(dict.fromkeys(MODALITIES, 0.0))
    given.policy.model.eval()
    policy.model.eval()
    assert torch.equal(loss_of(given.policy, samples), loss_of(policy, samples))  # type: ignore[arg-type]


def test_the_response_of_the_base_beside_itself_is_kept_and_needs_no_guidance(
    policy: TokenPolicy, samples: Samples
) -> None:
    told: dict[str, Any] = {"trained": PUT, "draws": 2, "seed": 0}
    found = measure_response(policy, policy, samples, [OTHER], paraphrases=[LONG], **told)
    assert (
        found.defined
        and found.retention == pytest.approx(1.0, abs=1e-4)
        and found.weight == pytest.approx(1.0, abs=1e-4)
    )
    choice = choose_guidance(found, "contrast")
    assert choice.guidance.plain and "still responds as its base does" in choice.reason
    # words of the same meaning are no response: as an alternative they do not rise above themselves
    same = measure_response(policy, policy, samples, [LONG], paraphrases=[LONG], **told)
    assert same.undefined and "other words of the same meaning" in choose_guidance(same, "contrast").reason


# --- from demonstrations to a bundle ---


def asked(dataset: Path, out: Path, base: Path, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(dataset=dataset, out=out, base=str(base), recipe="lora", device="cpu", **changes)


def test_an_adapter_is_trained_measured_and_exported_like_any_other(
    dataset: Path, tmp_path: Path, samples: Samples
) -> None:
    finetune.run(asked(dataset, tmp_path / "adapter", BASE, steps=30))
    spec = load_spec(tmp_path / "adapter")
    assert spec.family == TOKENS and spec.action_tokens == load_spec(BASE).action_tokens
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in saved)  # an output head is large, and the base's
    losses = [json.loads(line)["loss"] for line in (tmp_path / "adapter" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    export.run(ExportConfig(adapter=tmp_path / "adapter", out=tmp_path / "bundle", base=str(BASE), merge=True))
    adapted = load_policy(str(BASE), tmp_path / "adapter", device="cpu")
    merged = load_policy(str(tmp_path / "bundle" / "merged"), device="cpu")
    assert isinstance(merged, TokenPolicy)
    assert torch.allclose(loss_of(merged, samples), loss_of(adapted, samples), atol=1e-4)  # type: ignore[arg-type]
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "from vla_cli.policies.tokens import load" in card and "64 bins" in card
    assert "AutoModelForImageTextToText" in card
    kept = read_json(BASE / "processor_config.json")
    assert read_json(tmp_path / "bundle" / "merged" / "processor_config.json") == kept
    # the same weights and tokenizer, but pictures that are prepared otherwise
    other = tmp_path / "other"
    shutil.copytree(BASE, other)
    kept["image_processor"]["image_mean"] = [0.0, 0.0, 0.0]
    write_json(other / "processor_config.json", kept)
    with pytest.raises(InputError, match=r"processor in .* is not the one that the policy was trained with"):
        load_policy(str(other), tmp_path / "adapter", device="cpu")


def test_actions_that_no_bin_holds_are_warned_of(dataset: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    shutil.copytree(BASE, narrow)
    document = read_json(narrow / "policy.json")
    document["actions"]["q01"][0], document["actions"]["q99"][0] = -0.2, 0.2
    write_json(narrow / "policy.json", document)
    finetune.run(asked(dataset, tmp_path / "out", narrow, steps=1))
    said = [text for text in read_json(tmp_path / "out" / "run.json")["warnings"] if "cut into tokens" in text]
    assert len(said) == 1 and "action[0] " in said[0] and "action[1]" not in said[0] and "of the base" in said[0]


def test_a_model_that_was_never_taught_to_act_gets_openvlas_tokens_and_the_datasets_statistics(
    dataset: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(BASE, bare)
    for name in ("policy.json", "domain.json"):
        (bare / name).unlink()
    config = asked(dataset, tmp_path / "out", bare)
    assert "not counted for a policy that writes tokens" in finetune.plan(config)["estimate"]["memory"]
    spec = prepare(config).spec
    size = family_of(bare).prompts(locate_base(str(bare)), "").tokenizer.vocab_size
    assert spec.statistics_from == "dataset" and spec.chunk_size == 4
    assert spec.action_tokens["first"] + spec.action_tokens["bins"] == size and spec.action_tokens["bins"] == 256
    save_spec(spec, tmp_path)
    assert load_spec(tmp_path).action_tokens == spec.action_tokens


# --- any image-text-to-text model ---


def save_llava(directory: Path, *, tied: bool) -> None:
    """A tiny LLaVA with random weights, whose vision tower is read before its last layer."""
    words = ["[PAD]", "[UNK]", "[BOS]", *PUT.split(), *map(str, range(256)), *(f"w{i}" for i in range(300))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    pictures = SiglipImageProcessorPil(size={"height": 30, "width": 30})
    LlavaProcessor(
        pictures, tokenizer, patch_size=10, vision_feature_select_strategy="full", num_additional_image_tokens=0
    ).save_pretrained(directory)
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 32}
    torch.manual_seed(0)
    LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config={
                **sizes,
                "model_type": "siglip_vision_model",
                "patch_size": 10,
                "image_size": 30,
                "vision_use_head": False,
            },
            text_config={
                **sizes,
                "model_type": "llama",
                "num_key_value_heads": 1,
                "vocab_size": len(tokenizer),
                "tie_word_embeddings": tied,
            },
            tie_word_embeddings=tied,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_select_strategy="full",
            vision_feature_layer=-2,
            image_seq_length=9,
        )
    ).save_pretrained(directory)


@pytest.mark.parametrize("tied", [False, True])
def test_another_model_with_two_cameras_learns_and_writes(tmp_path: Path, tied: bool) -> None:
    save_llava(tmp_path, tied=tied)
    model, prompts, files = load_base(str(tmp_path))
    family = family_of(tmp_path)
    spec = replace(load_spec(BASE), action_tokens=family.action_tokens(files), cameras=["left", "right"])
    bare: Any = family.policy(model, prompts, spec, "cpu")
    rng = np.random.default_rng(0)
    images, state = rng.integers(0, 256, (3, 2, 60, 60, 3), np.uint8), rng.uniform(0, 1, (3, 4)).astype(np.float32)
    actions = rng.normal(size=(3, 4, 3)).astype(np.float32)
    words = [PUT, "put the block", "put"]
    batch = bare.collate(images, state, words, actions, np.ones((3, 4), bool))
    each = bare.losses(batch, draws=1, generator=torch.Generator())
    each.mean().backward()
    # every weight that is said to have no part has none, and every other one has
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle and idle == {name for name, _ in model.named_parameters() if is_unused(name, model.config)}
    assert bool(parameter_groups(model)["action"]) != tied and bool(lora_targets(model, ["action"])) != tied
    bare.model.eval()
    one = bare.collate(images[1:2], state[1:2], words[1:2], actions[1:2], np.ones((1, 4), bool))
    assert torch.allclose(bare.losses(one, draws=1, generator=torch.Generator())[0], each[1], atol=1e-4)
    written = bare.act(images, state, words, np.zeros(bare.noise_shape(3), np.float32))
    assert written.shape == (3, 4, 3) and np.isfinite(written).all()
    # of a model that was never taught to act, hardly any word would be an action
    bins = bare.writer.write(bare.collate(images, state, words), 12)
    assert bins.min() >= 0 and bins.max() < bare.tokens.bins
    learning = make_trainable(load_base(str(tmp_path))[0], LORA, train_heads=True, seed=0)
    adapted: Any = family.policy(learning, prompts, spec, "cpu")
    assert torch.allclose(adapted.losses(batch, draws=1, generator=torch.Generator()), each, atol=1e-5)
    optimiser = torch.optim.Adam(trained_parameters(adapted.model).values(), lr=1e-2)
    for _ in range(10):
        optimiser.zero_grad()
        loss = adapted.losses(batch, draws=1, generator=torch.Generator()).mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < each.mean().item()
    if tied:
        with pytest.raises(ConfigError, match="Only action would train"):
            make_trainable(load_base(str(tmp_path))[0], Layout({"action": 4}), train_heads=False, seed=0)
