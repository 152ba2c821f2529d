"""What an evaluation was asked for, checked and read before any policy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_cli.adapter import TASK_ADAPTERS, PolicySpec, check_base, load_adapter_spec
from vla_cli.bundle import DIGESTS, verify_digests
from vla_cli.configs import SteerConfig
from vla_cli.dataset import Dataset
from vla_cli.errors import ConfigError
from vla_cli.files import check_output, check_resumable
from vla_cli.guidance import describe
from vla_cli.language.alternatives import Alternative, document
from vla_cli.policies.checkpoint import locate_base
from vla_cli.policies.device import pick_device
from vla_cli.provenance import describe_input
from vla_cli.report import BASE, TRAINED, Condition
from vla_cli.router import ADAPTERS
from vla_cli.stages.steer.guiding import guidance_of
from vla_cli.stages.steer.recordings import other_instructions, recorded_episodes
from vla_cli.suites.closed_loop import asked_conditions, check_fits
from vla_cli.worlds import WORLDS
from vla_cli.worlds.contract import same_words

STAGE = "eval-steer"
NO_WORLD = "none"


@dataclass(frozen=True)
class Prepared:
    """What is known before a policy is loaded: all that a dry run can refuse.

    Attributes:
        specs: name of each adapted policy to its spec.
        base: the base that all adapt.
        world: to act in; None for the open-loop report.
        conditions: that will be measured in it.
        dataset: recorded episodes for the open-loop report; None with a world.
        alternatives: what else could be asked in the scenes of that dataset.
        request: what determines the report.
        warnings: what is known already that a reader of the report must know.
    """

    specs: dict[str, PolicySpec]
    base: str
    world: Any
    conditions: list[str]
    dataset: Dataset | None
    alternatives: list[Alternative]
    request: dict[str, Any]
    warnings: list[str]


def prepare(config: SteerConfig) -> Prepared:
    """Check the options, and read all that they name but weights."""
    check_output(config.out, overwrite=config.overwrite, resume=config.resume, inputs=config.inputs())
    pick_device(config.device)
    specs = _specs(config)
    guidance_of(config, specs)
    base = config.base or _common_base(config, specs)
    digest_of_base = locate_base(base).reference.digest
    for spec in specs.values():
        check_base(spec, digest_of_base, base)
    world = _world(config, specs)
    if world is None:
        _check_single(config, specs)
    if world is not None:
        for name, spec in specs.items():
            check_fits(name, spec, world)
    conditions = _conditions(config, world)
    alternatives = other_instructions(config) if world is None else []
    request = {
        **config.request(),
        "alternatives": document(alternatives),
        "adapters": [describe_input(path) for path in config.adapters],
        "base": digest_of_base,
        "dataset": describe_input(config.dataset) if config.dataset else None,
    }
    for key in ("threads", "workers", "fail_under"):
        request.pop(key)
    check_resumable(config.out, request, resume=config.resume)
    dataset = recorded_episodes(config, specs) if world is None else None
    warnings = _mismatches(specs, _asked(config, world, conditions)) if world is not None else []
    return Prepared(specs, base, world, conditions, dataset, alternatives, request, warnings)


def _check_single(config: SteerConfig, specs: Mapping[str, PolicySpec]) -> None:
    """Refuse bundles of several adapters where no world is acted in.

    Raises:
        ConfigError: there is one.
    """
    for path, spec in zip(config.adapters, specs.values(), strict=True):
        if spec.family == TASK_ADAPTERS:
            raise ConfigError(
                f"{path} holds several adapters, and the open-loop report compares one policy's answers to many words",
                expected="a single adapter, or a world to act in",
                hint=f"vla eval-steer with one of the folders in {path / ADAPTERS}, or with --world",
            )


def _conditions(config: SteerConfig, world: Any) -> list[str]:
    """The conditions that will be measured; none without a world.

    Raises:
        ConfigError: there is no such condition, or none that `fail_under` could judge.
    """
    if world is None and config.conditions:
        raise ConfigError("--condition has no meaning for the open-loop report", hint="without it, or with --world")
    asked = asked_conditions(world, config.conditions) if world is not None else {}
    measured = [condition for condition, why_not in asked.items() if why_not is None]
    if config.fail_under is not None and not any(Condition(c).novel for c in measured):
        raise ConfigError(
            "--fail-under judges success on novel instructions, and none would be measured",
            expected="novel conditions, in a world",
            hint="without --fail-under, or with --condition novel-concept",
        )
    return measured


def _specs(config: SteerConfig) -> dict[str, PolicySpec]:
    """Policy name to spec, in the order given; two of one recipe are told apart by their directories."""
    if not config.adapters:
        raise ConfigError("No adapter is given", hint="vla eval-steer ADAPTER --out REPORT")
    found = [(path, load_adapter_spec(path)) for path in config.adapters]
    for bundle in [path for path in config.adapters if (path / DIGESTS).is_file()]:
        verify_digests(bundle)
    recipes = [spec.recipe for _, spec in found]
    names = [spec.recipe if recipes.count(spec.recipe) == 1 else path.name for path, spec in found]
    if len(set(names)) != len(names) or BASE in names:
        raise ConfigError(f"The adapters cannot be told apart by name: {', '.join(names)}", hint="rename a directory")
    if any(spec.world != found[0][1].world for _, spec in found):
        raise ConfigError(
            f"The adapters {', '.join(names)} were trained on different scenes or tasks",
            expected="adapters of one task: 'trained' and 'novel' mean something else for each",
            hint="vla eval-steer for each adapter by itself",
        )
    return dict(zip(names, [spec for _, spec in found], strict=True))


def _common_base(config: SteerConfig, specs: dict[str, PolicySpec]) -> str:
    """The base all adapters name, where it can be found again."""
    named = {spec.base.name for spec in specs.values() if spec.base}
    if len(named) != 1:
        raise ConfigError(f"The adapters name {len(named)} bases ({', '.join(sorted(named))})", hint="--base BASE")
    name = named.pop()
    if Path(name).is_dir() or not Path(name).is_absolute():
        return name
    raise ConfigError(f"The adapter's base '{name}' is not here", hint="--base with its directory or hub id")


def _world(config: SteerConfig, specs: dict[str, PolicySpec]) -> Any:
    """The world asked for, or the demonstrations' own; None when there is none."""
    if config.world == NO_WORLD:
        return None
    recorded = next(iter(specs.values())).world or {}
    name, _, variant = (config.world or str(recorded.get("env_name", ""))).partition(":")
    if config.world is None and name not in WORLDS:
        return None
    return WORLDS.get(name)(variant, recorded if recorded.get("env_name") == name else None, trained_on(specs))


def trained_on(specs: dict[str, PolicySpec]) -> list[str]:
    """Every instruction that some policy was trained on."""
    return list(dict.fromkeys(text for spec in specs.values() for text in spec.instructions))


def _asked(config: SteerConfig, world: Any, conditions: Sequence[str]) -> dict[str, list[str]]:
    """Condition to the instructions that will be asked under it."""
    cases = {condition: world.cases(condition, config.episodes, config.seed) for condition in conditions}
    return {condition: list(dict.fromkeys(case.instruction for case in found)) for condition, found in cases.items()}


def _mismatches(specs: dict[str, PolicySpec], conditions: Mapping[str, Sequence[str]]) -> list[str]:
    """Where what a world calls trained or novel is not so for the policies.

    Args:
        specs: of the adapted policies.
        conditions: condition to the instructions that are asked under it.
    """
    found = []
    for name, spec in specs.items():
        trained = {same_words(text) for text in spec.instructions}
        for condition, asked in conditions.items():
            known = [text for text in asked if same_words(text) in trained]
            strange = [text for text in asked if text not in known]
            if condition == TRAINED and strange:
                shown = f"'{spec.instructions[0]}'" if spec.instructions else "no instruction"
                found.append(
                    f"{name}: the condition {condition} asks '{strange[0]}', which was not demonstrated to it ({shown} "
                    "was): its figures are of another task, or of other words for it."
                )
            elif Condition(condition).novel and known:
                found.append(f"{name}: the condition {condition} asks '{known[0]}', which was demonstrated to it.")
    return found


def described_guidance(config: SteerConfig, specs: dict[str, PolicySpec], world: Any) -> dict[str, Any]:
    """Policy name to kind and weight of its guidance, as JSON values; without a world all are prompted plainly."""
    found = guidance_of(config, specs) if world is not None else {}
    return {name: describe(found.get(name)) for name in (BASE, *specs)}
