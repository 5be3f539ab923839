import pytest
import torch
import torch.multiprocessing as mp
from sharded_loss import MODEL, rank_loss
from test_loss import problem

from semivario_kernels import NegativePolicy, semivariogram_info_nce


def run_ranks(p, sizes, options, store):
    world = len(sizes["queries"])
    results = mp.get_context("spawn").SimpleQueue()
    p = {name: tensor.detach() for name, tensor in p.items()}
    mp.spawn(rank_loss, (world, store, p, sizes, options, results), nprocs=world)
    rows = sorted((results.get() for _ in range(world)), key=lambda row: row[0])
    losses = [torch.tensor(row[1], dtype=torch.float64) for row in rows]
    gradients = [
        torch.cat([torch.tensor(row[2][k], dtype=torch.float64).reshape(-1, 6) for row in rows])
        for k in (0, 1)
    ]
    return losses, gradients, torch.tensor([row[2][2] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize(
    ("sizes", "symmetric"),
    [
        ({"queries": [5, 6], "gallery": [8, 9]}, False),
        ({"queries": [2, 7], "gallery": [9, 8]}, False),  # uneven
        ({"queries": [3, 8], "gallery": [3, 8]}, True),
    ],
)
def test_two_ranks_equal_one_process(sizes, symmetric, tmp_path):
    """Averaged over the ranks, as DDP does, the gradients are those of the global mean."""
    n, m = sum(sizes["queries"]), sum(sizes["gallery"])
    p = problem(n=n, m=m)
    targets = torch.cat(
        [torch.arange(sizes["queries"][0]), sizes["gallery"][0] + torch.arange(sizes["queries"][1])]
    )
    options = {"label_smoothing": 0.1, "symmetric": symmetric}
    policy = NegativePolicy.rectify(0.4, 3.0, 5.0)
    whole = semivariogram_info_nce(
        **p, variogram=MODEL, policy=policy, targets=targets, reduction="none", **options
    )
    wanted = torch.autograd.grad(whole.mean(), [p["x"], p["y"], p["logit_scale"]])
    losses, gradients, scale_gradients = run_ranks(p, sizes, options, tmp_path / "store")
    for loss, rows in zip(losses, whole.split(sizes["queries"]), strict=True):
        torch.testing.assert_close(loss, rows.mean(), rtol=1e-12, atol=0)
    for got, want in zip(gradients, wanted[:2], strict=True):
        torch.testing.assert_close(got / 2, want, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(scale_gradients.mean(), wanted[2], rtol=1e-10, atol=0)


def test_row_losses_over_two_ranks(tmp_path):
    p = problem(n=9, m=16)
    sizes = {"queries": [4, 5], "gallery": [10, 6]}
    targets = torch.cat([torch.arange(4), 10 + torch.arange(5)])
    options = {"reduction": "none"}
    whole = semivariogram_info_nce(
        **p, variogram=MODEL, policy=NegativePolicy.rectify(0.4, 3.0, 5.0), targets=targets, **options
    )
    wanted = torch.autograd.grad(whole.sum(), [p["x"], p["y"]])
    losses, gradients, _ = run_ranks(p, sizes, options, tmp_path / "store")
    torch.testing.assert_close(torch.cat(losses), whole, rtol=1e-12, atol=0)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-14)
