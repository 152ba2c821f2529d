"""The command line: five subcommands and `inspect`, each from options to one stage config.

Only typer and the standard library are imported here; a stage and its heavy imports come with its command.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_cli import __version__, console
from vla_cli.configs import ExportConfig, FinetuneConfig, IngestConfig, InspectConfig, PreprocessConfig, SteerConfig
from vla_cli.errors import ConfigError, Interrupted

HELP = """Adapt a vision-language-action policy to your robot from a few demonstrations, and keep it steerable.

collect-ingest -> preprocess -> finetune -> eval-steer -> export-adapter
"""

app = typer.Typer(
    help=HELP, invoke_without_command=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None
)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Output directory.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random in this stage.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan; write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of these options; flags win.")]
Threads = Annotated[int, typer.Option(help="torch threads; 0: one for a small model, else torch's choice.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
_WAYS = "full, frozen, lora, lora:RANK, bottleneck or bottleneck:WIDTH [recipe's]."
Strict = Annotated[bool, typer.Option("--strict", help="A skipped episode is an error (exit 1).")]


def _run(context: typer.Context, module: str, kind: type[Any], **also: Any) -> None:
    """Run a stage with the options that were named on the command line, and with `also`."""
    options = dict(context.params)
    as_json, config_file = options.pop("json_"), options.pop("config_file")
    named = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if _was_named(context, name)
    } | also
    console.run_stage(
        lambda: import_module(f"vla_cli.stages.{module}"), kind, named, config_file=config_file, as_json=as_json
    )


def _was_named(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vla {__version__}")
        raise typer.Exit


@app.callback()
def top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Without a subcommand: the help page."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("collect-ingest")
def collect_ingest(
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(help="The robot's log (a file or a directory), or a world: tabletop:V.")
    ] = None,
    out: Out = None,
    format: Annotated[
        str,
        typer.Option(
            help="auto, robomimic, libero, aloha, lerobot, droid, rlds, zarr (UMI, diffusion_policy), rosbag, "
            "frames-csv."
        ),
    ] = IngestConfig.format,
    instruction: Annotated[
        str | None, typer.Option(help="Instruction of every episode; wins over the log's own.")
    ] = None,
    operator: Annotated[str | None, typer.Option(help="Who demonstrated; wins over the log's own.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="State what the log does not: KEY=VALUE or STREAM.KEY=VALUE (repeat)."),
    ] = None,
    topics: Annotated[Path | None, typer.Option(help="YAML that maps topics or columns to streams.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="An episode in quarantine is an error (exit 1).")] = False,
    workers: Annotated[int, typer.Option(help="Processes that convert; 0: by the log's size.")] = IngestConfig.workers,
    follow: Annotated[bool, typer.Option("--follow", help="Watch the source and ingest what is finished.")] = False,
    settle: Annotated[
        float, typer.Option(help="Seconds since the last write until a file counts as finished.")
    ] = IngestConfig.settle,
    stop_after_idle: Annotated[
        float | None, typer.Option(help="Seconds without news after which --follow ends [never].")
    ] = None,
    expert: Annotated[bool, typer.Option("--expert", help="Record a world's scripted expert.")] = False,
    keyboard: Annotated[bool, typer.Option("--keyboard", help="Record a world from the keyboard.")] = False,
    episodes: Annotated[int | None, typer.Option(help="How many to record from a world [10].")] = None,
    seed: Seed = 0,
    json_: Json = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    config_file: ConfigFile = None,
) -> None:
    """Turn a robot's log, as it is, into episodes (one HDF5 file each); or record new ones in a world."""
    _run(context, "ingest", IngestConfig)


@app.command()
def preprocess(
    context: typer.Context,
    episodes: Annotated[
        Path | None, typer.Argument(help="A directory written by collect-ingest; with --compare, a dataset.")
    ] = None,
    out: Out = None,
    rate: Annotated[float | None, typer.Option(help="Control rate in Hz [default: the action stream's own].")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of episodes held out.")] = PreprocessConfig.val_fraction,
    action_dims: Annotated[str | None, typer.Option(help="Action dimensions to keep, e.g. 0-6,22-28.")] = None,
    state_dims: Annotated[str | None, typer.Option(help="State dimensions to keep, e.g. 0-6.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Make images squares of this many pixels.")] = None,
    cameras: Annotated[
        list[str] | None, typer.Option("--camera", help="A camera to keep, in the policy's order (repeat) [all].")
    ] = None,
    keep_idle: Annotated[bool, typer.Option("--keep-idle", help="Keep idle heads and tails.")] = False,
    latency: Annotated[
        list[str] | None,
        typer.Option(help="STREAM=SECONDS by which its time stamps are late (repeat), or auto for the cameras."),
    ] = None,
    actions: Annotated[
        str, typer.Option(help="as-recorded, absolute, delta or next-state.")
    ] = PreprocessConfig.actions,
    gripper: Annotated[
        str, typer.Option(help="as-recorded, or normalise: low when open, high when closed.")
    ] = PreprocessConfig.gripper,
    fix: Annotated[str, typer.Option(help="Mend what these checks found, e.g. idle,chatter,spikes.")] = "",
    exclude: Annotated[str, typer.Option(help="Leave out episodes with findings of these checks.")] = "",
    split: Annotated[str, typer.Option(help="fraction, operator or operator:NAME.")] = PreprocessConfig.split,
    base: Annotated[str | None, typer.Option(help="Base policy to compare the data's ranges with.")] = None,
    stats_from: Annotated[
        str | None, typer.Option(help="base, or a statistics file (ours, openpi's, OpenVLA's) to keep [the data's].")
    ] = None,
    phrasings: Annotated[Path | None, typer.Option(help="YAML of words the grammar does not know.")] = None,
    paraphrases: Annotated[int, typer.Option(help="Other wordings an episode is given.")] = 0,
    features: Annotated[
        bool, typer.Option("--features", help="Fingerprint cameras by the vision tower of --base as well.")
    ] = False,
    compare: Annotated[
        Path | None, typer.Option(help="Pictures of the deployment: have camera or light moved? Writes nothing.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A skipped episode or an error among the findings exits 1.")
    ] = False,
    seed: Seed = 0,
    json_: Json = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    config_file: ConfigFile = None,
) -> None:
    """Put episodes on one clock, judge them, split, and compute statistics: one robomimic-compatible dataset."""
    known = {"episodes": out or PreprocessConfig.out} if compare is not None and episodes is None else {}
    _run(context, "preprocess", PreprocessConfig, **known)


@app.command()
def finetune(
    context: typer.Context,
    dataset: Annotated[Path | None, typer.Argument(help="A directory written by preprocess.")] = None,
    base: Annotated[str | None, typer.Option(help="Base policy: a directory or a hub id.")] = None,
    tokenizer: Annotated[str, typer.Option(help="Tokenizer directory or hub id, when the base carries none.")] = "",
    out: Out = None,
    recipe: Annotated[
        str,
        typer.Option(help="steerable, calibrate, delock, retain, rehearse, lora, naive, or a YAML file like those."),
    ] = FinetuneConfig.recipe,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps [recipe's].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows a step, replay included [recipe's].")] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Windows of a batch computed at once, the others after them (gradient accumulation): less memory; "
            "0: all [recipe's]."
        ),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate [recipe's].")] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            help="End where the held-out loss has not fallen for so many steps, and keep the best step's weights; "
            "0: train to the end [recipe's]."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="nf4: hold the base in 4 bits while LoRA trains (QLoRA; extra: quantized); none [recipe's]."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank (alpha follows), bottleneck width [recipe's].")] = None,
    rank_energy: Annotated[
        float | None,
        typer.Option(
            help="Each layer's rank: the smallest, up to --rank, that holds so large a share of the task's gradient; "
            "0: all have --rank [recipe's]."
        ),
    ] = None,
    vision: Annotated[str | None, typer.Option(help=_WAYS)] = None,
    language: Annotated[str | None, typer.Option(help=_WAYS)] = None,
    action: Annotated[str | None, typer.Option(help=_WAYS)] = None,
    calibrate: Annotated[
        bool | None,
        typer.Option("--calibrate/--no-calibrate", help="Bring the deployment to the base first [recipe's]."),
    ] = None,
    deployment_only: Annotated[
        bool,
        typer.Option(
            "--deployment-only",
            help="Keep the calibration on whatever the light: the policy will not meet the base's own domain.",
        ),
    ] = False,
    alternatives: Annotated[
        Path | None, typer.Option(help="YAML list of what else could be asked in the demonstrated scenes.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Base-domain episodes or dataset, to calibrate against and rehearse.")
    ] = None,
    replay_fraction: Annotated[
        float | None, typer.Option(help="Share of each batch that is replay [recipe's].")
    ] = None,
    noise_draws: Annotated[int | None, typer.Option(help="Flow noise draws a window [recipe's].")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = FinetuneConfig.checkpoint_every,
    threads: Threads = 0,
    device: Device = "auto",
    seed: Seed = 0,
    json_: Json = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    config_file: ConfigFile = None,
) -> None:
    """Fine-tune a base policy on a dataset; the result is an adapter."""
    _run(context, "finetune", FinetuneConfig)


@app.command("eval-steer")
def eval_steer(
    context: typer.Context,
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(help="Directories written by finetune, or bundles of them; the base is added."),
    ] = None,
    out: Out = None,
    base: Annotated[str | None, typer.Option(help="Base policy [the one the adapter names].")] = None,
    world: Annotated[
        str | None, typer.Option(help="tabletop, tabletop:V, ..., or none [the demonstrations' own].")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Dataset for the open-loop report, without a world.")] = None,
    alternatives: Annotated[
        Path | None,
        typer.Option(help="YAML list of what else could be asked, for the open-loop report [as in training]."),
    ] = None,
    episodes: Annotated[int, typer.Option(help="Episodes a condition.")] = SteerConfig.episodes,
    conditions: Annotated[
        list[str] | None, typer.Option("--condition", help="A condition to run (repeat) [all].")
    ] = None,
    guidance: Annotated[
        str, typer.Option(help="none, contrast, null, orthogonal, both, or default: the adapter's own.")
    ] = SteerConfig.guidance,
    guidance_weight: Annotated[
        float | None, typer.Option(help="How strong; 1 is plain prompting (orthogonal: 0) [the adapter's own].")
    ] = None,
    rollouts: Annotated[int, typer.Option(help="Episodes a condition shown as pictures.")] = SteerConfig.rollouts,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit 1 when success on novel instructions is below this share.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Runs at once; 0: every core for a small model, else one.")] = 0,
    threads: Threads = 0,
    device: Device = "auto",
    seed: Seed = 0,
    json_: Json = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    config_file: ConfigFile = None,
) -> None:
    """Measure whether adapted policies still follow instructions, beside their base, with intervals and controls."""
    _run(context, "steer", SteerConfig)


@app.command("export-adapter")
def export_adapter(
    context: typer.Context,
    adapter: Annotated[Path | None, typer.Argument(help="A directory written by finetune.")] = None,
    out: Out = None,
    base: Annotated[str | None, typer.Option(help="Base policy [the one the adapter names].")] = None,
    report: Annotated[Path | None, typer.Option(help="A report on this adapter, to travel with it.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the merged model in the base's layout.")] = False,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Another adapter of the same base, each for its own task; again for more.")
    ] = None,
    elsewhere: Annotated[
        str | None, typer.Option(help="Instructions that are for no adapter: base or refuse [base with --beside].")
    ] = None,
    seed: Seed = 0,
    json_: Json = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    config_file: ConfigFile = None,
) -> None:
    """Bundle an adapter for the robot, reload it, and compare its actions."""
    _run(context, "export", ExportConfig)


@app.command()
def inspect(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(help="An artefact, a robot's log, or an HDF5, JSON, YAML or zarr file or folder.")
    ] = None,
    episodes: Annotated[int, typer.Option(help="How many episodes to read in detail.")] = InspectConfig.episodes,
    frames: Annotated[Path | None, typer.Option(help="Write a contact sheet of their pictures (PNG).")] = None,
    format: Annotated[str, typer.Option(help="A log's format, as for collect-ingest.")] = InspectConfig.format,
    topics: Annotated[Path | None, typer.Option(help="YAML that maps topics or columns to streams.")] = None,
    json_: Json = False,
    overwrite: Overwrite = False,
    config_file: ConfigFile = None,
) -> None:
    """Show what an artefact, a log or a file holds; nothing is changed."""
    _run(context, "inspect", InspectConfig)


def usage_problem(error: typer.TyperException) -> str:
    """What typer found wrong with the command line, in one sentence."""
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message else error)


def main() -> None:
    """Entry point: run, translate errors into one paragraph and an exit code."""
    console.prepare_process()
    try:
        code = app(standalone_mode=False)
        if code == Interrupted.exit_code:
            # typer swallows Ctrl-C and returns its code
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(console.fail(KeyboardInterrupt(), as_json="--json" in sys.argv))
    except typer.TyperException as error:
        sys.exit(console.fail(ConfigError(usage_problem(error), hint="--help"), as_json="--json" in sys.argv))
    except Exception as error:
        sys.exit(console.fail(error, as_json="--json" in sys.argv))


if __name__ == "__main__":
    main()
