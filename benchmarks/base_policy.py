"""How well the embedded base policy follows instructions in its own domain, closed loop.

    python benchmarks/base_policy.py --episodes 600 --seed 1

Prints success with Wilson intervals over everything, and apart for put and pick, each colour, shape, plate and
phrasing, so that no part can hide in the mean.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

from vla_cli.policies.loading import load_policy
from vla_cli.report import count_row
from vla_cli.suites.closed_loop import run
from vla_cli.worlds.tabletop.scene import COLOURS, PICK_PHRASINGS, PLATES, PUT_PHRASINGS, SHAPES
from vla_cli.worlds.tabletop.world import TabletopWorld


def facets(instruction: str) -> list[str]:
    """What an instruction belongs to: its verb's group, colour, shape, plate and phrasing."""
    words = instruction.split()
    colour, shape = words[next(i for i, w in enumerate(words) if w in COLOURS)], next(w for w in words if w in SHAPES)
    plate = next((w for w in words if w in PLATES), "")
    template = instruction.replace(colour, "{colour}").replace(shape, "{shape}")
    template = template.replace(f"{plate} plate", "{plate} plate") if plate else template
    kind = "put" if template in PUT_PHRASINGS else "pick"
    assert template in (*PUT_PHRASINGS, *PICK_PHRASINGS)
    return [kind, f"colour {colour}", f"shape {shape}", *([f"plate {plate}"] if plate else []), f"'{template}'"]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="sample_data/base")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    findings = run(
        {"base": load_policy(args.base, device="cpu")},
        TabletopWorld("base"),
        episodes=args.episodes,
        seed=args.seed,
        conditions=["base-domain"],
        films=0,
    )
    groups: dict[str, list[bool]] = defaultdict(list)
    for rollout in findings.rollouts:
        for name in ("all", *facets(rollout.instruction)):
            groups[name].append(rollout.success)
    for name, successes in sorted(groups.items(), key=lambda item: (item[0] != "all", item[0])):
        row = count_row("base", "base-domain", "success", sum(successes), len(successes))
        print(f"{name:55s} {row.k:4d} of {row.n:4d}  {row.text}")


if __name__ == "__main__":
    main()
