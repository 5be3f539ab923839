"""Which rows of a data set come together in a batch.

`EpochBatchSampler` draws an epoch's batches, random or from a table of neighbours; `geographic_neighbours`,
`similarity_neighbours` and `surprise_neighbours` make such tables. `RandomBatchSampler` and
`NeighbourBatchSampler` answer for single steps and need no table.
"""

from geoclip.sampling.coverage import Coverage, coverage
from geoclip.sampling.epoch_batches import EpochBatchSampler
from geoclip.sampling.geographic import geographic_neighbours
from geoclip.sampling.nearest_batches import NeighbourBatchSampler
from geoclip.sampling.random_batches import RandomBatchSampler
from geoclip.sampling.similarity import similarity_neighbours
from geoclip.sampling.steps import StepSampler
from geoclip.sampling.surprise import SurpriseNeighbours, surprise_neighbours

__all__ = [
    "Coverage",
    "EpochBatchSampler",
    "NeighbourBatchSampler",
    "RandomBatchSampler",
    "StepSampler",
    "SurpriseNeighbours",
    "coverage",
    "geographic_neighbours",
    "similarity_neighbours",
    "surprise_neighbours",
]
