"""The loop in which the embedded bases are trained: AdamW, warm-up and cosine, averaged weights, several ranks.

train.jsonl          a line every 50 steps; `success` where the averaged weights were tried
model.safetensors    the averaged weights
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn


class Losses(NamedTuple):
    """Of one batch: of the actions, of the pointers, and the first pointer's accuracy far from the object."""

    acted: Tensor
    pointed: Tensor
    accuracy: Tensor


def begin(rank: int, args: argparse.Namespace) -> None:
    """Threads, seed, and the other ranks; before anything random."""
    torch.set_num_threads(1)
    if args.ranks > 1:
        store = f"file://{args.out.resolve()}/.rendezvous"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=args.ranks)
    torch.manual_seed(args.seed)


def fit(
    rank: int,
    args: argparse.Namespace,
    model: nn.Module,
    pointer: nn.Module,
    *,
    noun: str,
    trained: list[nn.Parameter],
    losses: Callable[[np.random.Generator, torch.Generator], Losses],
    success: Callable[[int], float],
) -> None:
    """Train a model and its pointers.

    Args:
        rank: of `args.ranks`.
        args: of the command line.
        model: what is kept.
        pointer: what is thrown away afterwards.
        noun: of the loss, in the log.
        trained: parameters.
        losses: of a fresh batch.
        success: closed loop, at the model's present weights, with a seed.
    """
    optimiser = torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    average = {n: p.detach().clone() for n, p in model.state_dict().items()}
    rng = np.random.default_rng([args.seed, rank])
    generator = torch.Generator().manual_seed(args.seed * 1000 + rank)
    log = (args.out / "train.jsonl").open("a") if rank == 0 else None
    started = time.time()
    for step in range(args.steps):
        warm = min(1.0, (step + 1) / 100)
        lr = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        optimiser.param_groups[0]["lr"] = lr
        acted, pointed, accuracy = losses(rng, generator)
        optimiser.zero_grad()
        (acted + args.pointer_weight * pointed).backward()
        if args.ranks > 1:
            _average_gradients(trained, args.ranks)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay) if value.is_floating_point() else average[name].copy_(value)
        if log is not None and (step % 50 == 49 or step == args.steps - 1):
            row = {
                "step": step + 1,
                f"{noun}_loss": round(acted.item(), 5),
                "pointer_loss": round(pointed.item(), 5),
                "pointer_accuracy_far": round(accuracy.item(), 4),
                "lr": round(lr, 7),
            }
            if (step + 1) % args.evaluate_every == 0 or step == args.steps - 1:
                kept = {n: p.clone() for n, p in model.state_dict().items()}
                model.load_state_dict(average)
                row["success"] = success(step)
                model.load_state_dict(kept)
                save_file(average, args.out / "model.safetensors")
                save_file(pointer.state_dict(), args.out / "pointer.safetensors")
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(f"{time.time() - started:7.0f}s", row, flush=True)
    if args.ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def _average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= ranks
    offset = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()
