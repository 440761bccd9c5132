"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs_from_top_to_bottom(capsys):
    namespace: dict[str, object] = {"__name__": "readme"}
    code = blocks("README.md", "python")
    assert len(code) == 5
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "torch.Size([5, 64]) torch.Size([5, 9])"
    assert printed[1].startswith("AH T EH N SH AH N ")
    columns = "{'source': ['cat', 'dog'], 'translation': array(['K AE T', 'D AO G'], dtype=object)}"
    assert printed[3:5] == ["TH AO T", columns]


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line for block in blocks("README.md", "") for line in block.splitlines() if "pytest" in line]
    assert commands == ["pip install -e '.[test]' && pytest -n 2"]
    assert r"sed -n '/^pip install .*pytest/p' README.md" in (ROOT / ".ci" / "run").read_text()
