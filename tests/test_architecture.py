"""The map and the import rules of docs/architecture.md, read from the sources."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

# modules of semivario_kernels/backends/ by the backend they belong to; what is in none is shared by all
BACKENDS = {
    "reference": {"reference"},
    "tiled": {"tiled"},
    "native": {
        "amx_product",
        "binned_amx",
        "native",
        "native_epilogue",
        "binned_native",
        "binned_cuda",
        "cuda_epilogue",
        "cuda_ranking",
        "native_ranking",
    },
    "triton": {"triton"},
}
# of semivario_kernels' modules, what geoclip may use beside the public names
SHARED_WITH_GEOCLIP = {"atomic", "embedding_files", "extras", "progress", "variogram_plot"}


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path):
    """Dotted names that a file imports, wherever it does: `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def backend_of(module):
    """The backend that owns semivario_kernels.backends.<name>…, or None for the shared ones."""
    name = module.split(".")[2]
    return next((backend for backend, names in BACKENDS.items() if name in names), None)


def is_backend_module(name):
    parts = name.split(".")
    folder = ROOT / "semivario_kernels" / "backends"
    return (
        parts[:2] == ["semivario_kernels", "backends"]
        and len(parts) > 2
        and ((folder / f"{parts[2]}.py").exists() or (folder / parts[2]).is_dir())
    )


def test_the_operators_know_nothing_of_the_trainer():
    for module, path in modules("semivario_kernels"):
        for name in imports(path):
            assert name.split(".")[0] not in ("geoclip", "benchmarks", "tests"), f"{module} imports {name}"


def test_no_backend_imports_another():
    seen = set()
    for module, path in modules("semivario_kernels/backends"):
        if module == "semivario_kernels.backends":
            continue
        own = backend_of(module)
        seen.add(own)
        for name in filter(is_backend_module, imports(path)):
            assert backend_of(name) in (own, None), f"{module} imports {name}"
    assert seen == {*BACKENDS, None}


def test_backends_are_reached_through_their_package():
    for module, path in modules("semivario_kernels"):
        if module.startswith("semivario_kernels.backends"):
            continue
        for name in filter(is_backend_module, imports(path)):
            assert backend_of(name) is None, (
                f"{module} imports {name}, wanted semivario_kernels.backends.load"
            )


def test_the_trainer_uses_public_names():
    import semivario_kernels

    public = set(semivario_kernels.__all__)
    for module, path in modules("geoclip"):
        for name in imports(path):
            first, *rest = name.split(".")
            if first == "semivario_kernels":
                assert rest[0] in public | SHARED_WITH_GEOCLIP, f"{module} imports {name}"


def test_what_the_map_shows_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    (drawn,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    folders, files = [ROOT], 0
    for line in drawn.splitlines():
        entry = re.split(r" {2,}(?=\S)", line.strip())[0]  # what it is for stands further right
        depth = (len(line) - len(line.lstrip())) // 2
        for name in entry.split():
            if name == "…":
                continue
            files += 1
            assert list(folders[depth].glob(name)), f"{folders[depth]} has no {name}"
            if name.endswith("/"):
                folders[depth + 1 :] = [folders[depth] / name]
    assert files > 25
