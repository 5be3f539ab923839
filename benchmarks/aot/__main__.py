"""`python -m benchmarks.aot`: compile the shipped Triton kernels, check and tabulate what they need."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.aot.budget import newest_table, problems
from benchmarks.aot.covering import covering
from benchmarks.aot.pool import records_of, shipped_kernels, traits
from benchmarks.aot.table import markdown

RESULTS = Path("benchmarks/results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and check; the exit status is 1 where a kernel needs what it may not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__)
    parser.add_argument("--cover", type=int, metavar="N", help="at most N compilations that cover everything")
    parser.add_argument("--only", nargs="+", metavar="KERNEL", help="kernels by name")
    parser.add_argument(
        "--check", action="store_true", help="a kernel may need no more than the newest table says"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
    import triton

    kernels = shipped_kernels()
    names = [*dict.fromkeys(kernel.name for kernel in kernels)]
    only = options.only or names
    if unknown := [name for name in only if name not in names]:
        parser.error(f"--only: wanted some of {', '.join(names)}, got {', '.join(unknown)}")
    indices = [index for index, kernel in enumerate(kernels) if kernel.name in only]
    if options.cover is not None:
        try:
            chosen = covering([traits(kernels[index]) for index in indices], options.cover)
        except ValueError as error:
            parser.error(f"--cover: {error}")
        indices = [indices[k] for k in chosen]
    table = newest_table(RESULTS, triton.__version__) if options.check else {}
    rows = []
    for index, record in zip(indices, records_of(kernels, indices), strict=True):
        kernel = kernels[index]
        row = {"kernel": kernel.name, "label": kernel.label, "capability": kernel.capability}
        row |= {"blocks": blocks_of(kernel), **record}
        rows.append({**row, "problems": problems(kernel, kernel.label, record, table)})
    result = {"date": datetime.date.today().isoformat(), "triton": triton.__version__, "kernels": rows}

    part = ["cover"] * (options.cover is not None) + (options.only or [])
    stem = "-".join(["aot", result["date"], *part])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{stem}.json").write_text(json_lines(result))
    (options.out / f"{stem}.md").write_text(markdown(result))
    wrong = [row for row in rows if row["problems"]]
    for row in wrong:
        for problem in row["problems"]:
            print(f"{row['kernel']}, {row['label']}, sm_{row['capability']}: {problem}", file=sys.stderr)
    print(f"{len(rows)} compilations, {len(wrong)} with problems. Written: {options.out / stem}.json and .md")
    return 1 if wrong else 0


def blocks_of(kernel: Any) -> list[int]:
    """Compile-time sizes of blocks, in the order of the kernel's arguments."""
    names = [name for name in kernel.function.arg_names if name.startswith("BLOCK") or name == "PARTS"]
    return [kernel.constexprs[name] for name in names]


def json_lines(result: dict[str, Any]) -> str:
    """JSON with one compilation a line."""
    head = json.dumps({**result, "kernels": []})
    rows = ",\n".join(map(json.dumps, result["kernels"]))
    return f"{head.removesuffix(']}')}\n{rows}\n]}}\n"


if __name__ == "__main__":
    sys.exit(main())
