"""What stands for a world where there is none: recorded episodes, and what else could be asked in their scenes."""

from __future__ import annotations

from collections.abc import Iterable

from vla_cli.adapter import PolicySpec
from vla_cli.configs import SteerConfig
from vla_cli.dataset import Dataset, load_dataset
from vla_cli.errors import ConfigError, InputError
from vla_cli.files import read_json
from vla_cli.language.alternatives import FILE_NAME as ALTERNATIVES
from vla_cli.language.alternatives import Alternative, alternatives_of, load_alternatives
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.stages.steer.guiding import guided_policies


def recorded_episodes(config: SteerConfig, specs: dict[str, PolicySpec]) -> Dataset:
    """The recorded episodes of the open-loop report, which must be of the robot that the adapters were trained for.

    The base is not asked: it is fed the way its adapters are, whatever it calls cameras and dimensions itself.

    Raises:
        ConfigError: there is none, or guidance was asked for.
        InputError: it cannot be read, or is of another robot.
    """
    if config.dataset is None:
        raise ConfigError(
            f"There is no world to act in ({'--world none' if config.world else 'the demonstrations name none'}) and "
            "no dataset to compare with",
            expected="one of them",
            hint="--dataset DATASET for the open-loop report, or --world tabletop:V",
        )
    if guided_policies(config, specs) and (config.guidance != "default" or config.guidance_weight is not None):
        raise ConfigError("Guidance has no meaning for the open-loop report", hint="--guidance none")
    dataset = load_dataset(config.dataset)
    for name, spec in specs.items():
        if _robot(spec) != _robot(dataset):
            raise InputError(
                f"{config.dataset} is not of the robot policy '{name}' was trained for: {_told(dataset)}",
                expected=_told(spec),
                hint="the dataset it was fine-tuned on",
            )
    return dataset


def other_instructions(config: SteerConfig) -> list[Alternative]:
    """What else could be asked in the dataset's scenes.

    The file that was given; else what the adapters were fine-tuned with; else what preprocess proposed.

    Raises:
        ConfigError: the file cannot be used, or what an adapter's record holds.
        InputError: an adapter's record is damaged.
    """
    if config.alternatives is not None:
        return load_alternatives(config.alternatives)
    trained: list[Alternative] = []
    for record in [path / RUN_FILE for path in config.adapters if (path / RUN_FILE).is_file()]:
        if told := read_json(record).get("request", {}).get("alternatives"):
            trained += alternatives_of(told, record)
    if trained:
        return list(dict.fromkeys(trained))
    proposed = config.dataset / ALTERNATIVES if config.dataset is not None else None
    return load_alternatives(proposed) if proposed is not None and proposed.is_file() else []


def _robot(of: PolicySpec | Dataset) -> tuple[list[str], list[str], list[str], float]:
    """What must agree for a policy to be fed with recordings."""
    return of.state_names, of.action_names, of.cameras, round(of.rate_hz, 3)


def _told(of: PolicySpec | Dataset) -> str:
    """The same, in words."""
    named = {"state": of.state_names, "actions": of.action_names}
    parts = [
        f"{what} {', '.join(names[:3])}{', ...' * (len(names) > 3)} ({len(names)})" for what, names in named.items()
    ]
    return f"{', '.join(parts)}, cameras {', '.join(of.cameras)}, {of.rate_hz:g} Hz"


def perhaps_trained_on(config: SteerConfig, names: Iterable[str], measured: str) -> list[str]:
    """Sentences about policies to which the dataset's held-out episodes may be known: they were trained on another one.

    Args:
        config: of the run.
        names: of its adapters, in their order.
        measured: digest of the dataset that they are evaluated on.
    """
    found = []
    for name, path in zip(names, config.adapters, strict=True):
        record = path / RUN_FILE
        dataset = read_json(record).get("request", {}).get("dataset") if record.is_file() else None
        if not isinstance(dataset, dict) or "digest" not in dataset:
            found.append(f"{name}: it does not say what it was trained on: perhaps on the very episodes measured here.")
        elif dataset["digest"] != measured:
            found.append(
                f"{name}: it was trained on another dataset than {config.dataset}, or on the same preprocessed "
                "otherwise: perhaps on the very episodes that are held out here."
            )
    return found
