"""Where there is no GPU, Triton's kernels run in its interpreter: it looks at this when it is imported.

Where there is one, tests ask torch for deterministic algorithms; cuBLAS has them with a workspace of its own.
"""

import os

import torch

if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
else:
    os.environ.setdefault("TRITON_INTERPRET", "1")


# warnings of other packages that nothing here can change
FILTERS = (
    # kernels meet log2(0) and 0/0 in lanes whose result is not taken; the interpreter's NumPy says so
    "ignore:divide by zero encountered in log2:RuntimeWarning:triton.runtime.interpreter",
    "ignore:invalid value encountered in divide:RuntimeWarning:triton.runtime.interpreter",
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning:lightning.*",
    r"ignore:.torch\.jit\.\w+. is deprecated:FutureWarning",  # timm, torchvision and Lightning use it
)


def pytest_configure(config):
    for line in FILTERS:
        config.addinivalue_line("filterwarnings", line)


def pytest_addoption(parser):
    parser.addoption("--shard", metavar="K/N", help="run every Nth test, beginning with number K, from 0")


def pytest_collection_modifyitems(config, items):
    if shard := config.getoption("--shard"):
        number, shards = map(int, shard.split("/"))
        kept = items[number::shards]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
