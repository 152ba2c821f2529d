"""Actions as tokens: what is written can be read back to half a bin, and nothing but text and numbers is in the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_cli.action_tokens import ActionTokens, beyond_bins, binned, read_action_tokens
from vla_cli.errors import InputError
from vla_cli.stats import Statistics, compute

TOKENS = ActionTokens(first=100, bins=64)


def statistics(seed: int = 0) -> Statistics:
    rng = np.random.default_rng(seed)
    return compute(rng.normal([0.0, 5.0, -2.0], [1.0, 0.01, 30.0], (500, 3)))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(0, 1)), st.integers(2, 300))
def test_a_value_between_the_quantiles_comes_back_within_half_a_bin(shares: np.ndarray, bins: int) -> None:
    known, tokens = statistics(), replace(TOKENS, bins=bins)
    values = known.q01 + shares * (known.q99 - known.q01)
    written = tokens.encode(values, known)
    assert written.dtype == np.int64 and written.min() >= 0 and written.max() < bins
    off = np.abs(tokens.decode(written, known) - values)
    assert (off <= (known.q99 - known.q01) / bins * 0.5 + 1e-5).all()


def test_what_lies_beyond_is_in_the_outermost_bin_and_counted() -> None:
    known = statistics()
    far = np.stack([known.q99 + 10 * known.std, known.q01 - 10 * known.std, known.mean, known.q99])
    assert TOKENS.encode(far, known)[:2].tolist() == [[63] * 3, [0] * 3]
    assert beyond_bins(far, known).tolist() == [0.5] * 3


def test_a_gripper_that_is_nearly_always_open_and_one_that_is_left_alone_are_cut_over_their_whole_range() -> None:
    values = np.zeros((1000, 2))
    values[:5, 0] = 1.0  # less than the hundredth part that the quantiles leave out
    values[:, 1] = np.concatenate([[0.0, 1.0], np.linspace(0.4, 0.6, 998)])
    known = compute(values, mask=[True, False])
    assert known.q99[0] == known.q01[0] and known.q99[1] < 0.7
    written = TOKENS.encode(np.array([[0.0, 0.0], [1.0, 1.0]]), known)
    assert written.tolist() == [[0, 0], [63, 63]]
    assert (np.abs(TOKENS.decode(written, known) - [[0, 0], [1, 1]]) <= 0.5 / 64 + 1e-6).all()


def test_a_constant_is_written_as_the_first_bin_and_read_as_itself() -> None:
    known = compute(np.full((50, 1), 3.5))
    assert binned(np.array([[3.5], [9.0]]), known, 64).tolist() == [[0], [0]]
    assert TOKENS.decode(np.array([[0], [63]]), known).tolist() == [[3.5], [3.5]]
    assert beyond_bins(np.array([[9.0]]), known).tolist() == [0.0]


def test_the_prompt_holds_the_instruction_as_it_is_and_the_state_in_bins() -> None:
    known = statistics()
    tokens = ActionTokens(first=0, prompt="do {instruction} at {state}!", state_bins=10, state_word="<{bin:02d}>")
    state = np.stack([known.q01, known.q99, known.mean])
    texts = tokens.prompts(["put {state} in {0}", "a", "b"], state, known)
    assert texts[0] == "do put {state} in {0} at <00> <00> <00>!"
    assert texts[1] == "do a at <09> <09> <09>!" and texts[2].startswith("do b at <0")


def test_the_document_comes_back_and_what_cannot_be_is_refused() -> None:
    tokens = ActionTokens(first=7, bins=32, prompt="{instruction}", state_bins=9, state_word="s{bin}")
    assert read_action_tokens(tokens.document()) == tokens
    for change, said in (
        ({"bins": 1}, "bins is 1"),
        ({"first": -1}, "first is -1"),
        ({"first": "a"}, "first is not"),
        ({"prompt": "go"}, "without {instruction}"),
        ({"state_word": "x"}, "without {bin}"),
        ({"state_word": "{other}"}, "without {bin}"),
        ({"colour": 1}, "colour is no key"),
    ):
        with pytest.raises(InputError, match="action tokens") as caught:
            read_action_tokens({**tokens.document(), **change})
        assert said in str(caught.value)
    with pytest.raises(InputError, match="first is missing"):
        read_action_tokens({})
