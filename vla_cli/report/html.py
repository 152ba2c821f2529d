"""A report as one self-contained page: no script, no font, no link, nothing fetched; the same input, the same bytes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

import numpy as np
from PIL import Image

from vla_cli.intervals import percent
from vla_cli.report import Condition, Film, Paired, Report, Row
from vla_cli.report.style import PAGE_CSS
from vla_cli.report.svg import PERCENT_AXIS, STYLES, Axis, Band, Mark, dot_plot, error_axis, plot_css
from vla_cli.report.verdict import OPEN_LOOP, RULE, Verdict, answers_to_words, open_loop_comparisons, verdicts

FRAME_GAP = 2
"""White pixels between the frames of a strip."""
LARGEST_FRAME = 128
"""Frames are shrunk to this edge, in pixels: a page of films should stay small enough to mail."""

_NAMES = {"action_error": "action error"}
_SIGNS = {"steerable": "✓", "deaf": "✕", "partly deaf": "✕", "not steerable": "✕", "not learnt": "✕"}
_TONES = {"steerable": "good", "deaf": "bad", "partly deaf": "bad", "not steerable": "bad", "not learnt": "bad"}

_HOW_TO_READ = (
    "A dot is the share of episodes; its whisker is the 95% interval (Wilson). Whether two policies differ is not told "
    "by whiskers that overlap, but by the episodes in which only one of them succeeded: see below, two at a time.",
    "<b>Success</b>: the task that was asked for was done. <b>Grounding</b>: the gripper went first to the object that "
    "was named, and, where a place was named, what it grasped ended nearest to that place, whether or not it then "
    "succeeded. <b>Locked</b>: it did the <i>trained</i> behaviour although something else was asked: it went first to "
    "the trained object, or, where only another place was asked for, what it grasped ended nearest to the trained one.",
    "A policy that listens is high everywhere in success and low everywhere in locked. With the empty and the nonsense "
    "instruction nothing sensible is asked: what is done there is habit. Doing nothing must score about 0, or the "
    "measurement itself is wrong.",
)


def render_html(report: Report, films: Sequence[Film] = ()) -> str:
    """The whole page.

    Args:
        report: what was measured.
        films: a few episodes as pictures; shown by condition, in the order of the report.

    Returns:
        HTML text, deterministic, with everything that a user supplied escaped.
    """
    closed = report.kind == "closed-loop"
    title = "Does it still do what it is told?" if closed else "How close are its actions to the recorded ones?"
    body = [
        f'<header><p class="kicker">vla-cli · {"steerability" if closed else "open-loop"} report</p>',
        f"<h1>{title}</h1></header>",
        _verdicts(report) if closed else _indicator(report),
        _list_section("Warnings", report.warnings, "warnings"),
        _plots(report) if closed else _error_plot(report),
        _list_section("Notes", report.notes, "notes"),
        _table(report),
        _comparisons(report),
        _films(report, films),
        _settings(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{PAGE_CSS}{plot_css()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>{content}</section>"


def _list_section(heading: str, sentences: Sequence[str], style: str) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="{style}"><h2>{heading}</h2><ul>{items}</ul></section>'


def _style(report: Report, policy: str) -> int:
    return report.policy_names.index(policy) if policy in report.policy_names else 0


def _name(report: Report, policy: str) -> str:
    return f'<b class="p{_style(report, policy) % STYLES}">{escape(policy)}</b>'


# ---- what to make of it


def _verdicts(report: Report) -> str:
    cards = "".join(_card(report, verdict) for verdict in verdicts(report))
    rule = f'<details><summary>What these words mean</summary><p class="prose">{escape(RULE)}</p></details>'
    return f'<section class="verdicts">{cards}{rule if cards else ""}</section>'


def _card(report: Report, verdict: Verdict) -> str:
    sign, tone = _SIGNS.get(verdict.label, "?"), _TONES.get(verdict.label, "open")
    return (
        f'<div class="card {tone}"><p class="label"><span aria-hidden="true">{sign}</span> '
        f"{_name(report, verdict.policy)}: {escape(verdict.label)}</p>"
        f"<p>{escape(_sentence(verdict.sentence))}</p></div>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _indicator(report: Report) -> str:
    said = [*answers_to_words(report), *open_loop_comparisons(report)]
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    intro = f"<b>This is no measurement of steerability.</b> {escape(OPEN_LOOP)}"
    return f'<section><p class="prose">{intro}</p>{f"<ul>{sentences}</ul>" if sentences else ""}</section>'


# ---- plots


def _plots(report: Report) -> str:
    success = _figure(report, "success", PERCENT_AXIS, lambda row: percent(row.value), 650, "Success by condition")
    novel = [condition for condition in report.conditions if condition.novel]
    locked = _figure(
        report, "locked", PERCENT_AXIS, lambda row: percent(row.value), 430, "Did the trained behaviour instead", novel
    )
    paragraphs = "".join(f"<p>{paragraph}</p>" for paragraph in _HOW_TO_READ)
    reading = f'<div class="reading"><h2>How to read this</h2>{paragraphs}</div>'
    return f'<section class="figures">{success}<div class="beside">{locked}{reading}</div></section>'


def _error_plot(report: Report) -> str:
    errors = [row for row in report.rows if row.metric == "action_error"]
    axis = error_axis(max((row.high for row in errors), default=1.0))
    figures = _figure(
        report, "action_error", axis, lambda row: f"{row.value:.3g}", 650, "Action error, lower is better"
    )
    answers = _figure(report, "kept", KEPT_AXIS, lambda row: f"{row.value:.2f}", 430, "Answers to other words")
    answers += _figure(report, "agreement", PERCENT_AXIS, lambda row: percent(row.value), 430, "The base's way")
    if answers:
        figures = f'{figures}<div class="beside">{answers}</div>'
    return f'<section class="figures">{figures}</section>'


KEPT_AXIS = Axis((-0.5, 0.0, 0.5, 1.0, 1.5), ("-0.5", "0", "0.5", "1", "1.5"))
_CAPTIONS = {
    "success": "How often the task that was asked for was done. Higher is better.",
    "locked": "How often the policy did what it was trained on although something else was asked. Lower is better.",
    "action_error": "Distance to the recorded actions. Lower is better.",
    "kept": "How far other words move the predicted actions as they move the base's: 1 as far, 0 not at all.",
    "agreement": "How often the prediction under other words is nearer to the base's under the same words than to the "
    "base's under the demonstrated ones. Higher is better.",
}


def _figure(
    report: Report,
    metric: str,
    axis: Axis,
    write: Callable[[Row], str],
    width: int,
    title: str,
    conditions: Sequence[Condition] | None = None,
) -> str:
    """A plot of one metric in two widths, of which the style shows the one that fits; empty where nothing is."""
    bands = _bands(report, metric, write, report.conditions if conditions is None else conditions)
    if not bands:
        return ""
    described = "; ".join(f"{b.heading}: " + ", ".join(f"{m.policy} {m.text}" for m in b.marks) for b in bands)
    drawings = "".join(
        f'<div class="{name}">'
        + dot_plot(bands, axis, width=pixels, key=f"{metric}-{name}", title=title, description=described)
        + "</div>"
        for name, pixels in (("wide", width), ("narrow", 360))
    )
    caption = f"<figcaption><h2>{title}</h2><p>{_CAPTIONS[metric]}</p></figcaption>"
    return f'<figure style="max-width:{width}px">{caption}{drawings}</figure>'


def _bands(report: Report, metric: str, write: Callable[[Row], str], conditions: Sequence[Condition]) -> list[Band]:
    bands = []
    for condition in conditions:
        found = [report.find(policy, condition.name, metric) for policy in report.policy_names]
        marks = tuple(
            Mark(row.policy, _style(report, row.policy), row.value, row.low, row.high, write(row))
            for row in found
            if row
        )
        if marks:
            bands.append(Band(condition.name, marks, _kind_of(condition) if report.kind == "closed-loop" else ""))
    return bands


def _kind_of(condition: Condition) -> str:
    if condition.novel:
        return "not demonstrated"
    if condition.control:
        return "controls: habit, not obedience"
    return "old abilities" if condition.name == "base-domain" else "demonstrated"


# ---- figures


def _table(report: Report) -> str:
    metrics = report.metrics
    heads = "".join(f'<th scope="col">{escape(_NAMES.get(metric, metric))}</th>' for metric in metrics)
    groups = "".join(_table_group(report, condition, metrics) for condition in report.conditions)
    return _section(
        "All figures",
        f'<div class="scroll"><table><thead><tr><th scope="col">policy</th>{heads}<th scope="col">n</th></tr></thead>'
        f"{groups}</table></div>",
    )


def _table_group(report: Report, condition: Condition, metrics: Sequence[str]) -> str:
    lines = []
    for policy in report.policy_names:
        found = [report.find(policy, condition.name, metric) for metric in metrics]
        if any(found):
            counts = dict.fromkeys(row.n for row in found if row)
            lines.append(
                f'<tr><th scope="row">{_name(report, policy)}</th>{"".join(map(_cell, found))}'
                f'<td class="n">{" / ".join(map(str, counts))}</td></tr>'
            )
    if not lines:
        return ""
    examples = " ".join(f"<q>{escape(example)}</q>" for example in condition.examples if example)
    heading = f'<b>{escape(condition.name)}</b> <span class="asked">{escape(condition.asked)} {examples}</span>'
    return (
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="{len(metrics) + 2}">{heading}</th></tr>'
        f"{''.join(lines)}</tbody>"
    )


def _cell(row: Row | None) -> str:
    return '<td class="none">-</td>' if row is None else f"<td>{_with_interval(row.text)}</td>"


def _with_interval(text: str) -> str:
    value, _, interval = text.partition(" ")
    return f'<b>{escape(value)}</b> <span class="interval">{escape(interval)}</span>'


def _comparisons(report: Report) -> str:
    """Policies two at a time; empty where nothing was compared."""
    if not report.comparisons:
        return ""
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("policy", "beside", "effect", "p", "", "n"))
    groups = "".join(
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="6"><b>{escape(condition)}</b></th></tr>'
        f"{''.join(_pair(report, pair) for pair in report.comparisons if pair.condition == condition)}</tbody>"
        for condition in dict.fromkeys(pair.condition for pair in report.comparisons)
    )
    intro = (
        "The same scenes and noise for both. Success: the difference in points, by an exact McNemar test. Action "
        "error: the one's divided by the other's, by Student's t on logarithms. Intervals are 95%; p is corrected for "
        f"the {len(report.comparisons)} comparison(s) of this page (Holm)."
    )
    table = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>{groups}</table></div>'
    return _section("Two at a time", f'<p class="prose">{intro}</p>{table}')


def _pair(report: Report, pair: Paired) -> str:
    p = "&lt; 0.0001" if pair.corrected < 1e-4 else f"{pair.corrected:.4f}"
    return (
        f'<tr><th scope="row">{_name(report, pair.policy)}</th><td>{_name(report, pair.other)}</td>'
        f"<td>{_with_interval(pair.text)}</td><td>{p}</td><td>{_word(pair)}</td>"
        f'<td class="n">{pair.n}</td></tr>'
    )


def _word(pair: Paired) -> str:
    if not pair.resolved:
        return "not resolved"
    neutral, lower_is_better = (1.0, True) if pair.metric == "action_error" else (0.0, False)
    return "better" if (pair.effect < neutral) == lower_is_better else "worse"


# ---- films


def _films(report: Report, films: Sequence[Film]) -> str:
    if not films:
        return ""
    place = {condition.name: i for i, condition in enumerate(report.conditions)}
    ordered = sorted(
        films, key=lambda f: (place.get(f.condition, len(place)), f.condition, f.episode, _style(report, f.policy))
    )
    parts = []
    for condition, of_condition in groupby(ordered, key=lambda film: film.condition):
        parts.append(f"<h3>{escape(condition)}</h3>")
        for _, of_scene in groupby(of_condition, key=lambda film: (film.episode, film.instruction)):
            scene = list(of_scene)
            asked = escape(scene[0].instruction) or '<span class="asked">(nothing)</span>'
            strips = "".join(_film(report, film) for film in scene)
            parts.append(f'<p class="order">Asked: <q>{asked}</q></p><div class="films">{strips}</div>')
    intro = '<p class="prose">The same scene for every policy, time from left to right.</p>'
    return _section("What it looked like", intro + "".join(parts))


def _film(report: Report, film: Film) -> str:
    sign, tone, word = ("✓", "good", "succeeded") if film.success else ("✕", "bad", "failed")
    alt = f"{film.policy}, {len(film.frames)} pictures: {film.did}"
    return (
        f'<figure class="film"><img alt="{escape(alt)}" src="{strip_uri(film.frames)}">'
        f'<figcaption><span class="mark {tone}" role="img" aria-label="{word}">{sign}</span> '
        f"{_name(report, film.policy)} {escape(film.did)}</figcaption></figure>"
    )


def strip_uri(frames: np.ndarray) -> str:
    """Frames [K, H, W, 3] uint8 side by side as a PNG data URI.

    Colours are reduced to 256: sensor noise does not compress. An octree keeps the colour of a small object, which a
    median cut gives away to the background (a red block turns purple, and colour is what instructions name).
    """
    strip = Image.fromarray(_strip(np.stack([_shrink(frame) for frame in frames])))
    packed = io.BytesIO()
    palette = strip.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette.save(packed, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def _strip(frames: np.ndarray) -> np.ndarray:
    count, height, width, _ = frames.shape
    strip = np.full((height, count * (width + FRAME_GAP) - FRAME_GAP, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        left = i * (width + FRAME_GAP)
        strip[:, left : left + width] = frame
    return strip


def _shrink(frame: np.ndarray) -> np.ndarray:
    largest = max(frame.shape[:2])
    if largest <= LARGEST_FRAME:
        return frame
    height, width = (max(1, round(edge * LARGEST_FRAME / largest)) for edge in frame.shape[:2])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))


# ---- settings


def _settings(report: Report) -> str:
    listed = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{_plain(value)}</dd></div>" for key, value in report.settings.items()
    )
    policies = "".join(_policy(report, policy) for policy in report.policies)
    return _section("Settings", f'<dl class="settings">{listed}{policies}</dl>')


def _policy(report: Report, policy: dict[str, object]) -> str:
    name = str(policy["name"])
    facts = ", ".join(
        f"{escape(str(key))} {_plain(value)}" for key, value in policy.items() if key != "name" and value is not None
    )
    return f"<div><dt>policy {_name(report, name)}</dt><dd>{facts or '-'}</dd></div>"


def _plain(value: object) -> str:
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
