"""The Pareto plot: a whole SVG in which every point stands where its costs say, and the chosen one is told apart."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from vla_cli.pareto import CHOSEN, Point, pareto_svg

POINTS = [Point("0", 0.0, 1.2), Point("0.5", 0.1, 0.4, chosen=True), Point("1 < 2 & 3", 0.4, 0.2)]


def draw(points: list[Point]) -> str:
    return pareto_svg(points, title="alpha <auto>", x_name="steer", y_name="fit")


def test_it_is_well_formed_and_shows_every_point() -> None:
    root = ElementTree.fromstring(draw(POINTS))
    names = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"0", "0.5", "1 < 2 & 3", "alpha <auto>", "steer", "fit"} <= set(names)
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert [c.get("fill") == CHOSEN for c in circles] == [False, True, False]


def test_lower_costs_lie_further_left_and_further_down() -> None:
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', draw(POINTS))]
    assert places[0][0] < places[1][0] < places[2][0]
    assert places[0][1] < places[1][1] < places[2][1]


def test_points_that_agree_in_a_cost_can_be_drawn() -> None:
    assert "nan" not in draw([Point("a", 1.0, 2.0), Point("b", 1.0, 3.0)])
