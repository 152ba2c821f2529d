"""Alternative instructions: read as people write them, refused with all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vla_cli.errors import ConfigError
from vla_cli.language.alternatives import MOMENTS, Alternative, document, load_alternatives

SHIPPED = Path(__file__).resolve().parents[2] / "sample_data" / "alternatives.yaml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "alternatives.yaml"
    path.write_text(text)
    return path


def test_text_and_moments_are_read(tmp_path: Path) -> None:
    found = load_alternatives(
        written(
            tmp_path,
            "- pick up the ball\n"
            "- {instruction: put it on the right plate, while: holding}\n"
            "- {instruction: pick up the wedge, while: empty}\n"
            "- {instruction: wave}\n",
        )
    )
    assert found == [
        Alternative("pick up the ball", "always"),
        Alternative("put it on the right plate", "holding"),
        Alternative("pick up the wedge", "empty"),
        Alternative("wave", "always"),
    ]


@pytest.mark.parametrize("holding", [False, True])
def test_an_alternative_fits_its_half_of_an_episode(holding: bool) -> None:
    fits = {moment: Alternative("wave", moment).fits(holding) for moment in MOMENTS}
    assert fits == {"always": True, "empty": not holding, "holding": holding}


def test_what_ships_can_be_read_and_written_again(tmp_path: Path) -> None:
    found = load_alternatives(SHIPPED)
    assert len(found) > 3
    assert load_alternatives(written(tmp_path, yaml.safe_dump(document(found)))) == found


@pytest.mark.parametrize("text", ["", "[]", "instruction: wave", "wave", "- [unclosed"])
def test_what_is_no_list_of_instructions_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"alternatives\.yaml"):
        load_alternatives(written(tmp_path, text))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_alternatives(tmp_path / "nowhere.yaml")


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "- wave\n- '  '\n- {while: empty}\n- {instruction: wave, while: sleeping}\n"
        "- {instruction: wave, When: now}\n- 3\n",
    )
    with pytest.raises(ConfigError) as refused:
        load_alternatives(path)
    text = str(refused.value)
    for part in ("entry 2", "entry 3", "entry 4: while is 'sleeping'", "entry 5: unknown key 'When'", "entry 6"):
        assert part in text
    assert "entry 1" not in text and "\n" not in text
