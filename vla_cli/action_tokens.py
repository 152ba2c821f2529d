"""Actions as words: each dimension's range is cut into bins, and each bin is a token of the language model.

    values  [.., D] raw units  ->  bins [.., D] in 0..bins - 1  ->  token ids first + bin  ->  the bins' middles

The middle 98% of the recorded values, q01 to q99, is cut evenly, and what lies beyond falls into the outermost bin
(OpenVLA, arXiv 2406.09246, section 3.2: 256 bins, in place of the last tokens of the vocabulary). A dimension that is
not normalised, or whose middle 98% is a single value (a gripper that is nearly always open), is cut from minimum to
maximum.
The state goes into the prompt in bins as well, as text (pi0-FAST, arXiv 2501.09747; openpi `tokenizer.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from vla_cli.errors import InputError
from vla_cli.field_types import ill_typed
from vla_cli.stats import Statistics

BINS = 256
"""OpenVLA's, and pi0-FAST's for the state."""
PROMPT = "Task: {instruction}, State: {state};\nAction: "
"""pi0-FAST's, for a model that was never trained to act."""
STATE_WORD = "{bin}"


@dataclass(frozen=True)
class ActionTokens:
    """How a token policy writes actions and reads states, as `policy.json` says it.

    Attributes:
        first: token id of the lowest bin; the others follow.
        bins: of each action dimension.
        prompt: the text around "{instruction}" and "{state}"; without the latter the state is not read.
        state_bins: of each state dimension.
        state_word: how one of the state's bins is written.
    """

    first: int
    bins: int = BINS
    prompt: str = PROMPT
    state_bins: int = BINS
    state_word: str = STATE_WORD

    @property
    def ids(self) -> range:
        """The token ids of the bins, lowest first."""
        return range(self.first, self.first + self.bins)

    def encode(self, actions: np.ndarray, statistics: Statistics) -> np.ndarray:
        """Bins int64 [.., A] of actions [.., A] in raw units."""
        return binned(actions, statistics, self.bins)

    def decode(self, bins: np.ndarray, statistics: Statistics) -> np.ndarray:
        """Raw units float32 [.., A] of bins [.., A]: their middles; a constant dimension's mean."""
        low, width = _cut(statistics, self.bins)
        values = low + (np.asarray(bins, np.float64) + 0.5) * width
        return np.where(statistics.constant, statistics.mean, values).astype(np.float32)

    def prompts(self, instructions: Sequence[str], state: np.ndarray, statistics: Statistics) -> list[str]:
        """The text that is asked under each instruction at each state [B, S] in raw units."""
        rows = binned(state, statistics, self.state_bins)
        words = [" ".join(self.state_word.format(bin=int(b)) for b in row) for row in rows]
        return [
            # not str.format: an instruction may hold braces
            self.prompt.replace("{state}", said).replace("{instruction}", text)
            for text, said in zip(instructions, words, strict=True)
        ]

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def read_action_tokens(document: dict[str, Any]) -> ActionTokens:
    """Inverse of `ActionTokens.document`.

    Raises:
        InputError: a key is missing or unknown, of another type, or no such tokens can be.
    """
    known = {f.name for f in fields(ActionTokens)}
    wrong = [f"{key} is no key of it" for key in document if key not in known]
    stated = {key: value for key, value in document.items() if key in known}
    wrong += [f"{key} is not {expected}" for key, expected in ill_typed(ActionTokens, stated).items()]
    wrong += ["first is missing"] if "first" not in document else []
    if not wrong:
        tokens = ActionTokens(**document)
        wrong += [f"{key} is {getattr(tokens, key)}" for key in ("bins", "state_bins") if getattr(tokens, key) < 2]
        wrong += [f"first is {tokens.first}"] if tokens.first < 0 else []
        wrong += ["prompt is without {instruction}"] if "{instruction}" not in tokens.prompt else []
        wrong += ["state_word is without {bin}"] if not _writes_bins(tokens.state_word) else []
        if not wrong:
            return tokens
    raise InputError(
        f"The action tokens of policy.json cannot be used ({'; '.join(wrong)})",
        expected=f"{', '.join(sorted(known))}, with at least two bins",
        hint="vla finetune again",
    )


def _writes_bins(word: str) -> bool:
    """Whether a text says which bin it is for: two bins are two words."""
    try:
        return word.format(bin=1) != word.format(bin=2)
    except (AttributeError, IndexError, KeyError, ValueError):
        return False


def binned(values: np.ndarray, statistics: Statistics, bins: int) -> np.ndarray:
    """Bins int64 [.., D] of values [.., D] in raw units: what lies beyond is in the outermost, a constant in bin 0."""
    low, width = _cut(statistics, bins)
    found = np.floor((np.asarray(values, np.float64) - low) / width)
    return np.where(statistics.constant, 0, np.clip(found, 0, bins - 1)).astype(np.int64)


def beyond_bins(values: np.ndarray, statistics: Statistics) -> np.ndarray:
    """Share of values [N, D] of each dimension [D] that no bin's range holds."""
    low, width = _cut(statistics, 1)
    outside = (values < low - width * _SLACK) | (values > low + width * (1 + _SLACK))
    return np.where(statistics.constant, 0.0, outside.mean(axis=0))


_SLACK = 1e-6
"""Of the range: rounding to float32 is not beyond."""


def _cut(statistics: Statistics, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower end of the lowest bin, and width of a bin, both [D]."""
    whole = ~statistics.mask | (statistics.q99 <= statistics.q01)
    low = np.where(whole, statistics.min, statistics.q01)
    high = np.where(whole, statistics.max, statistics.q99)
    # a constant has no range; what is made of it is put right by who calls
    return low, np.where(high > low, high - low, 1.0) / bins
