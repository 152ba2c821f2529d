"""The lexicon: what ships can be read, a user's YAML adds to it, and every fault is named by line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_cli.errors import ConfigError
from vla_cli.language.grammar import parse
from vla_cli.language.lexicon import DIRECTION, load_lexicon
from vla_cli.language.phrasing import paraphrases


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_every_verb_that_ships_can_be_said_in_three_ways_and_understands_each_of_its_forms() -> None:
    lexicon = load_lexicon()
    for verb in lexicon.verbs.values():
        said = [form for form in verb.forms if form.said]
        assert len(said) >= 3, verb.name
        relation = (verb.places or ("on",))[0] if verb.place == "required" else ""
        place = " ".join((*lexicon.relations[relation][0], "the tray")) if relation else ""
        for form in verb.forms:
            spot = " ".join((*lexicon.relations["to"][0], "the tray")) if form.only == ("to",) and place else place
            text = " ".join([*form.before, "the grommet", *form.after, spot]).strip()
            parsed = parse(text)
            assert parsed is not None and (parsed.verb, parsed.object) == (verb.name, "grommet"), text


def test_all_relations_that_forms_name_exist() -> None:
    lexicon = load_lexicon()
    named = {r for verb in lexicon.verbs.values() for form in verb.forms for r in (*form.only, *form.never)}
    assert named <= {*lexicon.relations, DIRECTION}


def test_a_users_words_add_to_the_built_in_ones(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "verbs:\n"
        "  crimp: {kind: hoses, place: optional, forms: ['crimp {object}', 'squeeze {object}', 'clamp {object}']}\n"
        "  put: {also: ['stow {object}']}\n"
        "prepositions:\n  on: {also: [aboard]}\n  astride: [astride]\n"
        "attributes: {make: [[galvanised, galvanized]]}\n"
        "placeholders: [kein text]\n",
    )
    lexicon = load_lexicon(path)
    assert parse("clamp hose", lexicon).verb == "crimp" and parse("clamp hose") is None  # type: ignore[union-attr]
    stowed = parse("stow the galvanized nut aboard the cart", lexicon)
    assert stowed is not None
    assert (stowed.verb, stowed.attributes, stowed.object) == ("put", ("galvanised",), "nut")
    assert (stowed.preposition, stowed.place) == ("on", "cart")
    assert set(paraphrases("crimp hose", 2, lexicon=lexicon)) == {"squeeze hose", "clamp hose"}
    assert parse("put the cup on the tray", lexicon) == parse("put the cup on the tray")
    assert "kein text" in lexicon.placeholders


def test_words_that_yaml_takes_for_truth_stay_words(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "prepositions: {off: [off to]}\nverbs: {yes: {forms: [yes {object}]}}\n".replace("[yes {o", "['yes {o").replace(
            "t}]", "t}']"
        ),
    )
    lexicon = load_lexicon(path)
    assert "off" in lexicon.relations and "yes" in lexicon.verbs


def test_all_faults_are_named_at_once_by_line_and_key(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "verb: {}\n"
        "verbs:\n"
        "  crimp:\n"
        "    forms: [crimp]\n"
        "    place: sometimes\n"
        "    shape: round\n"
        "  bend: {also: ['bend {object}']}\n"
        "  twirl: {forms: [{say: 'twirl {object}', only: [besides]}]}\n"
        "articles: the\n"
        "carriers: {say: [please]}\n"
        "prepositions: {within reach of: {also: [near]}}\n",
    )
    with pytest.raises(ConfigError) as refused:
        load_lexicon(path)
    text = str(refused.value)
    for part in (
        *(
            "mine.yaml",
            "line 1: verb is not known",
            "line 4: verbs.crimp.forms",
            "line 5: verbs.crimp.place is 'sometimes'",
        ),
        *("line 6: verbs.crimp.shape", "line 7: verbs.bend has no forms", "line 8: verbs.twirl", "'besides'"),
        *("line 9: articles", "line 10: carriers.say", "line 11: prepositions.within reach of"),
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- put",
        "verbs: [",
        "verbs: {a: {forms: ['x {object}']}, a: {forms: ['y {object}']}}",
        "&a {verbs: *a}",
        "\0",
    ],
)
def test_what_is_no_lexicon_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_lexicon(written(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_lexicon(tmp_path / "nowhere.yaml")
