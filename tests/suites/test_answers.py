"""What other words change offline: exact for policies whose answer is known, and in order for real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import InterruptAfter

from vla_cli.dataset import Dataset, load_dataset
from vla_cli.language.alternatives import Alternative, load_alternatives
from vla_cli.policies.flow import load
from vla_cli.suites import Findings, answers
from vla_cli.suites.kept import Kept

ALTERNATIVES = Path(__file__).resolve().parents[2] / "sample_data" / "alternatives.yaml"
SHOWN = "put the red block on the left plate"


@pytest.fixture(scope="module")
def recorded(dataset: Path) -> Dataset:
    return load_dataset(dataset)


@pytest.fixture(scope="module")
def others() -> list[Alternative]:
    return load_alternatives(ALTERNATIVES)


class Answering:
    """A policy whose chunk is its noise and, where the words are other ones, `strength` times a direction of theirs."""

    spec: Any = None
    draws_noise = True

    def __init__(self, strength: Any, noise: float = 0.1) -> None:
        self.strength, self.noise = strength, noise
        self.told: list[str] = []
        self.states: list[np.ndarray] = []

    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        return (batch, 4, 6)

    def act(self, images: Any, state: Any, instructions: Any, noise: Any, **_: Any) -> np.ndarray:
        self.told += instructions
        self.states += list(state)
        answers = [self._answer(text) for text in instructions]
        # what it does anyhow is no answer
        return (5.0 + self.noise * noise[..., :3] + np.stack(answers)).astype(np.float32)

    def _answer(self, text: str) -> np.ndarray:
        if "red" in text.split() and "left" in text.split():
            return np.zeros((4, 3))
        return self.strength * np.random.default_rng(list(text.encode())).normal(size=(4, 3))


def measured(
    policies: dict[str, Any], recorded: Dataset, others: list[Alternative], **options: Any
) -> dict[Any, float]:
    findings = answers.run(policies, recorded, others, seed=0, **options)
    return {(row.policy, row.condition, row.metric): row.value for row in findings.rows}


def test_a_deaf_policy_answers_nothing_and_the_base_itself_keeps_everything(
    recorded: Dataset, others: list[Alternative]
) -> None:
    found = measured({"base": Answering(1.0), "deaf": Answering(0.0), "same": Answering(1.0)}, recorded, others)
    for condition in answers.CONDITIONS:
        figures = {m: found["deaf", condition, m] for m in ("response", "kept", "agreement", "identified")}
        assert figures == {"response": 0, "kept": 0, "agreement": 0, "identified": pytest.approx(0.25)}
        assert found["same", condition, "kept"] == pytest.approx(1)
        assert found["same", condition, "agreement"] == 1
        assert ("base", condition, "kept") not in found


@pytest.mark.parametrize("strength", [0.4, 0.6, 2.0, -1.0])
def test_what_is_kept_is_the_answers_strength_in_the_bases_direction(
    strength: float, recorded: Dataset, others: list[Alternative]
) -> None:
    found = measured({"base": Answering(1.0), "adapted": Answering(strength)}, recorded, others)
    assert found["adapted", answers.BEFORE, "kept"] == pytest.approx(strength, rel=1e-5)
    assert found["adapted", answers.BEFORE, "agreement"] == (1.0 if strength > 0.5 else 0.0)


def test_the_response_is_in_units_of_another_seed(recorded: Dataset, others: list[Alternative]) -> None:
    policies = {"base": Answering(1.0), "noisy": Answering(1.0, noise=1.0)}
    found = measured(policies, recorded, others)
    quiet, noisy = (found[name, answers.BEFORE, "response"] for name in policies)
    assert quiet == pytest.approx(10 * noisy)
    # unit noise beside unit answers: two seeds differ by sqrt(2)
    assert noisy == pytest.approx(1 / np.sqrt(2), rel=0.4)


def test_a_policy_without_noise_has_no_response_but_what_it_keeps(recorded: Dataset, others: list[Alternative]) -> None:
    class Still(Answering):
        """Whatever the noise."""

        draws_noise = False

    policies = {"base": Still(1.0, noise=0.0), "half": Still(0.5, noise=0.0), "silent": Still(0.0, noise=0.0)}
    findings = answers.run(policies, recorded, others, seed=0)
    found = {(row.policy, row.condition, row.metric): row.value for row in findings.rows}
    assert not any(metric == "response" for _, _, metric in found)
    assert "not told of base, half, silent" in findings.warnings[-1]
    for condition in answers.CONDITIONS:
        assert found["half", condition, "kept"] == pytest.approx(0.5)
        assert found["silent", condition, "kept"] == 0
    # each was asked once, not once a draw
    assert len(policies["base"].told) < len(measured_with(Answering(1.0), recorded, others).told) / 4
    # a base that other words move no further than a rewording answers nothing
    deaf = answers.run({"base": Still(0.0, noise=0.0), "same": Still(0.0, noise=0.0)}, recorded, others, seed=0)
    assert not any(row.metric == "kept" for row in deaf.rows)
    assert any("what a rewording does" in warning for warning in deaf.warnings)


def measured_with(policy: Answering, recorded: Dataset, others: list[Alternative]) -> Answering:
    answers.run({"base": policy}, recorded, others, seed=0)
    return policy


def test_objects_are_asked_for_before_the_grasp_and_places_while_something_is_held(
    recorded: Dataset, others: list[Alternative]
) -> None:
    policy = Answering(1.0)
    findings = answers.run({"base": policy}, recorded, [a for a in others if a.moment == "empty"], seed=0)
    assert [c.name for c in findings.conditions] == [answers.BEFORE]
    assert [w for w in findings.warnings if "another place" not in w and "while something is held" in w]
    policy.told.clear()
    findings = answers.run({"base": policy}, recorded, [a for a in others if a.moment == "always"], seed=0)
    assert [c.name for c in findings.conditions] == [answers.HOLDING], "a place makes no difference before the grasp"
    assert {"front", "back", "right"} <= {word for text in policy.told for word in text.split()}


def test_a_gripper_that_only_trembles_holds_nothing(recorded: Dataset, others: list[Alternative]) -> None:
    still = replace(recorded, demonstrations=[replace(d, actions=d.actions.copy()) for d in recorded.demonstrations])
    still.action_names = [*recorded.action_names[:-1], "gripper"]
    for demonstration in still.demonstrations:
        demonstration.actions[:, -1] = 1 + 1e-5 * (np.arange(len(demonstration)) % 3)
    findings = answers.run({"base": Answering(1.0)}, still, others, seed=0)
    assert [condition.name for condition in findings.conditions] == [answers.BEFORE]


def test_no_frame_after_the_release_is_asked(recorded: Dataset, others: list[Alternative]) -> None:
    policy = Answering(1.0)
    answers.run({"base": policy}, recorded, [a for a in others if a.moment == "empty"], seed=0)
    before = []
    for demonstration in recorded.demonstrations:
        gripper = demonstration.actions[:, -1]
        closing = int(np.argmax(gripper != gripper[0]))
        before += [tuple(row) for row in demonstration.state[: closing + 1]]
        assert gripper[-1] == gripper[0], "it lets go in the end"
    assert policy.states and {tuple(row) for row in policy.states} <= set(before)


def test_a_policy_that_any_other_words_move_does_not_answer(recorded: Dataset, others: list[Alternative]) -> None:
    class Twitching(Answering):
        """Moved by wordings, whatever they mean."""

        def _answer(self, text: str) -> np.ndarray:
            return np.zeros((4, 3)) if text == SHOWN else np.sign(super()._answer(text.upper()))

    found = measured({"base": Answering(1.0), "twitching": Twitching(1.0)}, recorded, others)
    answering, twitching = (found[name, answers.BEFORE, "response"] for name in ("base", "twitching"))
    assert abs(twitching) < 1e-3 * answering


def test_dimensions_count_in_their_own_standard_deviations(recorded: Dataset, others: list[Alternative]) -> None:
    std = recorded.statistics.actions.std * [1, 10, 100]
    statistics = replace(recorded.statistics, actions=replace(recorded.statistics.actions, std=std))

    class Signed(Answering):
        """One standard deviation up or down in the dimensions that `strength` names."""

        def _answer(self, text: str) -> np.ndarray:
            return np.sign(np.array([answer_of(text)])) * std * self.strength

    def answer_of(text: str) -> np.ndarray:
        return Answering(1.0)._answer(text)[0]

    policies = {"base": Signed(np.ones(3)), "one of three": Signed(np.array([1.0, 0.0, 0.0]))}
    found = measured(policies, replace(recorded, statistics=statistics), others)
    assert found["one of three", answers.BEFORE, "kept"] == pytest.approx(1 / 3, rel=1e-3)


def test_what_was_demonstrated_itself_is_no_other_instruction(recorded: Dataset) -> None:
    findings = answers.run({"base": Answering(1.0)}, recorded, [Alternative(f"{SHOWN.capitalize()}.")], seed=0)
    assert not findings.rows and len(findings.warnings) == 2
    assert "no other instruction fits" in findings.warnings[0] and "--alternatives" in findings.warnings[0]
    assert "no other instructions were given" in answers.run({"base": Answering(1.0)}, recorded, [], seed=0).warnings[0]


def test_where_the_base_does_not_answer_it_is_said(recorded: Dataset, others: list[Alternative]) -> None:
    findings = answers.run({"base": Answering(0.05), "adapted": Answering(0.05)}, recorded, others, seed=0)
    assert [w for w in findings.warnings if w.startswith("adapted, other-object: the base itself hardly answers")]
    assert {row.metric for row in findings.rows} == {"response", "identified"}, "what is kept of nothing is undefined"


def test_padded_steps_and_dimensions_that_never_move_do_not_count(recorded: Dataset, others: list[Alternative]) -> None:
    constant = np.array([False, False, True])
    statistics = replace(recorded.statistics, actions=replace(recorded.statistics.actions, constant=constant))
    still = replace(recorded, statistics=statistics)

    class Wild(Answering):
        """Says anything in the dimension that never moves."""

        def act(self, images: Any, state: Any, instructions: Any, noise: Any, **options: Any) -> np.ndarray:
            chunks = super().act(images, state, instructions, noise, **options)
            chunks[..., 2] = len(instructions[0]) * 1e3
            return chunks

    class Long(Answering):
        """Says anything in steps after the end of every recording."""

        def noise_shape(self, batch: int) -> tuple[int, int, int]:
            return (batch, 64, 6)

        def _answer(self, text: str) -> np.ndarray:
            beyond = np.full((32, 3), len(text) * self.beyond)
            return np.concatenate([np.tile(super()._answer(text), (8, 1)), beyond])

        beyond = 0.0

    class LongAndWild(Long):
        """Says something else there."""

        beyond = 1e3

    assert max(len(demonstration) for demonstration in recorded.demonstrations) <= 32
    for ordinary, other in ((Answering, Wild), (Long, LongAndWild)):
        calm, wild = (measured({"base": kind(1.0)}, still, others) for kind in (ordinary, other))
        assert calm == wild


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "DRAWS", 2)
    monkeypatch.setattr(answers, "EPISODES", 2)
    monkeypatch.setattr(answers, "FRAMES", 2)


@pytest.mark.usefixtures("few")
def test_an_interrupted_measurement_goes_on_to_the_same_figures(
    recorded: Dataset, others: list[Alternative], base: Path, adapter: Path, tmp_path: Path
) -> None:
    """With the real model; an adapter that is held against itself keeps everything."""
    policies = {"base": load(base, device="cpu"), "lora": load(base, adapter, device="cpu")}

    def run(**options: Any) -> Findings:
        held = {"lora": policies["lora"]}
        return answers.run(policies, recorded, others, seed=3, episodes=3, references=held, **options)

    whole, kept = run(), Kept(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(kept=kept, progress=InterruptAfter(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.other-object.safetensors" for name in ("base", "lora")
    ]
    assert run(kept=kept).rows == whole.rows
    figures = {(row.policy, row.condition, row.metric): row.value for row in whole.rows}
    assert figures["lora", answers.BEFORE, "kept"] == pytest.approx(1), "held against itself"
    assert figures["base", answers.BEFORE, "response"] > answers.NO_ANSWER, "the base listens"
