"""What four bits cost: the same LoRA beside a whole base and beside one in NF4, both evaluated on the whole base.

    python benchmarks/quantization.py             # five minutes on two cores; writes docs/quantization.md

Demonstrations and scenes are those of `make demo` (shift V, one task, one seed). The policies act in the same scenes
with the same noise, so they are compared in pairs. Memory is counted, for the embedded base and for a full-size pi0
with LoRA of rank 16 on every linear layer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from transformers import PI0Config

from vla_cli.comparison import compare as paired
from vla_cli.comparison import corrected
from vla_cli.configs import FinetuneConfig, IngestConfig, PreprocessConfig, SteerConfig
from vla_cli.policies.adaptation import Layout
from vla_cli.policies.estimate import memory, sizes_of
from vla_cli.policies.modalities import MODALITIES
from vla_cli.report import load_report, table, to_markdown, transposed
from vla_cli.stages import finetune, ingest, preprocess, steer

SAMPLES = Path("sample_data")
PAGE = Path("docs/quantization.md")
INSTRUCTION = "put the red block on the left plate"
ARMS = {"whole": "none", "nf4": "nf4"}


def adapters(work: Path, steps: int | None) -> dict[str, float]:
    """Train both; name to seconds of CPU time of each."""
    ingest.run(IngestConfig(source=SAMPLES / "demonstrations.hdf5", out=work / "episodes", instruction=INSTRUCTION))
    preprocess.run(PreprocessConfig(episodes=work / "episodes", out=work / "dataset"))
    seconds = {}
    for name, quantize in {"warm-up": "nf4", **ARMS}.items():  # the first run also imports the libraries
        begun = time.process_time()
        finetune.run(
            FinetuneConfig(
                dataset=work / "dataset",
                base=str(SAMPLES / "base"),
                out=work / name,
                recipe="lora",
                steps=1 if name == "warm-up" else steps,
                quantize=quantize,
            )
        )
        seconds[name] = time.process_time() - begun
    return seconds


def successes(report: Path) -> dict[str, dict[tuple[str, int], bool]]:
    """Policy to (condition, episode) to success."""
    found: dict[str, dict[tuple[str, int], bool]] = {}
    for line in (report / "rollouts.jsonl").read_text(encoding="utf-8").splitlines():
        rollout = json.loads(line)
        found.setdefault(rollout["policy"], {})[rollout["condition"], rollout["episode"]] = rollout["success"]
    return found


def compared(report: Path, conditions: list[str]) -> str:
    """A Markdown table: success with LoRA beside four bits minus that beside the whole base, in pairs."""
    both = successes(report)
    family = {}
    for condition in conditions:
        keys = [key for key in both["nf4"] if key[0] == condition]
        family[condition] = paired([both["nf4"][key] for key in keys], [both["whole"][key] for key in keys])
    rows = [
        [
            name,
            f"{100 * c.difference:+.0f} [{100 * c.low:+.0f}, {100 * c.high:+.0f}]",
            f"{c.corrected:.2g}",
            c.verdict,
        ]
        for name, c in corrected(family).items()
    ]
    return to_markdown(["condition", "nf4 minus whole, points", "p (Holm)", "nf4 is"], rows)


def counted() -> str:
    """A Markdown table of memory in GB."""
    rows = []
    for quantized in (False, True):
        layout = Layout(dict.fromkeys(MODALITIES, 16), quantized=quantized)
        found = memory(sizes_of(PI0Config(), layout=layout, train_heads=False))
        gigabytes = [f"{found[key] / 1e9:.1f}" for key in ("weight_bytes", "optimiser_bytes")]
        rows.append(["nf4" if quantized else "whole", *gigabytes])
    return to_markdown(["base", "weights, GB", "gradient and moments, GB"], rows)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=None, help="instead of the recipe's")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    conditions = ["trained", "paraphrase", "novel-concept", "novel-spatial", "novel-both", "base-domain"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        seconds = adapters(work, arguments.steps)
        steer.run(
            SteerConfig(
                adapters=tuple(work / name for name in ARMS),
                out=work / "report",
                episodes=arguments.episodes,
                conditions=tuple(conditions),
                seed=2026,
            )
        )
        report = load_report(work / "report")
        success = to_markdown(*transposed(*table(report, "success")))
        pairs = compared(work / "report", conditions)
    arguments.out.write_text(
        f"""# LoRA beside a base in four bits

Written by `python benchmarks/quantization.py`: recipe `lora` on the demonstrations of `make demo`, beside the whole
base and beside one whose linear layers are held in NF4 (`--quantize nf4`), {arguments.episodes} episodes a condition.
Both adapters act on the whole base. One task, one seed: it says what four bits did here, not what they do in general.

{success}
{pairs}
Training beside four bits took {seconds["nf4"] / seconds["whole"]:.2f} times the CPU time. On a small base they save
nothing worth having. Of a full-size pi0 (3.5 billion parameters, float32) with LoRA of rank 16 on every linear layer,
counted and not run:

{counted()}
Embeddings (0.8 billion parameters), norms, layers that no action depends on, and fc2 of the vision tower, whose rows
are not whole blocks, stay whole. Activations come on top, and with methods that hold to the base a second copy of the
weights.
""",
        encoding="utf-8",
    )
    print(f"{arguments.out} written")


if __name__ == "__main__":
    main()
