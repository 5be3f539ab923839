"""What one rank of the distributed tests does, and the split it works on."""

import torch
import torch.distributed as dist

from semivario_kernels import NegativePolicy, VariogramModel, semivariogram_info_nce

MODEL = VariogramModel("stable", 0.05, 0.8, 300.0, 0.5)


def cut(tensor, sizes, rank):
    start = sum(sizes[:rank])
    return tensor[start : start + sizes[rank]]


def rank_loss(rank, world, store, p, sizes, options, results):
    """Loss and gradients of `rank`, put into the `results` queue; queries and gallery are cut by `sizes`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    local = {}
    for name, tensor in p.items():
        of = sizes["gallery"] if name in ("y", "gallery_latlon", "gallery_embeddings") else sizes["queries"]
        local[name] = tensor if name == "logit_scale" else cut(tensor, of, rank)
    leaves = [local[name].detach().clone().requires_grad_() for name in ("x", "y", "logit_scale")]
    local.update(zip(("x", "y", "logit_scale"), leaves, strict=True))
    loss = semivariogram_info_nce(
        **local,
        variogram=MODEL,
        policy=NegativePolicy.rectify(0.4, 3.0, 5.0),
        group=dist.group.WORLD,
        **options,
    )
    loss.sum().backward()
    results.put((rank, loss.detach().tolist(), [leaf.grad.tolist() for leaf in leaves]))
    dist.barrier()
    dist.destroy_process_group()
