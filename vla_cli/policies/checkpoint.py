"""Checkpoints on disk: finding and loading a base of any family, and putting an adapter onto it, key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_cli.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MERGED,
    BaseReference,
    PolicySpec,
    digest_weights,
    full_model,
    has_spec,
    load_spec,
    tokenizer_files,
)
from vla_cli.errors import InputError, words
from vla_cli.policies import FAMILIES
from vla_cli.policies.adaptation import adapter_state, changes_something
from vla_cli.policies.bottleneck import load_bottlenecks
from vla_cli.policies.family import Family
from vla_cli.policies.modalities import is_unused
from vla_cli.policies.quantization import no_code_from_the_hub
from vla_cli.policies.weight_files import check_weight_files
from vla_cli.provenance import ARTEFACTS, written_by
from vla_cli.recipe import BOTTLENECK

CONFIG = "config.json"
_TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")
"""What is fetched beside safetensors: configurations, tokenizers and how a chat is laid out. No pickle ever is."""
_LAYER = re.compile(r"\.layers\.\d+\.(?!.*rotary_emb)")
"""A weight of a layer of a tower; the rotary embedding's old buffers are computed anew."""
_EXPECTED = f"a directory with {CONFIG} and model.safetensors, or a hub id such as lerobot/pi0_base"
_HINT = "--base with that directory (the embedded base is sample_data/base of the vla-cli repository)"


@dataclass(frozen=True)
class BaseFiles:
    """Where a base's files are on this machine, and what identifies them."""

    directory: Path
    reference: BaseReference


def locate_base(base: str) -> BaseFiles:
    """Find a base policy: a local directory, or a hub id already in (or fetched into) the local hub cache.

    Raises:
        InputError: it is neither, or its weights are not safetensors that are all there.
    """
    local = Path(base)
    if local.is_dir():
        if not (local / CONFIG).is_file():
            raise _no_base(local)
        check_weight_files(local, f"The weights of base '{base}'")
        return BaseFiles(local, BaseReference(base, digest_weights(local)))
    try:
        snapshot = _snapshot(base, "*.safetensors", *_TEXTS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The base '{base}' is neither a directory nor a hub model that can be reached "
            f"({type(error).__name__}: {str(error).splitlines()[0]})",
            expected=_EXPECTED,
            hint=_HINT,
        ) from None
    check_weight_files(snapshot, f"The weights of base '{base}'")
    return BaseFiles(snapshot, BaseReference(base, digest_weights(snapshot), snapshot.name))


def _snapshot(name: str, *patterns: str) -> Path:
    """A hub model's files of these patterns in the local cache, fetched where they are not there yet.

    Raises:
        OSError, ValueError: it is not there and cannot be fetched, or the name cannot be one.
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(patterns)))


def _no_base(directory: Path) -> InputError:
    """The error for a directory that holds no model; an adapter becomes one when it is merged."""
    writer = written_by(directory)
    what = f"is {ARTEFACTS[writer].noun}, written by {writer}" if writer else f"holds no {CONFIG}"
    hint = _HINT
    if (directory / MERGED / CONFIG).is_file():
        hint = f"--base {directory / MERGED}"
    elif writer in ("finetune", "export-adapter") and not _is_of_bottlenecks(directory):
        adapter = directory if writer == "finetune" else "ADAPTER"
        hint = f"vla export-adapter {adapter} --merge --out BUNDLE, then --base BUNDLE/merged"
    return InputError(f"The base {directory} {what}", expected=_EXPECTED, hint=hint)


def _is_of_bottlenecks(directory: Path) -> bool:
    return has_spec(directory) and load_spec(directory).kind == BOTTLENECK


def family_of(directory: Path) -> Family:
    """The family of a base, by its configuration.

    Raises:
        InputError: there is none, or it is of a model of no family.
    """
    return family_for(_document(directory), str(directory / CONFIG))


def family_for(document: Mapping[str, Any], whose: str = CONFIG) -> Family:
    """The family of a model with this configuration.

    Raises:
        InputError: there is none.
    """
    families: list[Family] = [FAMILIES.get(name) for name in FAMILIES]
    for family in families:
        if family.recognises(document):
            return family
    kind = document.get("model_type") or document.get("type")
    raise InputError(
        f"{whose} is of a '{kind}' model", expected=" or ".join(family.noun for family in families), hint=_HINT
    )


def _document(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})", expected="the configuration of a policy's model") from None
    return document if isinstance(document, dict) else {}


def load_config(directory: Path) -> Any:
    """Read a base's configuration.

    Raises:
        InputError: there is none, or it is of a model of no family, or no model can be of it.
    """
    path, family = directory / CONFIG, family_of(directory)
    try:
        config = family.config(_document(directory))
        impossible = family.impossible(config)
    except Exception as error:  # transformers raises many kinds for values that cannot be
        raise InputError(
            f"{path} cannot be used ({words(error)})", expected=f"the configuration of {family.noun}"
        ) from None
    if impossible:
        raise InputError(f"{path} cannot be used ({'; '.join(impossible)})", expected="sizes from 1 to 10000000")
    return config


def locate_tokenizer(files: BaseFiles, tokenizer: str = "") -> Path:
    """The directory of a base's tokenizer: the one that is named, else the base's own.

    Args:
        files: of the base.
        tokenizer: directory or hub id; empty for the base's own.

    Raises:
        InputError: there is none.
    """
    directory = Path(tokenizer) if tokenizer else files.directory
    if not directory.is_dir():
        try:
            directory = _snapshot(tokenizer, *_TEXTS)
        except (OSError, ValueError) as error:
            raise _no_tokenizer(files, tokenizer, error) from None
    if not tokenizer_files(directory):
        raise _no_tokenizer(files, tokenizer, "no such file is there")
    return directory


def _no_tokenizer(files: BaseFiles, tokenizer: str, why: object) -> InputError:
    return InputError(
        f"No tokenizer for base '{files.reference.name}' at '{tokenizer or files.directory}' "
        f"({str(why).splitlines()[0]})",
        expected="tokenizer.json beside the weights",
        hint="vla finetune with --tokenizer DIRECTORY_OR_HUB_ID (pi0's is that of google/paligemma-3b-pt-224)",
    )


def load_base(base: str, *, tokenizer: str = "") -> tuple[nn.Module, Any, BaseFiles]:
    """Load a base model in float32 on the CPU, with its prompts.

    The same code loads the miniatures and `lerobot/pi0_base`.

    Args:
        base: directory or hub id.
        tokenizer: directory or hub id of the tokenizer, when the base does not carry one; empty for the base's own.

    Raises:
        InputError: files are missing or damaged, or weights or tokenizer do not fit the configuration.
    """
    files = locate_base(base)
    prompts = load_prompts(files, tokenizer)
    return load_model(files), prompts, files


def load_model(files: BaseFiles) -> nn.Module:
    """A base model in float32 on the CPU.

    Raises:
        InputError: weights are missing or damaged, or do not fit the configuration.
    """
    config = family_of(files.directory).for_training(load_config(files.directory))
    return _with_weights(files.directory, config, f"The weights of base '{files.reference.name}'")


def load_prompts(files: BaseFiles, tokenizer: str = "") -> Any:
    """What makes a base's prompts of instructions (see `Family.prompts`); no weight is read for it.

    Args:
        files: of the base.
        tokenizer: as for `load_base`.

    Raises:
        InputError: there is no tokenizer, or it is damaged, or no tokenizer of such a model.
    """
    return family_of(files.directory).prompts(files, tokenizer)


def load_tokenizer(files: BaseFiles, tokenizer: str = "") -> tuple[Any, Path]:
    """A base's tokenizer, and the directory that it is from.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    directory = locate_tokenizer(files, tokenizer)
    try:
        return AutoTokenizer.from_pretrained(directory), directory
    except Exception as error:  # transformers raises many kinds for damaged files
        raise _no_tokenizer(files, tokenizer, words(error)) from None


def _with_weights(directory: Path, config: Any, whose: str) -> Any:
    """A model of a configuration with the weights of a directory, every one of them.

    Raises:
        InputError: weights are missing or damaged, not finite, or do not fit the configuration.
    """
    # its return type depends on output_loading_info, which annotations do not say
    from_pretrained: Any = family_of(directory).model_class().from_pretrained
    try:
        model, report = from_pretrained(
            directory, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # safetensors and transformers raise many kinds for damaged files
        raise InputError(
            f"{whose} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})",
            expected="safetensors that fit config.json",
        ) from error
    missing = [key for key in report["missing_keys"] if not is_unused(key.rpartition(".")[0], config)]
    # a layer that the configuration does not have would be left out in silence
    beyond = sorted(key for key in report["unexpected_keys"] if _LAYER.search(key))
    if missing or beyond or report["mismatched_keys"]:
        raise InputError(
            f"{whose} do not fit the configuration: {len(missing)} missing (first: {missing[:3]}), {len(beyond)} of "
            f"layers that it does not have (first: {beyond[:3]}), {len(report['mismatched_keys'])} of another shape",
            expected="every parameter that influences an action",
        )
    odd = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if odd:
        raise InputError(
            f"{whose} are not finite: {len(odd)} tensors hold NaN or infinity (first: {odd[:3]})",
            expected="numbers: a policy with one NaN commands nothing but NaN",
        )
    return model


def attach(model: nn.Module, adapter: Path, spec: PolicySpec, *, name: str = "default") -> nn.Module:
    """Put an adapter directory onto a freshly loaded base, or beside another one that was put there.

    Every tensor of the file must arrive unchanged, and at least one must differ from "no adaptation": peft only warns
    when it drops keys (π0's renames are applied twice to some), and a robot would then run the bare base.
    Bottlenecks have a loader of our own, and are held to the same.

    Raises:
        InputError: files are missing or damaged, keys were dropped, or the adapter does nothing.
    """
    if spec.kind == "frozen":
        return model
    if spec.kind == "full":
        return _attach_full(model, adapter)
    try:
        bottlenecks = spec.kind == BOTTLENECK
        wrapped, saved = load_bottlenecks(model, adapter) if bottlenecks else _load_peft(model, adapter, name)
    except Exception as error:  # peft raises many kinds for damaged files
        raise InputError(
            f"The adapter {adapter} cannot be loaded ({type(error).__name__}: {words(error)})",
            expected=f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} written by finetune",
            hint="vla finetune again with --overwrite",
        ) from None
    verify_loaded(wrapped, saved, adapter, name=name)
    return wrapped


def _load_peft(model: Any, adapter: Path, name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A peft adapter on a base or beside others there, under a name, and the tensors of its file."""
    with no_code_from_the_hub():
        from peft import PeftModel
    from safetensors.torch import load_file

    saved = load_file(adapter / ADAPTER_WEIGHTS)
    # peft would choose the accelerator for the adapter's tensors, whatever the model is on
    how: Any = {"adapter_name": name, "is_trainable": False, "torch_device": "cpu"}
    if isinstance(model, PeftModel):
        model.load_adapter(str(adapter), **how)
        return model, saved
    return PeftModel.from_pretrained(model, str(adapter), **how), saved


def verify_loaded(wrapped: Any, saved: dict[str, Tensor], adapter: Path, *, name: str = "default") -> None:
    """Check that every saved adapter tensor is in the model bit for bit, and that together they change something.

    Raises:
        InputError: a key was dropped or changed at load, or all deltas are zero.
    """
    loaded = adapter_state(wrapped, name)
    dropped = [key for key, value in saved.items() if key not in loaded or not torch.equal(loaded[key].cpu(), value)]
    if dropped or set(loaded) != set(saved):
        stray = sorted(set(loaded) - set(saved))
        raise InputError(
            f"{adapter}: {len(dropped)} of {len(saved)} adapter tensors were dropped or changed while loading "
            f"(first: {(dropped + stray)[:3]})",
            expected="every key of the file in the model, bit for bit",
            hint="vla finetune again with --overwrite",
        )
    if not changes_something(wrapped, name):
        raise InputError(
            f"{adapter} changes nothing: every delta is zero",
            expected="a trained adapter",
            hint="vla finetune with more --steps",
        )


def _attach_full(model: Any, adapter: Path) -> nn.Module:
    try:
        full = _with_weights(full_model(adapter), model.config, f"The weights of {adapter}")
    except InputError as error:
        raise InputError(error.problem, hint="vla finetune again with --overwrite") from error
    changed = any(not torch.equal(a, b) for a, b in zip(model.parameters(), full.parameters(), strict=True))
    if not changed:
        raise InputError(
            f"{adapter} changes nothing: its weights are the base's", hint="vla finetune with more --steps"
        )
    return full
