"""Every error the tool raises on purpose, drawn once.

    VlaError                    what a user can act on; `exit_code` is the process's
    ├── CheckFailed        1    the input or result failed a check the user asked for
    ├── ConfigError        2    usage: an option, a config file, an output that exists
    ├── InputError         3    the data are bad: missing, truncated, contradictory
    ├── MissingDependency  4    an optional package is not installed
    └── Interrupted      130    stopped half-way; `--resume` goes on

Whatever else is raised is a fault of the tool (`FAULT`, 70): a script must not take it for a check that failed.

A message is one paragraph: what, where, what was expected, and the command to try next.
The library raises; only `console` turns an error into text and an exit code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

FAULT = 70
"""Exit code of a fault of the tool itself: EX_SOFTWARE of BSD's sysexits."""
LONGEST_WORDS = 300
"""Characters of a library's message that are passed on: some quote the damaged bytes."""


def words(error: BaseException) -> str:
    """What another library's error says, on one line and not too long; its class where it says nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= LONGEST_WORDS else f"{said[:LONGEST_WORDS]}..."


class VlaError(Exception):
    """Base of all errors a user can act on.

    Args:
        problem: what is wrong, naming the value and where it stands.
        expected: what was expected in its place; may be empty.
        hint: the next command or change to try; may be empty.
    """

    exit_code = 1

    def __init__(self, problem: str, *, expected: str = "", hint: str = "") -> None:
        self.problem, self.expected, self.hint = problem, expected, hint
        parts = [problem.rstrip(".") + "."]
        if expected:
            parts.append(f"Expected {expected.rstrip('.')}.")
        if hint:
            parts.append(f"Try: {hint.rstrip('.')}.")
        super().__init__(" ".join(parts))


class CheckFailed(VlaError):
    """The input or the result failed a check that the user asked for (`--strict`, `--fail-under`)."""

    exit_code = 1


class ConfigError(VlaError):
    """An option, a config file or an existing output stands against the request."""

    exit_code = 2


class InputError(VlaError):
    """The input data are missing, damaged or contradictory."""

    exit_code = 3


class MissingDependency(VlaError):
    """An optional package is missing.

    Args:
        package: the import name that failed.
        extra: the extra of vla-cli that brings it.
        purpose: what it is needed for.
    """

    exit_code = 4

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed",
            hint=f"pip install 'vla-cli[{extra}]'",
        )


class Interrupted(VlaError):
    """The run was stopped by the user; what is on disk can be resumed."""

    exit_code = 130


@contextmanager
def within_memory(what: str, *, hint: str) -> Iterator[None]:
    """Say what to make smaller where memory runs out.

    Args:
        what: that is done inside, as the subject of a sentence.
        hint: what makes it smaller.

    Raises:
        ConfigError: Python, NumPy or torch (which is not imported for it) could not get the memory.
    """
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise ConfigError(f"{what} does not fit into memory ({words(error)})", hint=hint) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Accelerators raise torch.OutOfMemoryError, its allocator for the CPU a bare RuntimeError."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
