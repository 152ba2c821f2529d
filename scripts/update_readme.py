"""Put the tables of a report into README.md, between its table marks.

make demo && python scripts/update_readme.py [REPORT_DIRECTORY]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vla_cli.report import load_report, table, to_markdown, transposed

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Replace each marked table."""
    report = load_report(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "demo_out" / "report")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for metric in ("success", "locked"):
        fresh = f"<!-- table: {metric} -->\n{to_markdown(*transposed(*table(report, metric)))}<!-- end -->"
        text = re.sub(rf"<!-- table: {metric} -->\n.*?<!-- end -->", fresh, text, flags=re.DOTALL)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
