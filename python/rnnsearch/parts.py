"""A file's output chunk by chunk, so that it can be made by several processes and go on after any end.

    out.txt.parts/plan.json        what is made: the input's digest, the models', every option that shows in the output
    out.txt.parts/part-00000007    the output of the lines 7 * chunk_lines and following; whole or not there

When all parts are there they become ``out.txt``, in order and at once. Parts do not depend on who makes them, so any
number of processes may go on with what any other number left.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnsearch.checkpoint import replacing, write_atomically

PLAN, PART, FORMAT = "plan.json", "part-", 1
MOST_CHUNK_LINES = 1024
# Each process should have several, so that none waits long for another.
LEAST_CHUNKS = 4


class Parts:
    """
    Args:
        output: the file that is made.
        lines: of its input.
    """

    def __init__(self, output: Path, lines: int) -> None:
        self.output, self.lines = output, lines
        self.folder = output.with_name(f"{output.name}.parts")

    def begin(self, plan: Mapping[str, Any], processes: int) -> None:
        """Make the folder, or go on with one that was begun by the same ``plan``. One process does this.

        Raises:
            ValueError: it was begun by another.
        """
        path = self.folder / PLAN
        wanted = json.loads(json.dumps({**plan, "lines": self.lines}))
        if path.exists():
            found = _read(path)
            for name, value in wanted.items():
                if found.get(name) != value:
                    raise ValueError(
                        f"{self.folder} was begun with another `{name}` ({_brief(found.get(name))}, now "
                        f"{_brief(value)}): go on in the same way, or remove it to begin anew"
                    )
            return
        self.folder.mkdir(exist_ok=True)
        for part in self.folder.glob(f"{PART}*"):  # of an earlier output, whose removal did not come to its end
            part.unlink()
        chunk_lines = max(1, min(MOST_CHUNK_LINES, -(-self.lines // (LEAST_CHUNKS * processes))))
        content = {"format_version": FORMAT, **wanted, "chunk_lines": chunk_lines}
        write_atomically({path: (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()})

    def chunks(self) -> list[range]:
        """The lines of every part, after :meth:`begin`."""
        size = int(_read(self.folder / PLAN)["chunk_lines"])
        return [range(start, min(start + size, self.lines)) for start in range(0, self.lines, size)]

    def path(self, number: int) -> Path:
        return self.folder / f"{PART}{number:08}"

    def made(self, number: int) -> bool:
        return self.path(number).exists()

    def write(self, number: int, content: str) -> None:
        write_atomically({self.path(number): content.encode()})

    def merge(self) -> None:
        """All parts become the output. One process does this, when all are made."""
        with replacing(self.output) as file:
            for number in range(len(self.chunks())):
                with open(self.path(number), "rb") as part:
                    shutil.copyfileobj(part, file)
        shutil.rmtree(self.folder)


def _read(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): remove {path.parent} to begin anew") from error
    if not isinstance(plan, dict) or plan.get("format_version") != FORMAT:
        raise ValueError(f"{path} is not the plan of a translation: remove {path.parent} to begin anew")
    return plan


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"
