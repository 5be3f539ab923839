"""The command line: `python -m semivario_kernels variogram`, from files of embeddings to a fitted model.

Under `torchrun -m semivario_kernels variogram …` the processes share the pairs; one writes the files.

What a user got wrong ends in one line on standard error and exit status 2; SEMIVARIO_TRACEBACK=1 shows where
an error came from. matplotlib, GSTools and pyarrow are imported when they are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import numpy as np
import numpy.typing as npt
import torch

from semivario_kernels.atomic import write_atomically
from semivario_kernels.edges import even_edges_km, log_edges_km, quantile_edges_km
from semivario_kernels.embedding_files import read_embeddings
from semivario_kernels.fit import Weights, fit_variogram
from semivario_kernels.place_files import PlaceTable, read_places
from semivario_kernels.ranks import Ranks
from semivario_kernels.semivariance import ESTIMATORS, binned_semivariance
from semivario_kernels.variogram import KINDS, Metric, import_gstools

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from semivario_kernels.empirical_variogram import EmpiricalVariogram, Floats
    from semivario_kernels.fit import VariogramFit
    from semivario_kernels.variogram import VariogramModel

Kind = str | tuple[str, ...]

PROGRAM = "python -m semivario_kernels"
ANTIPODE_KM = 20_016.0  # just above the largest distance on the sphere, 20,015.1 km


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command line without the program's name; that of the process by default.

    Returns:
        The exit status: 0, 2 for a user's mistake, 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            with _group() as group:
                _variogram(options, group)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if os.environ.get("SEMIVARIO_TRACEBACK"):
            raise
        print(f"{PROGRAM}: {_reason(error)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _group() -> Iterator[ProcessGroup | None]:
    """The processes that torchrun started; None where there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.group.WORLD
    finally:
        torch.distributed.destroy_process_group()


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _count(text: str) -> int:
    """A whole number, 1e9 among them."""
    number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(number)


_count.__name__ = "whole number"  # what argparse calls it


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Semivariograms of embeddings on the Earth.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "variogram",
        help="measure, fit and draw the semivariogram of embeddings",
        description="Measure the semivariogram of embeddings, fit a model and draw both. OUT.json holds the "
        "model, OUT.npz what was measured, OUT.png the picture; OUT.groups.json and OUT.groups.png are those "
        "of groups. A command that was interrupted goes on where it was when it is run again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = command.add_argument
    add("embeddings", type=Path, metavar="EMBEDDINGS", help=".npy, .npz, .parquet or a folder of .npy shards")
    add(
        "latlon",
        type=Path,
        nargs="?",
        metavar="LATLON",
        help="latitude and longitude in degrees of the same rows: .npy, .npz, .csv, .parquet or a folder of "
        "tables; left out, EMBEDDINGS holds them too",
    )
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="where the three files go")
    add("--column", help="column of lists in a .parquet, pattern of its number columns, or array of an .npz")
    add(
        "--groups",
        metavar="COLUMN",
        help="column of LATLON, such as a continent: one semivariogram for each, too",
    )
    add(
        "--edges",
        default="log",
        metavar="SCHEME",
        help="bin edges: log, even, quantile (of the distances), or km, rising: 0,1,5,25",
    )
    add("--bins", type=int, default=30, help="number of bins")
    add("--first-km", type=float, default=1.0, help="end of the first bin of log edges")
    add("--last-km", type=float, help="end of the last bin; --max-lag-km or the antipode if left out")
    add("--max-lag-km", type=float, help="leave out pairs beyond; cost then grows with the pairs within")
    add("--max-pairs", type=_count, help="sample at most about so many pairs at random; all if left out")
    add("--seed", type=int, default=0, help="of the sample, and of quantile edges")
    add("--estimator", default="matheron", choices=ESTIMATORS, help="of the semivariance in a bin")
    add(
        "--kind",
        default="stable",
        help=f"model fitted: {', '.join(KINDS)}, a sum of them such as exponential+spherical, nested (two "
        "exponential ones) or none",
    )
    add("--weights", default="cressie", choices=get_args(Weights), help="of the bins in the fit")
    add(
        "--metric",
        default="chord",
        choices=get_args(Metric),
        help="distance that the model reads: along the Earth's surface, or straight through it, where all "
        "kinds are covariances",
    )
    add("--no-nugget", action="store_true", help="keep the model's nugget at 0")
    add("--threads", type=int, help="processor threads of a process; all cores if left out, 1 under torchrun")
    add("--backend", help="native, tiled or reference; the fastest one that is there if left out")
    add("--restart", action="store_true", help="forget what an interrupted command has measured")
    add("--quiet", action="store_true", help="show no progress bar")
    return parser


def _variogram(options: argparse.Namespace, group: ProcessGroup | None) -> None:
    ranks = Ranks(group)
    kind = _kind(options.kind)
    if kind is not None:
        import_gstools()  # what is missing is missed before the long work
    from semivario_kernels.variogram_plot import import_matplotlib

    import_matplotlib()
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads: wanted at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    out: Path = options.out.with_suffix("") if options.out.suffix == ".json" else options.out
    if out.is_dir():
        raise ValueError(f"--out: {out} is a folder; wanted a name for files, such as {out / 'variogram'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"--out: {out.parent} is no folder") from None

    embeddings = read_embeddings(options.embeddings, column=options.column, scratch=out.parent, ranks=ranks)
    places = _places(options, len(embeddings))
    checkpoint = _file(out, ".checkpoint")

    def going_on() -> bool:
        if options.restart:
            checkpoint.unlink(missing_ok=True)
        elif checkpoint.exists():
            print(f"{PROGRAM}: going on from {checkpoint}", file=sys.stderr)
        return checkpoint.exists() and _has_groups(out, options.groups)

    edges_km = _edges_km(options, places)
    has_groups = ranks.first_does(going_on)
    if places.groups is not None and not has_groups:
        _measure_groups(out, options, embeddings, places, edges_km, kind, group)
    empirical = binned_semivariance(
        embeddings,
        places.latlon,
        edges_km=edges_km,
        estimator=options.estimator,
        max_lag_km=options.max_lag_km,
        max_pairs=options.max_pairs,
        seed=options.seed,
        progress=not options.quiet,
        checkpoint=checkpoint,
        group=group,
        backend=options.backend,
    )
    if not ranks.is_first:
        return
    # first what took long: a model that cannot be fitted does not lose it
    unnamed = _file(out, ".npz.tmp")
    empirical.save(unnamed)
    unnamed.replace(_file(out, ".npz"))
    pairs = int(empirical.counts.sum())
    print(f"{pairs:,} pairs of {len(embeddings):,} places; written to {_file(out, '.npz')}")
    fit = None
    try:
        if kind is not None:
            fit = _fit(options, empirical, kind)
    finally:
        _draw(out, empirical, None if fit is None else fit.model)
    if fit is not None:
        fit.save(_file(out, ".json"))
        _tell(fit, _file(out, ".json"))


def _measure_groups(
    out: Path,
    options: argparse.Namespace,
    embeddings: Floats,
    places: PlaceTable,
    edges_km: Floats,
    kind: Kind | None,
    group: ProcessGroup | None,
) -> None:
    """Semivariograms of the pairs inside each group: OUT.groups.json and OUT.groups.png."""
    from matplotlib.figure import Figure

    from semivario_kernels.groups import grouped_semivariance
    from semivario_kernels.variogram_plot import plot_groups

    assert places.groups is not None
    found = grouped_semivariance(
        embeddings,
        places.latlon,
        places.groups,
        edges_km=edges_km,
        estimator=options.estimator,
        max_lag_km=options.max_lag_km,
        max_pairs=options.max_pairs,
        seed=options.seed,
        progress=not options.quiet,
        group=group,
        backend=options.backend,
    )
    if not Ranks(group).is_first:
        return
    table: dict[str, Any] = {}
    for label, empirical in found.items():
        columns = ("edges_km", "lag_km", "counts", "gamma", "stderr")
        table[label] = {name: _json_numbers(getattr(empirical, name)) for name in columns}
        if kind is None:
            continue
        try:
            fit = _fit(options, empirical, kind)
        except (ValueError, RuntimeError) as error:  # too few bins hold pairs: the others go on
            warnings.warn(f"group {label}: no model: {error}", stacklevel=1)
            continue
        table[label] |= {"model": fit.model.to_dict(), "r2": fit.r2, "resolvable": fit.resolvable}
    figure = Figure(figsize=(8, 5), layout="constrained")
    plot_groups(found, figure.add_subplot())
    write_atomically(_file(out, ".groups.png"), lambda file: figure.savefig(file, format="png", dpi=150))
    text = json.dumps({"column": options.groups, "groups": table}, indent=1)
    write_atomically(_file(out, ".groups.json"), lambda file: file.write(text.encode()))
    print(f"{len(found)} groups; written to {_file(out, '.groups.json')} and {_file(out, '.groups.png')}")


def _has_groups(out: Path, column: str | None) -> bool:
    """Whether the command that was interrupted has written its groups."""
    try:
        return bool(json.loads(_file(out, ".groups.json").read_text())["column"] == column)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _json_numbers(values: npt.NDArray[Any]) -> list[float | None]:
    """NaN becomes null: JSON has none."""
    return [None if value != value else value for value in values.tolist()]


def _fit(options: argparse.Namespace, empirical: EmpiricalVariogram, kind: Kind) -> VariogramFit:
    return fit_variogram(
        empirical, kind, metric=options.metric, weights=options.weights, nugget=not options.no_nugget
    )


def _kind(name: str) -> Kind | None:
    if name in ("none", "nested"):
        return None if name == "none" else name
    kinds = tuple(name.split("+"))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(
            f"--kind: wanted {', '.join(KINDS)}, a sum of them, nested or none, got {unknown[0]!r}"
        )
    return kinds if len(kinds) > 1 else name


def _file(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _places(options: argparse.Namespace, rows: int) -> PlaceTable:
    source: Path = options.embeddings if options.latlon is None else options.latlon
    if options.latlon is None and source.suffix == ".npy":
        raise ValueError(f"LATLON: wanted a file of positions, as {source} holds none")
    places = read_places(source, groups=options.groups)
    if len(places.latlon) != rows:
        raise ValueError(f"{source}: {len(places.latlon):,} positions for {rows:,} embeddings")
    return places


def _edges_km(options: argparse.Namespace, places: PlaceTable) -> Floats:
    last_km = options.last_km or options.max_lag_km or ANTIPODE_KM
    if options.edges == "log":
        return log_edges_km(options.first_km, last_km, options.bins)
    if options.edges == "even":
        return even_edges_km(last_km, options.bins)
    if options.edges == "quantile":
        return quantile_edges_km(
            places.latlon, options.bins, max_lag_km=min(last_km, ANTIPODE_KM), seed=options.seed
        )
    try:
        return np.array([float(edge) for edge in options.edges.split(",")])
    except ValueError:
        raise ValueError(
            f"--edges: wanted log, even, quantile or rising numbers such as 0,1,5,25, got {options.edges!r}"
        ) from None


def _draw(out: Path, empirical: EmpiricalVariogram, model: VariogramModel | None) -> None:
    from semivario_kernels.variogram_plot import variogram_figure

    figure = variogram_figure(empirical, model)
    write_atomically(_file(out, ".png"), lambda file: figure.savefig(file, format="png", dpi=150))


def _tell(fit: VariogramFit, file: Path) -> None:
    print(f"{fit.model}, R² {fit.r2:.3f}")
    print(f"written to {file} and {file.with_suffix('.png')}")
    if not fit.resolvable:
        print(f"{PROGRAM}: warning: no resolvable range: {fit.note}", file=sys.stderr)
