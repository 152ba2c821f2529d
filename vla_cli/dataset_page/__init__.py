"""`dataset/report.html`: one look tells whether to train on a dataset.

    verdict    one sentence and its reasons       trajectories, speeds    how the arm moved, by operator
    counts     what there is, what was left out   timeline, lengths       when something is wrong
    findings   every one, the gravest first       preflight, conventions  what the numbers mean to the base
    words      the instruction table              pictures, fingerprint   what the cameras saw

Plain values in, one self-contained page out: nothing is fetched, everything that a log supplied is escaped, equal
documents give equal bytes. A part that is missing says why.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vla_cli.dataset_page import plots
from vla_cli.dataset_page.html import Tone, anything, definitions, listed, records, table, text
from vla_cli.dataset_page.judgement import (
    LIMIT,
    DatasetPage,
    Verdict,
    dimension,
    is_beyond,
    number,
    standing,
    verdict,
)
from vla_cli.dataset_page.tracks import as_jpeg, is_from_above
from vla_cli.report.style import PAGE_CSS
from vla_cli.report.svg import plot_css

__all__ = ["PAGE_FILE", "DatasetPage", "Verdict", "page", "verdict"]

PAGE_FILE = "report.html"
LARGEST_SHEET = 1_200_000
"""Bytes of the contact sheet beyond which it is packed smaller: the page should stay small enough to mail."""


def page(document: DatasetPage) -> str:
    """The whole page as HTML text."""
    title = "Train on this?"
    sections = [
        f'<header><p class="kicker">vla-cli · dataset report</p><h1>{title}</h1></header>',
        _verdict(verdict(document)),
        _counts(document),
        _section(document, "findings", "Findings", _findings),
        _section(document, "instructions", "Instructions", _instructions),
        '<section><h2>Motion</h2><div class="figures">',
        _figure(document, "trajectories", _trajectories_title(document), _trajectories),
        _figure(document, "speeds", "Speed by operator", _speeds),
        _figure(document, "findings", "Quality over time", _timeline),
        _figure(document, "seconds", "Episode lengths", _lengths),
        "</div></section>",
        _section(document, "operator_facts", "Operators", lambda d: anything(d.operator_facts or {})),
        _section(document, "preflight", "Normalisation preflight", _preflight),
        _section(document, "conventions", "Conventions", _conventions),
        _section(document, "contact_sheet", "What the camera saw", _sheet),
        _section(document, "fingerprint", "Fingerprint of camera and light", lambda d: anything(d.fingerprint or {})),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{PAGE_CSS}{plot_css()}{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


_CSS = """
td.words{white-space:normal;min-width:16em;overflow-wrap:anywhere}
.reasons{margin:6px 0 0;padding-left:20px}
.sheet{display:block;max-width:100%;height:auto;background:#fff}
table.full{max-width:none}
td .tone{color:var(--tone,var(--muted));font-weight:650}
.plot .line{fill:none;stroke:currentColor;stroke-width:1.5;opacity:.75;stroke-linejoin:round}
.plot .d1 .line{stroke-dasharray:7 3}.plot .d2 .line{stroke-dasharray:2 3}
.plot .spread{fill:currentColor;opacity:.16;stroke:none}
.plot .start{fill:var(--paper);stroke:currentColor;stroke-width:2}
.plot .end,.plot .bar,.plot .span,.plot .within{fill:currentColor}
.plot .tint{fill:currentColor;opacity:.2}
.plot .within{color:var(--good)}.plot .beyond{fill:var(--bad)}
.plot .limit{stroke:var(--muted);stroke-width:1;stroke-dasharray:4 3;fill:none}
.plot .name{fill:var(--ink);font-size:12px}
.legend{font-size:14px}.legend span{margin-right:14px;white-space:nowrap}
"""


# ---- verdict and counts


def _verdict(found: Verdict) -> str:
    sign = {"good": "✓", "open": "!", "bad": "✕"}[found.tone]
    items = "".join(f"<li>{text(reason)}</li>" for reason in found.reasons)
    reasons = f'<ul class="reasons">{items}</ul>' if items else ""
    mark = f'<span aria-hidden="true">{sign}</span>'
    return (
        f'<section class="verdicts"><div class="card {found.tone}"><p class="label">{mark} {text(found.sentence)}</p>'
        f"{reasons}</div></section>"
    )


def _counts(document: DatasetPage) -> str:
    people = Counter(document.operators)
    texts = "-" if document.instructions is None else len(document.instructions)
    counts: dict[str, Any] = {
        "episodes": len(document.names),
        "frames": sum(document.frames),
        "minutes": round(sum(document.seconds) / 60, 2),
        "operators": ", ".join(f"{name} ({n})" for name, n in sorted(people.items())[: plots.MOST_OPERATORS]),
        "instructions": texts,
        "rate": f"{document.rate_hz:g} Hz" if document.rate_hz else "unknown",
        **document.facts,
    }
    if len(people) > plots.MOST_OPERATORS:
        counts["operators"] = f"{len(people)}: {counts['operators']}, ..."
    lists = [
        f"<h3>{heading} ({len(rows)})</h3>" + table(("episode", "reason"), [(r["name"], r["reason"]) for r in rows])
        for heading, rows in (("Skipped", document.skipped), ("In quarantine", document.quarantine))
        if rows
    ]
    return f"<section><h2>Counts</h2>{definitions(counts)}{''.join(lists)}</section>"


# ---- tables


def _findings(document: DatasetPage) -> str:
    found = standing(document)
    if not found:
        return '<p class="prose">No check found anything.</p>'
    rows = [(Tone(f["severity"]), f["check"], _episode(f), f["message"], f.get("fix") or "-") for f in found]
    return table(("severity", "check", "episode", "words", "fix"), rows)


def _episode(finding: Mapping[str, Any]) -> str:
    """Where it was found: the episode, or the first few, with the stream."""
    several = list(finding.get("episodes") or ([finding["episode"]] if finding.get("episode") else []))
    names = ", ".join(map(str, several[:3])) + (f" and {len(several) - 3} more" if len(several) > 3 else "")
    stream = finding.get("stream")
    return (names or "all") + (f", {stream}" if stream else "")


def _instructions(document: DatasetPage) -> str:
    heads = ("instruction", "episodes", "verb", "object", "place", "paraphrases", "findings")
    rows = []
    for row in document.instructions or ():
        episodes = row.get("episodes", 0)
        rows.append(
            (
                row["instruction"] or "(none)",
                episodes if isinstance(episodes, int) else len(list(episodes)),
                row.get("verb") or "not understood",
                _joined(*(row.get("attributes") or ()), row.get("object")),
                _joined(row.get("preposition"), row.get("place")),
                listed(row.get("paraphrases")),
                listed(row.get("findings")),
            )
        )
    return table(heads, rows) if rows else '<p class="prose">No episode has an instruction.</p>'


def _joined(*words: Any) -> str:
    return " ".join(str(word) for word in words if word) or "-"


def _conventions(document: DatasetPage) -> str:
    rows = [
        (row["name"], row.get("role", "-"), listed(row.get("stated")), listed(row.get("unknown")))
        for row in document.conventions or ()
    ]
    if not rows:
        return '<p class="prose">No stream was described.</p>'
    open_points = sum(len(row.get("unknown") or ()) for row in document.conventions or ())
    note = (
        f"{open_points} conventions are stated by nobody, and were not guessed: a wrong guess shows only on the robot. "
        "To state one: vla collect-ingest ... --set STREAM.KEY=VALUE"
        if open_points
        else "Every convention is stated."
    )
    return f'<p class="prose">{text(note)}</p>{table(("stream", "role", "stated", "unknown"), rows)}'


def _preflight(document: DatasetPage) -> str:
    rows = [dict(row) for row in document.preflight or ()]
    beyond = [row for row in rows if is_beyond(row)]
    limit = f"±{LIMIT:g}"
    words = (
        f"{len(beyond)} of {len(rows)} dimensions normalise beyond {limit}: {listed([dimension(r) for r in beyond])}."
        if beyond
        else f"All {len(rows)} dimensions stay within {limit}."
    )
    drawing = plots.ranges([(dimension(r), number(r["low"]), number(r["high"]), is_beyond(r)) for r in rows])
    return f'<p class="prose">{text(words)}</p>{drawing}{records(rows)}'


# ---- figures


def _trajectories_title(document: DatasetPage) -> str:
    above = document.trajectories is None or is_from_above(document.axes)
    return "Trajectories from above" if above else f"Trajectories in {document.axes[0]} and {document.axes[1]}"


def _trajectories(document: DatasetPage) -> str:
    styles = plots.operator_styles(document.operators)
    drawn = [styles[operator] for operator in document.operators]
    labels = [f"{name}, {operator}" for name, operator in zip(document.names, document.operators, strict=True)]
    note = '<p class="legend">ring: start, square: end</p>'
    title = _trajectories_title(document)
    drawing = plots.trajectories(document.trajectories or (), labels, drawn, document.axes, title)
    return note + drawing + _people(document) + _cut(document)


def _speeds(document: DatasetPage) -> str:
    drawing = plots.speed_profiles(document.speeds or (), document.operators, document.speed_unit)
    return f'<p class="legend">mean and standard deviation over episodes</p>{drawing}{_people(document)}'


def _people(document: DatasetPage) -> str:
    styles = plots.operator_styles(document.operators)
    shown = dict(list(styles.items())[: plots.MOST_OPERATORS])
    return plots.legend(shown, len(styles) - len(shown))


def _timeline(document: DatasetPage) -> str:
    clocks = document.clocks or [(0.0, seconds) for seconds in document.seconds]
    spans = [span for finding in document.findings or () for span in _spans(document, finding, clocks)]
    drawing = plots.timeline(document.names, [last - first for first, last in clocks], spans)
    return f"{plots.legend({kind: lane for lane, kind in enumerate(plots.KINDS)})}{drawing}{_cut(document)}"


def _spans(
    document: DatasetPage, finding: Mapping[str, Any], clocks: Sequence[tuple[float, float]]
) -> Iterable[plots.Span]:
    """Where a finding lies in its episode, in seconds from the start; nothing for one without a place."""
    if finding.get("episode") not in document.names:
        return
    episode = list(document.names).index(finding["episode"])
    seconds, frames = finding.get("seconds"), finding.get("frames")
    if seconds:
        first = clocks[episode][0]
        places = [(start - first, stop - first) for start, stop in seconds]
    elif frames and document.rate_hz:
        places = [(start / document.rate_hz, (stop + 1) / document.rate_hz) for start, stop in frames]
    else:
        return
    length = clocks[episode][1] - clocks[episode][0]
    for start, stop in places:
        if stop > 0 and start <= length:  # the rest was trimmed
            yield plots.Span(episode, str(finding["check"]), start, stop, f"{finding['check']}: {finding['message']}")


def _lengths(document: DatasetPage) -> str:
    styles = plots.operator_styles(document.operators)
    drawn = [styles[operator] for operator in document.operators]
    return plots.lengths(document.names, document.seconds, drawn) + _people(document) + _cut(document)


def _cut(document: DatasetPage) -> str:
    if len(document.names) <= plots.MOST_EPISODES:
        return ""
    return f'<p class="legend">the first {plots.MOST_EPISODES} of {len(document.names)} episodes</p>'


def _sheet(document: DatasetPage) -> str:
    data = document.contact_sheet or b""
    data = as_jpeg(data, LARGEST_SHEET) if len(data) > LARGEST_SHEET else data
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    packed = base64.b64encode(data).decode("ascii")
    alt = "Contact sheet: one row an episode, evenly spaced pictures from first to last"
    return f'<img class="sheet" alt="{alt}" src="data:image/{kind};base64,{packed}">'


# ---- parts and what is missing


def _section(document: DatasetPage, part: str, heading: str, draw: Callable[[DatasetPage], str]) -> str:
    content = _absent(document, part) if getattr(document, part) is None else draw(document)
    return f"<section><h2>{heading}</h2>{content}</section>"


def _figure(document: DatasetPage, part: str, heading: str, draw: Callable[[DatasetPage], str]) -> str:
    content = _absent(document, part) if getattr(document, part) is None else draw(document)
    return f'<figure style="max-width:{plots.WIDTH}px"><h3>{text(heading)}</h3>{content}</figure>'


def _absent(document: DatasetPage, part: str) -> str:
    return f'<p class="none">Not here: {text(document.missing.get(part, "nobody has worked it out"))}</p>'
