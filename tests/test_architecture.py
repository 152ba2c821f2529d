"""The layers hold, nothing unsafe is called, and the checker that says so can itself say no."""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from architecture import FOLDERS, LAYERS, layer_of, loaded_at_start, read_package, unsafe, violations

from vla_cli.lookup import Table

ROOT = Path(__file__).parent.parent
SOURCES = read_package(ROOT / "vla_cli")
SCRIPTS = sorted(file for folder in ("scripts", "benchmarks", "examples") for file in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("module", SOURCES)
def test_module_keeps_to_the_architecture(module: str) -> None:
    assert violations(module, SOURCES[module], SOURCES.keys()) == []


def test_the_table_of_layers_names_nothing_that_is_gone() -> None:
    units = {module.removeprefix("vla_cli").lstrip(".").split(".")[0] for module in SOURCES}
    registered = {unit for units in LAYERS.values() for unit in units}
    assert registered - units == set()


def test_the_documentation_describes_every_unit() -> None:
    described = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    units = [unit for units in LAYERS.values() for unit in units if unit]
    assert [unit for unit in units if f"`{unit}`" not in described and f"`{unit}/`" not in described] == []


@pytest.mark.parametrize("module", ["vla_cli.cli", "vla_cli.console"])
def test_start_up_loads_typer_and_the_standard_library_only(module: str) -> None:
    heavy = {name: by for name, by in loaded_at_start(module, SOURCES).items() if name not in sys.stdlib_module_names}
    assert set(heavy) <= {"typer"}, heavy


def test_no_command_waits_for_scipys_statistics() -> None:
    """Half a second of loading; scipy.special has the same Student's t."""
    assert [module for module, source in SOURCES.items() if re.search(r"scipy(\.| import )stats\b", source)] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_run_no_code_from_files(script: Path) -> None:
    assert list(unsafe(ast.parse(script.read_text(encoding="utf-8")))) == []


def _tables() -> list[tuple[str, str, Table]]:
    """Folder, table name and table of every plug-in folder."""
    found = []
    for folder in LAYERS[FOLDERS]:
        names = vars(import_module(f"vla_cli.{folder}"))
        found += [(folder, name, table) for name, table in names.items() if isinstance(table, Table)]
    return found


def test_every_folder_has_a_table() -> None:
    assert {folder for folder, _, _ in _tables()} == set(LAYERS[FOLDERS])


@pytest.mark.parametrize(
    ("folder", "table", "member"),
    [
        pytest.param(folder, table, member, id=f"{name}-{member}")
        for folder, name, table in _tables()
        for member in table
    ],
)
def test_every_name_in_a_table_resolves_within_its_folder(folder: str, table: Table, member: str) -> None:
    assert table.members[member].startswith(f"vla_cli.{folder}.")
    assert table.get(member) is not None


# ---- the checker can fail

MODULES = {
    "vla_cli": "",
    "vla_cli.errors": "",
    "vla_cli.report": "",
    "vla_cli.readers": "",
    "vla_cli.worlds": "",
    "vla_cli.worlds.contract": "",
    "vla_cli.stages": "",
    "vla_cli.stages.ingest": "",
    "vla_cli.stages.finetune": "",
    "vla_cli.stages.finetune.training": "",
    "vla_cli.cli": "",
}


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        ("vla_cli.errors", "from vla_cli.report import Row", "foundations must not import nouns"),
        ("vla_cli.report", "from vla_cli import readers", "nouns must not import folders"),
        ("vla_cli.report", "def f():\n    import vla_cli.stages.ingest", "nouns must not import stages"),
        ("vla_cli.stages.ingest", "import vla_cli.cli", "stages must not import edge"),
        ("vla_cli.stages.ingest", "from vla_cli.stages import finetune", "stages meet on disk only"),
        ("vla_cli.stages.ingest", "from vla_cli.stages.finetune import run", "stages meet on disk only"),
        ("vla_cli.stages.ingest", "from vla_cli.stages.finetune.training import x", "stages meet on disk only"),
        ("vla_cli.readers.hdf5", "from vla_cli.worlds import contract", "neighbouring folders"),
        ("vla_cli.suites.closed", "from vla_cli.worlds.tabletop import x", "neighbouring folders"),
        ("vla_cli.readers.hdf5", "from .episode import Episode", "imports relatively"),
        ("vla_cli.report", "from vla_cli.novelty import x", "belongs to no layer"),
        ("vla_cli.novelty", "", "belongs to no layer"),
        ("vla_cli.files", "import numpy as np", "standard library only"),
        ("vla_cli.report", "import torch", "no models"),
        ("vla_cli.report", "def f():\n    from transformers import AutoModel", "belongs in policies"),
        ("vla_cli.adapter", "import peft", "belongs in policies"),
        ("vla_cli.stages.finetune", "from transformers import AutoModel", "belongs in policies"),
        ("vla_cli.report", "import rich.table", "belongs in console"),
        ("vla_cli.console", "import numpy", "at start-up"),
        ("vla_cli.console", "from rich.table import Table", "at start-up"),
        ("vla_cli.cli", "if 1:\n    import yaml", "at start-up"),
        ("vla_cli.stages.ingest", "print('done')", "calls print"),
        ("vla_cli.stages.ingest", "import sys\nsys.exit(1)", "calls sys.exit"),
        ("vla_cli.stages.ingest", "from sys import exit as leave\nleave(1)", "calls sys.exit"),
        ("vla_cli.stages.ingest", "import sys\nsys.stderr.write('x')", "uses sys.stderr"),
        ("vla_cli.stages.ingest", "raise SystemExit(2)", "raises SystemExit"),
        ("vla_cli.readers.hdf5", "from importlib import import_module\nimport_module('x')", "import by name"),
        ("vla_cli.readers.robomimic", "import h5py\nh5py.File(path, 'r')", "hdf5.opened"),
        ("vla_cli.readers.robomimic", "import h5py as h\nh.File(path)", "hdf5.opened"),
        ("vla_cli.policies.flow", "import pickle", "imports pickle"),
        ("vla_cli.policies.flow", "from pickle import loads", "imports pickle"),
        ("vla_cli.policies.flow", "import torch\ntorch.load(p)", "calls torch.load"),
        ("vla_cli.policies.flow", "import torch as t\nt.load(p, weights_only=True)", "calls torch.load"),
        ("vla_cli.policies.flow", "from torch import load\nload(p)", "calls torch.load"),
        ("vla_cli.dataset", "import numpy as np\nnp.load(p, allow_pickle=True)", "sets allow_pickle=True"),
        ("vla_cli.policies.flow", "f(trust_remote_code=True)", "sets trust_remote_code=True"),
        ("vla_cli.policies.flow", "f(**{'trust_remote_code': True})", "sets trust_remote_code=True"),
        ("vla_cli.recipe", "import yaml\nyaml.load(t, Loader=L)", "calls yaml.load"),
        ("vla_cli.recipe", "eval(t)", "calls eval"),
        ("vla_cli.recipe", "import yaml\nyaml.safe_load(t)", "reads by yaml.safe_load"),
        ("vla_cli.recipe", "from yaml import compose\ncompose(t)", "reads by yaml.compose"),
    ],
)
def test_checker_names_a_violation(module: str, source: str, says: str) -> None:
    [violation] = violations(module, source, MODULES)
    assert says in violation
    assert violation.startswith(f"{module}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vla_cli.errors", "import json\nfrom vla_cli import __version__"),
        ("vla_cli.report", "import numpy\nfrom vla_cli.errors import InputError\nfrom vla_cli.intervals import x"),
        (
            "vla_cli.readers.hdf5",
            "import h5py\nfrom vla_cli.readers import Reader\nfrom vla_cli.readers.video import x",
        ),
        ("vla_cli.suites.closed", "from vla_cli.worlds.contract import Case"),
        ("vla_cli.stages.ingest", "import torch\nfrom vla_cli.readers import READERS\nfrom vla_cli import report"),
        ("vla_cli.stages.finetune", "from vla_cli.stages.finetune.training import x"),
        ("vla_cli.stages.finetune.training", "from vla_cli import stages"),
        ("vla_cli.policies.flow", "import torch, transformers, peft\nmodel.load(p)\nf(trust_remote_code=flag)"),
        ("vla_cli.recipe", "import yaml\nyaml.safe_dump(t)"),
        ("vla_cli.yaml_files", "import yaml\nyaml.safe_load(t)"),
        ("vla_cli.console", "import sys\ndef f():\n    import rich\n    print(1)\n    sys.exit(1)"),
        ("vla_cli.lookup", "from importlib import import_module\nimport_module(x)"),
    ],
)
def test_checker_lets_pass_what_is_allowed(module: str, source: str) -> None:
    assert violations(module, source, MODULES) == []


def test_start_up_is_followed_through_modules_but_not_into_functions() -> None:
    sources = {
        "vla_cli": "",
        "vla_cli.cli": "import typer\nfrom vla_cli import console",
        "vla_cli.console": "from vla_cli.worlds.contract import x\ndef f():\n    import torch",
        "vla_cli.worlds": "import gymnasium",
        "vla_cli.worlds.contract": "import numpy.typing",
    }
    assert loaded_at_start("vla_cli.cli", sources) == {
        "typer": "vla_cli.cli",
        "gymnasium": "vla_cli.worlds",
        "numpy": "vla_cli.worlds.contract",
    }


def test_layers_are_found_by_the_first_part_of_the_name() -> None:
    assert layer_of("vla_cli") == "foundations"
    assert layer_of("vla_cli.worlds.tabletop.render") == "folders"
    assert layer_of("vla_cli.report") == "nouns"
    assert layer_of("vla_cli.reporting") is None
