"""`vla` in processes of its own that do not each import torch and transformers anew, which is most of what they do.

    with Forks(folder) as forks:
        forks.start("finetune", dataset, "--base", base, "--out", out).wait()
        forks.command        # a program to call in the place of `vla`, from a script

One process imports what is large, nothing of vla_cli, and forks for every command: the child imports vla_cli and runs
its `main`, with the caller's folder, input and outputs. What is asked comes over a socket, with the caller's files.

Run as a program this module is that process.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
CLIENT = """#!{python} -SE
import os, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    words = "\\0".join([os.getcwd(), *sys.argv[1:]]).encode()
    socket.send_fds(link, [words], [0, 1, 2])
    replies = link.makefile().read().split()
sys.exit(int(replies[1]) if len(replies) == 2 else "the process died without an exit code")
"""


class Run:
    """A command that was started.

    Attributes:
        pid: of its process.
    """

    def __init__(self, address: str, arguments: tuple[object, ...], errors: Path) -> None:
        self.errors = errors
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(address)
        words = "\0".join([str(ROOT), *map(str, arguments)]).encode()
        with Path(os.devnull).open("r+") as nothing, errors.open("w") as said:
            socket.send_fds(self._link, [words], [nothing.fileno(), nothing.fileno(), said.fileno()])
        self._replies = self._link.makefile()
        self.pid = int(self._replies.readline())

    def wait(self, seconds: float = 400.0) -> tuple[int, str]:
        """Exit code, -1 where it died without one, and what it wrote to its standard error."""
        self._link.settimeout(seconds)
        with self._link, self._replies:
            code = self._replies.readline()
        return int(code) if code else -1, self.errors.read_text()


class Forks:
    """A process that forks for every command.

    Args:
        folder: for its socket and what the commands say.
        environment: variables of it, and so of the commands, beside those of this process.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.command = folder / "vla"
        self._address = str(folder / "asked")
        self._folder, self._count = folder, 0
        self.command.write_text(CLIENT.format(python=sys.executable, address=self._address))
        self.command.chmod(0o755)
        # one thread: a process with others may not be forked; and what `main` sets before it imports
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        alone |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._address],
            env={**os.environ, **alone, **environment},
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, *arguments: object) -> Run:
        """Begin `vla` with these arguments."""
        self._count += 1
        return Run(self._address, arguments, self._folder / f"{self._count}.stderr")


def serve(address: str) -> None:
    """Fork for every command that is asked for."""
    import peft  # noqa: F401
    from transformers import AutoTokenizer, PI0ForConditionalGeneration  # noqa: F401

    assert not any(name.split(".")[0] == "vla_cli" for name in sys.modules)
    gc.freeze()
    signal.signal(signal.SIGCHLD, _bury)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        os.write(1, b"ready\n")
        while True:
            link = door.accept()[0]
            if os.fork() == 0:
                door.close()
                _child(link)
            link.close()


def _bury(*_: object) -> None:
    """Wait for the commands that have ended, so that their processor time counts as the tests'."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _child(link: socket.socket) -> None:
    """Run one command, and end."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        words, files, *_ = socket.recv_fds(link, 1 << 16, 3)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        link.sendall(f"{os.getpid()}\n".encode())
        folder, *arguments = words.decode().split("\0")
        os.chdir(folder)
        sys.argv = ["vla", *arguments]
        from vla_cli.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        link.sendall(f"{code}\n".encode())
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
