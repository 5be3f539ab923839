"""Blocks of one side of a loss or a ranking meet all ranks of a torch.distributed group.

    visit(block, work, merge)    every rank calls work(block of rank r, its rows' places among all) for every
                                 r; what it returns is merged over the ranks and given to rank r

Only all_gather, all_to_all_single, all_reduce and batch_isend_irecv are used, in one order on all ranks, by
gloo and NCCL alike. On a GPU nothing waits for it but the exchange of the sizes. A rank that dies makes the
others' calls raise, at the latest after the group's timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from semivario_kernels.communication_plan import FIELD_BYTES

if TYPE_CHECKING:
    from semivario_kernels.communication_plan import CommunicationPlan

Tensor = torch.Tensor
Block = dict[str, Tensor]
Work = Callable[[Block, slice], Tensor | None]
Merge = Callable[[Tensor, Tensor], Tensor]


def group_of(name: str) -> dist.ProcessGroup:
    """The group that an operator's argument names."""
    group: dist.ProcessGroup = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type, unused-ignore]
    return group


def all_numbers(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The (k,) int64 numbers of every rank, (W, k) on the CPU."""
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    return torch.stack(everyone).cpu()


class Exchange:
    """The travelling side's blocks, and the ranks they meet.

    Args:
        plan: which side travels, in which scheme, and every rank's rows.
        group: the ranks; all of them must call in the same order.
    """

    def __init__(self, plan: CommunicationPlan, group: dist.ProcessGroup) -> None:
        self.plan, self.group = plan, group
        self.rank, self.world = dist.get_rank(group), len(plan.sizes)
        self.firsts = [0, *accumulate(plan.sizes)][:-1]

    def visit(self, own: Block, work: Work, merge: Merge) -> Tensor | None:
        """Let every block meet every rank; return what all of them made of this rank's own one.

        Args:
            own: this rank's rows; tensors of the same names, dtypes and further dimensions on every rank.
            work: takes a block and its rows' places; returns a contiguous tensor with a row for each of the
                block's, or None on all ranks. It may be given several ranks' blocks as one.
            merge: joins two such results; may write into the first.
        """
        if self.world == 1:
            return work(own, slice(0, self.plan.sizes[0]))
        return (self._gather if self.plan.scheme == "gather" else self._ring)(own, work, merge)

    def _gather(self, own: Block, work: Work, merge: Merge) -> Tensor | None:
        sizes = self.plan.sizes
        whole: Block = {}
        if own:
            layout, most = _Layout(own), max(sizes)  # collectives want one size
            memories = [layout.empty(most) for _ in sizes]
            dist.all_gather(memories, layout.packed(own, most), group=self.group)
            blocks = [layout.views(memory, most) for memory in memories]
            whole = {
                name: torch.cat([block[name][:size] for block, size in zip(blocks, sizes, strict=True)])
                for name in own
            }
            del memories, blocks
        result = work(whole, slice(0, sum(sizes)))
        if result is None:
            return None
        rows = sizes[self.rank]
        parts = result.new_empty(self.world * rows, *result.shape[1:])
        dist.all_to_all_single(
            parts,
            result,
            output_split_sizes=[rows] * self.world,
            input_split_sizes=list(sizes),
            group=self.group,
        )
        merged, *others = parts.view(self.world, rows, *result.shape[1:]).unbind()
        for part in others:
            merged = merge(merged, part)
        return merged

    def _ring(self, own: Block, work: Work, merge: Merge) -> Tensor | None:
        rank, world, sizes = self.rank, self.world, self.plan.sizes
        layout = _Layout(own)
        passing = self._pass_on(layout.packed(own, sizes[rank]), layout.empty(sizes[(rank - 1) % world]))
        block = own
        home: Tensor | None = None
        carried: _Passing | None = None
        for step in range(world):
            owner = (rank - step) % world
            if step > 0:
                memory = passing.wait()
                block = layout.views(memory, sizes[owner])
                if step < world - 1:
                    passing = self._pass_on(memory, layout.empty(sizes[(owner - 1) % world]))
            first = self.firsts[owner]
            result = work(block, slice(first, first + sizes[owner]))
            if result is None:
                continue
            if step == 0:
                home = result
                continue
            if carried is not None:
                result = merge(result, carried.wait())
            follower = sizes[(owner - 1) % world]
            carried = self._pass_on(result, result.new_empty(follower, *result.shape[1:]))
        if home is None or carried is None:
            return None
        return merge(home, carried.wait())

    def _pass_on(self, sent: Tensor, received: Tensor) -> _Passing:
        """Send to the next rank while receiving from the one before; nothing where there is nothing."""
        ends = (
            (dist.isend, sent.contiguous(), (self.rank + 1) % self.world),
            (dist.irecv, received, (self.rank - 1) % self.world),
        )
        operations = [
            dist.P2POp(operation, tensor, dist.get_global_rank(self.group, peer), self.group)
            for operation, tensor, peer in ends
            if tensor.numel()
        ]
        return _Passing(operations, received)


class _Passing:
    """A block on its way; keeps what is sent alive until it has gone."""

    def __init__(self, operations: list[dist.P2POp], received: Tensor) -> None:
        self._operations, self._received = operations, received
        self._works = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        self._operations = []
        return self._received


class _Layout:
    """How a block's tensors lie in one buffer of bytes: one behind the other, every one aligned."""

    def __init__(self, block: Block) -> None:
        self._like = {name: tensor[:0] for name, tensor in block.items()}
        self._device = next((tensor.device for tensor in block.values()), torch.device("cpu"))

    def empty(self, rows: int) -> Tensor:
        """A buffer for so many rows, not initialised."""
        size = sum(_aligned(rows * _row_bytes(tensor)) for tensor in self._like.values())
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def packed(self, block: Block, rows: int) -> Tensor:
        """The block in a buffer for `rows` rows, of which it may fill the first ones only."""
        memory = self.empty(rows)
        for name, view in self.views(memory, rows).items():
            view[: len(block[name])].copy_(block[name])
        return memory

    def views(self, memory: Tensor, rows: int) -> Block:
        """The tensors in a buffer for `rows` rows."""
        found, start = {}, 0
        for name, like in self._like.items():
            size = rows * _row_bytes(like)
            found[name] = memory[start : start + size].view(like.dtype).view(rows, *like.shape[1:])
            start += _aligned(size)
        return found


def _row_bytes(tensor: Tensor) -> int:
    return tensor.element_size() * tensor.shape[1:].numel()


def _aligned(size: int) -> int:
    return -(-size // FIELD_BYTES) * FIELD_BYTES
