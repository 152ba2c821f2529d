"""The dataset's page: complete, escaped, bounded, inside its view boxes, and the figures those that were given."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_checker import Checker, parse
from PIL import Image

from vla_cli.dataset_page import LARGEST_SHEET, DatasetPage, page, verdict
from vla_cli.dataset_page.html import anything, listed, records, table, text
from vla_cli.dataset_page.judgement import quality_findings, standing
from vla_cli.dataset_page.plots import KINDS, MOST_EPISODES, POINTS, WIDTH, Scale, profiles
from vla_cli.dataset_page.tracks import contact_sheet, is_from_above, sheet_episodes, speed, top_dims, top_view
from vla_cli.episode import load_episode
from vla_cli.facts import episode_facts, merge
from vla_cli.quality import document, examine, judge, motion_of

ATTACK = "<script>alert('x')</script>\"&\u202e\x00\ud800"
PARTS = {
    "findings": "Findings",
    "instructions": "Instructions",
    "trajectories": "Trajectories from above",
    "speeds": "Speed by operator",
    "operator_facts": "Operators",
    "preflight": "Normalisation preflight",
    "conventions": "Conventions",
    "contact_sheet": "What the camera saw",
    "fingerprint": "Fingerprint of camera and light",
}


def check(html: str) -> Checker:
    """Parse a page that must be well-formed, and draw nothing outside its drawings."""
    checker = parse(html)
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        _check_inside(drawing)
    return checker


def _check_inside(drawing: str) -> None:
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing).groups())  # type: ignore[union-attr]
    lines = re.findall(r'points="([^"]*)"', drawing)
    points = [tuple(map(float, pair.split(","))) for line in lines for pair in line.split()]
    assert all(math.isfinite(value) for point in points for value in point)
    assert not re.search(r'="[^"<]*\b(nan|inf)\b', re.sub(r"<(title|desc|text).*?</\1>", "", drawing))
    points += [(float(x), float(y)) for x, y in re.findall(r' c?x="([-\d.]+)" c?y="([-\d.]+)"', drawing)]
    rects = [
        [_number(rect, key) for key in ("x", "y", "width", "height")] for rect in re.findall("<rect .*?>", drawing)
    ]
    assert all(wide >= 0 and tall >= 0 for _, _, wide, tall in rects)
    points += [corner for x, y, wide, tall in rects for corner in ((x, y), (x + wide, y + tall))]
    assert points
    for x, y in points:
        assert -0.05 <= x <= width + 0.05 and -0.05 <= y <= height + 0.05, (x, y, width, height)


def _number(element: str, key: str) -> float:
    return float(re.search(rf' {key}="([-\d.]+)"', element).group(1))  # type: ignore[union-attr]


def picture(width: int = 64, height: int = 48) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(packed, "PNG")
    return packed.getvalue()


def finding(severity: str = "warning", check: str = "idle", episode: str = "demo_1", **more: Any) -> dict[str, Any]:
    message = f"{episode}: stands still in frames 3-9."
    return {"check": check, "severity": severity, "episode": episode, "message": message} | more


def full(count: int = 4, length: int = 40, **changes: Any) -> DatasetPage:
    rng = np.random.default_rng(1)
    names = [f"demo_{i}" for i in range(count)]
    values: dict[str, Any] = {
        "names": names,
        "operators": ["anna" if i % 2 else "ben" for i in range(count)],
        "frames": [length + i for i in range(count)],
        "seconds": [(length + i) / 10 for i in range(count)],
        "rate_hz": 10.0,
        "facts": {"cameras": ["front", "wrist"], "train": count - 1, "valid": 1},
        "skipped": [{"name": "demo_x", "reason": "it has no actions"}],
        "quarantine": [{"name": "demo_q", "reason": "its last picture is cut off"}],
        "findings": [
            finding("warning", frames=[[3, 9]], seconds=[[0.3, 1.0]], fix="--fix idle"),
            finding("info", "noop", "demo_0"),
        ],
        "instructions": [
            {
                "instruction": "put the red block on the left plate",
                "episodes": 3,
                "verb": "put",
                "attributes": ["red"],
                "object": "block",
                "preposition": "on",
                "place": "left plate",
                "paraphrases": [f"paraphrase {i}" for i in range(9)],
                "findings": ["never varied"],
            }
        ],
        "trajectories": [np.cumsum(rng.normal(size=(length, 2)), axis=0) for _ in names],
        "speeds": [np.abs(rng.normal(size=length - 1)) for _ in names],
        "operator_facts": {"sentence": "Two operators, alike.", "operators": [{"name": "anna", "episodes": 2}]},
        "preflight": [
            {"part": "state", "name": "x", "low": -1.25, "high": 1.5, "share_beyond": 0.0},
            {"part": "state", "name": "gripper", "low": -3.0, "high": 2.0, "share_beyond": 0.0},
        ],
        "conventions": [{"name": "front", "role": "image", "stated": {"channels": "rgb"}, "unknown": ["orientation"]}],
        "contact_sheet": picture(),
        "fingerprint": {"cameras": {"front": {"brightness": 0.4321, "sharpness": 12.5}}, "threshold": 3.0},
    }
    return DatasetPage(**(values | changes))


# ---- the whole page


def test_well_formed_deterministic_and_complete() -> None:
    html = page(full())
    words = "".join(check(html).text)
    assert html == page(full())
    for heading in PARTS.values():
        assert heading in words
    assert "Not here" not in words and "Not looked at" not in words
    html.encode("utf-8")


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_says_why(part: str) -> None:
    nothing: dict[str, Any] = {part: None}
    document = full(**nothing)
    assert "nobody has worked it out" in page(document)
    words = "".join(check(page(replace(document, missing={part: "the log has no <such> thing"}))).text)
    assert PARTS[part] in words and "the log has no <such> thing" in words


def test_a_page_without_anything_still_stands() -> None:
    words = "".join(check(page(DatasetPage(names=[], operators=[], frames=[], seconds=[]))).text)
    assert "Do not train: there is no usable episode." in words


def test_nothing_is_fetched_and_nothing_runs() -> None:
    html = page(full())
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe", html)
    for tag, attributes in check(html).elements:
        assert "href" not in attributes and not any(key.startswith("on") for key in attributes), tag
        assert (attributes.get("src") or "data:").startswith("data:image/") or tag != "img"


def test_everything_that_a_log_supplied_is_escaped() -> None:
    document = full(
        names=[ATTACK + str(i) for i in range(4)],
        operators=[ATTACK, "b", ATTACK, "b"],
        axes=(ATTACK, ATTACK),
        speed_unit=ATTACK,
        facts={ATTACK: [ATTACK]},
        skipped=[{"name": ATTACK, "reason": ATTACK}],
        quarantine=[{"name": ATTACK, "reason": ATTACK}],
        findings=[finding("error", ATTACK, ATTACK + "1", stream=ATTACK, fix=ATTACK, seconds=[[0, 1]])],
        instructions=[
            {"instruction": ATTACK, "episodes": [ATTACK], "verb": ATTACK, "object": ATTACK, "place": ATTACK}
            | {"paraphrases": [ATTACK], "findings": [ATTACK]}
        ],
        operator_facts={"sentence": ATTACK, "rows": [{ATTACK: ATTACK}], "by": {ATTACK: {ATTACK: ATTACK}}},
        preflight=[{"part": ATTACK, "name": ATTACK, "low": -9.0, "high": 9.0, ATTACK: ATTACK}],
        conventions=[{"name": ATTACK, "role": ATTACK, "stated": {ATTACK: ATTACK}, "unknown": [ATTACK]}],
        fingerprint=None,
        missing={"fingerprint": ATTACK},
    )
    html = page(document)
    html.encode("utf-8")
    checker = check(html)
    assert "script" not in {tag for tag, _ in checker.elements} and "<script" not in html
    assert "\x00" not in html and "\u202e" not in html
    assert "<script>alert('x')</script>\"&\\u202e" in "".join(checker.text)


@pytest.fixture(scope="module")
def noisy_sheet() -> bytes | None:
    """Noise, which packs worst."""
    pictures = np.random.default_rng(0).integers(0, 255, (8, 120, 160, 3), np.uint8)
    return contact_sheet((f"demo_{i}", "front", pictures, np.arange(8.0)) for i in range(50))


@pytest.mark.parametrize("count", [50, 400])
def test_the_page_stays_small(count: int, noisy_sheet: bytes) -> None:
    spans = [[j, j + 1] for j in range(10)]
    many = [finding("warning", "idle", f"demo_{i % count}", frames=spans) for i in range(600)]
    html = page(full(count, 400, findings=many, contact_sheet=noisy_sheet))
    assert len(html.encode()) < 3_000_000
    assert html.count(f"the first {MOST_EPISODES} of 400 episodes") == (3 if count == 400 else 0)
    assert "and 300 more rows" in html


def test_a_large_contact_sheet_is_packed_smaller() -> None:
    document = full(contact_sheet=picture(800, 800))
    packed = base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]+)"', page(document)).group(1))  # type: ignore[union-attr]
    assert len(packed) <= LARGEST_SHEET < len(document.contact_sheet or b"")
    Image.open(io.BytesIO(packed)).load()


@pytest.mark.parametrize("key", ["operators", "frames", "seconds", "trajectories", "speeds", "clocks"])
def test_one_value_for_each_episode(key: str) -> None:
    short: dict[str, Any] = {key: [(0.0, 1.0)] * 3}
    with pytest.raises(ValueError, match=f"3 {key} for 4 episodes"):
        full(**short)


def test_an_unknown_severity_is_refused() -> None:
    with pytest.raises(ValueError, match="severity 'critical'"):
        full(findings=[finding("critical")])


# ---- the verdict


@pytest.mark.parametrize(
    ("severities", "tone", "sentence"),
    [
        ([], "good", "Ready to train: no check found an error or a warning."),
        (["info"], "good", "Ready to train: no check found an error or a warning."),
        (["warning", "info"], "open", "Train after a look at 1 warning."),
        (["warning", "warning"], "open", "Train after a look at 2 warnings."),
        (["warning", "error"], "bad", "Do not train before 1 error is dealt with."),
        (["error", "error"], "bad", "Do not train before 2 errors are dealt with."),
    ],
)
def test_the_gravest_finding_decides(severities: list[str], tone: str, sentence: str) -> None:
    document = full(findings=[finding(severity) for severity in severities])
    found = verdict(document)
    assert (found.tone, found.sentence) == (tone, sentence)
    assert f'class="card {tone}"' in page(document) and sentence in page(document)


def test_reasons_are_one_a_check_the_gravest_first() -> None:
    found = [
        finding(check="idle"),
        finding(check="idle", episode="demo_2"),
        finding("error", "black"),
        finding("info", "x"),
    ]
    reasons = verdict(full(findings=found)).reasons
    assert reasons[0] == "black: demo_1: stands still in frames 3-9."
    assert reasons[1] == "idle: 2 warnings, the first: demo_1: stands still in frames 3-9."
    assert reasons[2] == "2 of 6 episodes left out, see below."
    assert len(reasons) == 3


def test_many_checks_are_counted() -> None:
    reasons = verdict(full(findings=[finding(check=f"check{i}") for i in range(20)])).reasons
    assert "12 more checks, see the findings." in reasons


def test_what_was_not_looked_at_is_not_sound() -> None:
    assert verdict(full(findings=None, missing={"findings": "--no-quality"})).tone == "open"
    found = verdict(full(findings=[], preflight=None, instructions=None))
    assert "Not looked at: instructions, normalisation." in found.reasons


@pytest.mark.parametrize(("high", "tone"), [(5.0, "good"), (5.01, "open"), (-3200.0, "open"), (None, "open")])
def test_the_page_does_not_contradict_its_preflight(high: float | None, tone: str) -> None:
    document = full(findings=[], preflight=[{"part": "state", "name": "joint 3", "low": 0.0, "high": high}])
    assert verdict(document).tone == tone
    assert ("1 of 1 dimensions normalise beyond ±5: state joint 3." in page(document)) == (tone == "open")
    check(page(document))


# ---- numbers


def test_what_the_preflight_found_counts_once() -> None:
    rows = [
        {
            "part": "state",
            "name": "x",
            "low": -9.0,
            "high": 2.0,
            "severity": "error",
            "finding": "state 'x' is far out.",
        },
        {"part": "state", "name": "y", "low": 0.0, "high": 6.0},
        {"part": "state", "name": "z", "low": 0.0, "high": 0.1, "severity": "info", "finding": "stands still"},
    ]
    document = full(findings=[], preflight=rows)
    assert [(f["severity"], f["stream"]) for f in standing(document)] == [
        ("error", "state x"),
        ("warning", "state y"),
        ("info", "state z"),
    ]
    assert verdict(document).sentence == "Do not train before 1 error is dealt with."
    assert "all, state x" in page(document)
    told = full(findings=[finding("warning", "preflight", "")], preflight=rows)
    assert len(standing(told)) == 1 and verdict(told).tone == "open"


def test_counts_are_those_given() -> None:
    words = " ".join("".join(check(page(full())).text).split())
    for shown in ("episodes4", "frames166", "minutes0.28", "anna (2), ben (2)", "rate10 Hz", "train3", "front; wrist"):
        assert shown in words
    assert "it has no actions" in words and "its last picture is cut off" in words


def test_tables_hold_what_was_found() -> None:
    html = page(full())
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    cells = [re.sub(r"<.*?>", "|", row) for row in rows]
    assert any("warning" in c and "|idle|" in c and "demo_1" in c and "--fix idle" in c for c in cells)
    parsed = "|put|", "|red block|", "|on left plate|"
    assert any(c.startswith("|put the red block on the left plate|") and all(p in c for p in parsed) for c in cells)
    assert any("paraphrase 5 and 3 more" in c and "never varied" in c for c in cells)
    assert any("|-1.25|" in c and "|1.5|" in c for c in cells)
    assert any("|0.4321|" in c and "|12.5|" in c for c in cells)


def test_findings_come_gravest_first_and_name_where() -> None:
    found = [
        finding("info", "c"),
        finding("error", "a", stream="front"),
        {"check": "b", "severity": "warning", "episodes": ("d1", "d2", "d3", "d4"), "message": "m", "fix": "f"},
        {"check": "z", "severity": "warning", "episode": "", "message": "all of them"},
    ]
    html = page(full(findings=found))
    section = html[html.index("<h2>Findings") : html.index("<h2>Instructions")]
    assert re.findall(r'<span class="tone">(\w+)</span>', section) == ["error", "warning", "warning", "info"]
    assert "demo_1, front" in section and "d1, d2, d3 and 1 more" in section and "<td>all</td>" in section


def test_quality_findings_say_what_fixes_them() -> None:
    quality = {
        "checks": [{"name": "idle", "fix": "cuts pauses"}, {"name": "blur", "fix": ""}],
        "findings": [finding(check="idle"), finding(check="blur")],
    }
    assert [f["fix"] for f in quality_findings(quality)] == ["--fix idle: cuts pauses", "--exclude blur"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3, "3"), (np.int64(3), "3"), (0.123456, "0.1235"), (True, "yes"), (None, "-"), ("a<b", "a&lt;b"), (["x"], "[")],
)
def test_values_as_text(value: Any, shown: str) -> None:
    assert text(value).startswith(shown)


def test_any_json_becomes_html() -> None:
    deep: Any = {"a": {"b": 1}}
    for _ in range(50):
        deep = {"more": deep}
    check_only = Checker()
    check_only.feed(anything({"sentences": ["One.", "Two."], "n": 3, "deep": deep, "rows": [{"a": 1}, {"b": 2}, 7]}))
    assert not check_only.open and "One." in check_only.text


def test_wide_records_are_turned() -> None:
    wide = {f"figure_{i}": i / 7 for i in range(12)}
    html = records([{"operator": "anna", **wide}, {"operator": "ben", **wide}])
    assert html.count("<th") - 1 == 3 and html.count("<tr>") == 13  # <thead> begins like <th>
    assert "<td>figure 11</td><td>1.571</td><td>1.571</td>" in html


def test_bounds_of_text_and_tables() -> None:
    assert len(text("x" * 10**6)) < 1000
    assert "and 700 more rows" in table(["a"], [["b"]] * 1000)
    assert listed([]) == "-" and listed(list(range(9))).endswith("5 and 3 more")


# ---- drawings


def test_spans_lie_where_they_were_found() -> None:
    found = [
        finding("warning", "frozen", "demo_3", seconds=[[101.0, 102.0]], frames=[[0, 1]]),
        finding("warning", "chatter", "demo_0", frames=[[0, 9]]),
        finding("warning", "length", "demo_0"),
        finding("warning", "idle", "stranger", frames=[[0, 9]]),
        finding("warning", "idle", "demo_2", seconds=[[99.0, 100.0], [105.0, 106.0]]),  # trimmed
    ]
    document = full(findings=found, clocks=[(100.0, 104.0)] * 4, seconds=[4.0] * 4)
    drawn = r'<g class="p(\d)"><title>[^<]*</title>.*?<rect class="span" y="(\d+)" x="([\d.]+)" width="([\d.]+)"'
    spans = re.findall(drawn, page(document))
    across = WIDTH - 16 - 120
    lanes = list(KINDS)
    assert [(lanes[int(p)], float(x), float(w)) for p, _, x, w in spans] == [
        ("frozen or black", 120 + across / 4, across / 4),
        ("chatter", 120.0, across / 4),
    ]
    assert int(spans[0][1]) > int(spans[1][1]) + 50  # demo_3 is three rows below


def test_starts_and_ends_are_marked_and_operators_coloured() -> None:
    html = page(full())
    drawing = html[html.index('aria-labelledby="trajectories-title') :]
    drawing = drawing[: drawing.index("</svg>")]
    assert drawing.count('class="start"') == drawing.count('class="end"') == 4
    assert drawing.count('<g class="p0 d0">') == drawing.count('<g class="p1 d0">') == 2


@pytest.mark.parametrize(
    "path",
    [
        np.zeros((5, 2)),
        np.full((5, 2), 1e9),
        np.array([[np.nan, 1], [np.inf, 2], [3, 4]]),
        np.zeros((0, 2)),
        np.array([[-1e308, 1e308], [1e308, -1e308]]),
        np.array([[0, 0], [1, 1e-9]]),
    ],
)
def test_odd_paths_and_speeds_stay_inside(path: np.ndarray) -> None:
    speeds = [path[:, 0]] * 4
    check(page(full(trajectories=[path] * 4, speeds=speeds)))
    check(page(full(trajectories=[path] * 4, speeds=speeds, seconds=[0.0] * 4)))


def test_profiles_are_means_over_the_share_of_the_episode() -> None:
    found = profiles([np.full(30, 2.0), np.full(90, 4.0), np.linspace(0, 1, 7)], ["a", "a", "b"])
    mean, spread, count = found["a"]
    assert np.allclose(mean, 3.0) and np.allclose(spread, 1.0) and count == 2
    assert np.allclose(found["b"][0], np.linspace(0, 1, POINTS))


def test_many_operators_get_no_colour_twice_without_dashes() -> None:
    document = full(18, operators=[f"op{i:02d}" for i in range(18)])
    html = page(document)
    check(html)
    assert "and 6 more" in html
    drawing = html[html.index('aria-labelledby="trajectories-title') :]
    assert len(set(re.findall(r'<g class="(p\d d\d)">', drawing[: drawing.index("</svg>")]))) == 18


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3e-7, 2e-7), (-10, 10), (0, 1e12), (1e9, 1e9 + 2)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-6 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)


# ---- what it is drawn from


@pytest.mark.parametrize(
    ("names", "dims"),
    [
        (["gripper", "x", "y", "z"], (1, 2)),
        (["y", "x"], (1, 0)),
        (["robot0_eef_pos[0]", "robot0_eef_pos[1]", "robot0_gripper[0]"], (0, 1)),
        (["joint_0", "joint_1", "joint_2"], (0, 1)),
        (["gripper", "finger"], (0, 1)),
        (["only"], None),
    ],
)
def test_top_dims(names: list[str], dims: tuple[int, int] | None) -> None:
    assert top_dims(names) == dims
    assert top_view(np.zeros((3, len(names))), names).shape == ((3, 2) if dims else (0, 2))


@pytest.mark.parametrize(
    ("axes", "above"),
    [
        (("x", "y"), True),
        (("robot0_eef_pos[0]", "robot0_eef_pos[1]"), True),
        (("pose.left_x", "pose.left_y"), True),
        (("y", "x"), False),
        (("shoulder_pan.pos", "shoulder_lift.pos"), False),
        (("robot0_joint_pos[0]", "robot0_joint_pos[1]"), False),
        (("qpos[0]", "<b>[1]"), False),
    ],
)
def test_only_places_are_seen_from_above(axes: tuple[str, str], above: bool) -> None:
    assert is_from_above(axes) == above
    html = page(full(axes=axes))
    check(html)
    assert ("Trajectories from above" in html) == above
    assert (f"Trajectories in {escape(axes[0])} and {escape(axes[1])}" in html) != above


def test_speed_is_in_units_a_second() -> None:
    state = np.array([[0, 0, 0.0], [3, 4, 9], [3, 4, 0]])
    assert speed(state, ["x", "y", "gripper"], 10.0).tolist() == [50.0, 0.0]


def test_sheet_episodes_are_few_and_even() -> None:
    assert sheet_episodes(3) == [0, 1, 2] and sheet_episodes(0) == []
    assert len(sheet_episodes(50)) == 12 and sheet_episodes(50)[-1] == 49


def real_page(episodes: Path) -> DatasetPage:
    """The page of sample demonstrations, as a stage would gather it."""
    recorded = [load_episode(path) for path in sorted(episodes.glob("*.hdf5"))[:3]]
    motions = [motion_of(episode) for episode in recorded]
    facts = [examine(*pair) for pair in zip(recorded, motions, strict=True)]
    views = [(e.name, e.of_role("image")[0]) for e in recorded]
    return DatasetPage(
        names=[e.name for e in recorded],
        operators=[e.operator for e in recorded],
        frames=[len(m) for m in motions],
        seconds=[float(m.timestamps[-1] - m.timestamps[0]) for m in motions],
        rate_hz=motions[0].rate_hz,
        clocks=[(float(m.timestamps[0]), float(m.timestamps[-1])) for m in motions],
        findings=quality_findings(document(judge(facts), facts)),
        trajectories=[top_view(m.state, m.state_names) for m in motions],
        speeds=[speed(m.state, m.state_names, m.rate_hz) for m in motions],
        instructions=[{"instruction": e.instructions[0], "episodes": [e.name]} for e in recorded[:1]],
        conventions=merge(episode_facts(e) for e in recorded),
        contact_sheet=contact_sheet((name, s.name, s.values, s.timestamps) for name, s in views),
        missing={"preflight": "no base was named"},
    )


def test_a_page_of_the_sample_data(episodes: Path) -> None:
    html = page(real_page(episodes))
    words = "".join(check(html).text)
    assert "data:image/jpeg" in html and "no base was named" in words
    assert "put the red block on the left plate" in words and "agentview_image" in words
    assert html.count('class="start"') == 3
    assert html == page(real_page(episodes))
