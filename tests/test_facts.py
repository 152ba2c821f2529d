import json

import numpy as np

from vla_cli.conventions import keys_of
from vla_cli.episode import Episode, Stream
from vla_cli.facts import MOST_DIMENSIONS, episode_facts, merge, ranges, rounded, safe, stream_facts
from vla_cli.outline import in_bytes, printable


def vectors(values: np.ndarray, rate: float = 10.0, **attributes) -> Stream:
    return Stream("action", "action", values, np.arange(len(values)) / rate, attributes)


def episode(name: str, *streams: Stream) -> Episode:
    return Episode(name=name, streams=list(streams), instructions=[])


def test_ranges_leave_out_what_is_not_finite() -> None:
    values = np.array([[1.0, np.nan, 3], [np.inf, np.nan, -3], [2, np.nan, 0]])
    found = stream_facts(vectors(values, names=["x", "y", "z"]))["dimensions"]
    assert found == [
        {"name": "x", "min": 1, "max": 2},
        {"name": "y", "min": None, "max": None},
        {"name": "z", "min": -3, "max": 3},
    ]


def test_names_that_do_not_fit_are_not_used() -> None:
    for names in (["x"], "xy", None, 7):
        found = stream_facts(vectors(np.zeros((3, 2)), names=names))["dimensions"]
        assert [dimension["name"] for dimension in found] == ["0", "1"]


def test_conventions_are_stated_or_unknown_and_nothing_else() -> None:
    found = stream_facts(vectors(np.zeros((3, 2)), units="m", frame="unknown", motor="left"))
    assert found["stated"] == {"units": "m"} and found["other"] == {"motor": "left"}
    assert set(found["stated"]) | set(found["unknown"]) == set(keys_of("action"))


def test_wide_streams_are_cut_and_say_so() -> None:
    found = stream_facts(vectors(np.zeros((2, MOST_DIMENSIONS + 5))))
    assert len(found["dimensions"]) == MOST_DIMENSIONS and found["dimensions_left_out"] == 5


def test_merging_spans_what_varies() -> None:
    first = episode("a", vectors(np.array([[0.0, 5], [1, 6]]), units="m"))
    second = episode("b", vectors(np.array([[-1.0, 5], [0, 5], [0, 5]]), rate=5.0, units="rad"))
    (merged,) = merge([episode_facts(first), episode_facts(second)])
    assert merged["episodes"] == 2 and merged["shape"] == [[2, 3], 2] and merged["rate_hz"] == [5, 10]
    assert merged["stated"] == {"units": ["m", "rad"]} and "units" not in merged["unknown"]
    assert ranges([merged]) == [("action", [{"name": "0", "min": -1, "max": 1}, {"name": "1", "min": 5, "max": 6}])]


def test_streams_that_differ_are_told_apart() -> None:
    first, second = episode("a", vectors(np.zeros((2, 2)))), episode("b", vectors(np.zeros((2, 3))))
    (merged,) = merge([episode_facts(first), episode_facts(second)])
    assert merged["dimensions_differ"] and ranges([merged]) == []
    assert merge([]) == []


def test_a_stream_without_samples_has_no_rate() -> None:
    found = stream_facts(vectors(np.zeros((0, 2))))
    assert found["rate_hz"] is None and found["seconds"] == 0 and found["dimensions"][0]["min"] is None


def test_everything_can_be_printed_and_is_json() -> None:
    hostile = {"\x1b[2J": float("nan"), "a": ["\ud800", np.int64(3), np.float32(2), {1: object()}], "b": "x" * 10**6}
    text = json.dumps(safe(hostile), allow_nan=False)
    assert len(text) < 5000 and "\\u001b" not in text
    assert printable("put\nthe [/red] cup 机器人\x07") == "put\\nthe [/red] cup 机器人\\x07"
    assert rounded(1e400) is None and rounded(0.1 + 0.2) == 0.3 and rounded(2**40) == 1.099512e12
    assert [in_bytes(n) for n in (0, 1023, 1536, 5 * 2**40)] == ["0 B", "1023 B", "1.5 KiB", "5120.0 GiB"]
