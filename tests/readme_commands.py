"""README's shell lines, run unchanged: what makes them small comes through the environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL_LINES = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
]


def shell_line(start):
    """The only line that begins so."""
    (line,) = [line for line in SHELL_LINES if line.startswith(start)]
    return line


def run_shell_line(line, *, cwd=ROOT, path="", **environment):
    """What a line printed, in a shell whose `python` runs these tests; `path` comes before it on PATH."""
    # neither make nor pytest shall take it for a part of the run that it is in
    outer = {name: value for name, value in os.environ.items() if not re.match(r"MAKE|MFLAGS|PYTEST_", name)}
    places = [*([str(path)] if path else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=cwd,
        env={**outer, "PATH": os.pathsep.join(places), **{k: str(v) for k, v in environment.items()}},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_make_line(line, **environment):
    """As `run_shell_line`, for a line of make, which would renew an outdated .venv under the other tests."""
    planned = run_shell_line(re.sub("^make", "make --dry-run", line), **environment)
    assert "-m venv" not in planned, ".venv is older than pyproject.toml, setup.py or csrc/: run make lint"
    return run_shell_line(line, **environment)
