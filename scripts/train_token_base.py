"""Train the embedded token policy: the embedded base's own vision-language model, taught to write actions in tokens.

    python scripts/train_token_base.py --out /tmp/token_base        # about 20 minutes on 2 cores
    python scripts/train_token_base.py --publish /tmp/token_base    # into sample_data/token_base, with card and log

As OpenVLA and pi0-FAST are made of a vision-language model, this one is made of that inside `sample_data/base`, whose
action expert is left out: it knows the objects and plates by name and learns to answer with action tokens. Samples are
those of `train_base.py`, and so is the pointer loss beside the cross-entropy, thrown away afterwards.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_training import Losses, begin, fit
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing.spawn import spawn
from train_base import (
    ACTION_MEAN,
    ACTION_STD,
    PATCH,
    SIZE,
    STATE_MEAN,
    STATE_STD,
    Pointer,
    _statistics,
    build_config,
    build_processor,
    draw_samples,
    fresh_starts,
)
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from vla_cli.action_tokens import ActionTokens
from vla_cli.adapter import PolicySpec, save_spec
from vla_cli.files import write_json, write_text
from vla_cli.policies.checkpoint import load_base
from vla_cli.policies.token_model import TokenBatch, TokenModel
from vla_cli.policies.token_prompts import TokenPrompts
from vla_cli.policies.tokens import load
from vla_cli.stats import Statistics
from vla_cli.suites.closed_loop import run as closed_loop_suite
from vla_cli.worlds.tabletop.environment import CONTROL_RATE_HZ, TabletopVectorEnv
from vla_cli.worlds.tabletop.shifts import DOMAINS
from vla_cli.worlds.tabletop.world import TabletopWorld

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 4
BINS = 64
PATCHES = (SIZE // PATCH) ** 2
STATE = Statistics.from_json(_statistics(STATE_MEAN, STATE_STD))
ACTIONS = Statistics.from_json(_statistics(ACTION_MEAN, ACTION_STD))


def build() -> tuple[PaliGemmaForConditionalGeneration, Any, ActionTokens]:
    """The model with the embedded base's vision-language weights, its processor, and its action tokens.

    The last tokens of the vocabulary (PaliGemma's, for segmentation masks) are the actions, and of its location tokens
    the state's; the output head is a matrix of its own, so that what acts can be adapted apart from what reads.
    """
    flow_processor = build_processor()
    processor = PaliGemmaProcessor(flow_processor.image_processor, flow_processor.tokenizer)
    known: Any = build_config(flow_processor).vlm_config
    config: Any = PaliGemmaConfig.from_dict({**known.to_dict(), "tie_word_embeddings": False})
    config.text_config.tie_word_embeddings = False
    config.initializer_range = 0.06
    model = PaliGemmaForConditionalGeneration(config)
    base: Any = load_base(str(ROOT / "sample_data" / "base"))[0]
    model.model.load_state_dict(base.model.vlm.state_dict())
    size = config.text_config.vocab_size
    tokens = ActionTokens(
        first=size - BINS,
        bins=BINS,
        prompt="{instruction} {state}",
        state_bins=BINS,
        state_word="<loc{bin:04d}>",
    )
    return model, processor, tokens


def collate(samples: dict[str, Any], prompts: TokenPrompts, tokens: ActionTokens) -> TokenBatch:
    """As the policy does."""
    texts = tokens.prompts(samples["phrases"], samples["state"], STATE)
    batch = TokenBatch(prompts(samples["image"][:, None], texts))
    if "actions" in samples:
        batch.bins = torch.from_numpy(tokens.encode(samples["actions"][:, :CHUNK], ACTIONS))
        batch.mask = torch.ones(batch.bins.shape)
    return batch


def losses(model: TokenModel, pointer: Pointer, batch: TokenBatch, samples: dict[str, Any]) -> Losses:
    """Cross-entropy of the action tokens, of the pointers, and the first pointer's accuracy far from the object."""
    assert batch.bins is not None
    bins = batch.bins.flatten(1)
    inputs = model.answered(batch, bins)
    output = model.core()(**inputs, use_cache=False, output_hidden_states=True, logits_to_keep=bins.shape[1] + 1)
    logits = output.logits[:, :-1]
    acted = nn.functional.cross_entropy(logits.transpose(1, 2), bins + model.tokens.first)
    prompt = batch.attention_mask.shape[1]
    # prompts are padded on the left: pictures begin where that ends
    begin = prompt - batch.attention_mask.sum(1)
    patches = begin[:, None] + torch.arange(PATCHES)
    everyone = torch.arange(len(patches))[:, None]
    states = [
        torch.cat([s[everyone, patches], s[:, prompt - 1 : prompt]], dim=1) for s in list(output.hidden_states)[-3:-1]
    ]
    found = pointer(states, torch.full((len(patches),), PATCHES), PATCHES)
    pointed = torch.tensor(samples["pointed"])
    each = [nn.functional.cross_entropy(x.flatten(0, 1), pointed.flatten(), ignore_index=-100) for x in found]
    right = (found[0, :, 0].argmax(-1) == pointed[:, 0]).float()
    return Losses(acted, torch.stack(each).mean(), right[torch.tensor(samples["far"])].mean())


def closed_loop(model: TokenModel, prompts: TokenPrompts, episodes: int, seed: int) -> float:
    """Share of fresh base-domain episodes that succeed, over all tasks and phrasings."""
    starts, phrases = fresh_starts(np.random.default_rng([seed, 77]), episodes)
    env = TabletopVectorEnv(starts, DOMAINS["base"], seed=seed)
    observation, _ = env.reset()
    model.model.eval()
    while not env.ended.all():
        batch = collate({**observation, "phrases": phrases}, prompts, model.tokens)
        bins = model.write(batch, CHUNK * 3).view(episodes, CHUNK, 3).numpy()
        observation, *_ = env.step_chunk(model.tokens.decode(bins, ACTIONS))
    model.model.train()
    return float(env.success.mean())


def train(rank: int, args: argparse.Namespace) -> None:
    """One rank of the training."""
    begin(rank, args)
    bare, processor, tokens = build()
    model, prompts, pointer = TokenModel(bare, tokens), TokenPrompts(processor), Pointer(128)

    def fresh(rng: np.random.Generator, _: torch.Generator) -> Losses:
        samples = draw_samples(rng, args.batch // args.ranks)
        return losses(model, pointer, collate(samples, prompts, tokens), samples)

    fit(
        rank,
        args,
        bare,
        pointer,
        noun="token",
        trained=[*bare.parameters(), *pointer.parameters()],
        losses=fresh,
        success=lambda seed: closed_loop(model, prompts, 100, seed),
    )


def publish(trained: Path, out: Path, seed: int) -> None:
    """Write the base policy's directory: weights, processor, policy.json, log, measured success, card."""
    model, processor, tokens = build()
    model.load_state_dict(load_file(trained / "model.safetensors"))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    shutil.copyfile(trained / "train.jsonl", out / "train.jsonl")
    shutil.copyfile(ROOT / "sample_data" / "base" / "domain.json", out / "domain.json")
    spec = PolicySpec(
        family="tokens",
        kind="base",
        cameras=["agentview_image"],
        image_size=SIZE,
        state_names=["x", "y", "closed", "holding"],
        action_names=["dx", "dy", "gripper"],
        rate_hz=CONTROL_RATE_HZ,
        chunk_size=CHUNK,
        execute_steps=CHUNK,
        state=STATE,
        actions=ACTIONS,
        world={"env_name": "tabletop", "env_version": "1", "type": 2, "env_kwargs": {"shift": "base"}},
        action_tokens=tokens.document(),
    )
    save_spec(spec, out)
    findings = closed_loop_suite(
        {"base": load(str(out), device="cpu")},
        TabletopWorld("base"),
        episodes=600,
        seed=seed,
        conditions=["base-domain"],
        films=0,
    )
    success = findings.rows[0]
    write_json(out / "evaluation.json", {"seed": seed, **asdict(success)})
    write_text(out / "README.md", CARD.format(success=success.text, k=success.k, n=success.n, seed=seed))
    print(success)


CARD = """---
library_name: transformers
license: apache-2.0
tags: [robotics, vision-language-action, vla-cli]
---

# The embedded token policy of vla-cli

transformers' `PaliGemmaForConditionalGeneration`, small (1.0 M parameters): the vision-language model of
`sample_data/base` without its action expert, trained by `scripts/train_token_base.py` to write actions in tokens (log:
`train.jsonl`). It puts any of 18 coloured shapes on any of four plates, or picks one up, told in 6 and 4 phrasings.

- Closed loop, {n} fresh episodes of its own domain (seed {seed}) over all objects, plates and phrasings:
  **{k} of {n}**, {success} (95% Wilson). Measure it again: `python benchmarks/base_policy.py --base
  sample_data/token_base`.
- One camera (60 x 60 RGB); state x, y, closed, holding, in 64 bins each, written as PaliGemma's location tokens;
  actions x, y (shares of 0.07 m a step) and gripper (> 0 closes), in 64 bins each, the last 64 tokens of the
  vocabulary; 10 Hz, chunks of 4, all executed. `policy.json` says so.
- It knows 33 words and one table: it is there to show what holds for token policies, and for tests. It is no use on a
  robot.
"""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where checkpoints and the log go")
    parser.add_argument("--publish", type=Path, help="only publish what was trained there")
    parser.add_argument("--to", type=Path, default=ROOT / "sample_data" / "token_base", help="where to publish")
    parser.add_argument("--evaluation-seed", type=int, default=20261122)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--pointer-weight", type=float, default=0.4)
    parser.add_argument("--evaluate-every", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
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
