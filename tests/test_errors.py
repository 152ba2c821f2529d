"""Errors that a user can act on are made of those that he cannot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vla_cli.errors import ConfigError, InputError, within_memory


@pytest.mark.parametrize(
    "ask",
    [lambda: bytearray(2**62), lambda: np.empty(2**60, np.float32), lambda: torch.empty(2**60, dtype=torch.uint8)],
    ids=["python", "numpy", "torch"],
)
def test_whoever_runs_out_of_memory_it_is_said_what_to_make_smaller(ask: Callable[[], object]) -> None:
    said = r"Dreaming does not fit into memory \(.+\)\. Try: less sleep\."
    with pytest.raises(ConfigError, match=said), within_memory("Dreaming", hint="less sleep"):
        ask()


def test_an_accelerators_error_is_one_too() -> None:
    with pytest.raises(ConfigError, match="does not fit into memory"), within_memory("It", hint=""):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_pass() -> None:
    for error in (InputError("bad"), RuntimeError("shapes cannot be multiplied"), KeyError("a")):
        with pytest.raises(type(error)) as caught, within_memory("It", hint=""):
            raise error
        assert caught.value is error
