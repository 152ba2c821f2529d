"""The artefact `adapter/` and the facts that travel with every policy: `policy.json`.

    adapter_config.json, adapter_model.safetensors   what `PeftModel.from_pretrained` reads          (kind "lora")
                                                     or what `policies.bottleneck` reads        (kind "bottleneck")
    model.safetensors, config.json, ...              a whole model in the base's own layout          (kind "full")
                                                     no weights at all                    (kind "frozen")
    calibration/                                     pictures of a calibration, when there is one
    policy.json                                      base, cameras, action convention, statistics, instructions
    metrics.jsonl, run.json                          how it was trained

A bundle for the robot is laid out alike, but a whole model lies in its `merged/`, and a tokenizer that does not come
with the base in its `tokenizer/`.

A base policy that vla-cli made carries a `policy.json` too (kind "base"); a base from elsewhere may lack one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from vla_cli.errors import InputError
from vla_cli.field_types import ill_typed
from vla_cli.files import digest_file, read_json, text_digest, write_json
from vla_cli.provenance import not_an_artefact
from vla_cli.stats import Statistics

FILE_NAME = "policy.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_WEIGHTS = "model.safetensors"
MERGED = "merged"
TOKENIZER = "tokenizer"
TOKENIZER_HERE = f"./{TOKENIZER}"
"""What `policy.json` says of a tokenizer that lies beside it."""
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_PROCESSOR_FILES = ("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json")
"""How a token policy's model lays out prompts and prepares pictures; a flow policy has rules of its own."""
SCHEMA_VERSION = 1

Kind = Literal["base", "lora", "bottleneck", "full", "frozen", "routed"]
FLOW, TOKENS, TASK_ADAPTERS = "flow", "tokens", "task-adapters"
"""What `policies.POLICIES` can load: two families, and several adapters of one of them."""


@dataclass(frozen=True)
class BaseReference:
    """Which base a policy was adapted from.

    Attributes:
        name: directory or hub id, as the user named it.
        digest: SHA-256 over the base's configuration and weights: an adapter fits this base only.
        revision: the hub's commit, when it came from there.
    """

    name: str
    digest: str
    revision: str | None = None


@dataclass(frozen=True)
class PolicySpec:
    """What a robot (or an evaluation) must know to feed a policy and to read its actions.

    Attributes:
        family: key of `policies.POLICIES`.
        kind: "base", "lora" (a peft adapter), "bottleneck" (bottleneck adapters), "full" (all weights), "frozen" (the
            base's own weights, calibrated) or "routed" (several adapters, each for its own task; see `router`).
        cameras: camera names, in the order the policy expects.
        image_size: edge in pixels that images are resized to.
        state_names, action_names: one name a dimension, in order; raw units as recorded.
        rate_hz: control rate of one action step.
        chunk_size: steps a predicted chunk.
        execute_steps: steps to execute before asking again.
        state, actions: normalisation statistics (z-score).
        statistics_from: "base" when the base's own were kept, "dataset" when the demonstrations' were used.
        instructions: instructions it was trained on; empty for a base.
        base: the base it was adapted from; None for a base.
        recipe: recipe name; empty for a base.
        tokenizer: where the tokenizer is, when the base carries none: a directory or hub id, or `./tokenizer` for the
            folder beside `policy.json`, which `load_spec` puts in full; empty for the base's own.
        tokenizer_digest: SHA-256 over the tokenizer's files: with other token ids the same words ask for something
            else; of a token policy over its processor's too. Empty where older versions wrote none.
        world: robomimic `env_args` of the demonstrations, when they name a world.
        guidance: defaults for test-time guidance.
        calibration: explicit transforms between deployment and base (`calibration.Calibration.document`); empty
            for none. Pictures that belong to it lie in `calibration/` beside `policy.json`.
        squared: edge of the squares that `vla preprocess --image-size` padded and resized the demonstrations' pictures
            to; what a camera gives is prepared alike before anything else. None: it is taken as it is, and stretched.
        early_stopping: which step's weights were kept, and why (`policies.early_stopping.Kept.document`); empty where
            the training ran to its end and the last step's were.
        quantized: "nf4" where the base was held in 4 bits while it was trained (QLoRA); empty where it was whole. The
            adapter goes onto the whole base either way.
        action_tokens: how a policy of family "tokens" writes actions (`action_tokens.ActionTokens.document`); empty
            for any other.
    """

    family: str
    kind: Kind
    cameras: list[str]
    image_size: int
    state_names: list[str]
    action_names: list[str]
    rate_hz: float
    chunk_size: int
    execute_steps: int
    state: Statistics
    actions: Statistics
    statistics_from: str = "base"
    instructions: list[str] = field(default_factory=list)
    base: BaseReference | None = None
    recipe: str = ""
    tokenizer: str = ""
    tokenizer_digest: str = ""
    world: dict[str, Any] | None = None
    guidance: dict[str, Any] = field(default_factory=lambda: {"weight": 1.0})
    calibration: dict[str, Any] = field(default_factory=dict)
    squared: int | None = None
    early_stopping: dict[str, Any] = field(default_factory=dict)
    quantized: str = ""
    action_tokens: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As the JSON document of `policy.json`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["state"], plain["actions"] = self.state.to_json(), self.actions.to_json()
        plain["base"] = asdict(self.base) if self.base else None
        for newer in ("early_stopping", "quantized", "action_tokens"):
            if not plain[newer]:
                del plain[newer]
        return {"schema_version": SCHEMA_VERSION, **plain}

    @property
    def is_beside_base(self) -> bool:
        """Whether what was trained lies beside the base's weights, in two files of its own, and can be switched off."""
        return self.kind in ("lora", "bottleneck")

    def merged(self) -> PolicySpec:
        """The same policy as a model of its own, tokenizer included, that can serve as a base in turn."""
        return replace(self, kind="base", base=None, tokenizer="")


def save_spec(spec: PolicySpec, directory: Path) -> None:
    """Write `policy.json` into `directory`."""
    write_json(directory / FILE_NAME, spec.document())


def load_spec(directory: Path) -> PolicySpec:
    """Read `policy.json`.

    Raises:
        InputError: it is missing, of another version, or malformed.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        raise not_an_artefact(directory, FILE_NAME, "finetune")
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path} is malformed ({type(document).__name__})", hint="vla finetune again")
    version = document.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise InputError(f"{path} has schema_version {version}", expected=str(SCHEMA_VERSION))
    try:
        base = document.pop("base")
        state, actions = (Statistics.from_json(document.pop(key)) for key in ("state", "actions"))
        document["calibration"] = _calibration(document.get("calibration") or {})
        wrong = {**ill_typed(PolicySpec, document), **(ill_typed(BaseReference, base) if base else {})}
        if wrong:
            raise TypeError("; ".join(f"{key} is not {expected}" for key, expected in wrong.items()))
        base = BaseReference(**base) if base else None
        # a folder of that name in the user's own place is meant where there is none beside the file
        if document.get("tokenizer") == TOKENIZER_HERE and (directory / TOKENIZER).is_dir():
            document["tokenizer"] = str(directory / TOKENIZER)
        spec = PolicySpec(**document, state=state, actions=actions, base=base)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is malformed ({error})", hint="vla finetune again") from None
    if impossible := _impossible(spec):
        raise InputError(f"{path} is malformed ({'; '.join(impossible)})", hint="vla finetune again")
    return spec


def _impossible(spec: PolicySpec) -> list[str]:
    """Numbers that no policy has, which would fail when it acts."""
    sizes = {key: getattr(spec, key) for key in ("image_size", "chunk_size", "execute_steps", "rate_hz", "squared")}
    found = [f"{key} is {size}, not above 0" for key, size in sizes.items() if size is not None and not size > 0]
    for noun, names, statistics in (
        ("state", spec.state_names, spec.state),
        ("action", spec.action_names, spec.actions),
    ):
        if len(names) != len(statistics):
            found.append(f"{len(names)} {noun} names but statistics of {len(statistics)} dimensions")
    return found


def _calibration(document: dict[str, Any]) -> dict[str, Any]:
    """A calibration with the parts that are on by its own numbers: a person may have undone one and left the list."""
    if not document:
        return {}
    # few adapters have one, and it takes half a second to import
    from vla_cli.calibration.parts import parts_on

    parts = parts_on(
        looks=document["looks"],
        warps=document["warps"],
        ratio=document["ratio"],
        delays=[document["delay"], *(gripper["delay"] for gripper in document.get("other_grippers", []))],
        limits=document["timing"].values(),
    )
    return {**document, "parts": parts}


def load_adapter_spec(directory: Path) -> PolicySpec:
    """Read the `policy.json` of something that adapts a base.

    Raises:
        InputError: see `load_spec`; or it is of a base itself.
    """
    spec = load_spec(directory)
    if spec.base is None:
        raise InputError(
            f"{directory} is a base policy: its {FILE_NAME} names no base that it adapts",
            expected="an adapter: a directory written by finetune",
            hint=f"vla finetune DATASET --base {directory} --out ADAPTER",
        )
    return spec


def full_model(directory: Path) -> Path:
    """Where the whole model of kind "full" lies: in the adapter itself, or in `merged/` of a bundle."""
    merged = directory / MERGED
    return merged if (merged / MODEL_WEIGHTS).is_file() else directory


def has_spec(directory: Path) -> bool:
    """Whether a directory carries a `policy.json`."""
    return (directory / FILE_NAME).is_file()


def tokenizer_files(directory: Path) -> list[Path]:
    """The files of a tokenizer in a directory, whatever else lies beside them; none where there is no tokenizer."""
    return sorted(
        file
        for file in directory.iterdir()
        if file.is_file() and (file.name in _TOKENIZER_FILES or file.suffix == ".model")
    )


def check_base(spec: PolicySpec, digest: str, base: str) -> None:
    """Refuse to put an adapter on another base than the one it was trained on.

    Raises:
        InputError: the digests differ.
    """
    if spec.base is not None and spec.base.digest != digest:
        raise InputError(
            f"The adapter was trained on base '{spec.base.name}' ({spec.base.digest[:19]}...), "
            f"but '{base}' is {digest[:19]}...",
            expected="the same base: on another one the adapter's numbers mean nothing",
            hint="--base with the directory or hub id of the base it was trained on",
        )


def check_tokenizer(spec: PolicySpec, directory: Path) -> None:
    """Refuse to read a policy's instructions with another tokenizer (or processor) than the one it was trained with.

    Raises:
        InputError: the digests differ.
    """
    if not spec.tokenizer_digest:
        return
    found = digest_tokenizer(directory, spec.family)
    if found != spec.tokenizer_digest:
        tokenizer, why = "tokenizer", "with other token ids the same words ask for something else"
        if spec.family == TOKENS:
            tokenizer, why = "processor", f"{why}, and other pictures are seen"
        raise InputError(
            f"The {tokenizer} in {directory} ({found[:19]}...) is not the one that the policy was trained with "
            f"({spec.tokenizer_digest[:19]}...)",
            expected=f"the same files of it: {why}",
            hint="the base with the tokenizer that it was fine-tuned with, or vla finetune again with this one",
        )


def digest_weights(directory: Path) -> str:
    """SHA-256 over a model directory's configuration and safetensors files, whatever else lies beside them.

    Raises:
        InputError: there are no safetensors weights.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(f"{directory} holds no safetensors weights", expected=f"{MODEL_WEIGHTS} and config.json")
    return _digest_named([file for file in [directory / "config.json", *files] if file.is_file()])


def digest_tokenizer(directory: Path, family: str) -> str:
    """SHA-256 over a tokenizer's files, and of a token policy its processor's, whatever else lies beside them."""
    processor = [directory / name for name in _PROCESSOR_FILES] if family == TOKENS else []
    return _digest_named([*tokenizer_files(directory), *(file for file in processor if file.is_file())])


def _digest_named(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files, in the order given."""
    return text_digest("".join(f"{file.name}\0{digest_file(file)}\n" for file in files))
