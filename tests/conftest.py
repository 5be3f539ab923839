"""Where there is no GPU, Triton's kernels run in its interpreter: it looks at this when it is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    # kernels meet log2(0) and 0/0 in lanes whose result is not taken; the interpreter's NumPy says so
    for message in ("divide by zero encountered in log2", "invalid value encountered in divide"):
        config.addinivalue_line(
            "filterwarnings", f"ignore:{message}:RuntimeWarning:triton.runtime.interpreter"
        )


def pytest_addoption(parser):
    parser.addoption("--shard", metavar="K/N", help="run every Nth test, beginning with number K, from 0")


def pytest_collection_modifyitems(config, items):
    if shard := config.getoption("--shard"):
        number, shards = map(int, shard.split("/"))
        kept = items[number::shards]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
