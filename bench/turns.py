"""Two programs that work in turn, so that whatever the machine does meanwhile it does to both.

A worker does some work when it is told to, says how much that was, and stands still until it is told again: in the
operating system's sense, its read-ahead threads too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Done(NamedTuple):
    amount: int
    seconds: float


class Turns:
    """The worker's side. Whatever else it prints goes to standard error."""

    def __init__(self) -> None:
        self._told = os.fdopen(os.dup(0), "rb", buffering=0)
        self._said = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._began = time.perf_counter()

    def done(self, amount: int) -> None:
        """Say how much was done since the last turn began, and wait for the next."""
        print(json.dumps([amount, time.perf_counter() - self._began]), file=self._said, flush=True)
        self._told.readline()
        self._began = time.perf_counter()


class Worker:
    """A program that has :class:`Turns`, started and already standing before its first one."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
            )
        self._listen()

    def turn(self) -> Done:
        """Let it work until it says what it did.

        Raises:
            RuntimeError: it ended instead.
        """
        os.kill(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._listen()

    def _listen(self) -> Done:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            end = self.log.read_text(errors="replace").rstrip().rsplit("\n", 3)[-3:]
            raise RuntimeError(
                f"{self.log.stem} ended with {self._process.wait()}; {self.log} ends with: {' | '.join(end)}"
            )
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has stopped
        return Done(*json.loads(line))

    def finish(self) -> None:
        """Let it go on to its own end.

        Raises:
            RuntimeError: it failed there.
        """
        os.kill(self._process.pid, signal.SIGCONT)
        self._process.communicate()
        if self._process.returncode:
            print(self.log.read_text(errors="replace"), file=sys.stderr)
            raise RuntimeError(f"{self.log.stem} ended with {self._process.returncode}")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
