"""The two passes over episodes that make a dataset, one episode in memory at a time.

look     every episode is examined, and all are judged beside each other
write    each is mended, put on the control clock and appended to `dataset.hdf5`; its numbers are kept, its
         pictures not
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_cli.agreement import Agreement
from vla_cli.configs import PreprocessConfig
from vla_cli.dataset import DatasetWriter, Demonstration, writing_dataset
from vla_cli.episode import Episode, Skipped, UnusableError, load_episode
from vla_cli.errors import ConfigError, InputError
from vla_cli.facts import episode_facts
from vla_cli.fingerprint import Accumulator, Fingerprint
from vla_cli.fingerprint.glimpses import Features
from vla_cli.language.lexicon import Lexicon
from vla_cli.language.phrasing import paraphrases
from vla_cli.progress import Progress
from vla_cli.provenance import RunRecord
from vla_cli.quality import EpisodeFacts, Finding, examine, judge
from vla_cli.quality.fixes import parse_fixes, repair, settled
from vla_cli.splits import hold_out_operator, parse_split, split_episodes
from vla_cli.stats import DatasetAccumulator
from vla_cli.study import EpisodeStudy
from vla_cli.synchrony.actions import gripper_ranges
from vla_cli.synchrony.latency import Estimate, estimate_latency, pool
from vla_cli.synchrony.resample import continuous
from vla_cli.synchrony.synchronise import SyncOptions, synchronise


@dataclass
class Seen:
    """What the first look at all episodes gave."""

    facts: list[EpisodeFacts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    worlds: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    streams: list[dict[str, Any]] = field(default_factory=list)
    latencies: dict[str, list[Estimate]] = field(default_factory=dict)
    grippers: dict[str, tuple[float, float]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    fingerprint: Fingerprint = field(default_factory=lambda: Fingerprint({}))


@dataclass
class Written:
    """What the second pass wrote, episode by episode."""

    episodes: list[EpisodeStudy] = field(default_factory=list)
    statistics: dict[str, DatasetAccumulator] = field(default_factory=dict)
    state_names: list[str] = field(default_factory=list)
    action_names: list[str] = field(default_factory=list)
    mended: list[Finding] = field(default_factory=list)


def parse_latencies(config: PreprocessConfig) -> tuple[dict[str, float], bool]:
    """The latencies given by hand, and whether the cameras' are to be estimated."""
    given: dict[str, float] = {}
    for text in config.latency:
        name, _, seconds = text.rpartition("=")
        if text == "auto":
            continue
        try:
            given[name] = float(seconds)
        except ValueError:
            name = ""
        if not name or not abs(given.get(name, 0.0)) <= 10:
            raise ConfigError(f"--latency is '{text}'", expected="STREAM=SECONDS (camera=0.05), up to 10, or auto")
    return given, "auto" in config.latency


def look(config: PreprocessConfig, agreed: Agreement, progress: Progress, features: Features | None = None) -> Seen:
    """Look at every episode once, and judge them beside each other; `features` go into the fingerprint."""
    seen, glimpses = Seen(), Accumulator(features)
    wants_latency = parse_latencies(config)[1]
    progress.start("Looking at episodes", len(agreed.rows))
    for row in agreed.rows:
        episode = agreed.in_order(load_episode(config.episodes / row["file"]))
        try:
            seen.facts.append(examine(_seen(episode, agreed.cameras)))
            for camera in agreed.cameras if wants_latency else ():
                seen.latencies.setdefault(camera, []).append(estimate_latency(episode, camera))
            agreed.warnings.extend(_glimpse(episode, agreed.cameras, glimpses))
        except (ValueError, UnusableError) as error:
            seen.unreadable[episode.name] = str(error)
        seen.worlds[episode.name] = episode.world
        seen.streams.append(episode_facts(episode))
        for key, (low, high) in gripper_ranges(episode.streams).items():
            known = seen.grippers.get(key, (low, high))
            seen.grippers[key] = min(low, known[0]), max(high, known[1])
        progress.advance()
    seen.findings = judge(seen.facts)
    seen.fingerprint = glimpses.result()
    return seen


def _glimpse(episode: Episode, cameras: Sequence[str], glimpses: Accumulator) -> Iterator[str]:
    """Add an episode's pictures to the fingerprint, as the camera gave them: so will the deployment's."""
    for stream in episode.of_role("image"):
        if stream.name in cameras:
            try:
                glimpses.add(stream.name, stream.values)
            except ValueError as error:
                yield f"{episode.name} is left out of the fingerprint: {error}."


def _seen(episode: Episode, cameras: Sequence[str]) -> Episode:
    """An episode as the checks are to see it: without what the dataset will not have either.

    Those are cameras that it leaves out, and quaternions that change sign without turning.
    """
    kept = [s for s in episode.streams if s.role != "image" or s.name in cameras]
    return _signed(replace(episode, streams=kept))


def _signed(episode: Episode) -> Episode:
    """An episode whose quaternions do not change sign: of such, a line between two neighbours is a rotation."""
    return replace(episode, streams=[s if s.role == "image" else continuous(s)[0] for s in episode.streams])


def sync_options(config: PreprocessConfig, agreed: Agreement, seen: Seen) -> SyncOptions:
    """How to synchronise; what was estimated for it is said among the agreement's warnings."""
    latency, _ = parse_latencies(config)
    for camera, estimates in seen.latencies.items():
        pooled = pool(estimates)
        if pooled.confident and camera not in latency:
            latency[camera] = pooled.seconds
            agreed.warnings.append(f"Camera '{camera}' is {1e3 * pooled.seconds:.0f} ms late: {pooled.reason}.")
        else:
            agreed.warnings.append(f"The latency of camera '{camera}' is left at 0: {pooled.reason}.")
    return SyncOptions(
        rate=agreed.rate,
        cameras=agreed.cameras,
        image_size=config.image_size,
        state_dims=config.state_dims,
        action_dims=config.action_dims,
        keep_idle=config.keep_idle,
        latency=latency,
        actions=config.actions,
        gripper=config.gripper,
        gripper_ranges=seen.grippers,
    )


def write(
    config: PreprocessConfig,
    agreed: Agreement,
    seen: Seen,
    record: RunRecord,
    partial: Path,
    lexicon: Lexicon,
    progress: Progress,
) -> Written:
    """Mend, synchronise and write each episode, keeping its numbers."""
    options, written = sync_options(config, agreed, seen), Written()
    fixes = parse_fixes(config.fix)
    worlds = [seen.worlds[row["name"]] for row in agreed.rows]
    world = worlds[0] if all(world == worlds[0] for world in worlds) else None
    writer: DatasetWriter | None = None
    progress.start("Writing the dataset", len(agreed.rows))
    with ExitStack() as stack:
        for row in agreed.rows:
            episode = agreed.in_order(load_episode(config.episodes / row["file"]))
            try:
                judged = _signed(episode) if fixes else episode
                mended, counts = repair(judged, seen.findings, fixes) if fixes else (episode, {})
                result = synchronise(mended, options)
            except UnusableError as error:
                result, counts = Skipped(episode.name, str(error)), {}
            progress.advance()
            if isinstance(result, Skipped):
                record.skip(result.name, result.reason)
                continue
            if writer is None:
                facts = {"rate_hz": agreed.rate, "cameras": list(agreed.cameras), "world": world}
                facts["squared"] = config.image_size
                facts |= {"state_names": result.state_names, "action_names": result.action_names}
                writer = stack.enter_context(writing_dataset(partial, **facts))
                written.state_names, written.action_names = result.state_names, result.action_names
            written.episodes.append(EpisodeStudy.of(result, episode.notes, counts))
            written.mended += settled(judged, seen.findings, counts)
            demonstration = _phrased(result.demonstration, config, lexicon)
            writer.add(demonstration)
            written.statistics[episode.name] = _counted(demonstration)
        if writer is None:
            raise nothing_left(config, [Skipped(**skipped) for skipped in record.skipped])
        train, valid = split(config, written, seen)
        writer.split(train=train, valid=valid)
    return written


def _phrased(demonstration: Demonstration, config: PreprocessConfig, lexicon: Lexicon) -> Demonstration:
    """A demonstration with other wordings of its instructions beside them, as many as asked for."""
    told = list(demonstration.instructions)
    for text in demonstration.instructions if config.paraphrases else []:
        told += [t for t in paraphrases(text, config.paraphrases, seed=config.seed, lexicon=lexicon) if t not in told]
    return Demonstration(**{**vars(demonstration), "instructions": told})


def _counted(demonstration: Demonstration) -> DatasetAccumulator:
    counts = DatasetAccumulator()
    counts.add(demonstration.state, demonstration.actions, {c: [video] for c, video in demonstration.images.items()})
    return counts


def split(config: PreprocessConfig, written: Written, seen: Seen) -> tuple[list[str], list[str]]:
    """Train and valid, near-duplicates on one side."""
    kinds = {e.name: (e.operator, e.instructions[0] if e.instructions else "") for e in written.episodes}
    groups = [{f.episode, *f.also} & set(kinds) for f in seen.findings if f.check == "duplicates"]
    how, operator = parse_split(config.split)
    if how == "operator":
        return hold_out_operator(kinds, config.seed, operator, groups)
    return split_episodes(kinds, config.val_fraction, config.seed, groups)


def nothing_left(config: PreprocessConfig, skipped: Sequence[Skipped]) -> InputError:
    """The error to raise when every episode was left out."""
    reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
    return InputError(
        f"{config.episodes} has no usable episode{f' ({len(skipped)} skipped: {reasons})' if skipped else ''}",
        expected="at least one",
        hint="vla collect-ingest SOURCE --out episodes/, and its run.json for what was skipped there",
    )
