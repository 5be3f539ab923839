"""README's Python runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_import_example_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    run = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loss, *backends = run.stdout.splitlines()
    assert 3 < float(loss) < 30  # ln 2048 = 7.6, and random features at a scale of 14
    assert any(line.startswith("reference: available") for line in backends)
