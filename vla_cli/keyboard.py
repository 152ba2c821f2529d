"""Demonstrating from the keyboard of a terminal: a key is one control step, and nothing moves in between.

    arrows or w a s d    one step away, left, nearer, right          . or Enter   one step on the spot
    space                close or open the gripper                   f            small steps, or whole ones again
    q                    end, and keep the episode                   x            discard it and begin again

Before the recording, s starts it and x leaves this episode out. What a key means and what the screen says are plain
functions; only `Terminal` knows curses.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vla_cli.errors import ConfigError, Interrupted

FINE = 0.4
"""Share of a whole step that a small one goes: slow enough to carry a brim-full cup on the tabletop."""

Command = Literal["start", "leave-out", "keep", "discard", "left", "right", "away", "nearer", "grip", "wait", "fine"]

BEFORE: dict[str, Command] = {"s": "start", "x": "leave-out"}
"""Keys while nothing is recorded."""
DURING: dict[str, Command] = {
    **{"left": "left", "right": "right", "up": "away", "down": "nearer"},
    **{"a": "left", "d": "right", "w": "away", "s": "nearer"},
    **{" ": "grip", ".": "wait", "\n": "wait", "\r": "wait", "f": "fine", "q": "keep", "x": "discard"},
}
"""Keys while an episode is recorded."""
DIRECTIONS: dict[Command, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "away": (0.0, 1.0),
    "nearer": (0.0, -1.0),
}
_HELP_BEFORE = (
    "s  starts the recording        x  leaves this episode out",
    "Ctrl-C  stops collecting",
)
_HELP_DURING = (
    "arrows or w a s d  move        space  closes or opens the gripper",
    ".  waits a step                f  small or whole steps",
    "q  ends and keeps it           x  discards it and begins again",
    "Ctrl-C  stops collecting",
)
_ESCAPED = {"A": "up", "B": "down", "C": "right", "D": "left"}
_DEAF = 50  # failed reads in a row after which nobody is at the other end


class Discarded(Exception):
    """The operator does not want what was recorded so far."""


@dataclass(frozen=True)
class Hand:
    """What earlier keys have set.

    Attributes:
        closed: the gripper was told to close.
        fine: steps are small.
    """

    closed: bool = False
    fine: bool = False


@dataclass(frozen=True)
class View:
    """What the screen tells.

    Attributes:
        title: which world and episode.
        instruction: what is to be demonstrated.
        facts: where things are, a line each.
        hand: see `Hand`.
        steps: recorded so far; None before the recording.
        message: what happened before.
    """

    title: str
    instruction: str
    facts: tuple[str, ...]
    hand: Hand = Hand()
    steps: int | None = None
    message: str = ""


def command_of(key: str, *, recording: bool) -> Command | None:
    """What a key means: a character in either case, or "left", "right", "up", "down"; None for nothing."""
    return (DURING if recording else BEFORE).get(key.lower())


def action_of(hand: Hand, command: Command) -> tuple[Hand, np.ndarray | None]:
    """What a command sets, and the action [3] float32 it asks for: x and y in [-1, 1], gripper -1 open / +1 closed.

    The action is None where the command only sets something.
    """
    if command == "fine":
        return replace(hand, fine=not hand.fine), None
    if command == "grip":
        hand = replace(hand, closed=not hand.closed)
    elif command not in DIRECTIONS and command != "wait":
        return hand, None
    step = FINE if hand.fine else 1.0
    x, y = DIRECTIONS.get(command, (0.0, 0.0))
    return hand, np.array([x * step, y * step, 1.0 if hand.closed else -1.0], np.float32)


def screen(view: View) -> list[str]:
    """The screen's lines, from the top."""
    recording = view.steps is not None
    state = f"RECORDING, {view.steps} steps" if recording else "not recording"
    told, size = "close" if view.hand.closed else "open", "small" if view.hand.fine else "whole"
    return [
        f"{view.title}    {state}",
        f"Demonstrate: {view.instruction}",
        *([view.message] if view.message else []),
        "",
        *view.facts,
        f"gripper told to {told}, {size} steps" if recording else "",
        "",
        *(_HELP_DURING if recording else _HELP_BEFORE),
    ]


def check_terminal() -> None:
    """Refuse to go on where nobody can press keys.

    Raises:
        ConfigError: standard input or output is no terminal, or this Python has no curses.
    """
    try:
        import curses  # noqa: F401
    except ImportError:
        raise ConfigError(
            "Demonstrating from the keyboard needs curses, which this Python lacks",
            hint="--expert, or on Windows the package windows-curses",
        ) from None
    if not (_is_terminal(0) and _is_terminal(1)):
        raise ConfigError(
            "Demonstrating from the keyboard needs a terminal, and standard input or output is none",
            expected="a terminal in which keys are pressed, without pipes",
            hint="--expert to let the world's scripted expert demonstrate",
        )


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


class Terminal:
    """The whole terminal as one screen, from `with` to its end, when it is given back as it was.

    Raises:
        ConfigError: there is none, or it is of a kind that nobody knows.
    """

    def __enter__(self) -> Terminal:
        check_terminal()
        import curses

        self._curses = curses
        try:
            self._window: Any = curses.initscr()
        except curses.error as error:
            raise ConfigError(
                f"The terminal '{os.environ.get('TERM', '')}' cannot be drawn on ({error})", hint="TERM=xterm vla ..."
            ) from None
        curses.noecho()
        curses.cbreak()
        curses.set_escdelay(50)
        self._window.keypad(True)
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        self._names = {
            curses.KEY_LEFT: "left",
            curses.KEY_RIGHT: "right",
            curses.KEY_UP: "up",
            curses.KEY_DOWN: "down",
            curses.KEY_ENTER: "\n",
        }
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(self._curses.error):
            self._window.keypad(False)
            self._curses.nocbreak()
            self._curses.echo()
            self._curses.endwin()

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines from the top; what does not fit is cut off."""
        height, width = self._window.getmaxyx()
        self._window.erase()
        for row, line in enumerate(lines[:height]):
            # the last cell of the last line cannot be written without scrolling
            with contextlib.suppress(self._curses.error):
                self._window.addnstr(row, 0, line, width - 1)
        self._window.refresh()

    def key(self) -> str:
        """Wait for a key: a character, "left", "right", "up", "down", or "" for one that means nothing here.

        Raises:
            Interrupted: the terminal is gone.
        """
        for _ in range(_DEAF):
            try:
                pressed = self._window.get_wch()
            except self._curses.error:
                # a signal, or nobody at the other end any more
                time.sleep(0.01)
                continue
            if pressed == "\x1b":
                return self._escaped()
            return pressed if isinstance(pressed, str) else self._names.get(pressed, "")
        raise Interrupted("The terminal was closed while a key was awaited", hint="--resume to go on")

    def _escaped(self) -> str:
        """An arrow key of a terminal that sends another sequence than its description says."""
        self._window.timeout(50)
        try:
            following = [self._window.get_wch() for _ in range(2)]
        except self._curses.error:
            return ""
        finally:
            self._window.timeout(-1)
        return _ESCAPED.get(following[1], "") if following[0] in ("[", "O") else ""


class Keyboard:
    """An operator at the keyboard, for one episode; called with observations, it is a recorder's actor.

    Args:
        terminal: an open one.
        title, instruction, message: see `View`.
        describe: where things are now, a line each.
    """

    def __init__(
        self, terminal: Terminal, title: str, instruction: str, describe: Callable[[], Sequence[str]], message: str = ""
    ) -> None:
        self.terminal, self.describe = terminal, describe
        self.view = View(title, instruction, (), message=message)

    def started(self) -> bool:
        """Wait until the operator starts the recording (True) or leaves the episode out (False)."""
        while True:
            command = self._command(recording=False)
            if command is not None:
                return command == "start"

    def __call__(self, observation: Any) -> np.ndarray | None:
        """The next action, or None when the episode is to end here.

        Raises:
            Discarded: the operator begins again.
        """
        steps = 0 if self.view.steps is None else self.view.steps + 1
        self.view = replace(self.view, steps=steps, message="")
        while True:
            command = self._command(recording=True)
            if command == "keep" and steps:
                return None
            if command == "discard":
                raise Discarded
            if command is None or command == "keep":  # without a step there is nothing to keep
                continue
            hand, action = action_of(self.view.hand, command)
            self.view = replace(self.view, hand=hand)
            if action is not None:
                return action

    def _command(self, *, recording: bool) -> Command | None:
        self.view = replace(self.view, facts=tuple(self.describe()))
        self.terminal.draw(screen(self.view))
        return command_of(self.terminal.key(), recording=recording)
