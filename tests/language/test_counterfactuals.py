"""Counterfactual instructions: what ships is found again, and the demonstrated task is never among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cli.language.alternatives import document, load_alternatives
from vla_cli.language.counterfactuals import CONDITIONS, alternatives, alternatives_yaml, counterfactuals
from vla_cli.language.grammar import Parsed, parse, same_task
from vla_cli.language.phrasing import paraphrases
from vla_cli.worlds.contract import CONDITIONS as ASKED
from vla_cli.worlds.tabletop.scene import ALL_PHRASINGS

SHIPPED = Path(__file__).resolve().parents[2] / "sample_data" / "alternatives.yaml"


def understood(*texts: str) -> list[Parsed]:
    found = [parsed for text in texts if (parsed := parse(text))]
    assert len(found) == len(texts)
    return found


def test_the_conditions_are_those_of_eval_steer() -> None:
    assert {name: ASKED[name] for name in CONDITIONS} == CONDITIONS


def test_the_shipped_alternatives_are_found_from_the_things_in_the_scene() -> None:
    shown = understood("put the red block on the left plate")
    objects = ["blue ball", "the green wedge", "yellow ball"]
    found = alternatives(shown, objects, ["right plate", "on the front plate", "the back plate"])
    assert sorted(found, key=repr) == sorted(load_alternatives(SHIPPED), key=repr)


def test_conditions_and_moments() -> None:
    found = counterfactuals(understood("put the cup on the tray"), ["jar"], ["in the box"])
    assert [(c.instruction, c.condition, c.moment) for c in found] == [
        ("put the jar on the tray", "novel-concept", "empty"),
        ("put the cup in the box", "novel-spatial", "always"),
        ("put the jar in the box", "novel-both", "empty"),
    ]
    assert {c.shown for c in found} == {"put the cup on the tray"}


def test_with_several_demonstrated_objects_nothing_is_asked_of_what_is_held() -> None:
    """`always` reaches every episode: in the one that carries the jar, the cup cannot be put elsewhere."""
    found = counterfactuals(understood("put the cup on the tray", "put the jar in the box"))
    assert [(c.instruction, c.condition) for c in found] == [
        ("put the jar on the tray", "novel-concept"),
        ("put the cup in the box", "novel-concept"),
    ]
    assert {c.moment for c in counterfactuals(understood("lift the cup", "put the jar in the box"), (), ["rack"])} == {
        "empty"
    }


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(ALL_PHRASINGS), min_size=1, max_size=6), st.booleans())
def test_none_is_demonstrated_in_other_words_and_none_comes_twice(texts: list[str], more: bool) -> None:
    shown = understood(*texts)
    found = counterfactuals(shown, ["red ball", "green block"] if more else [], ["back plate"] if more else [])
    asked = understood(*(c.instruction for c in found))
    for i, one in enumerate(asked):
        assert not any(same_task(one, other) for other in [*shown, *asked[:i]]), one.text
    reworded = {p.casefold() for text in texts for p in paraphrases(text, 40)}
    assert not reworded & {c.instruction.casefold() for c in found}
    assert not more or found


def test_real_sets() -> None:
    bridge = counterfactuals(
        understood(
            "put cup from counter or drying rack into sink",
            "flip pot upright which is in sink",
            "turn lever vertical to front",
            "put carrot on plate",
        )
    )
    assert [c.instruction for c in bridge] == ["put carrot into sink", "put cup on plate"] or [
        c.instruction for c in bridge
    ] == ["put cup on plate", "put carrot into sink"]
    things = ("pear", "sweet potato", "meat", "salt", "cupcake")
    groot = understood(*(f"pick the {thing} from the counter and place it in the plate" for thing in things))
    assert counterfactuals(groot) == []
    found = counterfactuals(groot, places=["bowl"])
    assert [c.instruction for c in found] == [f"pick the {t} from the counter and place it in the bowl" for t in things]
    assert counterfactuals(groot, places=["plate", "on the plate"]) == []


@pytest.mark.parametrize(
    ("shown", "never"),
    [
        (["open the drawer", "put the cup on the tray"], ["open the cup", "put the drawer on the tray"]),
        (["push the block left", "turn the knob clockwise"], ["push the block clockwise", "turn the knob left"]),
        (["put it on the tray", "put the cup in the box"], ["put it in the box"]),
        (["put the plate on the rack", "put the cup on the plate"], ["put the plate on the plate"]),
        (["put the cup in the bin and close it", "put the jar on the rack"], ["put the cup in the bin"]),
        (["put the pan back on the rack", "put the pan in the sink"], ["put the pan on the rack"]),
        (["put the jar gently on the rack", "lift the cup"], ["lift the jar gently"]),
        (["give me the cup", "put the jar on the rack"], ["put the me the cup on the rack", "give the jar"]),
    ],
)
def test_things_are_exchanged_only_where_it_makes_sense(shown: list[str], never: list[str]) -> None:
    assert not {c.instruction for c in counterfactuals(understood(*shown))} & set(never)


def test_the_yaml_can_be_read_and_written_again(tmp_path: Path) -> None:
    found = counterfactuals(understood("Put the cup on the tray."), ["jar #3", "'quoted' nut", "Dübel"], ["no"])
    path = tmp_path / "alternatives.yaml"
    path.write_text(alternatives_yaml(found), encoding="utf-8")
    assert load_alternatives(path) == [c.alternative for c in found]
    path.write_text(yaml.safe_dump(document([c.alternative for c in found])), encoding="utf-8")
    assert load_alternatives(path) == [c.alternative for c in found]
    assert len(found) == 7 and all(c.instruction.startswith("Put the") and c.instruction.endswith(".") for c in found)


@pytest.mark.parametrize("things", ["both moka pots", "everything", "two pots", "3 pots", "all the pots"])
def test_what_takes_no_article_gets_none(things: str) -> None:
    found = {c.instruction for c in counterfactuals(understood(f"put {things} on the rack", "put the jar in the bin"))}
    assert found == {f"put {things} in the bin", "put the jar on the rack"}


def test_the_pronoun_fits_the_other_thing() -> None:
    shown = understood("take the cups and put them on the shelf", "put the scissors in the drawer")
    assert "take the scissors and put them on the shelf" in {c.instruction for c in counterfactuals(shown)}
