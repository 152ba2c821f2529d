"""How far training moved a policy from its base: which weights, and what it makes of a scene before it acts.

    drift      |theta - theta_pre| / |theta_pre|          by modality, and by layer where it is not 0
    features   cosine of h_theta and h_pre, mean over real tokens of a few windows, by layer of the language model;
               the first is what goes in: the pictures as the vision tower gives them, and the words

Both say where and how far a policy was changed, not whether it still listens: that is `vla eval-steer`'s to say. Under
LoRA the product alpha / r B A is the difference; bottlenecks move no weight, so that only the features show them.
Neither takes a second model in memory where LoRA or bottlenecks were trained: the base is the same model with the
adapter switched off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vla_cli.policies.adaptation import base_name, is_added, lora_products
from vla_cli.policies.bottleneck import BottleneckModel
from vla_cli.policies.modalities import MODALITIES, modality_of
from vla_cli.policies.policy import Policy
from vla_cli.policies.quantization import whole
from vla_cli.windows import Samples

WINDOWS = 8
_AT_ONCE = 2
_LAYER = re.compile(r".*?\.layers\.\d+(?=\.)")
_SAVED, _ORIGINAL = ".modules_to_save.default.", ".original_module."


@torch.no_grad()
def measure_change(policy: Policy, frozen: Callable[[], Policy], samples: Samples) -> dict[str, Any]:
    """Drift and features of a trained policy, as JSON values.

    Args:
        policy: as it is after training.
        frozen: returns the untouched base, fed like it; called only where neither LoRA nor bottlenecks were trained.
        samples: a few windows, best of demonstrations that were not trained on.

    Returns:
        "drift": modality to relative drift. "layers": layer, or module outside of any, to the same, where it moved.
        "features": one cosine a layer. "windows": how many the features were measured on. "words": a sentence.
    """
    base = None if _is_wrapped(policy.model) else frozen()
    drift, layers = _drift(policy.model, base.model if base is not None else None)
    features = _features(policy, base, samples)
    moved = ", ".join(f"{name} {100 * share:.2g}%" for name, share in drift.items())
    far = f"training moved the weights by {moved} of the base's (norms)"
    if isinstance(policy.model, BottleneckModel):
        beside = f"bottlenecks were trained in {', '.join(policy.model.widths)}"
        far = f"{beside}, and {far}" if any(drift.values()) else f"{beside}, and no weight of the base moved"
    words = (
        f"{far}; what the language model makes of a demonstrated "
        f"scene keeps a cosine of {math.floor(1000 * min(features)) / 1000:g} or more"
    )
    return {"drift": drift, "layers": layers, "features": features, "windows": len(samples), "words": words}


def _is_wrapped(model: nn.Module) -> bool:
    return hasattr(model, "disable_adapter")


def _drift(model: nn.Module, base: nn.Module | None) -> tuple[dict[str, float], dict[str, float]]:
    changes = _compared(model, base) if base is not None else _wrapped(model)
    modalities = {name: [0.0, 0.0] for name in MODALITIES}
    layers: dict[str, list[float]] = {}
    for name, delta, before in changes:
        found = _LAYER.match(name)
        layer = found.group() if found else name.rpartition(".")[0]
        squares = (_square(delta) if delta is not None else 0.0, _square(before))
        for sums in (modalities[modality_of("." + name)], layers.setdefault(layer, [0.0, 0.0])):
            sums[0] += squares[0]
            sums[1] += squares[1]
    return (
        {name: _relative(*sums) for name, sums in modalities.items()},
        {name: _relative(*sums) for name, sums in layers.items() if sums[0] > 0},
    )


def _square(values: Tensor) -> float:
    # summed in double precision, and not copied to it: an embedding of a large model is gigabytes
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _relative(moved: float, before: float) -> float:
    return math.sqrt(moved / before) if before else 0.0


def _compared(model: nn.Module, base: nn.Module) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """Name, change and base's own value of each parameter, where all are trained outright or not at all."""
    for (name, now), before in zip(model.named_parameters(), base.parameters(), strict=True):
        yield name, now - before, before


def _wrapped(model: nn.Module) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """The same of a model that keeps the base's own values beside what is trained; None where nothing could move."""
    products = lora_products(model)
    parameters = dict(model.named_parameters())
    for name, before in parameters.items():
        if is_added(name) or _SAVED in name:
            continue
        bare = base_name(name.replace(_ORIGINAL, "."))
        if bare in products:
            yield bare, products[bare], whole(before)
        elif _ORIGINAL in name:
            yield bare, parameters[name.replace(_ORIGINAL, _SAVED)] - before, before
        else:
            yield bare, None, whole(before)


def _features(policy: Policy, base: Policy | None, samples: Samples) -> list[float]:
    policy.model.eval()
    found = []
    for part in samples.parts(_AT_ONCE):
        batch = policy.collate(part.images, part.state, part.instructions)
        now, real = policy.hidden_states(batch)
        if base is not None:
            before, _ = base.hidden_states(batch)
        else:
            with policy.unadapted():
                before, _ = policy.hidden_states(batch)
        pairs = zip(now, before, strict=True)
        found.append(torch.stack([torch.cosine_similarity(a[real], b[real], dim=-1).mean() for a, b in pairs]))
    return [float(value) for value in torch.stack(found).mean(0).double()]
