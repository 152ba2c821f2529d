"""What a base's vision tower makes of pictures, as it is: for the fingerprint of the demo cameras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vla_cli.errors import InputError
from vla_cli.policies.checkpoint import load_model, locate_base
from vla_cli.policies.flow_matching import prepare_images


def vision_features(base: str) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Features of a base's frozen vision tower, and the base's digest.

    Args:
        base: directory or hub id.

    Returns:
        a function of pictures uint8 RGB [t, H, W, 3] to float64 [t, F], the tower's hidden states averaged over
        patches; and "sha256:..." of the base.

    Raises:
        InputError: as for `checkpoint.load_model`; or the base has no vision tower.
    """
    import torch

    files = locate_base(base)
    core: Any = load_model(files)
    towers = [module for name, module in core.named_modules() if name.endswith("vision_tower")]
    if not towers:
        raise InputError(f"Base '{base}' has no vision tower", expected="a VLA policy", hint="leave out --features")
    tower: Any = towers[0].eval()
    size = int(tower.config.image_size)

    def features(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            states = tower(pixel_values=prepare_images(pictures, size)).last_hidden_state
        return states.mean(dim=1).double().numpy()

    return features, files.reference.digest
