"""Whatever the bytes, only our errors come out of a reader, soon and within bounds; see `fuzzing`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import Fuzzer, Job, Variant, variants

from vla_cli.readers import READERS

EPISODES, STEPS = 2, 4
VARIANTS = variants()
FILES = {"rlds": 550, "zarr": 150, "lerobot": 200, "lerobot:v3": 300, "lerobot:v3_pictures": 200, "robomimic": 80}
FEWER = {"droid": 40, "aloha:compressed": 40, "zarr:pusht": 40}  # each takes long
OTHERS = 50
# Seeds of `benchmarks/fuzz_readers.py` that broke a promise once: heaps that HDF5 walks for ever, headers on which it
# frees twice, links out of the log, messages that quote the damaged bytes.
FOUND_ONCE = {
    "robomimic": [1000995],
    "libero": [1000308, 1001091],
    "libero:no_noops": [1000321],
    "rlds": [1001068, 1001137],
    "zarr": [1000202, 1000469, 1000742, 1001018],
    "rosbag:sqlite": [1000501],
}


def seeds(variant: Variant) -> list[int]:
    return [*range({**FILES, **FEWER}.get(variant.name, OTHERS)), *FOUND_ONCE.get(variant.name, [])]


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    with Fuzzer(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


def jobs(variant: Variant, folder: Path, damages: list[int] | list[None]) -> list[Job]:
    healthy = str(variant.write(folder / "healthy", EPISODES, STEPS))
    return [Job(variant.name, variant.format, healthy, seed) for seed in damages]


def test_every_format_is_fuzzed_and_two_thousand_logs_in_all() -> None:
    assert {variant.format for variant in VARIANTS} == set(READERS)
    assert sum(len(seeds(variant)) for variant in VARIANTS) >= 2000


@pytest.mark.parametrize("variant", VARIANTS, ids=[v.name for v in VARIANTS])
def test_the_healthy_log_reads_without_a_skip(variant: Variant, fuzzer: Fuzzer, tmp_path: Path) -> None:
    (verdict,) = fuzzer.run(jobs(variant, tmp_path, [None]))
    assert (verdict.outcome, verdict.skipped) == ("read", 0), str(verdict)


@pytest.mark.parametrize("variant", VARIANTS, ids=[f"{v.name}-{len(seeds(v))}-seeds" for v in VARIANTS])
def test_only_our_errors_come_out_of_damaged_logs(variant: Variant, fuzzer: Fuzzer, tmp_path: Path) -> None:
    verdicts = list(fuzzer.run(jobs(variant, tmp_path, seeds(variant))))
    broken = [str(verdict) for verdict in verdicts if verdict.outcome == "violation"]
    assert not broken, "\n".join(broken)
    # a harness that damaged nothing, or everything at once, would find nothing
    assert {"read", "refused"} <= {verdict.outcome for verdict in verdicts}
