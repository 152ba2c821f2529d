"""Pictures and text to the inputs of an image-text-to-text model, by the processor that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vla_cli.errors import InputError
from vla_cli.policies.prompts import unknown_words


class TokenPrompts:
    """What a model's own processor makes of pictures and prompts, padded on the left so that an answer can follow.

    Args:
        processor: of transformers' `AutoProcessor`.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.picture = str(getattr(processor, "image_token", None) or "<image>")

    def __call__(self, images: np.ndarray, texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of a batch.

        Args:
            images: uint8 RGB [B, C, H, W, 3].
            texts: B prompts.

        Raises:
            InputError: a text holds the token that stands for a picture.
        """
        for text in set(texts):
            self._check(text)
        asked = [self._asked(text, images.shape[1]) for text in texts]
        found = self.processor(
            text=asked, images=[list(window) for window in images], padding=True, return_tensors="pt"
        )
        return {name: value for name, value in found.items() if isinstance(value, Tensor) and name != "labels"}

    def _asked(self, text: str, cameras: int) -> str:
        """A prompt with a place for each picture, as the model was taught to be asked."""
        if getattr(self.processor, "chat_template", None):
            content = [*({"type": "image"} for _ in range(cameras)), {"type": "text", "text": text}]
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        return self.picture * cameras + text

    def words(self, instruction: str) -> list[int]:
        """Token ids of an instruction by itself.

        Raises:
            InputError: it holds the token that stands for a picture.
        """
        self._check(instruction)
        return list(self.tokenizer(instruction, add_special_tokens=True)["input_ids"])

    def beyond_usual(self, instructions: Sequence[str]) -> list[str]:
        """Nothing: nobody says how long the prompts were that such a model was trained with; texts are checked.

        Raises:
            InputError: one holds the token that stands for a picture.
        """
        for instruction in instructions:
            self._check(instruction)
        return []

    def unknown_words(self, instruction: str) -> list[str]:
        """Words of an instruction that the tokenizer cannot tell from any other unknown word."""
        return unknown_words(self.tokenizer, instruction)

    def length(self, texts: Sequence[str], cameras: int, image_size: int) -> int:
        """Tokens of the longest prompt, the pictures' included."""
        blank = np.zeros((len(texts), cameras, image_size, image_size, 3), np.uint8)
        return int(self(blank, texts)["input_ids"].shape[1])

    def _check(self, text: str) -> None:
        if self.picture in text:
            raise InputError(
                f"The instruction '{text}' holds the token that stands for a picture",
                expected="words only",
                hint='vla collect-ingest --instruction "..."',
            )
