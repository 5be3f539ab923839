"""Offsets in Triton's intermediate representation that could pass 2³¹ in 32 bits.

Rows times columns of a large matrix do (5,000,000 × 2,048), the number of its rows does not. So a 32-bit
product on the way to an address may only be the number of a block times its size, or lie inside a block;
whatever multiplies by a stride, or multiplies twice, has to be done in 64 bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

ASSIGNED = re.compile(r'^\s*(%\w+)(?::\d+)? = "?([\w.]+)"?(.*)$')
NAME = re.compile(r"%\w+")
LOOP = re.compile(r"scf\.for %\w+ = ")
CARRIED = re.compile(r"(%\w+) = (%\w+)")
ARGUMENT = re.compile(r"(%\w+): (?:i32|i64)\b")
PRODUCTS = ("arith.muli", "arith.shli")
LARGEST_BLOCK = 8192  # a larger constant is a product of a block's size and something else


@dataclass
class Value:
    """What defines an SSA value; the operands of a loop's variable are all that flows into it."""

    operation: str
    operands: list[str] = field(default_factory=list)
    text: str = ""


def narrow_offsets(ttir: str) -> list[str]:
    """Lines of 32-bit products that an address is made of and that may overflow; empty where all is well."""
    values, offsets = _parse(ttir)
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = list(offsets)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in values:
            continue
        seen.add(name)
        value = values[name]
        in_32_bits = value.operation in PRODUCTS and re.search(r"(?:x|\b)i32>?\s*$", value.text)
        if in_32_bits and _may_overflow(value, values):
            found[value.text.strip()] = None
        waiting += value.operands
    return list(found)


def _parse(ttir: str) -> tuple[dict[str, Value], list[str]]:
    values: dict[str, Value] = {}
    offsets: list[str] = []
    regions: list[list[str]] = []  # names that the innermost region's yield flows into
    for raw in ttir.splitlines():
        line = re.sub(r"\s*loc\((?:[^()]|\([^()]*\))*\)", "", raw).rstrip()
        if line.startswith("#"):
            continue
        if "tt.func" in line:
            for name in ARGUMENT.findall(line):
                values[name] = Value("argument", text=name)
        into: list[str] = []
        if match := ASSIGNED.match(line):
            name, operation, rest = match.groups()
            body = rest.split(" : ")[0]
            operands = NAME.findall(body)
            values.setdefault(name, Value(operation, text=line)).operands += operands
            into.append(name)
            if operation == "tt.addptr":
                offsets.append(operands[1])
        if LOOP.search(line):
            for name, first in CARRIED.findall(line):
                values[name] = Value("loop", [first], line)
            into += [name for name, _ in CARRIED.findall(line)[1:]]  # the first is the counter
        if "scf.yield" in line:
            for name in regions[-1] if regions else []:
                values[name].operands += NAME.findall(line.split(" : ")[0])
        opens, closes = line.count("{"), line.count("}")
        if opens > closes:
            regions.append(into)
        elif closes > opens and regions:
            regions.pop()
    return values, offsets


def _origins(name: str, values: dict[str, Value]) -> tuple[set[str], set[str]]:
    """Operations that `name` is made of, and the names of the kernel's arguments among them."""
    operations: set[str] = set()
    arguments: set[str] = set()
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in values:
            continue
        seen.add(current)
        value = values[current]
        operations.add(value.operation)
        if value.operation == "argument":
            arguments.add(value.text)
        waiting += value.operands
    return operations, arguments


def _may_overflow(product: Value, values: dict[str, Value]) -> bool:
    sides = [_origins(operand, values) for operand in product.operands]
    moving = [
        (operations, arguments)
        for operations, arguments in sides
        if arguments or any(operation in ("tt.get_program_id", "loop", "tt.load") for operation in operations)
    ]
    if not moving:
        return False  # inside a block
    if "tensor<" in product.text:
        return True  # rows or columns of a block times something
    if any("stride" in argument for _, arguments in moving for argument in arguments):
        return True
    if any(_constant(operand, values) > LARGEST_BLOCK for operand in product.operands):
        return True
    return any(set(PRODUCTS) & operations for operations, _ in moving)


def _constant(name: str, values: dict[str, Value]) -> int:
    """The number that `name` stands for; 0 where it is no constant."""
    found = re.search(r"arith\.constant (-?\d+) :", values[name].text) if name in values else None
    return int(found[1]) if found else 0
