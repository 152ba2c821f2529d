"""The token family: any of transformers' image-text-to-text models, taught to write its actions in tokens.

    images        uint8 RGB [B, C, H, W, 3]          C cameras in the policy's order
    state         float32 [B, S]                      raw units, written into the prompt in bins
    actions       float32 [B, T, A]                   raw units, T * A tokens, step after step

OpenVLA (arXiv 2406.09246) and pi0-FAST (arXiv 2501.09747) are such policies. What is cut into bins, and which tokens
stand for them, says `vla_cli.action_tokens`; the loss and the writing are `policies.token_model`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_cli.action_tokens import BINS, ActionTokens, read_action_tokens
from vla_cli.adapter import TOKENS, PolicySpec
from vla_cli.errors import ConfigError, InputError, words
from vla_cli.guidance import Guidance
from vla_cli.policies.checkpoint import BaseFiles, locate_tokenizer
from vla_cli.policies.family import Family, Limits
from vla_cli.policies.policy import Policy
from vla_cli.policies.token_model import TokenBatch, TokenModel, token_losses
from vla_cli.policies.token_prompts import TokenPrompts

CHUNK_SIZE = 4
"""Steps a chunk of a base that carries no `policy.json`: each is as many tokens as a step has dimensions."""
MOST_DIMENSIONS = 64
"""Of state or action: a prompt of more numbers is a mistake."""
IMAGE_SIZE = 224


class TokenPolicy(Policy):
    """An image-text-to-text model that writes actions, with its processor, statistics and, when adapted, its adapter.

    Args:
        model: the model, or a wrapper around one (peft's, or `policies.bottleneck`'s).
        prompts: its processor.
        spec: how to feed it and read it.
        device: where it runs.

    Raises:
        InputError: `policy.json` does not say how it writes actions, or the model has no such tokens or no head.
    """

    draws_noise = False
    prompts: TokenPrompts

    def __init__(self, model: nn.Module, prompts: TokenPrompts, spec: PolicySpec, device: str) -> None:
        super().__init__(model, prompts, spec, device)
        self.tokens = read_action_tokens(spec.action_tokens)
        self.writer = TokenModel(self.model, self.tokens)
        _check_model(self.writer, self.tokens)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.writer.config

    def collate(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        actions: np.ndarray | None = None,
        real_steps: np.ndarray | None = None,
    ) -> TokenBatch:
        """Raw observations (and actions) to a batch on the device; see `Policy.collate`."""
        texts = self.tokens.prompts(instructions, state, self.spec.state)
        inputs = self.prompts(images, texts)
        batch = TokenBatch({name: value.to(self.device) for name, value in inputs.items()})
        if actions is not None:
            assert real_steps is not None
            batch.bins = torch.from_numpy(self.tokens.encode(actions, self.spec.actions)).to(self.device)
            real = torch.from_numpy(np.asarray(real_steps, np.float32))[..., None]
            batch.mask = real.expand(*batch.bins.shape).to(self.device)
        return batch

    def losses(self, batch: TokenBatch, *, draws: int, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy of each window's action tokens [B]; nothing is drawn for it."""
        return token_losses(self.writer, batch)

    def planned(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        noise: np.ndarray,
        steps: int | None,
        guidance: Guidance | None,
    ) -> np.ndarray:
        """Chunks of the most probable tokens, one after the other; the noise has no part in them."""
        batch, guidance, negatives = self._branches(images, state, instructions, guidance)
        shape = (len(batch), self.spec.chunk_size, len(self.spec.action_names))
        with self._switch:
            bins = self.writer.write(batch, shape[1] * shape[2], guidance=guidance, negatives=negatives)
        return self.tokens.decode(bins.view(shape).cpu().numpy(), self.spec.actions)

    def look(self, batch: TokenBatch) -> None:
        """Nothing: prompt and answer are one pass."""
        return None

    def points(self, batch: TokenBatch, generator: torch.Generator) -> Tensor:
        """The recorded actions' bins [B, T, A]: each is predicted behind those before it."""
        assert batch.bins is not None
        return batch.bins

    def own_points(
        self, batch: TokenBatch, points: Tensor, generator: torch.Generator, *, steps: int, seen: Any = None
    ) -> Tensor:
        """The bins that this policy writes itself under the batch's instructions."""
        return self.writer.write(batch, points[0].numel()).view_as(points)

    def predictions(self, batch: TokenBatch, points: Tensor, seen: Any = None) -> Tensor:
        """Log-probabilities of the bins [B, T, A, bins], among the action tokens."""
        logits = self.writer.logits(batch, points.flatten(1))
        own = logits[..., self.tokens.first : self.tokens.first + self.tokens.bins].float()
        return torch.log_softmax(own, dim=-1).view(*points.shape, self.tokens.bins)

    def gap(self, predicted: Tensor, wanted: Tensor, batch: TokenBatch) -> Tensor:
        """KL(wanted || predicted) of the bins' distributions, summed over real steps and dimensions."""
        assert batch.mask is not None
        return ((wanted.exp() * (wanted - predicted)).sum(-1) * batch.mask).sum()

    def hidden_states(self, batch: TokenBatch) -> tuple[list[Tensor], Tensor]:
        """States of each layer of the language model [B, L, D] on the prompt, and which tokens are real [B, L] bool."""
        return self.writer.hidden_states(batch), batch.attention_mask.bool()

    def reading(self, ids: Tensor) -> Tensor:
        """What the language model makes of words [1, L] without a picture: the mean of their last states [D]."""
        return self.writer.reading(ids)

    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        """Shape of the noise that `act` is given, as every policy is."""
        return (batch, self.spec.chunk_size, len(self.spec.action_names))


def _check_model(writer: TokenModel, tokens: ActionTokens) -> None:
    """Refuse a model that cannot write such tokens.

    Raises:
        InputError: it has no output head over a vocabulary that holds them.
    """
    head = writer.core().get_output_embeddings()
    size = 0 if head is None else int(head.weight.shape[0])
    if tokens.ids[-1] >= size:
        raise InputError(
            f"The action tokens are {tokens.first} to {tokens.ids[-1]}, but the model writes {size} different tokens",
            expected="tokens of the model's vocabulary",
            hint="--base with the model that policy.json is of",
        )


class TokenFamily(Family):
    """Bases that transformers' `AutoModelForImageTextToText` loads."""

    name = TOKENS
    noun = "an image-text-to-text model of transformers"

    def recognises(self, document: Mapping[str, Any]) -> bool:
        """By `model_type`; a model whose code would come with it is none of transformers', and π0 writes no actions."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        kind = document.get("model_type")
        return "auto_map" not in document and kind != "pi0" and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    def config(self, document: dict[str, Any]) -> Any:
        """The configuration of its `model_type`."""
        from transformers import AutoConfig

        kind = document["model_type"]
        return type(AutoConfig.for_model(kind)).from_dict(document)

    def impossible(self, config: Any) -> list[str]:
        """Nothing is known of all such models."""
        return []

    def limits(self, config: Any, own: PolicySpec | None) -> Limits:
        """As many dimensions as can be written; how long a chunk is, only its `policy.json` can say."""
        vision = getattr(config, "vision_config", None)
        return Limits(
            actions=MOST_DIMENSIONS,
            state=MOST_DIMENSIONS,
            image_size=int(getattr(vision, "image_size", 0) or IMAGE_SIZE),
            chunk_size=own.chunk_size if own is not None else CHUNK_SIZE,
            heads=False,
        )

    def model_class(self) -> Any:
        """transformers' own."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText

    def untrained(self, config: Any) -> nn.Module:
        """A model of this configuration with weights drawn at random, on torch's default device."""
        return self.model_class().from_config(config)

    def action_tokens(self, files: BaseFiles) -> dict[str, Any]:
        """OpenVLA's: the last of the tokenizer's own vocabulary, which a language model uses least."""
        return ActionTokens(first=self.prompts(files, "").tokenizer.vocab_size - BINS).document()

    def prompts(self, files: BaseFiles, tokenizer: str) -> TokenPrompts:
        """The model's own processor: it knows where pictures go.

        Raises:
            ConfigError: another tokenizer is named.
            InputError: there is none, or it is damaged.
        """
        from transformers import AutoProcessor

        if tokenizer:
            raise ConfigError(
                f"--tokenizer {tokenizer} is given, but a token policy reads with its model's own processor",
                expected="no --tokenizer for such a base",
            )
        directory = locate_tokenizer(files)
        try:
            return TokenPrompts(AutoProcessor.from_pretrained(directory))
        except Exception as error:  # transformers raises many kinds for damaged files
            raise InputError(
                f"No processor for base '{files.reference.name}' in {directory} ({words(error)})",
                expected="processor_config.json and tokenizer.json beside the weights",
                hint="--base with a directory that holds the model's own processor",
            ) from None

    def policy(self, model: nn.Module, prompts: TokenPrompts, spec: PolicySpec, device: str) -> TokenPolicy:
        """A policy over a model that is already adapted."""
        return TokenPolicy(model, prompts, spec, device)


FAMILY = TokenFamily()


def load(
    base: str | Path, adapter: str | Path | None = None, *, device: str = "auto", spec: PolicySpec | None = None
) -> TokenPolicy:
    """Load a token policy ready to act; see `loading.load_policy`."""
    from vla_cli.policies.loading import load_policy

    policy = load_policy(base, adapter, device=device, spec=spec)
    if not isinstance(policy, TokenPolicy):
        raise InputError(f"{adapter or base} is a policy of family '{policy.spec.family}'", expected=f"'{TOKENS}'")
    return policy
