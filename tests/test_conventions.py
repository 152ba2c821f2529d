import pytest

from vla_cli.conventions import KEYS, UNKNOWN, complete, keys_of, parse_settings, stated, unknowns
from vla_cli.errors import ConfigError


def test_what_nobody_stated_is_unknown_and_what_was_stays() -> None:
    found = complete("image", {"orientation": "upright", "rate_hz": 10.0})
    assert found == {"orientation": "upright", "rate_hz": 10.0, "channels": UNKNOWN}
    assert unknowns("image", found) == ["channels"]
    assert set(keys_of("action")) - set(keys_of("state")) == {"mode"}
    assert complete("other", {"names": ["a"]}) == {"names": ["a"]}


def test_settings_reach_the_streams_they_name_and_the_later_one_wins() -> None:
    settings = parse_settings(["orientation=upright", "front.orientation=upside-down", "units=m, rad"])
    assert stated("image", "front", settings) == {"orientation": "upside-down"}
    assert stated("image", "wrist", settings) == {"orientation": "upright"}
    assert stated("state", "joints", settings) == {"units": "m, rad"}
    assert stated("other", "joints", settings) == {}
    assert parse_settings(["observation.images.top.channels=bgr"])[0][0] == "observation.images.top"


@pytest.mark.parametrize("text", ["orientation", "colour=red", "front.gripper=", "orientation=sideways", "=x", ""])
def test_settings_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_settings([text])


def test_every_key_has_a_role_and_no_value_is_the_unknown() -> None:
    for roles, values in KEYS.values():
        assert roles and UNKNOWN not in values
