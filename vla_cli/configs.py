"""One configuration a stage: what the command line, a `--config` YAML and a Python caller fill in alike.

Standard library only, so that `vla --help` can show the defaults without loading anything heavy. The names are those
of the command-line options (`--val-fraction` is `val_fraction`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vla_cli.errors import ConfigError
from vla_cli.limits import beyond, from_0, from_1, limited

RECIPE_FILES = (".yaml", ".yml")
"""How `--recipe` ends where it names a file."""


class _Limited:
    """A config whose numbers are checked when it is made, whoever makes it.

    Raises:
        ConfigError: options beyond their limits; all at once.
    """

    def __post_init__(self) -> None:
        found = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, not {text}" for name, text in beyond(self).items()
        ]
        if found:
            raise ConfigError("; ".join(found), hint="--help")


@dataclass(frozen=True, kw_only=True)
class StageConfig(_Limited):
    """What every stage takes.

    Attributes:
        out: the output directory.
        overwrite: replace an output that exists.
        resume: go on with an interrupted one.
        dry_run: only say what would be done.
        seed: the seed of everything random in the stage.
    """

    out: Path
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    seed: int = from_0(0)

    @property
    def replaced(self) -> Path | None:
        """The directory that the stage's result takes the place of; None where it writes nothing."""
        return self.out

    def request(self) -> dict[str, Any]:
        """What determines the result, as JSON values: every option but those that say where and how to write."""
        how = {"out", "overwrite", "resume", "dry_run"}
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in how}

    def inputs(self) -> list[Path]:
        """What the stage reads: every path that is named but `out`, and what is there of those that a text names."""
        values = [getattr(self, f.name) for f in fields(self) if f.name != "out"]
        flat = (item for value in values for item in (value if isinstance(value, tuple) else (value,)))
        return [*(item for item in flat if isinstance(item, Path)), *self._named_by_texts()]

    def _named_by_texts(self) -> list[Path]:
        """Options that name a path or something else: a hub id, a recipe that ships, a file with a data set."""
        base, tokenizer, recipe = (getattr(self, name, None) or "" for name in ("base", "tokenizer", "recipe"))
        texts = [base, tokenizer, recipe if recipe.endswith(RECIPE_FILES) else ""]
        return [Path(text) for text in texts if text and Path(text).exists()]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class IngestConfig(StageConfig):
    """`vla collect-ingest`: a robot log becomes episodes.

    Attributes:
        source: the log: a file or a directory.
        format: the reader's name, or "auto" to recognise it by content.
        instruction: the instruction of every episode whose log names none (given: it wins over the log's).
        operator: who demonstrated (given: it wins over the log's).
        settings: conventions that the log does not state, "KEY=VALUE" or "STREAM.KEY=VALUE" (see `conventions`).
        topics: a YAML that maps topics or columns to streams.
        strict: an episode in quarantine is an error.
        workers: processes that convert; 0 chooses by the size of the log.
        follow: go on watching the source for new recordings.
        settle: seconds without a write after which an unreadable file is damaged rather than half written.
        stop_after_idle: seconds without anything new after which `follow` ends; None for never.
        expert: record the world's scripted expert.
        keyboard: record from the keyboard.
        episodes: how many to record from a world; None for 10.
    """

    source: Path
    format: str = "auto"
    instruction: str | None = None
    operator: str | None = None
    settings: tuple[str, ...] = ()
    topics: Path | None = None
    strict: bool = False
    workers: int = from_0(0)
    follow: bool = False
    settle: float = from_0(5.0)
    stop_after_idle: float | None = from_0(None)
    expert: bool = False
    keyboard: bool = False
    episodes: int | None = from_1(None)

    def request(self) -> dict[str, Any]:
        """What determines each episode: not how many there are by now, nor how they are converted."""
        how = ("strict", "workers", "follow", "settle", "stop_after_idle", "episodes")
        return {key: value for key, value in super().request().items() if key not in how}


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(StageConfig):
    """`vla preprocess`: episodes become one synchronised dataset.

    Attributes:
        episodes: a directory written by collect-ingest; with `compare`, the dataset to compare with.
        rate: control rate in Hz; None keeps the rate of the action stream.
        val_fraction: share of episodes held out.
        action_dims: which action dimensions to keep ("0-6,22-28"), or None for all.
        state_dims: which state dimensions to keep, or None for all.
        image_size: images become squares of this many pixels (centre-padded), or None to leave them.
        cameras: camera names to keep, in the policy's order; empty keeps all.
        keep_idle: keep idle heads and tails.
        latency: "STREAM=SECONDS" by which a stream's (or "camera"'s, "state"'s, "action"'s) time stamps are late, or
            "auto" to estimate the cameras' from motion.
        actions: as-recorded, absolute, delta or next-state.
        gripper: as-recorded, or normalise: low when open, high when closed.
        fix: checks whose findings are mended, comma-separated.
        exclude: checks whose findings leave an episode out, comma-separated.
        split: "fraction" holds out `val_fraction`; "operator" or "operator:NAME" all episodes of one operator.
        base: a base policy with whose statistics the data are compared before anything is trained.
        stats_from: "base", or a file of statistics (ours, openpi's or OpenVLA's) to keep instead of the data's own.
        phrasings: YAML of words that the built-in grammar does not know.
        paraphrases: other wordings of its instruction that each episode is given beside the original.
        features: the fingerprint also holds features of the base's frozen vision tower; `compare` then needs them too.
        compare: pictures of the deployment; says whether camera or light have moved since, and writes nothing.
        strict: a skipped episode or an error among the findings is an error.
    """

    out: Path = Path("dataset")
    episodes: Path
    rate: float | None = limited(None, "above 0 and up to 1000 Hz", lambda rate: 0 < rate <= 1000)
    val_fraction: float = limited(0.1, "a share from 0 to below 1", lambda share: 0 <= share < 1)
    action_dims: str | None = None
    state_dims: str | None = None
    image_size: int | None = limited(None, "from 8 to 4096 pixels", lambda edge: 8 <= edge <= 4096)
    cameras: tuple[str, ...] = ()
    keep_idle: bool = False
    latency: tuple[str, ...] = ()
    actions: str = "as-recorded"
    gripper: str = "as-recorded"
    fix: str = ""
    exclude: str = ""
    split: str = "fraction"
    base: str | None = None
    stats_from: str | None = None
    phrasings: Path | None = None
    paraphrases: int = limited(0, "from 0 to 100", lambda count: 0 <= count <= 100)
    features: bool = False
    compare: Path | None = None
    strict: bool = False

    @property
    def replaced(self) -> Path | None:
        """See `StageConfig`; a comparison writes nothing."""
        return self.out if self.compare is None else None


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(StageConfig):
    """`vla finetune`: a dataset and a base policy become an adapter.

    `None` means: what the recipe says.

    Attributes:
        dataset: a directory written by preprocess.
        base: the base policy: a directory, or a hub id such as lerobot/pi0_base.
        tokenizer: tokenizer directory or hub id, when the base carries none.
        recipe: a name from `vla_cli/recipes/`, or a YAML file of the same keys.
        steps: optimiser steps.
        batch_size: windows a step, replay included.
        micro_batch: how many of them are computed at once (gradient accumulation); it divides `batch_size`; 0 for all.
        learning_rate: peak learning rate.
        early_stopping: steps without a lower held-out loss after which training ends; 0 for never.
        quantize: "nf4" holds the base's linear layers in 4 bits while LoRA trains (QLoRA), "none" does not.
        rank: LoRA rank, or the width of bottlenecks.
        rank_energy: share of the task gradient's energy that each layer's rank is to hold, up to `rank`; 0: all `rank`.
        vision, language, action: how one modality is adapted: full, frozen, lora, lora:RANK, bottleneck or
            bottleneck:WIDTH.
        calibrate: fit explicit transforms to the base's own domain first; see vla_cli/calibration.
        deployment_only: the policy will never meet the base's own domain: calibration and trained weights act on
            every picture, whatever its colours.
        alternatives: YAML list of what else could be asked in the demonstrated scenes; see
            vla_cli/language/alternatives.py.
        replay: base-domain episodes or dataset: for calibration without the base's domain.json, and for methods that
            rehearse it or measure on it.
        replay_fraction: share of each batch drawn from the replay.
        noise_draws: flow-matching noise draws a window; they share one prefix pass.
        checkpoint_every: steps between checkpoints.
        threads: torch threads; 0 means one for a small model, else torch's own choice.
        device: "cpu", "cuda", or "auto".
    """

    dataset: Path
    base: str
    tokenizer: str = ""
    recipe: str = "steerable"
    steps: int | None = None
    batch_size: int | None = None
    micro_batch: int | None = None
    learning_rate: float | None = None
    early_stopping: int | None = None
    quantize: str | None = None
    rank: int | None = None
    rank_energy: float | None = None
    vision: str | None = None
    language: str | None = None
    action: str | None = None
    calibrate: bool | None = None
    deployment_only: bool = False
    alternatives: Path | None = None
    replay: Path | None = None
    replay_fraction: float | None = None
    noise_draws: int | None = None
    checkpoint_every: int = from_1(100)
    threads: int = from_0(0)
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class SteerConfig(StageConfig):
    """`vla eval-steer`: an adapter becomes a steerability report.

    Attributes:
        adapters: directories written by finetune, or bundles; each becomes a policy in the report, beside the base.
        base: the base policy; None takes the one the adapter names.
        world: "tabletop", "tabletop:V", ...; None takes the demonstrations' own, "none" forces the open-loop report.
        dataset: a dataset for the open-loop report when there is no world (or world is "none").
        alternatives: YAML list of what else could be asked in the dataset's scenes, for the open-loop report; None
            takes those of the adapters' training, else the dataset's own; see vla_cli/language/alternatives.py.
        episodes: episodes a condition.
        conditions: which conditions; empty for all.
        guidance: "default" for what each adapter's policy.json says, "none" for plain prompting, or a kind: contrast,
            null, orthogonal, both; see vla_cli/guidance. The base is never guided.
        guidance_weight: w (1 is plain prompting), or gamma of orthogonal (0 is plain); None takes the adapter's own.
        rollouts: episodes a condition shown as pictures in the report.
        fail_under: exit 1 when the adapted policy's mean success over novel conditions is below this share.
        workers: runs (a policy under a condition) at once; 0 means every core for a small model, else one.
        threads: torch threads; 0 means one for a small model, else torch's own choice.
        device: "cpu", "cuda", or "auto".
    """

    adapters: tuple[Path, ...]
    base: str | None = None
    world: str | None = None
    dataset: Path | None = None
    alternatives: Path | None = None
    episodes: int = from_1(100)
    conditions: tuple[str, ...] = ()
    guidance: str = "default"
    guidance_weight: float | None = None
    rollouts: int = from_0(2)
    fail_under: float | None = limited(None, "a share from 0 to 1, such as 0.8", lambda share: 0 <= share <= 1)
    workers: int = from_0(0)
    threads: int = from_0(0)
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class ExportConfig(StageConfig):
    """`vla export-adapter`: an adapter becomes a bundle for the robot.

    Attributes:
        adapter: a directory written by finetune.
        base: the base policy; None takes the one the adapter names.
        report: a directory written by eval-steer, to travel with the bundle.
        merge: also write the merged model in the base's own layout.
        beside: more adapters of the same base: each acts on its own task alone.
        elsewhere: what is done with instructions that are for no adapter: "base" or "refuse". None is "base" beside
            other adapters; an adapter alone is asked everything then.
    """

    adapter: Path
    base: str | None = None
    report: Path | None = None
    merge: bool = False
    beside: tuple[Path, ...] = ()
    elsewhere: str | None = None


def parse_indices(text: str, size: int, option: str) -> list[int]:
    """Parse "0-6,22-28" into indices below `size`, in the order written.

    Raises:
        ConfigError: not of that form, out of range, or repeated.
    """
    chosen: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ConfigError(f"{option} has '{part}' in '{text}'", expected="whole numbers and ranges like 0-6,22-28")
        chosen.extend(range(int(low), int(high or low) + 1))
    if not chosen or len(set(chosen)) != len(chosen) or max(chosen) >= size:
        raise ConfigError(f"{option} is '{text}'", expected=f"distinct indices from 0 to {size - 1}")
    return chosen


def format_indices(indices: list[int]) -> str:
    """Inverse of `parse_indices`: [0, 1, 2, 5] becomes "0-2,5"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


@dataclass(frozen=True, kw_only=True)
class InspectConfig(_Limited):
    """`vla inspect`: what an artefact or a log holds.

    Attributes:
        path: any artefact, any robot log, or an HDF5, JSON, YAML or zarr file or folder.
        format: the reader's name for a log, or "auto" to recognise what it is by content.
        topics: a YAML file that maps topics or columns to streams (ROS bags, frames and CSV).
        episodes: how many episodes of a log, of episodes/ or of a dataset are read in detail; the rest is counted.
        frames: a PNG file for a contact sheet of their pictures.
        overwrite: replace a contact sheet that exists.
    """

    path: Path
    format: str = "auto"
    topics: Path | None = None
    episodes: int = from_0(3)
    frames: Path | None = None
    overwrite: bool = False

    @property
    def dry_run(self) -> bool:
        """Never: there is nothing to plan where nothing is made."""
        return False
