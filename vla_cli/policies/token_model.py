"""Any of transformers' image-text-to-text models as a policy that writes its actions in tokens.

prompt    pictures and text as the model's own processor lays them out, padded on the left
actions   int64 [B, T * A] token ids, step after step, behind the prompt

loss      cross-entropy of each action token given the prompt and the action tokens before it (teacher forcing);
          no other position has one: neither pictures nor words, nor padded steps  (methods.md 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla_cli.action_tokens import ActionTokens
from vla_cli.guidance import Guidance

_PREFIX_LM = ("paligemma",)
"""Models whose prompt tokens attend to each other both ways, told apart by `token_type_ids`: 1 is an answer."""

_PLAINLY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    **dict.fromkeys(
        ("eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"), None
    ),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "guidance_scale", "stop_strings"), None),
}
"""The most probable token after each other, whatever a model's `generation_config.json` does for prose: some punish a
word that is written twice, as the same action would be."""


@dataclass
class TokenBatch:
    """A collated batch on the policy's device.

    Attributes:
        inputs: what the model's processor made of pictures and prompts, padded on the left.
        attention_mask: [B, L] of the prompt.
        bins: int64 [B, T, A], or None when acting.
        mask: [B, T, A] float, 1 where a real action stands, or None when acting.
    """

    inputs: dict[str, Tensor]
    bins: Tensor | None = None
    mask: Tensor | None = None

    @property
    def attention_mask(self) -> Tensor:
        """[B, L]: which tokens of the prompt are real."""
        return self.inputs["attention_mask"]

    def __len__(self) -> int:
        return len(self.attention_mask)


class TokenModel:
    """Thin functions around an image-text-to-text model: logits of actions that are known, and actions that are not.

    Args:
        model: the model, or a wrapper around one (peft's, or `policies.bottleneck`'s).
        tokens: which of its tokens are actions.
    """

    def __init__(self, model: nn.Module, tokens: ActionTokens) -> None:
        self.model = model
        self.tokens = tokens

    def core(self) -> Any:
        """The model itself, under a wrapper or not."""
        inner: Any = self.model
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.core().config

    def logits(self, batch: TokenBatch, bins: Tensor) -> Tensor:
        """Logits over the whole vocabulary [B, K, V] where each of K action tokens stands, known ones before it.

        Args:
            batch: observations under instructions.
            bins: [B, K] of the actions.
        """
        inputs, count = self.answered(batch, bins), bins.shape[1]
        # logits that stand one before the token they are for
        found = self.core()(**inputs, use_cache=False, logits_to_keep=count + 1).logits
        return found[:, -count - 1 : -1]

    def answered(self, batch: TokenBatch, bins: Tensor) -> dict[str, Tensor]:
        """The prompt with an answer behind it."""
        ids = bins + self.tokens.first
        answer = torch.full_like(ids, int(self.config.model_type in _PREFIX_LM))
        known = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": answer}

        def longer(name: str, values: Tensor) -> Tensor:
            # what else is said of each token (which are a picture's) does not hold for those of an answer
            return torch.cat([values, known.get(name, torch.zeros_like(ids)).to(values)], dim=1)

        return {name: longer(name, v) if _is_by_token(batch, v) else v for name, v in batch.inputs.items()}

    def hidden_states(self, batch: TokenBatch) -> list[Tensor]:
        """States of each layer of the language model [B, L, D] on the prompt."""
        output = self.core()(**batch.inputs, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        return list(output.hidden_states)

    def reading(self, ids: Tensor) -> Tensor:
        """What the language model makes of words [1, L] without a picture: the mean of their last states [D]."""
        output = self.core()(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True
        )
        return output.hidden_states[-1][0].mean(0)

    @torch.no_grad()
    def write(
        self, batch: TokenBatch, count: int, *, guidance: Guidance | None = None, negatives: Sequence[TokenBatch] = ()
    ) -> Tensor:
        """The most probable action token after each other: bins int64 [B, count].

        Args:
            batch: observations under the instruction asked for.
            count: tokens to write.
            guidance: how the branches' logits become one, or None for plain prompting.
            negatives: the same observations under each of the guidance's negative prompts. All branches are written in
                one batch, and go on from the same tokens.
        """
        branches = [*negatives, batch] if guidance is not None else [batch]
        inputs = stacked(branches, self.core().config)
        written = self.core().generate(
            **inputs,
            max_new_tokens=count,
            min_new_tokens=count,
            **_PLAINLY,
            logits_processor=[_ActionsOnly(self.tokens, guidance, len(branches))],
            pad_token_id=self.tokens.first,
        )
        return written[-len(batch) :, -count:] - self.tokens.first


class _ActionsOnly:
    """Leaves the model nothing but action tokens to write, and lets guidance combine the branches of a batch.

    Args:
        tokens: the action tokens.
        guidance: of the branches, or None for one branch.
        branches: how many the batch holds, the instruction's own last.
    """

    def __init__(self, tokens: ActionTokens, guidance: Guidance | None, branches: int) -> None:
        self._ids = slice(tokens.first, tokens.first + tokens.bins)
        self._guidance, self._branches = guidance, branches

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bins = scores[:, self._ids]
        if self._guidance is not None:
            *others, positive = centred(bins).chunk(self._branches)
            bins = guided(self._guidance, positive, others).repeat(self._branches, 1)
        only = torch.full_like(scores, -torch.inf)
        only[:, self._ids] = bins
        return only


def centred(logits: Tensor) -> Tensor:
    """Log-probabilities [.., N] up to a constant, with a mean of 0: what they are without what softmax ignores."""
    return logits - logits.mean(-1, keepdim=True)


def guided(guidance: Guidance, positive: Tensor, negatives: Sequence[Tensor]) -> Tensor:
    """Guided logits [B, N] of `positive` [B, N] and one such for each negative: the equations of `vla_cli.guidance`."""
    found = guidance.velocity(positive[:, None], [other[:, None] for other in negatives], positive.shape[-1])
    return found[:, 0]


def stacked(branches: Sequence[TokenBatch], config: Any) -> dict[str, Tensor]:
    """The inputs of several batches of one observation, one after the other; shorter prompts are padded on the left."""
    if len(branches) == 1:
        return branches[0].inputs
    length = max(branch.attention_mask.shape[1] for branch in branches)
    pad = config.get_text_config().pad_token_id or 0

    def padded(name: str, branch: TokenBatch) -> Tensor:
        values = branch.inputs[name]
        if not _is_by_token(branch, values):
            return values
        return nn.functional.pad(values, (length - values.shape[1], 0), value=pad if name == "input_ids" else 0)

    return {name: torch.cat([padded(name, branch) for branch in branches]) for name in branches[0].inputs}


def _is_by_token(batch: TokenBatch, values: Tensor) -> bool:
    """Whether an input says something of each token of the prompt."""
    return values.shape == batch.attention_mask.shape


def token_losses(model: TokenModel, batch: TokenBatch) -> Tensor:
    """Mean cross-entropy of each window's real action tokens [B], over the whole vocabulary."""
    assert batch.bins is not None and batch.mask is not None
    bins, mask = batch.bins.flatten(1), batch.mask.flatten(1)
    logits = model.logits(batch, bins).float()
    each = nn.functional.cross_entropy(logits.transpose(1, 2), bins + model.tokens.first, reduction="none") * mask
    return each.sum(1) / mask.sum(1).clamp_min(1.0)
