"""The guidance under which each adapted policy is evaluated."""

from __future__ import annotations

from vla_cli.adapter import PolicySpec
from vla_cli.configs import SteerConfig
from vla_cli.guidance import Guidance, choose


def guidance_of(config: SteerConfig, specs: dict[str, PolicySpec]) -> dict[str, Guidance | None]:
    """Adapted policy to its guidance; None is plain prompting, and the base is not in it."""
    return {
        name: choose(spec.guidance, spec.instructions, kind=config.guidance, weight=config.guidance_weight)
        for name, spec in specs.items()
    }


def guided_policies(config: SteerConfig, specs: dict[str, PolicySpec]) -> list[str]:
    """The adapted policies that are not prompted plainly."""
    return [name for name, found in guidance_of(config, specs).items() if found is not None]
