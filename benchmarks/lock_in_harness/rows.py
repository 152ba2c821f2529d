"""What is compared: the rows of `lock_in_rows.yaml`, and the sizes of its two plans.

    - name: lora-small                  one row; unknown keys are errors
      summary: LoRA r4, a small dose    one line for the table
      recipe: {like: lora, rank: 4}     a shipped recipe's name, or recipe keys (`like` starts from another recipe)
      base_data: true                   passes the base-domain log to --replay; default false
      demos: oracle                     "single" (20 of one instruction, the default) or "oracle" (32 of all of them)
      from: LABEL                       use the adapter that another row trained, instead of `recipe`
      alternatives: true                tells fine-tuning what else could be asked in the scene (--alternatives)
      guidance: {kind: contrast, weight: 1.5}    at evaluation; default: what the adapter itself says
      train: false                      no fine-tuning at all
      planned: false                    only run where --rows names it; for a row that is newer than the published plan

A row's label is its name, followed by "+data" with base-domain data, so that one recipe can be run with and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from vla_cli.errors import ConfigError
from vla_cli.recipe import FOLDER, Recipe, load_recipe
from vla_cli.yaml_files import read_options

ROWS_FILE = Path(__file__).parent.parent / "lock_in_rows.yaml"
DEMOS = ("single", "oracle")


@dataclass(frozen=True)
class MethodRow:
    """One row of the benchmark; see the module's docstring.

    Attributes:
        name, summary, recipe, base_data, demos, alternatives, guidance, train, planned: as in the file.
        source: label of the row whose adapter is used (`from`); empty for its own.
    """

    name: str
    summary: str = ""
    recipe: str | dict[str, Any] = ""
    base_data: bool = False
    demos: str = "single"
    source: str = ""
    alternatives: bool = False
    guidance: dict[str, Any] = field(default_factory=dict)
    train: bool = True
    planned: bool = True

    @property
    def label(self) -> str:
        """Unique among the rows."""
        return f"{self.name}+data" if self.base_data else self.name


@dataclass(frozen=True)
class Size:
    """How large a run is, before any selector."""

    rows: tuple[str, ...]
    shifts: tuple[str, ...]
    only: dict[str, tuple[str, ...]]
    tasks: str
    seeds: tuple[int, ...]
    episodes: int


@dataclass(frozen=True)
class RowsFile:
    """`lock_in_rows.yaml`: every row by label, in order, and the sizes of the small and the whole run."""

    rows: dict[str, MethodRow]
    sizes: dict[str, Size]

    def choose(self, labels: Sequence[str]) -> list[MethodRow]:
        """Rows by label, in the file's order; none given means all that are planned.

        Raises:
            ConfigError: there is no such row.
        """
        unknown = [label for label in labels if label not in self.rows]
        if unknown:
            raise ConfigError(f"There is no row '{unknown[0]}'", expected=f"some of {', '.join(self.rows)}")
        return [row for label, row in self.rows.items() if (label in labels if labels else row.planned)]

    def trained_by(self, row: MethodRow) -> MethodRow:
        """The row whose adapter a row uses: itself unless it says `from`."""
        return self.rows[row.source] if row.source else row


def load_rows(path: Path = ROWS_FILE) -> RowsFile:
    """Read and check the rows.

    Raises:
        ConfigError: a row is malformed; all problems at once.
    """
    document = read_options(path)
    problems = [f"unknown key '{key}'" for key in document if key not in ("rows", "small", "whole")]
    rows: dict[str, MethodRow] = {}
    for entry in document.get("rows", []):
        found = _row_problems(entry, rows)
        problems += found
        if not found:
            row = _row(entry)
            rows[row.label] = row
    if problems:
        raise ConfigError(f"{path} cannot be used: {'; '.join(problems)}")
    sizes = {name: _size(name, document[name], rows) for name in ("small", "whole")}
    return RowsFile(rows, sizes)


def _row(entry: Mapping[str, Any]) -> MethodRow:
    return MethodRow(**{("source" if key == "from" else key): value for key, value in entry.items()})


def _row_problems(entry: Any, rows: Mapping[str, MethodRow]) -> list[str]:
    if not isinstance(entry, dict) or not entry.get("name"):
        return [f"a row without a name: {entry!r}"]
    name, known = entry["name"], {f.name for f in fields(MethodRow)} - {"source"} | {"from"}
    found = [f"row '{name}': unknown key '{key}'" for key in entry if key not in known]
    if found:
        return found
    row = _row(entry)
    if row.label in rows:
        found.append(f"two rows are called '{row.label}'")
    if row.demos not in DEMOS:
        found.append(f"row '{name}': demos is {row.demos!r}, not {' or '.join(DEMOS)}")
    if row.source and (row.source not in rows or rows[row.source].source):
        found.append(f"row '{name}': from is '{row.source}', which is no row above it with an adapter of its own")
    if row.source and (row.recipe or row.base_data or row.alternatives or row.demos != "single"):
        found.append(f"row '{name}': what is trained is said by '{row.source}', its own keys would mean nothing")
    if row.guidance and (not isinstance(row.guidance, dict) or not {"kind"} <= set(row.guidance) <= {"kind", "weight"}):
        found.append(f"row '{name}': guidance is not of the form {{kind: ..., weight: ...}}")
    if bool(row.recipe or row.source) != row.train:
        found.append(f"row '{name}': give a recipe or from, or train: false")
    return found


def _size(name: str, entry: Mapping[str, Any], rows: Mapping[str, MethodRow]) -> Size:
    known = {f.name for f in fields(Size)}
    if set(entry) != known:
        raise ConfigError(f"'{name}' has keys {sorted(entry)}", expected=f"exactly {sorted(known)}")
    labels, shifts = tuple(entry["rows"]), tuple(entry["shifts"])
    only = {shift: tuple(chosen) for shift, chosen in entry["only"].items()}
    if missing := [label for chosen in (labels, *only.values()) for label in chosen if label not in rows]:
        raise ConfigError(f"'{name}' names a row '{missing[0]}' that is not there")
    if missing := [shift for shift in only if shift not in shifts]:
        raise ConfigError(f"'{name}' says which rows are run on '{missing[0]}', which is none of its shifts")
    return Size(labels, shifts, only, str(entry["tasks"]), tuple(entry["seeds"]), int(entry["episodes"]))


def recipe_keys(row: MethodRow, steps: int | None = None) -> dict[str, Any]:
    """The keys of a row's recipe YAML.

    Args:
        row: a row with a recipe.
        steps: instead of the recipe's own, for a quick look.

    Raises:
        ConfigError: it is like a recipe that does not exist.
    """
    own = dict(row.recipe) if isinstance(row.recipe, dict) else {"like": row.recipe}
    like = str(own.pop("like", ""))
    path = Path(like) if like.endswith((".yaml", ".yml")) else FOLDER / f"{like}.yaml"
    if like and not path.is_file():
        raise ConfigError(f"Row '{row.label}' is like recipe '{like}', which does not exist")
    keys = {**(read_options(path) if like else {}), **own}
    return {**keys, **({"steps": steps} if steps else {})}


def said(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says beyond the defaults, without its name and summary.

    Only that goes into a cell's digest: when the tool learns a new recipe key, finished cells stay finished.
    """
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(Recipe)}
    document = recipe.document()
    return {key: value for key, value in document.items() if key not in ("name", "summary") and value != defaults[key]}


@lru_cache
def resolve(path: Path) -> dict[str, Any]:
    """What a recipe file says, checked (see `said`).

    Raises:
        ConfigError: it is no recipe.
    """
    return said(load_recipe(str(path)))
