"""The batches of a run's steps, from the trainer's step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler

from geoclip.sampling.random_batches import Rows


class StepSampler(Sampler[list[int]]):
    """The batches of the steps from `first_step()` to `last_step`, for a DataLoader's `batch_sampler`.

    Args:
        batch: a sampler's `batch`.
        first_step: asked when iteration begins; the trainer's step, so that a resumed run goes on there.
        last_step: number of steps of the whole run, also its length: Lightning counts the steps before a
            resumption too.

    Nothing is checked here: what `batch` raises comes when the step is asked for.
    """

    def __init__(self, batch: Callable[[int], Rows], first_step: Callable[[], int], last_step: int) -> None:
        self._batch, self._first_step, self._last_step = batch, first_step, last_step

    def __len__(self) -> int:
        return self._last_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._first_step(), self._last_step):
            yield self._batch(step).tolist()
