"""The compilations as Markdown."""

from __future__ import annotations

from typing import Any

HEAD = [
    "kernel", "configuration", "architecture", "warps", "registers", "spilled bytes", "shared KiB",
    "tensor memory", "instructions", "matrix instruction",
]  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """One line per compilation under a line on what compiled them."""
    rows = result["kernels"]
    wrong = [row for row in rows if row["problems"]]
    lines = [
        f"# Triton kernels compiled ahead of time, {result['date']}",
        "",
        f"Triton {result['triton']} and its own ptxas, no GPU; {len(rows)} compilations, {len(wrong)} with "
        "problems. Registers are per thread, shared memory per program, tensor memory in columns of 512. "
        "Instructions are the machine code's length over 16 bytes, padding included.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"| {' | '.join(['---'] * len(HEAD))} |",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
        "",
    ]
    if wrong:
        lines += ["## Problems", ""]
        lines += [
            f"* {row['kernel']}, {row['label']}, sm_{row['capability']}: {problem}".replace("|", "\\|")
            for row in wrong
            for problem in row["problems"]
        ]
        lines.append("")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    head = [row["kernel"], row["label"], f"sm_{row['capability']}"]
    if "error" in row:
        return [*head, row["error"].replace("|", "\\|"), *["–"] * (len(HEAD) - 4)]
    return [
        *head,
        str(row["warps"]),
        str(row["registers"]),
        str(row["spill_bytes"]),
        f"{row['shared_bytes'] / 1024:.1f}",
        str(row["tensor_memory_columns"] or "–"),
        f"{row['instructions']:,}",
        ", ".join(row["matrix_instructions"]) or "–",
    ]
