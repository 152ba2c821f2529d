"""Train the embedded base policy: a miniature pi0 that follows instructions on the tabletop.

    python scripts/train_base.py --out /tmp/base --ranks 2          # about 45 minutes on 2 cores
    python scripts/train_base.py --publish /tmp/base                # into sample_data/base, with card and log

The weights in sample_data/base came from the same script in two goes (both are in their log): seed 0, stopped after
1750 steps of a 5000-step schedule, then `--start-from` that with `--seed 1 --steps 1250 --lr 1.1e-3`. Neither go may
come out bit for bit on another machine; the card's success was measured on the weights as they are.

Flow matching alone does not learn which object a word means; a pointer loss does (cross-entropy from the state of the
sentence's last token to the image patch of the named object, and of the named plate). The pointer heads are thrown
away after training. Samples are drawn fresh: a random scene, a random moment of the task, the expert's next chunk.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_training import Losses, begin, fit
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from transformers import PI0Config, PI0ForConditionalGeneration, PI0Processor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vla_cli.adapter import PolicySpec, save_spec
from vla_cli.files import write_json, write_text
from vla_cli.policies.flow import load
from vla_cli.policies.flow_matching import Batch, FlowModel, flow_losses, prepare_images, sample_chunk
from vla_cli.policies.modalities import is_unused
from vla_cli.policies.prompts import Prompts
from vla_cli.stats import Statistics
from vla_cli.suites.closed_loop import run as closed_loop_suite
from vla_cli.worlds.tabletop.environment import CONTROL_RATE_HZ, Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.render import SIZE
from vla_cli.worlds.tabletop.scene import ALL_PHRASINGS, Layout, draw_task
from vla_cli.worlds.tabletop.shifts import DOMAINS
from vla_cli.worlds.tabletop.world import TabletopWorld

CHUNK, EXECUTE, PATCH = 8, 4, 10
STATE_MEAN, STATE_STD = np.array([0.5, 0.5, 0.0, 0.5]), np.array([0.25, 0.25, 1.0, 0.5])
ACTION_MEAN, ACTION_STD = np.zeros(3), np.array([1 / 1.5, 1 / 1.5, 1.0])


def build_processor() -> PI0Processor:
    """A word-level tokenizer over the tabletop's vocabulary, and the SigLIP image processor at 60 pixels."""
    words = sorted({word for phrase in ALL_PHRASINGS for word in phrase.split()})
    special = ["[PAD]", "[UNK]", "[BOS]", "\n"]
    vocabulary = {token: i for i, token in enumerate(special + words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[.,!?]"), "")])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", padding_side="right"
    )
    image_processor: Any = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    image_processor.image_seq_length = (SIZE // PATCH) ** 2
    return PI0Processor(
        image_processor,
        tokenizer,
        state_mean=STATE_MEAN.tolist(),
        state_std=STATE_STD.tolist(),
        actions_mean=ACTION_MEAN.tolist(),
        actions_std=ACTION_STD.tolist(),
        max_state_dim=4,
        chunk_size=CHUNK,
    )


def build_config(processor: Any) -> PI0Config:
    """The miniature's configuration: the same classes as lerobot/pi0_base, 1.3 M parameters."""
    vocabulary = len(processor.tokenizer)
    text = {
        "model_type": "gemma",
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": vocabulary,
        "initializer_range": 0.06,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "patch_size": PATCH,
        "image_size": SIZE,
        "vision_use_head": False,
    }
    expert = {**text, "hidden_size": 96}
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "projection_dim": 128,
            "image_token_id": processor.image_token_id,
            "text_config": text,
            "vision_config": vision,
        },
        dit_config=expert,
        chunk_size=CHUNK,
        max_state_dim=4,
        max_action_dim=3,
        num_inference_steps=5,
        min_period=0.02,
        loss_reduction="none",
    )
    config.initializer_range = 0.06
    return config


class Pointer(nn.Module):
    """Where the named object and the named plate are, read off the VLM's states (for training only).

    Two ways to point: from the sentence's last state to the patches, in the states that the expert's last layer
    reads; and from each patch by itself ("I am the one that is named"), already one layer earlier, so that the
    expert's later layers have something to work with.
    """

    def __init__(self, width: int, inner: int = 64) -> None:
        super().__init__()
        self.query = nn.Linear(width, 2 * inner)
        self.key = nn.Linear(width, inner)
        self.named = nn.ModuleList([nn.Linear(width, 2) for _ in range(2)])
        self.inner = inner

    def forward(self, states: list[Tensor], last: Tensor, patches: int) -> Tensor:
        """Logits [3, B, 2, P]: by sentence, by patch in two layers; for object and plate.

        Args:
            states: two layers' states [B, L, D], the later one last.
            last: [B] index of the sentence's last token.
            patches: P, the first tokens of the sequence.
        """
        sentence = states[-1][torch.arange(len(last)), last]
        query = self.query(sentence).view(len(sentence), 2, self.inner)
        by_sentence = query @ self.key(states[-1][:, :patches]).transpose(1, 2) / math.sqrt(self.inner)
        by_patch = [head(s[:, :patches]).transpose(1, 2) for head, s in zip(self.named, states, strict=True)]
        return torch.stack([by_sentence, *by_patch])


def fresh_starts(rng: np.random.Generator, count: int) -> tuple[list[Start], list[str]]:
    """Random scenes with a task each, and one of its phrasings."""
    layout, starts, phrases = Layout(), [], []
    for _ in range(count):
        scene = layout.draw(rng)
        task = draw_task(scene, rng)
        starts.append(Start(scene, task))
        phrases.append(task.phrasings[rng.integers(len(task.phrasings))])
    return starts, phrases


def draw_samples(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Fresh samples at random moments of random base-domain tasks, labelled by the expert."""
    starts, phrases = fresh_starts(rng, count)
    env = TabletopVectorEnv(starts, DOMAINS["base"], seed=int(rng.integers(2**31)))
    _scatter(env, rng)
    observation = env.observe()
    camera = env.camera
    everyone = np.arange(count)
    pixels = np.concatenate(
        [
            camera.project(env.object_xy[everyone, env.target][:, None]),
            camera.project(env.plate_xy[everyone, env.plate][:, None]),
        ],
        axis=1,
    )
    cells = np.clip(pixels // PATCH, 0, SIZE // PATCH - 1).astype(int)
    pointed = cells[..., 1] * (SIZE // PATCH) + cells[..., 0]
    pointed[~env.is_put, 1] = -100
    far = np.linalg.norm(env.object_xy[everyone, env.target] - env.gripper_xy, axis=1) > 0.15
    return {**observation, "actions": env.expert_chunk(CHUNK), "phrases": phrases, "pointed": pointed, "far": far}


def _scatter(env: TabletopVectorEnv, rng: np.random.Generator) -> None:
    """Move each table to a random moment: reaching (from anywhere), carrying, or already done."""
    count = env.num_envs
    everyone = np.arange(count)
    moment = rng.random(count)
    carrying, done, wrong = moment < 0.35, (moment >= 0.35) & (moment < 0.39), (moment >= 0.39) & (moment < 0.41)
    target_xy = env.object_xy[everyone, env.target]
    # near any object, not the named one above all: being near something must not tell which one is named
    near = env.object_xy[everyone, rng.integers(0, 4, count)]
    plate_xy = env.plate_xy[everyone, env.plate]
    anywhere = rng.uniform(0.05, 0.95, (count, 2))
    along = target_xy + (plate_xy - target_xy) * rng.random((count, 1)) + rng.normal(0, 0.03, (count, 2))
    reach = np.where(rng.random((count, 1)) < 0.45, near + rng.normal(0, 0.05, (count, 2)), anywhere)
    carry = np.where(rng.random((count, 1)) < 0.6, along, anywhere)
    # a "pick" is held where it stood, as an episode would leave it
    carry = np.where(env.is_put[:, None], carry, target_xy + rng.normal(0, 0.02, (count, 2)))
    env.gripper_xy = np.clip(np.where((carrying | wrong)[:, None], carry, reach), 0.0, 1.0)
    env.held = np.where(carrying, env.target, np.where(wrong, rng.integers(0, 4, count), -1))
    env.gripper_closed = (env.held >= 0) | (~done & (rng.random(count) < 0.03))
    env.held_steps = np.where(env.held == env.target, rng.integers(0, 4, count), 0)
    env.grasped = env.held.copy()
    held = np.flatnonzero(env.held >= 0)
    env.object_xy[held, env.held[held]] = env.gripper_xy[held]
    placed = np.flatnonzero(done & env.is_put)
    env.object_xy[placed, env.target[placed]] = plate_xy[placed] + rng.uniform(-0.05, 0.05, (len(placed), 2))
    env.gripper_xy[placed] = env.object_xy[placed, env.target[placed]] + rng.normal(0, 0.01, (len(placed), 2))


def collate(samples: dict[str, Any], prompts: Prompts) -> Batch:
    """Normalise and pad as the policy does."""
    ids, mask = prompts(samples["phrases"], cameras=1)
    actions = (samples["actions"] - ACTION_MEAN) / ACTION_STD
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=prepare_images(samples["image"], SIZE)[:, None],
        state=torch.tensor((samples["state"] - STATE_MEAN) / STATE_STD, dtype=torch.float32),
        actions=torch.tensor(actions, dtype=torch.float32),
        mask=torch.ones(actions.shape),
    )


def pointer_loss(pointer: Pointer, output: Any, batch: Batch, samples: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the three pointers, and the first one's accuracy where the gripper gives no hint."""
    pointed = torch.tensor(samples["pointed"])
    last = batch.attention_mask.sum(1) - 1
    logits = pointer(list(output.hidden_states[-3:-1]), last, (SIZE // PATCH) ** 2)
    each = [nn.functional.cross_entropy(x.flatten(0, 1), pointed.flatten(), ignore_index=-100) for x in logits]
    right = (logits[0, :, 0].argmax(-1) == pointed[:, 0]).float()
    far = torch.tensor(samples["far"])
    return torch.stack(each).mean(), right[far].mean()


def closed_loop(flow: FlowModel, prompts: Prompts, episodes: int, seed: int) -> float:
    """Share of fresh base-domain episodes that succeed, over all tasks and phrasings."""
    starts, phrases = fresh_starts(np.random.default_rng([seed, 77]), episodes)
    env = TabletopVectorEnv(starts, DOMAINS["base"], seed=seed)
    observation, _ = env.reset()
    generator = torch.Generator().manual_seed(seed)
    while not env.ended.all():
        batch = collate({**observation, "phrases": phrases, "actions": np.zeros((episodes, CHUNK, 3))}, prompts)
        noise = torch.randn((episodes, CHUNK, 3), generator=generator)
        chunk = sample_chunk(flow, batch, noise, steps=5).numpy() * ACTION_STD + ACTION_MEAN
        observation, *_ = env.step_chunk(chunk[:, :EXECUTE])
    return float(env.success.mean())


def train(rank: int, args: argparse.Namespace) -> None:
    """One rank of the training."""
    begin(rank, args)
    processor = build_processor()
    model = PI0ForConditionalGeneration(build_config(processor))
    pointer = Pointer(128)
    if args.start_from is not None:
        model.load_state_dict(load_file(args.start_from / "model.safetensors"))
        pointer.load_state_dict(load_file(args.start_from / "pointer.safetensors"))
    flow = FlowModel(model)
    prompts = Prompts(processor.tokenizer, processor.image_token_id, (SIZE // PATCH) ** 2)

    def losses(rng: np.random.Generator, generator: torch.Generator) -> Losses:
        samples = draw_samples(rng, args.batch // args.ranks)
        batch = collate(samples, prompts)
        output = flow.prefix(batch, hidden_states=True)
        pointed, accuracy = pointer_loss(pointer, output, batch, samples)
        each = flow_losses(flow, batch, draws=args.draws, generator=generator, cache=output.past_key_values)
        return Losses(each.mean(), pointed, accuracy)

    fit(
        rank,
        args,
        model,
        pointer,
        noun="flow",
        trained=[p for n, p in model.named_parameters() if not is_unused(n, model.config)] + [*pointer.parameters()],
        losses=losses,
        success=lambda seed: closed_loop(flow, prompts, 100, seed),
    )


WIDTH = 32
"""State and action widths of lerobot/pi0_base, to which the trained 4 and 3 are widened with zeros."""


def widen(model: Any, processor: Any) -> Any:
    """The same policy with π0's state and action widths: new input columns and output rows are zero.

    Padded state and padded noise then meet zero weights, so nothing changes, and a robot with up to 32 dimensions can
    be fine-tuned from it.
    """
    config = build_config(processor)
    config.max_state_dim = config.max_action_dim = WIDTH
    wide = PI0ForConditionalGeneration(config)
    weights = model.state_dict()
    for name, old in weights.items():
        new = torch.zeros_like(wide.state_dict()[name])
        new[tuple(slice(0, size) for size in old.shape)] = old
        weights[name] = new
    wide.load_state_dict(weights)
    return wide


def publish(trained: Path, out: Path, seed: int) -> None:
    """Write the base policy's directory: weights, tokenizer, processor, policy.json, log, measured success, card."""
    processor = build_processor()
    model = PI0ForConditionalGeneration(build_config(processor))
    model.load_state_dict(load_file(trained / "model.safetensors"))
    processor.max_state_dim = WIDTH
    widen(model, processor).save_pretrained(out)
    processor.save_pretrained(out)
    shutil.copyfile(trained / "train.jsonl", out / "train.jsonl")
    state = Statistics.from_json(_statistics(STATE_MEAN, STATE_STD))
    actions = Statistics.from_json(_statistics(ACTION_MEAN, ACTION_STD))
    spec = PolicySpec(
        family="flow",
        kind="base",
        cameras=["agentview_image"],
        image_size=SIZE,
        state_names=["x", "y", "closed", "holding"],
        action_names=["dx", "dy", "gripper"],
        rate_hz=CONTROL_RATE_HZ,
        chunk_size=CHUNK,
        execute_steps=EXECUTE,
        state=state,
        actions=actions,
        world={"env_name": "tabletop", "env_version": "1", "type": 2, "env_kwargs": {"shift": "base"}},
    )
    save_spec(spec, out)
    policy = load(str(out), device="cpu")
    findings = closed_loop_suite(
        {"base": policy}, TabletopWorld("base"), episodes=600, seed=seed, conditions=["base-domain"], films=0
    )
    success = findings.rows[0]
    write_json(out / "evaluation.json", {"seed": seed, **asdict(success)})
    write_text(out / "README.md", CARD.format(success=success.text, k=success.k, n=success.n, seed=seed))
    print(success)


def _statistics(mean: np.ndarray, std: np.ndarray) -> dict[str, list[Any]]:
    low, high = (mean - 2 * std).tolist(), (mean + 2 * std).tolist()
    bounds = {"min": low, "max": high, "q01": low, "q99": high}
    return {"mean": mean.tolist(), "std": std.tolist(), **bounds, "constant": [False] * len(mean)}


CARD = """---
library_name: transformers
license: apache-2.0
tags: [robotics, vision-language-action, vla-cli]
---

# The embedded base policy of vla-cli

transformers' `PI0ForConditionalGeneration`, small (1.3 M parameters), trained from nothing on the embedded tabletop by
`scripts/train_base.py` (log: `train.jsonl`). It puts any of 18 coloured shapes on any of four plates, or picks one
up, told in 6 and 4 phrasings.

- Closed loop, {n} fresh episodes of its own domain (seed {seed}) over all objects, plates and phrasings:
  **{k} of {n}**, {success} (95% Wilson). Measure it again: `python benchmarks/base_policy.py`.
- One camera (60 x 60 RGB), state x, y, closed, holding; actions x, y (shares of 0.07 m a step) and gripper
  (> 0 closes); 10 Hz, chunks of 8, execute 4. `policy.json` holds the statistics.
- Trained with 4 state and 3 action dimensions, then widened with zeros to the 32 of `lerobot/pi0_base`, so that other
  robots' demonstrations fit.
- Trained with 96 samples a step in two goes: 1750 steps (of a 5000-step schedule), then 1250 steps with a fresh cosine
  from 1.1e-3; seeds 0 and 1; two processes. The log holds both, one after the other.
- Flow matching alone does not learn which object a word means at this size; a pointer loss (thrown away after
  training) does.
- It knows 33 words and one table: it is there to show lock-in and its cure, and for tests. It is no use on a robot.
"""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where checkpoints and the log go")
    parser.add_argument("--publish", type=Path, help="only publish what was trained there")
    parser.add_argument("--to", type=Path, default=Path("sample_data/base"), help="where to publish")
    parser.add_argument("--evaluation-seed", type=int, default=20261120)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--pointer-weight", type=float, default=0.4)
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--start-from", type=Path)
    args = parser.parse_args()
    if args.publish:
        publish(args.publish, args.to, args.evaluation_seed)
        return
    if args.out is None:
        parser.error("--out or --publish")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / ".rendezvous").unlink(missing_ok=True)
    if args.ranks > 1:
        spawn(train, args=(args,), nprocs=args.ranks)
    else:
        train(0, args)


if __name__ == "__main__":
    main()
