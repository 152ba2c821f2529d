"""What a module's syntax tree says about the architecture: whom it imports, and what it does that nobody may.

    cli, console  ->  stages  ->  readers | policies | retention | suites | worlds  ->  nouns  ->  foundations

A module is judged from its source text alone, so that `test_architecture` can also judge sources made up to be wrong.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "vla_cli"
EDGE, STAGES, FOLDERS, NOUNS, FOUNDATIONS = "edge", "stages", "folders", "nouns", "foundations"
HEIGHT = {FOUNDATIONS: 0, NOUNS: 1, FOLDERS: 2, STAGES: 3, EDGE: 4}

LAYERS: dict[str, tuple[str, ...]] = {
    EDGE: ("cli", "console"),
    STAGES: ("stages",),
    FOLDERS: ("readers", "policies", "retention", "suites", "worlds"),
    NOUNS: (
        "action_tokens",
        "adapter",
        "agreement",
        "bundle",
        "calibration",
        "comparison",
        "contact_sheet",
        "conventions",
        "conversion",
        "dataset",
        "dataset_page",
        "dataset_passes",
        "dataset_plan",
        "dataset_warnings",
        "digests",
        "earlier_episodes",
        "entry_tasks",
        "episode",
        "facts",
        "findings",
        "fingerprint",
        "frames",
        "guidance",
        "hdf5",
        "ingest_record",
        "intervals",
        "keyboard",
        "language",
        "loading_example",
        "logs",
        "matching",
        "observation",
        "operators",
        "outline",
        "overview",
        "pareto",
        "pictures",
        "preflight",
        "quality",
        "recipe",
        "recorder",
        "replay",
        "report",
        "router",
        "source_files",
        "splits",
        "stats",
        "stats_import",
        "stored_frames",
        "study",
        "synchrony",
        "video",
        "video_tables",
        "windows",
        "yaml_files",
    ),
    FOUNDATIONS: ("", "configs", "errors", "field_types", "files", "limits", "lookup", "progress", "provenance"),
}
"""Every top-level module and folder of the package ("" is the package itself); a new one is registered here."""

BETWEEN_FOLDERS = {("suites", "vla_cli.worlds.contract")}
"""The imports between neighbouring folders that are meant: a suite is written against what every world offers."""

HOMES: dict[str, tuple[str, ...]] = {
    "typer": ("cli", "console"),
    "rich": ("console",),
    "transformers": ("policies",),
    "peft": ("policies", "retention"),
    "bitsandbytes": ("policies",),
    "gymnasium": ("worlds",),
    "pyarrow": ("readers",),
    "av": ("video", "video_tables"),
    "zarr": ("readers",),
    "imagecodecs": ("readers",),
    "numcodecs": ("readers",),
    "rosbags": ("readers",),
}
"""Where alone a library may be imported: nothing above `policies` names a model class."""

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec"}
UNSAFE_FLAGS = {"allow_pickle", "trust_remote_code"}
YAML_READERS = {"yaml.safe_load", "yaml.safe_load_all", "yaml.compose", "yaml.compose_all"}
TALKING = {"print", "input", "exit", "quit", "sys.exit", "os._exit"}
DYNAMIC_IMPORTS = {"importlib.import_module", "__import__"}
MAY_IMPORT_BY_NAME = ("cli", "console", "lookup")


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        module: its full name; for `from a import b`, "a.b" where that is a module and "a" where b is an attribute.
        line: where.
        lazy: inside a function, so that importing the importer does not import it.
    """

    module: str
    line: int
    lazy: bool


def unit_of(module: str) -> str:
    """The top-level module or folder of the package that a module belongs to: "" for the package itself."""
    return module.removeprefix(PACKAGE).lstrip(".").split(".")[0]


def layer_of(module: str) -> str | None:
    """The layer of a module of the package, or None where it is registered in none."""
    return next((layer for layer, units in LAYERS.items() if unit_of(module) in units), None)


def read_package(root: Path) -> dict[str, str]:
    """Module name to source of every Python file below `root`, the package's folder."""
    sources = {}
    for file in sorted(root.rglob("*.py")):
        parts = [PACKAGE, *file.relative_to(root).with_suffix("").parts]
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text(encoding="utf-8")
    return sources


def imports_of(tree: ast.AST, modules: Collection[str]) -> Iterator[Import]:
    """The imports of a module, with `modules` telling submodules from attributes."""
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, id(node) in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = "." * node.level + (node.module or "")
            for alias in node.names:
                part = f"{whole}.{alias.name}"
                yield Import(part if part in modules else whole, node.lineno, id(node) in lazy)


def violations(module: str, source: str, modules: Collection[str]) -> list[str]:
    """Everything in which one module breaks the architecture, each as "module:line what"."""
    tree = ast.parse(source)
    if layer_of(module) is None:
        return [f"{module}:1 belongs to no layer: register it in tests/architecture.py"]
    found = [(item.line, fault) for item in imports_of(tree, modules) if (fault := _import_fault(module, item))]
    found += [(line, fault) for line, fault in unsafe(tree)]
    found += list(_talk(module, tree))
    return [f"{module}:{line} {fault}" for line, fault in sorted(set(found))]


def _import_fault(module: str, item: Import) -> str | None:
    """Why an import is not allowed, or None."""
    if item.module.startswith("."):
        return "imports relatively: write the module's full name"
    top = item.module.split(".")[0]
    if top != PACKAGE:
        return _library_fault(module, top, item)
    layer, target = layer_of(module), layer_of(item.module)
    if target is None or layer is None:
        return f"imports {item.module}, which belongs to no layer"
    if HEIGHT[target] > HEIGHT[layer]:
        return f"imports {item.module}: {layer} must not import {target}"
    if target == layer == STAGES and _stage(item.module) not in ("", _stage(module)):
        return f"imports {item.module}: stages meet on disk only"
    if target == layer == FOLDERS and unit_of(module) != unit_of(item.module):
        if (unit_of(module), item.module) in BETWEEN_FOLDERS:
            return None
        return f"imports {item.module}: neighbouring folders do not know each other"
    return None


def _stage(module: str) -> str:
    """The stage that a module of `stages` is or belongs to; "" for what all stages share."""
    return module.removeprefix(f"{PACKAGE}.stages").lstrip(".").split(".")[0]


def _library_fault(module: str, top: str, item: Import) -> str | None:
    unit, layer = unit_of(module), layer_of(module)
    if top in HOMES and unit not in HOMES[top]:
        return f"imports {top}, which belongs in {' and '.join(HOMES[top])}"
    if top in sys.stdlib_module_names:
        return None
    if layer == FOUNDATIONS:
        return f"imports {top}: foundations need the standard library only"
    if layer == NOUNS and top in ("torch", "accelerate", "safetensors"):
        return f"imports {top}: nouns know files and arrays, no models"
    if layer == EDGE and top != "typer" and not item.lazy:
        return f"imports {top} at start-up: import it inside the function that needs it"
    return None


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that could run code from a file."""
    names = _aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            wholes = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"imports {name}") for name in wholes if name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.Call) and _name(node.func, names) in UNSAFE_CALLS:
            yield node.lineno, f"calls {_name(node.func, names)}"
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_FLAGS and _is(node.value, True):
            yield node.value.lineno, f"sets {node.arg}=True"
        elif isinstance(node, ast.Dict):
            keys = [k.value for k, v in zip(node.keys, node.values, strict=True) if _is_text(k) and _is(v, True)]
            yield from ((node.lineno, f"sets {key}=True") for key in keys if key in UNSAFE_FLAGS)


def _talk(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of printing, exiting, importing by name, and reading HDF5 and YAML outside the modules that may."""
    names = _aliases(tree)
    for node in ast.walk(tree):
        name = _name(node.func, names) if isinstance(node, ast.Call) else ""
        if name in DYNAMIC_IMPORTS and unit_of(module) not in MAY_IMPORT_BY_NAME:
            yield node.lineno, f"calls {name}: only {', '.join(MAY_IMPORT_BY_NAME)} import by name"
        if layer_of(module) == EDGE:
            continue
        if name == "h5py.File" and unit_of(module) != "hdf5" and not _writes(node):
            yield node.lineno, "reads by h5py.File: hdf5.opened looks at a file first"
        if name in YAML_READERS and unit_of(module) != "yaml_files":
            yield node.lineno, f"reads by {name}: yaml_files says what is wrong with a file"
        if name in TALKING:
            yield node.lineno, f"calls {name}: raise an error or use Progress"
        if isinstance(node, ast.Attribute) and _name(node, names) in ("sys.stdout", "sys.stderr"):
            yield node.lineno, f"uses {_name(node, names)}: raise an error or use Progress"
        if isinstance(node, ast.Raise) and node.exc and "SystemExit" in ast.dump(node.exc):
            yield node.lineno, "raises SystemExit: raise a VlaError"


def _writes(call: ast.AST) -> bool:
    mode = call.args[1] if isinstance(call, ast.Call) and len(call.args) > 1 else None
    return isinstance(mode, ast.Constant) and mode.value == "w"


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Local name to full dotted name, for what a module imports under whatever name."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _name(node: ast.expr, names: Mapping[str, str]) -> str:
    """The dotted name that an expression spells, aliases resolved; "" where it spells none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (whole := _name(node.value, names)):
        return f"{whole}.{node.attr}"
    return ""


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def loaded_at_start(module: str, sources: Mapping[str, str]) -> dict[str, str]:
    """Library to the module of the package that imports it, for everything importing `module` pulls in at once."""
    pulled: dict[str, str] = {}
    seen, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for item in imports_of(ast.parse(sources[current]), sources.keys()):
            if item.lazy:
                continue
            if item.module.split(".")[0] == PACKAGE:
                parts = item.module.split(".")
                # importing a.b.c imports a and a.b too
                waiting += [name for i in range(len(parts)) if (name := ".".join(parts[: i + 1])) in sources]
            else:
                pulled.setdefault(item.module.split(".")[0], current)
    return pulled
