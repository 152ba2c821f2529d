"""The keyboard: what each key means, what the screen says, and a whole recording through a real terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vla_cli.episode import load_episode, problems
from vla_cli.errors import ConfigError
from vla_cli.keyboard import BEFORE, DIRECTIONS, DURING, FINE, Discarded, Hand, Keyboard, View, action_of, command_of
from vla_cli.keyboard import screen as screen_of
from vla_cli.worlds.collecting import open_world, scene_seed
from vla_cli.worlds.tabletop.collect import TabletopCollection

INSTRUCTION = "put the red block on the left plate"


# ---- keys


@pytest.mark.parametrize(
    ("keys", "action"),
    [
        (("left", "a", "A"), [-1, 0, -1]),
        (("right", "d"), [1, 0, -1]),
        (("up", "w"), [0, 1, -1]),
        (("down", "s"), [0, -1, -1]),
        ((" ",), [0, 0, 1]),
        ((".", "\n", "\r"), [0, 0, -1]),
    ],
)
def test_keys_move_with_arrows_or_letters(keys: tuple[str, ...], action: list[float]) -> None:
    for key in keys:
        command = command_of(key, recording=True)
        assert command is not None
        done = action_of(Hand(), command)[1]
        assert done is not None and done.dtype == np.float32
        np.testing.assert_array_equal(done, action)


def test_space_toggles_the_gripper_and_moves_keep_it() -> None:
    hand, told = Hand(), []
    for command in ("left", "grip", "left", "wait", "grip", "away"):
        hand, action = action_of(hand, command)
        assert action is not None
        told.append(action[2])
    assert told == [-1, 1, 1, 1, -1, -1]


def test_small_steps_are_set_without_a_step() -> None:
    hand, action = action_of(Hand(closed=True), "fine")
    assert action is None and hand == Hand(closed=True, fine=True)
    np.testing.assert_allclose(action_of(hand, "nearer")[1], [0, -FINE, 1])
    assert action_of(hand, "fine")[0] == Hand(closed=True)


def test_s_starts_before_the_recording_and_moves_in_it() -> None:
    assert [command_of("s", recording=on) for on in (False, True)] == ["start", "nearer"]
    assert [command_of("x", recording=on) for on in (False, True)] == ["leave-out", "discard"]
    assert command_of("q", recording=True) == "keep"
    assert [command_of(key, recording=False) for key in ("q", " ", "left", "", "\x1b")] == [None] * 5
    assert command_of("z", recording=True) is None


def test_no_command_ever_asks_for_more_than_the_limits() -> None:
    for command in (*BEFORE.values(), *DURING.values()):
        action = action_of(Hand(), command)[1]
        assert action is None or np.abs(action).max() <= 1
        assert (action is None) == (command in ("start", "leave-out", "keep", "discard", "fine"))
    assert set(DIRECTIONS) <= set(DURING.values())


# ---- screen


def test_the_screen_names_everything_needed() -> None:
    view = View("tabletop:V, episode 1 of 2", INSTRUCTION, ("gripper  x 0.5", "red block  x 0.3"), message="Discarded.")
    text = "\n".join(screen_of(view))
    for fragment in ("episode 1 of 2", INSTRUCTION, "red block  x 0.3", "s  starts", "not recording", "Discarded."):
        assert fragment in text
    during = "\n".join(screen_of(View("t", INSTRUCTION, (), Hand(True, True), steps=7)))
    for fragment in ("RECORDING, 7 steps", "told to close", "small steps", "space", "q  ends", "x  discards"):
        assert fragment in during
    assert all(len(line) < 80 for line in during.splitlines())


class Script:
    """A terminal whose keys are known beforehand."""

    def __init__(self, *keys: str) -> None:
        self.keys, self.drawn = list(keys), []

    def draw(self, lines: list[str]) -> None:
        self.drawn.append("\n".join(lines))

    def key(self) -> str:
        return self.keys.pop(0)


def person(*keys: str) -> tuple[Keyboard, Script]:
    script = Script(*keys)
    return Keyboard(script, "t", "do it", lambda: ["here"]), script  # pyright: ignore[reportArgumentType]


def test_an_operator_starts_moves_and_keeps() -> None:
    operator, script = person("left", "q", "s", "z", "left", "f", "left", "q")
    assert operator.started()
    actions = [operator(None) for _ in range(3)]
    assert [None if a is None else a.tolist() for a in actions] == [[-1, 0, -1], [-np.float32(FINE), 0, -1], None]
    assert "RECORDING, 2 steps" in script.drawn[-1] and "not recording" in script.drawn[0]


def test_an_operator_leaves_out_or_discards() -> None:
    assert not person("x")[0].started()
    operator, _ = person("s", ".", "x")
    assert operator.started() and operator(None) is not None
    with pytest.raises(Discarded):
        operator(None)


def test_nothing_cannot_be_kept() -> None:
    operator, script = person("q", ".")
    assert operator(None) is not None and script.keys == []


# ---- the real thing

CHILD = """
import fcntl, os, signal, sys, termios
from pathlib import Path
# as the command line does: a suite started in a shell's background inherits that Ctrl-C is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
if os.environ.get("OWN_TERMINAL"):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from vla_cli.episode import UnusableError, save_episode
from vla_cli.worlds.collecting import open_world

out = Path(sys.argv[1])
log = open_world("tabletop:V", actor="keyboard", episodes=3, instruction=sys.argv[2], seed=5, operator="ada")
for entry in log.entries():
    try:
        save_episode(log.read(entry), out / f"{entry.name}.hdf5")
    except UnusableError as error:
        (out / f"{entry.name}.txt").write_text(str(error))
log.close()
"""
ARROWS = {"left": b"\x1bOD", "right": b"\x1b[C", "away": b"\x1bOA", "nearer": b"\x1b[B"}
LETTERS = {"left": b"a", "right": b"d", "away": b"w", "nearer": b"s"}


def plan(index: int) -> tuple[list[str], list[np.ndarray]]:
    """The commands with which a person would do the task in an episode's scene, and the actions they ask for."""
    environment = TabletopCollection("V", INSTRUCTION).environment(patient=True)
    environment.reset(seed=scene_seed(5, index))
    table, hand = environment.table, Hand()
    commands: list[str] = []
    actions: list[np.ndarray] = []

    def press(command: str) -> bool:
        nonlocal hand
        hand, action = action_of(hand, command)  # pyright: ignore[reportArgumentType]
        assert action is not None
        commands.append(command)
        actions.append(action)
        return environment.step(action)[2]

    def go(goal: np.ndarray) -> None:
        for axis, (more, less) in enumerate((("right", "left"), ("away", "nearer"))):
            while abs(gap := goal[axis] - table.gripper_xy[0, axis]) > 0.03:
                press(more if gap > 0 else less)

    go(table.object_xy[0, table.target[0]].copy())
    assert not press("grip") and table.held[0] == table.target[0]
    go(table.plate_xy[0, 0])
    assert press("grip")
    return commands, actions


class Typist:
    """The other end of a terminal."""

    def __init__(self, master: int) -> None:
        self.master, self.seen = master, b""

    def wait_for(self, text: bytes, since: int = 0, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen[since:]:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen[since:]!r}"
            self.read(0.1)

    def read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            self.seen += os.read(self.master, 65536)

    def type(self, *keys: bytes) -> None:
        for key in keys:
            os.write(self.master, key)
            self.read(0.0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, Typist, int]]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 110))
    environment = {**os.environ, "TERM": "xterm", "OWN_TERMINAL": "yes"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), INSTRUCTION],
        stdin=slave,
        stdout=slave,
        stderr=(tmp_path / "stderr").open("wb"),
        env=environment,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    )
    yield child, Typist(master), slave
    child.kill()
    child.wait()
    for descriptor in (master, slave):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def ended(child: subprocess.Popen, typist: Typist, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < end:
        typist.read(0.05)
    return child.poll() is not None


def finish(child: subprocess.Popen, typist: Typist, seconds: float = 60.0) -> int:
    ended(child, typist, seconds)
    return child.wait(timeout=10)


def test_demonstrations_through_a_real_terminal(terminal: tuple[subprocess.Popen, Typist, int], tmp_path: Path) -> None:
    child, typist, slave = terminal
    before = termios.tcgetattr(slave)
    typist.wait_for(b"starts")
    began = time.monotonic()
    assert INSTRUCTION.encode() in typist.seen and b"red block" in typist.seen
    for size in ((5, 20), (30, 110)):  # too small a window shows less, and does no harm
        termios.tcsetwinsize(slave, size)
        time.sleep(0.05)
    # a first try that is discarded, then the task with arrow keys: the recording ends by itself when it is done
    commands, actions = plan(0)
    typist.type(b"s", b"d", b" ", b"x")
    typist.wait_for(b"Discarded")
    typist.type(b"s", *({**ARROWS, "grip": b" "}[command] for command in commands))
    typist.wait_for(b"the task is done")
    typist.type(b"s", b"a", b".", b"w", b"q")
    typist.wait_for(b"NOT")
    typist.type(b"x")
    assert finish(child, typist) == 0, (tmp_path / "stderr").read_text()
    assert time.monotonic() - began < 5
    assert termios.tcgetattr(slave) == before
    assert (tmp_path / "episode_00002.txt").read_text() == "the operator left it out"
    done, short = (load_episode(tmp_path / f"episode_0000{i}.hdf5") for i in (0, 1))
    np.testing.assert_array_equal(done.of_role("action")[0].values, actions)
    assert done.operator == "ada" and done.instructions == [INSTRUCTION] and done.notes == []
    assert problems(done) == problems(short) == []
    assert short.of_role("action")[0].values.tolist() == [[-1, 0, -1], [0, 0, -1], [0, 1, -1]]
    assert short.notes == ["the task was not done when the recording ended"]


def test_letters_do_without_arrow_keys_and_ctrl_c_gives_the_terminal_back(
    terminal: tuple[subprocess.Popen, Typist, int], tmp_path: Path
) -> None:
    child, typist, slave = terminal
    before = termios.tcgetattr(slave)
    typist.wait_for(b"starts")
    commands, actions = plan(0)
    typist.type(b"s", *({**LETTERS, "grip": b" "}[command] for command in commands))
    typist.wait_for(b"is kept")
    typist.type(b"s", b"a", b"\x03")
    # it was lost once, perhaps while an object was finalised, where Python drops it: a person presses again then
    if not ended(child, typist, 30.0):
        typist.type(b"\x03")
    assert finish(child, typist) != 0
    assert "KeyboardInterrupt" in (tmp_path / "stderr").read_text()
    assert termios.tcgetattr(slave) == before
    np.testing.assert_array_equal(load_episode(tmp_path / "episode_00000.hdf5").of_role("action")[0].values, actions)
    assert not (tmp_path / "episode_00001.hdf5").exists()


def test_a_terminal_that_goes_away_ends_the_process(tmp_path: Path) -> None:
    """No signal tells of it, as this is not the controlling terminal: nobody waits for keys that cannot come."""
    master, slave = pty.openpty()
    with (tmp_path / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), INSTRUCTION],
            stdin=slave,
            stdout=slave,
            stderr=stderr,
            env={**os.environ, "TERM": "xterm"},
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
    os.close(slave)
    Typist(master).wait_for(b"starts")
    os.close(master)
    assert child.wait(timeout=60) != 0
    assert "Interrupted: The terminal was closed" in (tmp_path / "stderr").read_text()


def test_without_a_terminal_it_is_refused_in_a_paragraph(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), INSTRUCTION],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    last = run.stderr.strip().splitlines()[-1]
    assert "needs a terminal" in last and "--expert" in last and run.stdout == ""


def test_a_terminal_of_an_unknown_kind_is_refused(terminal: tuple, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-c", "from vla_cli.keyboard import Terminal\nwith Terminal(): pass"],
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "no-such-terminal"},
        cwd=Path(__file__).parents[1],
    )
    os.close(master)
    os.close(slave)
    assert "'no-such-terminal' cannot be drawn on" in run.stderr and "ConfigError" in run.stderr


def test_a_bad_request_is_told_before_the_terminal() -> None:
    with pytest.raises(ConfigError, match="no task"):
        open_world("tabletop", actor="keyboard", episodes=1, instruction="sing", seed=0, operator=None)
