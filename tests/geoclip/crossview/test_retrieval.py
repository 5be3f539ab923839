import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from geoclip.crossview import retrieval
from geoclip.crossview.retrieval import retrieval_metrics


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch):
    monkeypatch.setattr(retrieval, "_SIMILARITIES_AT_ONCE", 3000)


def features(n, m, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=g, dtype=torch.float64), torch.randn(
        m, 8, generator=g, dtype=torch.float64
    )


def trapezoids(flags):
    """University-1652's average precision of a ranking, True where a reference is right."""
    total, found, last_precision = 0.0, 0, 1.0
    for position, right in enumerate(flags, start=1):
        found += right
        precision = found / position
        if right:
            total += (last_precision + precision) / 2
        last_precision = precision
    return total / sum(flags)


def test_one_reference_each():
    x, y = features(230, 230)
    y = y + 1.5 * x
    ours = retrieval_metrics(x, y, torch.arange(230), torch.arange(230))
    scores = (x @ y.T).numpy()
    for k, name in ((1, "recall@1"), (5, "recall@5"), (10, "recall@10"), (2, "recall@1%")):
        wanted = top_k_accuracy_score(np.arange(230), scores, k=k)
        assert ours[name] == pytest.approx(wanted, abs=1e-12)
    assert 0.1 < ours["recall@1"] < 0.9
    steps = [average_precision_score(np.arange(230) == i, scores[i]) for i in range(230)]
    assert ours["ap_step"] == pytest.approx(np.mean(steps), abs=1e-12)
    ranking = np.argsort(-scores, axis=1)
    assert ours["ap"] == pytest.approx(np.mean([trapezoids(ranking[i] == i) for i in range(230)]), abs=1e-12)
    assert "hit_rate" not in ours


def test_several_references_and_distractors():
    x, y = features(90, 411, 1)
    labels, reference_labels = torch.arange(90) % 30, torch.arange(411) % 47  # 30 … 46 are nobody's
    y = y + 0.5 * x[reference_labels.clamp(max=29)]
    ours = retrieval_metrics(x, y, labels, reference_labels)
    scores = (x @ y.T).numpy()
    right = labels.numpy()[:, None] == reference_labels.numpy()
    ranking = np.argsort(-scores, axis=1)
    flags = np.take_along_axis(right, ranking, axis=1)
    first = flags.argmax(axis=1)
    for k, name in ((1, "recall@1"), (5, "recall@5"), (10, "recall@10"), (4, "recall@1%")):
        assert ours[name] == pytest.approx((first < k).mean(), abs=1e-12)
    assert ours["ap"] == pytest.approx(np.mean([trapezoids(row) for row in flags]), abs=1e-12)
    assert ours["ap_step"] == pytest.approx(
        np.mean([average_precision_score(right[i], scores[i]) for i in range(90)]), abs=1e-12
    )


def test_hit_rate_sets_semi_positives_aside():
    x, y = features(120, 300, 2)
    y[:120] += 1.5 * x
    semi = torch.randint(120, 300, (120, 3), generator=torch.Generator().manual_seed(3))
    semi[::4, 1:] = -1
    y[semi[:, 0]] += 1.6 * x
    ours = retrieval_metrics(x, y, torch.arange(120), torch.arange(300), semi_positives=semi)
    hits = 0
    for i in range(120):
        scores = x[i] @ y.T
        wrong = [j for j in range(300) if j != i and j not in semi[i].tolist()]
        hits += bool((scores[wrong] < scores[i]).all())
    assert ours["hit_rate"] == pytest.approx(hits / 120, abs=1e-12)
    assert ours["hit_rate"] > ours["recall@1"] + 0.05


def test_features_that_are_all_equal_find_nothing():
    same = torch.ones(50, 4)
    ours = retrieval_metrics(same, same, torch.arange(50), torch.arange(50))
    assert ours["recall@1"] == ours["recall@10"] == 0
    assert ours["ap_step"] == pytest.approx(1 / 50)


def test_nan_is_found_last():
    """As of an encoder that diverged."""
    nan = torch.full((50, 4), torch.nan)
    own, labels, none = torch.arange(50), torch.arange(50) // 2, torch.full((50, 1), -1)
    for x, y in ((nan, torch.ones(50, 4)), (torch.ones(50, 4), nan)):
        one = retrieval_metrics(x, y, own, own, semi_positives=none)
        assert one["recall@1"] == one["recall@10"] == one["hit_rate"] == 0
        assert one["ap_step"] == pytest.approx(1 / 50)
        two = retrieval_metrics(x, y, labels, labels)
        assert two["ap_step"] == pytest.approx((1 / 49 + 2 / 50) / 2)
    x, y = features(40, 50)
    y[:40] += 3 * x
    whole = retrieval_metrics(x, y, torch.arange(40), torch.arange(50))
    y[45] = torch.nan  # nobody's: the others are found as before, and 45 less often than it was
    broken = retrieval_metrics(x, y, torch.arange(40), torch.arange(50))
    assert 1 > broken["recall@1"] >= whole["recall@1"] > 0.5


def test_half_precision_and_the_worst_ranking():
    x = torch.eye(6, dtype=torch.float32)
    ours = retrieval_metrics(x, -x, torch.arange(6), torch.arange(6))
    assert (ours["recall@1"], ours["recall@5"], ours["recall@10"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": torch.ones(4, 3)}, r"\(5, 2\) and \(4, 3\)"),
        ({"query_labels": torch.arange(4)}, r"query_labels: wanted shape \(5,\), got \(4,\)"),
        ({"query_labels": torch.arange(5) + 1}, "no reference has the label 5 of query 4"),
        ({"semi_positives": torch.zeros(4, 1, dtype=torch.int64)}, r"semi_positives: wanted \(5, K\)"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "queries": torch.ones(5, 2),
        "references": torch.ones(5, 2),
        "query_labels": torch.arange(5),
        "reference_labels": torch.arange(5),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**arguments)
