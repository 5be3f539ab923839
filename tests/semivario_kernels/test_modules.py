import pytest
import torch
from open_clip.loss import ClipLoss
from test_loss import MODEL, problem

from semivario_kernels import GalleryInfoNCE, NegativePolicy, SemivariogramInfoNCE, semivariogram_info_nce


@pytest.fixture
def features():
    g = torch.Generator().manual_seed(0)
    return [
        torch.nn.functional.normalize(
            torch.randn(13, 8, generator=g, dtype=torch.float64), dim=1
        ).requires_grad_()
        for _ in range(2)
    ]


@pytest.mark.parametrize("bias", [None, -3.0])
def test_equals_open_clip(features, bias):
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    bias = None if bias is None else torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    leaves = [*features, scale] + ([] if bias is None else [bias])
    ours, theirs = GalleryInfoNCE()(*features, scale, bias), ClipLoss()(*features, scale, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert GalleryInfoNCE()(*features, 9.0, -3.0) == GalleryInfoNCE()(*features, 9.0)  # a number, too


def test_output_dict_as_open_clip(features):
    ours = GalleryInfoNCE()(*features, 9.0, output_dict=True)
    theirs = ClipLoss()(*features, 9.0, output_dict=True)
    assert set(ours) == set(theirs)
    torch.testing.assert_close(
        ours["contrastive_loss"].double(), theirs["contrastive_loss"], rtol=1e-12, atol=0
    )


def test_module_equals_function():
    p = problem()
    policy = NegativePolicy.explained(2, 4)
    module = SemivariogramInfoNCE(MODEL, policy, label_smoothing=0.1)
    torch.testing.assert_close(
        module(**p), semivariogram_info_nce(**p, variogram=MODEL, policy=policy, label_smoothing=0.1)
    )
    assert "explained" in repr(module)


def test_state_dict_carries_the_semivariogram(tmp_path):
    torch.save(SemivariogramInfoNCE(MODEL).state_dict(), tmp_path / "loss.pt")
    fresh = SemivariogramInfoNCE()
    fresh.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert fresh.variogram == MODEL
    nested = torch.nn.ModuleDict({"loss": SemivariogramInfoNCE(MODEL)})
    copy = torch.nn.ModuleDict({"loss": SemivariogramInfoNCE()})
    copy.load_state_dict(nested.state_dict())
    assert copy["loss"].variogram == MODEL
