"""Several adapters on one base: each acts on its own task, and the base on everything else (methods.md 1).

The backbone is in memory once. Which adapter an instruction is for, `vla_cli.router` says; LoRA's weights are switched,
not loaded. Elsewhere the base's own weights act behind one adapter's calibration: what was calibrated belongs to the
place, what was trained to the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import nn

from vla_cli.adapter import PolicySpec, check_base, check_tokenizer, load_spec
from vla_cli.calibration import Calibration
from vla_cli.errors import InputError
from vla_cli.guidance import Guidance
from vla_cli.policies.checkpoint import attach, family_of, load_base, locate_base, locate_tokenizer
from vla_cli.policies.device import pick_device
from vla_cli.policies.loading import load_policy
from vla_cli.policies.policy import Policy
from vla_cli.router import ADAPTERS, REFUSE, Reading, Route, Router, load_router


class TaskAdapters:
    """A policy that asks one of several adapters, or the base; it acts as `Policy` does.

    Args:
        router: says which.
        members: adapter to a policy of its own over the one model.
        switches: adapter to its name in the model; None for one that has no weights.
        spec: how to feed it and read it.
    """

    def __init__(
        self, router: Router, members: Mapping[str, Policy], switches: Mapping[str, str | None], spec: PolicySpec
    ) -> None:
        self.router = router
        self.members = dict(members)
        self.spec = spec
        self._switches = dict(switches)
        self._routes: dict[str, Route] = {}
        # which adapter is on is the model's state: one call at a time
        self._turn = RLock()

    @property
    def model(self) -> nn.Module:
        """The one model."""
        return self._at(None).model

    @property
    def is_calibrated(self) -> bool:
        """Whether the base acts behind a calibration where no adapter is asked."""
        return self._at(None).calibration is not None

    @property
    def draws_noise(self) -> bool:
        """Whether what the one model does depends on noise."""
        return self._at(None).draws_noise

    def route(self, instruction: str) -> Route:
        """Whom an instruction is for, and why."""
        with self._turn:
            if instruction not in self._routes:
                somebody = self._at(None)
                found = self.router.route(instruction, reading_of(somebody), somebody.prompts.unknown_words)
                self._routes[instruction] = found
            return self._routes[instruction]

    def act(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        noise: np.ndarray,
        *,
        steps: int | None = None,
        guidance: Guidance | None = None,
    ) -> np.ndarray:
        """Predict an action chunk for each observation by whom its instruction is for; see `Policy.act`.

        Raises:
            InputError: an instruction is for none of the adapters, and the bundle says to refuse such.
        """
        images, state, noise = np.asarray(images), np.asarray(state), np.asarray(noise)
        chunks = np.empty((len(images), noise.shape[1], len(self.spec.action_names)), np.float32)
        asked: dict[str | None, list[int]] = {}
        for i, instruction in enumerate(instructions):
            asked.setdefault(self._asked(instruction), []).append(i)
        for name, which in asked.items():
            words = [instructions[i] for i in which]
            with self._turn, self._switched(name):
                chunks[which] = self._at(name).act(
                    images[which], state[which], words, noise[which], steps=steps, guidance=guidance
                )
        return chunks

    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        """Shape of the noise `act` starts from."""
        return self._at(None).noise_shape(batch)

    def _asked(self, instruction: str) -> str | None:
        found = self.route(instruction)
        if found.adapter is None and self.router.elsewhere == REFUSE:
            known = [text for adapter in self.router.adapters.values() for text in adapter.instructions]
            raise InputError(
                f"'{instruction}' is for none of the adapters ({found.why}), and this bundle refuses what it was not "
                "trained on",
                expected=f"what means one of: {'; '.join(known)}",
                hint="vla export-adapter with --elsewhere base, which leaves such instructions to the base",
            )
        return found.adapter

    def _at(self, name: str | None) -> Policy:
        return self.members[name if name is not None else self.router.place]

    def _switched(self, name: str | None) -> Any:
        """A context in which the weights of one adapter are on, or none."""
        switch = self._switches[name] if name is not None else None
        if switch is None:
            return self._at(None).unadapted()
        model: Any = self.model
        model.set_adapter(switch, inference_mode=True)
        return nullcontext()


def reading_of(policy: Policy) -> Reading:
    """What a policy's base makes of words without a picture: the mean state of its language model's tokens."""

    @torch.no_grad()
    def read(texts: Sequence[str]) -> np.ndarray:
        policy.model.eval()
        with policy.unadapted():
            # one by one: beside longer texts, padding would move the last bits
            found = [policy.reading(torch.tensor([policy.prompts.words(text)]).to(policy.device)) for text in texts]
        rows = torch.stack(found).double().cpu().numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return read


def load(
    base: str | Path, bundle: str | Path | None = None, *, device: str = "auto", spec: PolicySpec | None = None
) -> TaskAdapters | Policy:
    """Load a bundle of task adapters ready to act, over one base; without a bundle the base, as `load_policy` does.

    Args:
        base: directory or hub id.
        bundle: directory written by export-adapter with several adapters, or with `elsewhere`.
        device: "cpu", "cuda" or "auto".
        spec: as for `load_policy`.

    Raises:
        InputError: see `load_policy`; or the router's file cannot be used.
    """
    if bundle is None:
        own = family_of(locate_base(str(base)).directory).name
        return load_policy(base, device=device, spec=replace(spec, family=own) if spec is not None else None)
    bundle, device = Path(bundle), pick_device(device)
    router, common = load_router(bundle), load_spec(bundle)
    specs = {name: load_spec(bundle / ADAPTERS / name) for name in router.adapters}
    model, prompts, files = load_base(str(base), tokenizer=specs[router.place].tokenizer)
    switches: dict[str, str | None] = {}
    for number, (name, own) in enumerate(specs.items()):
        check_tokenizer(own, locate_tokenizer(files, own.tokenizer))
        check_base(own, files.reference.digest, str(base))
        # a name of peft's is part of a module's, where a dot means something else
        switches[name] = f"task{number}" if own.kind == "lora" else None
        model = attach(model, bundle / ADAPTERS / name, own, name=switches[name] or "")
    family = family_of(files.directory)
    members = {name: family.policy(model, prompts, own, device) for name, own in specs.items()}
    for name, own in specs.items():
        if own.calibration:
            members[name].calibrate(Calibration.load(own.calibration, bundle / ADAPTERS / name))
    return TaskAdapters(router, members, switches, common)


def routes_in_words(policy: TaskAdapters, instructions: Sequence[str]) -> str:
    """How many of so many different instructions went to whom, in a sentence."""
    asked = list(dict.fromkeys(instructions))
    counts = Counter(policy.route(text).adapter for text in asked)
    went = [f"{counts[name]} to {name}" for name in policy.members if counts[name]]
    went += [f"{counts[None]} to the base" + (", calibrated" if policy.is_calibrated else "")] if counts[None] else []
    return f"of {len(asked)} different instructions asked, {' and '.join(went)}"
