"""Several adapters over one base in one bundle, each for its own task.

router.json     which instruction is for which adapter (see `vla_cli.router`)
adapters/NAME/  each adapter's own bundle, which can be used alone
policy.json     what all of them have in common
README.md, digests.json, run.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_cli import __version__
from vla_cli.adapter import ADAPTER_CONFIG, TASK_ADAPTERS, PolicySpec, save_spec
from vla_cli.adapter import FILE_NAME as SPEC_FILE
from vla_cli.bundle import CARD, DIGESTS, write_digests
from vla_cli.configs import ExportConfig
from vla_cli.errors import ConfigError, InputError
from vla_cli.files import write_text
from vla_cli.guidance import PLAIN_KIND, read_default
from vla_cli.policies import task_adapters
from vla_cli.policies.loading import load_policy
from vla_cli.progress import Progress
from vla_cli.provenance import RunRecord
from vla_cli.router import ADAPTERS, BASE, ELSEWHERE, Recognition, Router, check_apart, learn
from vla_cli.router import FILE_NAME as ROUTER_FILE
from vla_cli.stages.export.bundling import difference_to, probe, write_bundle
from vla_cli.stages.export.preparation import STAGE, Prepared, prepare

_COMMON = ("cameras", "image_size", "squared", "state_names", "action_names", "rate_hz", "chunk_size", "execute_steps")
"""What a robot does alike whichever adapter is asked."""


@dataclass(frozen=True)
class Several:
    """What is known before anything is loaded: all that a dry run can refuse.

    Attributes:
        members: adapter's name to the export of it alone, and what is known of that.
        elsewhere: what is done with instructions that are for none: "base" or "refuse".
        spec: what all have in common.
        request: what determines the bundle.
    """

    members: Mapping[str, tuple[ExportConfig, Prepared]]
    elsewhere: str
    spec: PolicySpec
    request: dict[str, Any]

    @property
    def first(self) -> tuple[ExportConfig, Prepared]:
        """The member that was named first."""
        return next(iter(self.members.values()))

    @property
    def place(self) -> str:
        """The adapter whose calibration is in force elsewhere: the first that has one."""
        calibrated = [name for name, (_, member) in self.members.items() if member.spec.calibration.get("parts")]
        return next(iter(calibrated or self.members))

    @property
    def parts(self) -> list[str]:
        """Of the bundle."""
        return [ROUTER_FILE, *(f"{ADAPTERS}/{name}" for name in self.members), SPEC_FILE]


def prepare_several(config: ExportConfig) -> Several:
    """Check the options, and read all that they name but weights.

    Raises:
        ConfigError: options that cannot be, or adapters that cannot be told apart.
        InputError: an adapter or base that cannot be used, or adapters that do not fit together.
    """
    elsewhere = config.elsewhere or BASE
    _check_options(config, elsewhere)
    names = [path.resolve().name for path in (config.adapter, *config.beside)]
    if len(set(names)) < len(names):
        raise ConfigError(f"The adapters cannot be told apart by name: {', '.join(names)}", hint="rename a directory")
    alone = [replace(config, adapter=path, beside=(), elsewhere=None) for path in (config.adapter, *config.beside)]
    members = {name: (one, prepare(one)) for name, one in zip(names, alone, strict=True)}
    _check_fit(members)
    check_apart({name: member.spec.instructions for name, (_, member) in members.items()})
    request = {
        **config.request(),
        "adapters": {name: member.request["adapter"] for name, (_, member) in members.items()},
        "base": next(iter(members.values()))[1].request["base"],
        "elsewhere": elsewhere,
    }
    for key in ("adapter", "beside", "report", "merge"):
        del request[key]
    return Several(members, elsewhere, _common_spec([member.spec for _, member in members.values()]), request)


def _check_options(config: ExportConfig, elsewhere: str) -> None:
    if elsewhere not in ELSEWHERE:
        raise ConfigError(f"--elsewhere is '{elsewhere}'", expected=f"one of {', '.join(ELSEWHERE)}")
    if config.merge:
        raise ConfigError(
            "--merge makes one model, and which adapter's weights act is decided anew for each instruction here",
            hint="vla export-adapter with one adapter, without --beside and --elsewhere",
        )
    if config.report is not None:
        raise ConfigError(
            "--report is about one adapter, and what this bundle does with an instruction depends on all of it",
            expected="a report on the bundle itself",
            hint=f"without --report, then vla eval-steer {config.out} --out REPORT",
        )


def _check_fit(members: Mapping[str, tuple[ExportConfig, Prepared]]) -> None:
    """Refuse adapters that cannot act over one model and one robot.

    Raises:
        InputError: they cannot.
    """
    first = next(iter(members))
    ours = members[first][1]
    for name, (_, member) in members.items():
        if member.spec.kind not in ("lora", "frozen"):
            raise InputError(
                f"The adapter {name} is of kind '{member.spec.kind}': its weights cannot be switched on and off over a "
                "base that others share",
                expected="adapters trained by LoRA, or calibrated only",
                hint="vla finetune --recipe lora, or the export of this adapter alone",
            )
        if member.request["base"] != ours.request["base"]:
            raise InputError(
                f"The adapters {first} and {name} were trained on different bases ({ours.request['base'][:19]}... and "
                f"{member.request['base'][:19]}...)",
                expected="one base: only one is in memory",
                hint="vla finetune again with the same --base",
            )
        for key in _COMMON:
            one, other = getattr(ours.spec, key), getattr(member.spec, key)
            if one != other:
                raise InputError(
                    f"The adapters {first} and {name} were made for different robots: {key} is {one} and {other}",
                    expected="the same cameras, dimensions and control rate",
                    hint="vla preprocess the demonstrations of both alike",
                )
    _check_layouts({name: config.adapter for name, (config, member) in members.items() if member.spec.kind == "lora"})


def _check_layouts(adapters: Mapping[str, Path]) -> None:
    """Refuse adapters of which one trains outright what another reaches by LoRA: peft would put one inside the other.

    Raises:
        InputError: there are such.
    """
    layouts = {name: _layout(path) for name, path in adapters.items()}
    outright = {name: saved for name, (_, saved) in layouts.items()}
    if any(outright.values()) and len({json.dumps(layout) for layout in layouts.values()}) > 1:
        listed = "; ".join(f"{name}: {', '.join(saved) or 'nothing'}" for name, saved in outright.items())
        raise InputError(
            f"The adapters do not train the same parts of the base outright ({listed}): they cannot act over one model",
            expected="one layout for all where a part is trained outright",
            hint="vla finetune again with the same recipe, --vision, --language and --action",
        )


def _layout(adapter: Path) -> tuple[str, list[str]]:
    """Which modules of the base an adapter reaches by LoRA, and which it trains outright."""
    try:
        found = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return str(found["target_modules"]), sorted(found.get("modules_to_save") or [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{adapter / ADAPTER_CONFIG} cannot be read ({error})",
            expected="what finetune wrote",
            hint="vla finetune again with --overwrite",
        ) from None


def _common_spec(specs: Sequence[PolicySpec]) -> PolicySpec:
    return replace(
        specs[0],
        family=TASK_ADAPTERS,
        kind="routed",
        instructions=list(dict.fromkeys(text for spec in specs for text in spec.instructions)),
        recipe="routed",
        # each adapter's own bundle has its own of these
        tokenizer="",
        tokenizer_digest="",
        guidance={"weight": 1.0},
        calibration={},
        early_stopping={},
        quantized="",
    )


def write_several(prepared: Several, partial: Path, progress: Progress) -> None:
    """Write the bundle into `partial`.

    Raises:
        InputError: an adapter cannot be used, or does not act in the bundle as it does alone.
    """
    record = RunRecord(STAGE, prepared.request)
    for name, (config, member) in prepared.members.items():
        (partial / ADAPTERS / name).mkdir(parents=True)
        write_bundle(config, member, partial / ADAPTERS / name, progress)
        kind = read_default(member.spec.guidance)[0]
        if kind != PLAIN_KIND:
            record.warn(
                f"{name}: its default guidance ({kind}) is left out: here it is asked for what it was trained on, and "
                "plainly."
            )
    router, recognition = _router(prepared)
    router.save(partial)
    save_spec(prepared.spec, partial)
    differences = _compare(prepared, partial)
    words = _routing(prepared, recognition)
    record.facts = {
        "max_abs_action_difference": differences,
        "router": words,
        "recognition": vars(recognition),
    }
    write_text(partial / CARD, "\n".join(_card(prepared, record, words)) + "\n")
    record.counts = {
        "adapters": len(prepared.members),
        # and these two, which follow
        "files": sum(p.is_file() and p.name != "request.json" for p in partial.rglob("*")) + 2,
    }
    record.save(partial)
    write_digests(partial)


def _router(prepared: Several) -> tuple[Router, Recognition]:
    config, member = prepared.first
    policy = load_policy(member.base, config.adapter, device="cpu")
    instructions = {name: found.spec.instructions for name, (_, found) in prepared.members.items()}
    return learn(
        instructions, elsewhere=prepared.elsewhere, place=prepared.place, reading=task_adapters.reading_of(policy)
    )


def _compare(prepared: Several, partial: Path) -> dict[str, float]:
    """Each adapter's largest difference of actions in the bundle from its own, in standard deviations."""
    base = prepared.first[1].base
    together: Any = task_adapters.load(base, partial, device="cpu")
    found = {}
    for name, (config, member) in prepared.members.items():
        expected = probe(load_policy(base, config.adapter, device="cpu"), member.spec)
        found[name] = difference_to(together, member.spec, expected)
    return found


def _routing(prepared: Several, recognition: Recognition) -> str:
    done = "is refused"
    if prepared.elsewhere == BASE:
        calibrated = prepared.members[prepared.place][1].spec.calibration.get("parts")
        done = "is left to the base, " + (f"calibrated as {prepared.place} is" if calibrated else "as it is")
    return f"what is for none of the adapters {done}; {recognition.words}"


def _card(prepared: Several, record: RunRecord, words: str) -> list[str]:
    """The model card: what is in the bundle, who is asked for what, and how it is loaded."""
    rows = [
        f"| [{name}]({ADAPTERS}/{name}/{CARD}) | {member.spec.recipe} | {'; '.join(member.spec.instructions)} |"
        for name, (_, member) in prepared.members.items()
    ]
    base = prepared.spec.base
    lines = [
        "---",
        f"base_model: {base.name if base else 'unknown'}",
        "tags: [robotics, vision-language-action, vla-cli]",
        "---",
        "",
        f"# {len(rows)} task adapter{'s' if len(rows) > 1 else ''} over {base.name if base else 'one base'}",
        "",
        f"Put together by vla-cli {__version__}. The base is in memory once; each adapter acts on its own task.",
        "",
        "| adapter | recipe | trained on |",
        "|---|---|---|",
        *rows,
        "",
        "## Who is asked",
        "",
        f"An instruction that means what an adapter was trained on is for that adapter; {words}. The texts and limits "
        f"are in `{ROUTER_FILE}`, to be read and to be changed. No adapter's skill is carried to another instruction.",
        "",
        "## How to load it",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "from vla_cli.policies.task_adapters import load",
        "",
        f'policy = load("{base.name if base else "BASE"}", Path("path/to/this/bundle"))',
        "print(policy.route(instruction))  # which adapter, or None, and why",
        "actions = policy.act(images, state, [instruction], noise)",
        "```",
        "",
        f"How to feed it is said in each adapter's own card; each of them can be loaded alone from `{ADAPTERS}/NAME`.",
        "",
        "## Provenance",
        "",
        f"- base: {base.digest if base else 'unknown'}",
        *[f"- {name}: {member.request['adapter']['digest']}" for name, (_, member) in prepared.members.items()],
        *[
            f"- {name}: actions differ from those of the adapter alone by at most {difference:.3g} standard deviations"
            for name, difference in record.facts["max_abs_action_difference"].items()
        ],
        f"- every file's SHA-256: `{DIGESTS}`",
    ]
    return lines + (["", "## Warnings", "", *[f"- {text}" for text in record.warnings]] if record.warnings else [])
