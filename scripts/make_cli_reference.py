"""Write docs/cli.md from the help pages; `--check` fails when it is stale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
COMMANDS = ("", "collect-ingest", "preprocess", "finetune", "eval-steer", "export-adapter", "inspect")


def help_of(command: str) -> str:
    """The help page of a subcommand, 100 columns wide, without colours."""
    script = "import sys; sys.argv[0] = 'vla'; from vla_cli.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    arguments = [sys.executable, "-c", script, *([command] if command else []), "--help"]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout


def page() -> str:
    """The whole reference."""
    parts = ["# Command-line reference", "", "Made by `python scripts/make_cli_reference.py`; do not edit.", ""]
    for command in COMMANDS:
        parts += [f"## vla {command}".rstrip(), "", "```", help_of(command).strip("\n"), "```", ""]
    return "\n".join(parts)


def main() -> None:
    """Write or check."""
    fresh = page()
    if "--check" in sys.argv:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != fresh:
            sys.exit("docs/cli.md is stale: python scripts/make_cli_reference.py")
        return
    PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
