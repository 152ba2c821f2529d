"""What a family of base policies is: which bases belong to it, and how they are loaded and fed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from vla_cli.adapter import PolicySpec

if TYPE_CHECKING:
    from vla_cli.policies.checkpoint import BaseFiles
    from vla_cli.policies.policy import Policy


@dataclass(frozen=True)
class Limits:
    """What a base can be fed.

    Attributes:
        actions, state: dimensions at most.
        image_size: edge of its pictures in pixels.
        chunk_size: steps a chunk.
        heads: whether state and actions go through projections that belong to one robot.
    """

    actions: int
    state: int
    image_size: int
    chunk_size: int
    heads: bool


class Family(ABC):
    """One kind of base policies; the members of `policies.FAMILIES` are instances.

    Attributes:
        name: key in that table, and `family` in `policy.json`.
        noun: one of its models, in messages.
    """

    name: str
    noun: str

    @abstractmethod
    def recognises(self, document: Mapping[str, Any]) -> bool:
        """Whether a base with this `config.json` is one of the family."""

    @abstractmethod
    def config(self, document: dict[str, Any]) -> Any:
        """The model's configuration; raises whatever transformers raises for what cannot be."""

    @abstractmethod
    def impossible(self, config: Any) -> list[str]:
        """What no model has, where transformers would build one all the same."""

    @abstractmethod
    def limits(self, config: Any, own: PolicySpec | None) -> Limits:
        """What such a model can be fed; `own` is how it was fed itself, where it says so."""

    @abstractmethod
    def model_class(self) -> Any:
        """The class of transformers with `from_pretrained`."""

    def untrained(self, config: Any) -> nn.Module:
        """A model of this configuration with weights drawn at random, on torch's default device."""
        return self.model_class()(config)

    def for_training(self, config: Any) -> Any:
        """The configuration that the model is loaded with."""
        return config

    def action_tokens(self, files: BaseFiles) -> dict[str, Any]:
        """How a base that carries no `policy.json` is to write actions; empty where it does not write them."""
        return {}

    @abstractmethod
    def prompts(self, files: BaseFiles, tokenizer: str) -> Any:
        """What makes prompts of instructions: `Prompts`, or what has its `words`, `beyond_usual` and `unknown_words`.

        Raises:
            InputError: there is no tokenizer, or it is damaged, or none of such a model.
        """

    @abstractmethod
    def policy(self, model: nn.Module, prompts: Any, spec: PolicySpec, device: str) -> Policy:
        """A policy over a model that is already adapted."""
