"""YAML that people write: plain values only, and whatever lies at the path, an error that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from vla_cli.errors import ConfigError, words


def parse(text: str | bytes) -> Any:
    """YAML text as plain values.

    Raises:
        ValueError: it is not YAML, or a value is not of the kind it claims (`!!bool maybe`, the date 2026-99-99).
    """
    return _parsed(yaml.safe_load, text)


def compose(text: str | bytes) -> yaml.Node | None:
    """YAML text as nodes, whose scalars are still text.

    Raises:
        ValueError: it is not YAML.
    """
    return _parsed(lambda given: yaml.compose(given, Loader=yaml.SafeLoader), text)


def _parsed(parser: Callable[[str | bytes], Any], text: str | bytes) -> Any:
    try:
        return parser(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {words(error)}") from None
    except RecursionError:
        raise ValueError("not valid YAML: it is nested too deeply") from None
    # what the parser lets out where a value cannot be built: KeyError for `!!bool maybe`, IndexError for `!!int ''`,
    # AttributeError for `!!timestamp now`, ValueError for a 13th month
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not valid YAML: a value is not what it is written as ({words(error)})") from None


def read_yaml(path: Path, expected: str = "a YAML file", *, parser: Callable[[str], Any] = parse) -> Any:
    """Read a YAML file.

    Args:
        path: of the file.
        expected: what the user should have given, for the message.
        parser: `parse` or `compose`.

    Raises:
        ConfigError: it is missing, not a file, cannot be read, or is not YAML.
    """
    if path.exists() and not path.is_file():  # a folder; or a named pipe, which would be waited for
        raise ConfigError(f"{path} is {'a folder' if path.is_dir() else 'not a file'}", expected=expected)
    try:
        return parser(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path} does not exist", expected=expected) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})", expected=expected) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: it is not UTF-8 ({words(error)})", expected=expected) from None
    except ValueError as error:
        raise ConfigError(f"{path} is {words(error)}", expected=expected) from None


def read_options(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of options.

    Raises:
        ConfigError: as `read_yaml`, or it holds something else.
    """
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds {kind(document)}", expected="a mapping of options")
    return document


def kind(document: Any) -> str:
    """What a file holds, for messages."""
    return "nothing" if document is None else f"a {type(document).__name__}"
