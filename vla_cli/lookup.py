"""Closed tables from a name to a module attribute, imported on demand.

A plug-in folder (`readers`, `policies`, `retention`, `suites`, `worlds`) owns one `Table`; adding a member is one
file and one line in the table. Nothing is imported before it is asked for, so start-up stays light.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vla_cli.errors import ConfigError


@dataclass(frozen=True)
class Table:
    """A closed set of named implementations.

    Args:
        noun: what a member is, for messages (for instance "log format").
        members: name to "module:attribute".
    """

    noun: str
    members: Mapping[str, str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def get(self, name: str) -> Any:
        """Import and return the member called `name`.

        Raises:
            ConfigError: there is no such member; the message lists those there are.
        """
        if name not in self.members:
            raise ConfigError(f"There is no {self.noun} '{name}'", expected=f"one of: {', '.join(self.members)}")
        module, _, attribute = self.members[name].partition(":")
        return getattr(import_module(module), attribute)
