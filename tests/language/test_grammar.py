"""Instructions are understood: the tabletop's, those of real sets, and things that nobody listed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cli.language.grammar import Parsed, parse, same_task
from vla_cli.worlds.tabletop.scene import COLOURS, PLATES, SHAPES, Task

TASKS = [
    task
    for colour in COLOURS
    for shape in SHAPES
    for task in (*(Task("put", colour, shape, plate) for plate in PLATES), Task("pick", colour, shape))
]


def understood(text: str) -> Parsed:
    parsed = parse(text)
    assert parsed is not None, text
    return parsed


def test_every_phrasing_of_the_tabletop_names_its_object_and_place() -> None:
    for task in TASKS:
        for text in task.phrasings:
            parsed = understood(text)
            assert (parsed.verb, parsed.object, parsed.attributes) == (task.verb, task.shape, (task.colour,)), text
            assert parsed.place == (f"{task.plate} plate" if task.plate else ""), text
            assert parsed.then is None and not parsed.source and parsed.object_phrase == f"{task.colour} {task.shape}"


def test_phrasings_of_one_tabletop_task_are_the_same_task_and_no_others() -> None:
    firsts = [understood(task.phrasings[0]) for task in TASKS]
    for i, task in enumerate(TASKS):
        for text in task.phrasings:
            parsed = understood(text)
            assert [j for j, other in enumerate(firsts) if same_task(parsed, other)] == [i], text


# text, verb, attributes, object, preposition, place, source, tool
EXAMPLES = [
    # BridgeData V2's sample (shared/data)
    ("put cup from counter or rack into sink", "put", (), "cup", "in", "sink", "from counter or rack", ""),
    ("flip pot upright which is in sink", "flip", (), "pot upright which is in sink", "", "", "", ""),
    ("turn lever vertical to front", "turn", (), "lever vertical", "to", "front", "", ""),
    ("put carrot on plate", "put", (), "carrot", "on", "plate", "", ""),
    # GR00T's sample
    ("pick the pear from the rack and place it in the plate", "put", (), "pear", "in", "plate", "from the rack", ""),
    # a lab's own things
    ("put the flange in bin B", "put", (), "flange", "in", "bin B", "", ""),
    ("Crimp the hose with the pliers.", "crimp", (), "hose", "", "", "", "with the pliers"),
    # the kinds of tasks
    ("open the middle drawer of the cabinet", "open", ("middle",), "drawer of the cabinet", "", "", "", ""),
    ("shut the microwave", "close", (), "microwave", "", "", "", ""),
    ("turn the stove off", "turn off", (), "stove", "", "", "", ""),
    ("turn the knob clockwise", "turn", (), "knob", "", "clockwise", "", ""),
    ("push the plate to the front of the stove", "push", (), "plate", "in front of", "stove", "", ""),
    ("move the cup forward", "put", (), "cup", "", "forward", "", ""),
    ("stack the red block on top of the blue block", "stack", ("red",), "block", "on top of", "blue block", "", ""),
    ("pour the water from the cup into the bowl", "pour", (), "water", "in", "bowl", "from the cup", ""),
    ("Could you please fold the towel in half?", "fold", (), "towel", "in", "half", "", ""),
    ("wipe the table with the sponge", "wipe", (), "table", "", "", "", "with the sponge"),
    # attributes, and places that are part of the object
    ("lift the large, grey mug", "pick", ("large", "grey"), "mug", "", "", "", ""),
    ("put the yellow and white mug on the shelf", "put", ("yellow and white",), "mug", "on", "shelf", "", ""),
    ("put the black bowl at the back on the plate", "put", ("black",), "bowl at the back", "on", "plate", "", ""),
    ("pick up the nut on the left and put it under the shelf", "put", (), "nut on the left", "under", "shelf", "", ""),
    ("take the cup on the left", "pick", (), "cup on the left", "", "", "", ""),
    ("put both the soup and the sauce in the basket", "put", (), "both the soup and the sauce", "in", "basket", "", ""),
    ("place_the_nut_in_the_tray", "put", (), "nut", "in", "tray", "", ""),
]  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example[0])
def test_an_instruction_falls_into_its_parts(example: tuple) -> None:
    text, *wanted = example
    p = understood(text)
    assert [p.verb, p.attributes, p.object, p.preposition, p.place, p.source, p.tool] == wanted
    assert p.text == text


def test_clauses_form_a_chain() -> None:
    chain = understood("Open the top drawer, then pick up the cup and place it in the drawer. Close it.")
    assert [(c.verb, c.object, c.place) for c in chain.clauses()] == [
        ("open", "drawer", ""),
        ("put", "cup", "drawer"),
        ("close", "it", ""),
    ]
    assert understood("open the drawer and close it").meaning != understood("open the drawer").meaning


@pytest.mark.parametrize(
    "text",
    ["", "  ", "valid", "DEBUG", "blocks", "red block", "the red block on the plate", "put the red block",
     "put on the plate", "把红色方块放到盘子里", "put " + "very " * 80 + "long thing on the plate",
     "and and and", "the the"],
)  # fmt: skip
def test_what_says_nothing_to_do_is_not_understood(text: str) -> None:
    assert parse(text) is None


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("put the red in bin B, and . on pick up it _\tÄ"), max_size=80)
    | st.text(max_size=60)
)
def test_no_text_makes_it_fail(text: str) -> None:
    parsed = parse(text)
    assert parsed is None or (parsed.object and parsed.meaning == understood(text).meaning)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("put the cup on the tray", "PLACE  cup ON tray.", True),
        ("move the cup to the tray", "put the cup on the tray", True),
        ("pick the cup from the shelf and put it on the tray", "put the cup on the tray", True),
        ("lift the gray cup", "grab the grey cup", True),
        ("put the cup on the tray", "put the cup under the tray", False),
        ("put the cup on the tray", "put the cup on the left tray", False),
        ("pick up the red cup", "pick up the cup", False),
        ("open the drawer", "close the drawer", False),
    ],
)
def test_same_task(one: str, other: str, same: bool) -> None:
    assert same_task(understood(one), understood(other)) is same
    assert same_task(understood(other), understood(one)) is same


@pytest.mark.parametrize(
    "text",
    [
        "put the cup not on the plate but on the table",
        "Don't pick up the red block",
        "put all the blocks in the box except the red one",
        "pick up the cup without spilling",
        "use the towel to wipe the counter",
        "push the button to open the drawer",
    ],
)
def test_what_would_be_misunderstood_is_not_understood(text: str) -> None:
    """A negation taken for a part of a thing, and a purpose taken for a place, were said again as something else."""
    assert parse(text) is None


def test_a_state_may_be_spelt_as_a_verb() -> None:
    for text in ("move the cup to open shelf", "move the cup to the open shelf"):
        parsed = parse(text)
        assert parsed is not None and (parsed.preposition, parsed.place) == ("to", "open shelf")


def test_a_clause_of_an_unknown_verb_is_no_part_of_a_thing() -> None:
    parsed = parse("Pick up the pen and trace a line on the paper")
    assert parsed is not None and parsed.object == "pen" and parsed.then is not None
    assert (parsed.then.verb, parsed.then.object, parsed.then.known) == ("trace", "line", False)
    both = parse("put the soup and the sauce in the basket")
    assert both is not None and both.object == "soup and the sauce" and both.then is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("put the cup on the plate", "put the cup on the plate carefully", True),
        ("put the pan on the stove", "put the pan back on the stove", True),
        ("fold the towel", "fold the towel in half", True),
        ("push the block left", "push the block right", False),
        ("put the cup on the left", "put the cup on the back", False),
    ],
)
def test_how_it_is_done_and_a_place_that_one_leaves_out_make_no_other_task(one: str, other: str, same: bool) -> None:
    a, b = parse(one), parse(other)
    assert a is not None and b is not None and same_task(a, b) == same_task(b, a) == same


def test_who_is_given_it_is_no_part_of_the_thing() -> None:
    parsed = parse("Give me the red cup")
    assert parsed is not None and (parsed.object, parsed.attributes) == ("cup", ("red",))


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("pick up the pen and write hello", [("pick", "pen", ""), ("write", "hello", "")]),
        ("carefully pick up the cup", [("pick", "cup", "")]),
        ("Slowly and very carefully, put the cup on the tray", [("put", "cup", "tray")]),
        ("open the drawer, gently pick up the cup", [("open", "drawer", ""), ("pick", "cup", "")]),
        ("pick up the cup and carefully place it on the tray", [("put", "cup", "tray")]),
        ("gently crimp the hose", [("crimp", "hose", "")]),
        ("set the table lamp on the desk", [("put", "table lamp", "desk")]),
    ],
)
def test_a_verb_without_an_article_and_how_it_is_done_are_no_part_of_a_thing(text: str, clauses: list) -> None:
    parsed = understood(text)
    assert [(c.verb, c.object, c.place) for c in parsed.clauses()] == clauses
    bare = text.replace(" very", "")
    for word in ("Slowly and ", "carefully, ", "carefully ", "gently "):
        bare = bare.replace(word, "")
    assert understood(bare).meaning == parsed.meaning


@pytest.mark.parametrize("text", ["set the table", "Set the table for two.", "take a picture of the cup", "take turns"])
def test_an_idiom_is_not_taken_by_its_words(text: str) -> None:
    assert parse(text) is None and parse(f"{text.rstrip('.')} and pick up the cup") is None
