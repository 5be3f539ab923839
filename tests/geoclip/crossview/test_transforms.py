import math

import pytest
import torch

from geoclip.crossview.dropout import CoarseDropout, GridDropout
from geoclip.crossview.transforms import TurnTogether, plain_transform, training_transform

WIDTH, SIDE = 64, 65


def colour(azimuth):
    """Of what stands in this direction, clockwise from north: smooth, and without a symmetry."""
    return torch.stack([torch.cos(azimuth), torch.sin(azimuth), torch.cos(2 * azimuth + 1)])


def panorama():
    """The middle column looks north, and columns go clockwise; WIDTH is even, so a column's edge is north."""
    azimuth = (torch.arange(WIDTH) - WIDTH // 2) * 2 * math.pi / WIDTH
    return colour(azimuth)[:, None].repeat(1, 8, 1)


def satellite():
    """North is up."""
    half = SIDE // 2
    north, east = torch.meshgrid(half - torch.arange(SIDE), torch.arange(SIDE) - half, indexing="ij")
    return colour(torch.atan2(east.double(), north.double())).float()


def seen_from_the_centre(image, azimuth, radius=24):
    """The satellite image's colours around its centre."""
    half = SIDE // 2
    rows = (half - radius * torch.cos(azimuth)).round().long()
    columns = (half + radius * torch.sin(azimuth)).round().long()
    return image[:, rows, columns]


AZIMUTH = (torch.arange(WIDTH) - WIDTH // 2) * 2 * math.pi / WIDTH


def mismatch(query, reference):
    return (query[:, 3] - seen_from_the_centre(reference, AZIMUTH)).abs().max()


def test_the_world_of_the_test_agrees_with_itself():
    assert mismatch(panorama(), satellite()) < 0.1
    assert mismatch(panorama().roll(WIDTH // 4, dims=-1), satellite()) > 1


@pytest.mark.parametrize("rotate", [0.0, 1.0])
def test_both_views_stay_of_one_world(rotate):
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        query, reference = TurnTogether(flip=0.0, rotate=rotate)(panorama(), satellite())
        assert mismatch(query, reference) < 0.1
        seen.add(tuple(query[:, 0, 5].tolist()))
    assert len(seen) == (3 if rotate else 1)


def test_a_mirrored_world_stays_one():
    query, reference = TurnTogether(flip=1.0, rotate=0.0)(panorama(), satellite())
    # columns are half a step from the axis: the mirrored middle lies one column beside
    assert mismatch(query.roll(1, dims=-1), reference) < 0.1
    assert mismatch(query, satellite()) > 1
    for seed in range(10):
        torch.manual_seed(seed)
        query, reference = TurnTogether(flip=1.0, rotate=1.0)(panorama(), satellite())
        assert mismatch(query.roll(1, dims=-1), reference) < 0.1


def test_probabilities():
    torch.manual_seed(0)
    turn = TurnTogether(flip=0.5, rotate=0.75)
    same = sum(torch.equal(turn(panorama(), satellite())[1], satellite()) for _ in range(400)) / 400
    assert same == pytest.approx(0.125, abs=0.06)
    with pytest.raises(ValueError, match=r"rotate: wanted a probability, got 1\.5"):
        TurnTogether(rotate=1.5)


def test_a_drone_image_does_not_roll():
    torch.manual_seed(1)
    turn = TurnTogether(flip=0.0, rotate=1.0, panorama=False)
    query, reference = turn(panorama(), satellite())
    assert torch.equal(query, panorama())
    assert not torch.equal(reference, satellite())


def test_grid_dropout_zeroes_its_share():
    image = torch.ones(3, 200, 400)
    dropped = GridDropout(0.5)(image)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(dropped[:, :20, :20], torch.zeros(3, 20, 20))
    assert torch.equal(dropped[:, 20:40], image[:, 20:40])
    with pytest.raises(ValueError, match="ratio"):
        GridDropout(1.0)


def test_coarse_dropout_makes_holes_inside():
    for seed in range(20):
        torch.manual_seed(seed)
        image = torch.ones(3, 100, 200)
        dropped = CoarseDropout()(image)
        assert torch.equal(image, torch.ones(3, 100, 200))
        share = (dropped == 0).float().mean()
        assert 0.01 < share <= 25 * 0.2 * 0.2 / 2


def test_transforms_resize_and_normalise():
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    plain = plain_transform((32, 48), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))(
        torch.full((3, 40, 60), 51, dtype=torch.uint8)
    )
    torch.testing.assert_close(
        plain, torch.tensor([-1.5, -0.8, -1 / 3])[:, None, None].expand(3, 32, 48), rtol=0, atol=1e-6
    )
    train = training_transform((32, 48), (0.5,) * 3, (0.2,) * 3)
    results = []
    for seed in range(60):
        torch.manual_seed(seed)
        results.append(train(image))
        assert results[-1].shape == (3, 32, 48)
        assert torch.isfinite(results[-1]).all()
    undisturbed = plain_transform((32, 48), (0.5,) * 3, (0.2,) * 3)(image)
    plain_share = sum(torch.allclose(result, undisturbed) for result in results) / 60
    assert plain_share == pytest.approx(0.5 * 0.5 * 0.7 * 0.7, abs=0.12)
