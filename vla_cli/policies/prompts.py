"""Instructions to token ids for the π0 family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vla_cli.errors import InputError

USUAL_LENGTH = 48
"""Tokens of a prompt, beginning and newline included, that pi0 was trained with (openpi `pi0_config.py`,
`max_token_len`; LeRobot's `tokenizer_max_length`). Both cut off what is longer; here nothing is cut."""


class Prompts:
    """Instructions to token ids, exactly as transformers' `PI0Processor` lays them out.

        <image> * tokens_per_image * cameras   <bos>   words   "\\n"   padding to the longest of the batch

    Args:
        tokenizer: a fast tokenizer with a beginning-of-sentence token.
        image_token_id: id that stands for one image patch.
        tokens_per_image: patches an image.
        vocabulary: token ids that the model has embeddings of; None where that is not known.
    """

    def __init__(
        self, tokenizer: Any, image_token_id: int, tokens_per_image: int, *, vocabulary: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.tokens_per_image = tokens_per_image
        self.vocabulary = vocabulary
        self._cache: dict[str, list[int]] = {}

    def words(self, instruction: str) -> list[int]:
        """Token ids of one instruction with bos and newline.

        Raises:
            InputError: an id stands for a picture, or is none that the model has an embedding of.
        """
        if instruction not in self._cache:
            text = f"{self.tokenizer.bos_token}{instruction}\n"
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            self._check(instruction, ids)
            self._cache[instruction] = ids
        return self._cache[instruction]

    def _check(self, instruction: str, ids: Sequence[int]) -> None:
        if self.image_token_id in ids:
            raise InputError(
                f"The instruction '{instruction}' holds the token that stands for a piece of a picture",
                expected="words only",
                hint='vla collect-ingest --instruction "..."',
            )
        if self.vocabulary is not None and max(ids) >= self.vocabulary:
            raise InputError(
                f"The tokenizer gives '{instruction}' the token {max(ids)}, but the base knows {self.vocabulary}",
                expected="the base's own tokenizer",
                hint="--tokenizer with that of the base (pi0's is that of google/paligemma-3b-pt-224)",
            )

    def beyond_usual(self, instructions: Sequence[str]) -> list[str]:
        """A sentence where instructions are longer than any prompt that pi0 was trained with; else nothing.

        Raises:
            InputError: as for `words`.
        """
        lengths = {instruction: len(self.words(instruction)) for instruction in instructions}
        longest = max(lengths, key=lambda text: lengths[text], default="")
        if lengths.get(longest, 0) <= USUAL_LENGTH:
            return []
        count = sum(length > USUAL_LENGTH for length in lengths.values())
        return [
            f"{count} of {len(lengths)} instructions have more than {USUAL_LENGTH} tokens (the longest "
            f"{lengths[longest]}: '{longest[:80]}...'). All of them are read here; pi0 was trained with at most "
            f"{USUAL_LENGTH}, and openpi and LeRobot cut off the rest."
        ]

    def unknown_words(self, instruction: str) -> list[str]:
        """Words of an instruction that the tokenizer cannot tell from any other unknown word."""
        return unknown_words(self.tokenizer, instruction)

    def __call__(self, instructions: Sequence[str], cameras: int) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both int64 [B, L]."""
        rows = [self.words(instruction) for instruction in instructions]
        images = cameras * self.tokens_per_image
        length = images + max(len(row) for row in rows)
        ids = torch.full((len(rows), length), int(self.tokenizer.pad_token_id or 0), dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        ids[:, :images] = self.image_token_id
        for i, row in enumerate(rows):
            ids[i, images : images + len(row)] = torch.tensor(row)
            mask[i, : images + len(row)] = 1
        return ids, mask


def unknown_words(tokenizer: Any, instruction: str) -> list[str]:
    """Words of an instruction that a tokenizer cannot tell from any other unknown word."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    return [w for w in instruction.split() if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]]
