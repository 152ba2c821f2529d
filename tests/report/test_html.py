"""The page: self-contained, escaped, deterministic, well-formed, and complete."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from html_checker import parse
from PIL import Image
from report_samples import CONDITIONS, demo, make_report

from vla_cli.report import Condition, Film, Report, count_row, mean_row
from vla_cli.report.html import LARGEST_FRAME, render_html, strip_uri
from vla_cli.report.svg import Band, Mark, dot_plot, error_axis

ATTACK = "<script>alert('x')</script>\"&"


def film(**changes: object) -> Film:
    frames = np.random.default_rng(0).integers(0, 255, (3, 60, 60, 3), np.uint8)
    facts = {
        "policy": "naive",
        "condition": "novel-concept",
        "episode": 0,
        "instruction": "put the blue ball on the left plate",
        "did": "grasped the red block",
        "success": False,
        "frames": frames,
    }
    return Film(**{**facts, **changes})  # type: ignore[arg-type]


def open_loop() -> Report:
    rows = [
        mean_row("base", "held-out", "action_error", [0.3, 0.31, 0.29]),
        mean_row("naive", "held-out", "action_error", [0.1, 0.11, 0.12]),
    ]
    return Report("open-loop", [{"name": "base"}, {"name": "naive"}], [Condition("held-out", "Held out.")], rows)


@pytest.mark.parametrize("report", [demo(), open_loop(), make_report(adapted=(0, 0, 0, 0, 0))])
def test_well_formed_and_deterministic(report: Report) -> None:
    films = [film(), film(policy="base", success=True)]
    page = render_html(report, films)
    parse(page)
    assert page == render_html(report, films)


def test_an_empty_report_still_renders() -> None:
    parse(render_html(Report("closed-loop", [], [])))
    parse(render_html(Report("open-loop", [], [])))


def test_nothing_is_fetched() -> None:
    page = render_html(demo(), [film()])
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe", page)
    for tag, attributes in parse(page).elements:
        assert "href" not in attributes
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,"), tag


def test_everything_a_user_supplied_is_escaped() -> None:
    conditions = [Condition("trained", ATTACK, (ATTACK,)), Condition("novel-" + ATTACK), Condition(ATTACK)]
    report = Report(
        kind="closed-loop",
        policies=[{"name": ATTACK, "recipe": ATTACK, ATTACK: [ATTACK]}],
        conditions=conditions,
        rows=[count_row(ATTACK, c.name, metric, 98, 100) for c in conditions for metric in ("success", ATTACK)],
        settings={ATTACK: ATTACK},
        warnings=[ATTACK],
        notes=[ATTACK],
    )
    page = render_html(report, [film(policy=ATTACK, condition=ATTACK, instruction=ATTACK, did=ATTACK)])
    assert "<script" not in page
    tags = {tag for tag, _ in parse(page).elements}
    assert "script" not in tags
    assert ATTACK in "".join(parse(page).text)


def test_every_row_is_in_the_table() -> None:
    report = demo()
    page = render_html(report)
    for condition in CONDITIONS:
        group = page[page.index(f"<b>{condition}</b>") :]
        group = group[: group.index("</tbody>")]
        for row in (row for row in report.rows if row.condition == condition):
            value, interval = row.text.split(" ", 1)
            line = next(line for line in group.split("<tr") if f">{row.policy}</b>" in line)
            assert f'<b>{value.replace("<", "&lt;")}</b> <span class="interval">{interval}</span>' in line


def test_headers_have_scope_and_drawings_have_names() -> None:
    elements = parse(render_html(demo(), [film()])).elements
    assert all("scope" in attributes for tag, attributes in elements if tag == "th")
    drawings = [attributes for tag, attributes in elements if tag == "svg"]
    ids = [attributes["id"] for _, attributes in elements if attributes.get("id")]
    assert len(drawings) == 4 and len(set(ids)) == len(ids)
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")


def test_verdicts_and_their_rule_are_on_the_page() -> None:
    text = "".join(parse(render_html(demo())).text)
    assert "naive: deaf" in text and "rehearse: steerable" in text
    assert "half of the trained task" in text


def test_open_loop_says_that_it_is_an_indicator() -> None:
    text = "".join(parse(render_html(open_loop())).text)
    assert "This is no measurement of steerability." in text
    assert "deaf" not in text and "steerable" not in text


def test_films_keep_their_scene_together_and_tick_success() -> None:
    films = [film(episode=1), film(policy="rehearse", success=True), film(), film(policy="base")]
    page = render_html(demo(), films)
    order = re.findall(r'class="p\d">(\w+)</b> grasped', page)
    assert order == ["base", "naive", "rehearse", "naive"]
    assert page.count('aria-label="succeeded">✓') == 1 and page.count('aria-label="failed">✕') == 3
    assert page.count("Asked:") == 2


# ---- pictures


def _decode(uri: str) -> np.ndarray:
    raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))


def test_a_small_coloured_object_keeps_its_colour_on_a_noisy_background() -> None:
    noise = np.random.default_rng(1).normal(0, 3, (6, 60, 60, 3))
    frames = np.clip(np.array([140, 145, 120]) + noise, 0, 255).astype(np.uint8)
    frames[:, 20:26, 20:26] = (217, 31, 31)
    strip = _decode(strip_uri(frames))
    assert strip.shape == (60, 6 * 62 - 2, 3)
    assert np.abs(strip[20:26, 20:26].astype(int) - (217, 31, 31)).max() < 20


def test_large_frames_are_shrunk_in_proportion() -> None:
    strip = _decode(strip_uri(np.zeros((2, 240, 480, 3), np.uint8)))
    assert strip.shape == (LARGEST_FRAME // 2, 2 * LARGEST_FRAME + 2, 3)


# ---- plots


@pytest.mark.parametrize("largest", [0.0, 1e-6, 0.0099, 0.05, 0.31, 1.0, 2.5, 7.0, 9.99, 10.0, 12345.0])
def test_an_error_axis_reaches_and_is_round(largest: float) -> None:
    axis = error_axis(largest)
    assert axis.ticks[0] == 0 and axis.ticks[-1] >= largest * (1 - 1e-12)
    assert largest == 0 or axis.ticks[-1] <= largest * 2.5
    assert 2 <= len(axis.ticks) <= 6 and len(set(axis.labels)) == len(axis.labels)


def test_a_dot_lies_on_its_whisker_inside_the_track() -> None:
    marks = tuple(Mark(f"a-very-long-policy-name-{i}", i, 0.5, 0.25, 1.0, "50%") for i in range(9))
    drawing = dot_plot([Band("trained", marks)], error_axis(1.0), width=360, key="k", title="t", description="d")
    parse(drawing)
    track = re.search(r'class="track" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)
    assert track
    left, span = float(track[1]), float(track[2])
    circle = re.search(r'cx="([\d.]+)"', drawing)
    whisker = re.search(r'class="whisker" d="M([\d.]+) .*?H([\d.]+)', drawing)
    assert circle and whisker
    assert float(circle[1]) == pytest.approx(left + span / 2, abs=0.11)
    assert [float(x) for x in whisker.groups()] == pytest.approx([left + span / 4, left + span], abs=0.11)
