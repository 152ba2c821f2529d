"""Instructions to token ids for the π0 family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Prompts:
    """Instructions to token ids, exactly as transformers' `PI0Processor` lays them out.

        <image> * tokens_per_image * cameras   <bos>   words   "\\n"   padding to the longest of the batch

    Args:
        tokenizer: a fast tokenizer with a beginning-of-sentence token.
        image_token_id: id that stands for one image patch.
        tokens_per_image: patches an image.
    """

    def __init__(self, tokenizer: Any, image_token_id: int, tokens_per_image: int) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.tokens_per_image = tokens_per_image
        self._cache: dict[str, list[int]] = {}

    def words(self, instruction: str) -> list[int]:
        """Token ids of one instruction with bos and newline."""
        if instruction not in self._cache:
            text = f"{self.tokenizer.bos_token}{instruction}\n"
            self._cache[instruction] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._cache[instruction]

    def unknown_words(self, instruction: str) -> list[str]:
        """Words of an instruction that the tokenizer cannot tell from any other unknown word."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return []
        return [w for w in instruction.split() if unknown in self.tokenizer(w, add_special_tokens=False)["input_ids"]]

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
