import pytest
import torch
from places import SPECIAL_PLACES, random_latlon


@pytest.fixture
def special_latlon() -> torch.Tensor:
    return torch.tensor(SPECIAL_PLACES, dtype=torch.float64)


@pytest.fixture
def latlon() -> torch.Tensor:
    return random_latlon(200, seed=7)
