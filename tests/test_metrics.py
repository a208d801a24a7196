import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from cldiff import metrics
from cldiff.diffusion import Diffusion
from cldiff.runs import COLUMNS
from cldiff.tasks import to_model

NAN = math.nan


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(n: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    """float32 (n, width), correlated, not centred."""
    generator = seeded(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(n, width, generator=generator) @ mix + torch.randn(width, generator=generator)


# Average and forgetting

MATRIX = np.array([[1.0, NAN, NAN], [2.0, 10.0, NAN], [6.0, 13.0, 100.0]])


def test_average_is_the_mean_of_the_last_row():
    assert metrics.average(MATRIX) == pytest.approx(119 / 3)


def test_forgetting_is_the_mean_rise_since_each_task_but_the_last():
    assert metrics.forgetting(MATRIX) == pytest.approx((5 + 3) / 2)


def test_forgetting_is_negative_where_old_tasks_improve():
    assert metrics.forgetting([[5.0, NAN], [2.0, 7.0]]) == -3


def test_a_missing_last_row_is_not_averaged_away():
    assert math.isnan(metrics.average([[1.0, NAN], [NAN, 2.0]]))
    assert math.isnan(metrics.forgetting([[1.0, NAN], [NAN, 2.0]]))


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0)), np.zeros((2, 2, 2)), 1.0])
@pytest.mark.parametrize("metric", [metrics.average, metrics.forgetting])
def test_matrices_that_are_not_square_are_refused(metric, matrix):
    with pytest.raises(ValueError, match="result matrix of shape"):
        metric(matrix)


def test_forgetting_of_one_task_is_refused():
    with pytest.raises(ValueError, match="at least two tasks"):
        metrics.forgetting([[1.0]])


# Fréchet distance

MEANS = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
STDS = np.array([1.0, 2.0, 0.1]), np.array([3.0, 0.5, 0.2])
DISTANCE = 1 + 9 + 4 + 2.25 + 0.01


def test_distance_of_gaussians_that_differ_in_one_dimension():
    found = metrics.frechet_distance([1.0, 7.0], np.diag([4.0, 1.0]), [4.0, 7.0], np.diag([0.25, 1.0]))
    assert found == pytest.approx(9 + 1.5**2)


def test_distance_of_gaussians_with_diagonal_covariance():
    covariances = [np.diag(std**2) for std in STDS]
    found = metrics.frechet_distance(MEANS[0], covariances[0], MEANS[1], covariances[1])
    assert found == pytest.approx(DISTANCE, rel=1e-9)


def test_distance_of_gaussians_does_not_change_by_rotation():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    covariances = [rotation @ np.diag(std**2) @ rotation.T for std in STDS]
    found = metrics.frechet_distance(rotation @ MEANS[0], covariances[0], rotation @ MEANS[1], covariances[1])
    assert found == pytest.approx(DISTANCE, rel=1e-9)


def test_distance_of_a_gaussian_to_itself_is_zero():
    covariance = np.cov(features(100).numpy(), rowvar=False)
    assert metrics.frechet_distance(np.ones(6), covariance, np.ones(6), covariance) == pytest.approx(0, abs=1e-6)


# FID


def test_fid_of_few_images_divides_variances_by_one_less_than_their_number():
    one, other = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 3.0], [5.0, 3.0], [9.0, 3.0]])
    assert metrics.fid(one, other) == pytest.approx(4**2 + 3**2 + (math.sqrt(2) - 4) ** 2)


def test_fid_is_that_of_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = features(300), features(200, seed=1)
    statistics = [theirs.fid_features_to_statistics(z.double()) for z in (x, y)]
    expected = theirs.fid_statistics_to_metric(*statistics, verbose=False)[theirs.KEY_METRIC_FID]
    assert metrics.fid(x, y) == pytest.approx(expected, rel=1e-6)


def test_fid_of_float32_features_far_from_zero_keeps_its_digits():
    x, y = features(200).mul(16).round(), features(200, seed=1).mul(16).round()
    assert metrics.fid(x + 2**20, y + 2**20) == pytest.approx(metrics.fid(x, y), rel=1e-6)


def test_features_that_never_fire_change_nothing_and_warn_nobody():
    x, y, dead = features(200), features(200, seed=1), torch.zeros(200, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # SciPy's own kind is one of these
        found = metrics.fid(torch.cat([x, dead], 1), torch.cat([y, dead], 1))
    assert found == pytest.approx(metrics.fid(x, y), rel=1e-6)


@pytest.mark.parametrize("n, expected", [(3, 3), (10, 10), (11, 10), (1000, 10)])
def test_floor_compares_disjoint_parts(monkeypatch, n, expected):
    parts = []
    monkeypatch.setattr(metrics, "fid", lambda *both: parts.extend(both) or 0.0)
    metrics.fid_floor(torch.arange(21.0)[:, None], n)
    first, second = (set(part.flatten().tolist()) for part in parts)
    assert len(first) == len(second) == expected
    assert not first & second


def test_floor_mixes_sorted_features():
    x = features(1000).sort(0).values
    assert 0 < metrics.fid_floor(x, 500) < 0.01 * metrics.fid(x[:500], x[500:])


def test_floor_is_the_same_at_each_call():
    assert metrics.fid_floor(features(100), 50) == metrics.fid_floor(features(100), 50)


# Accuracy and losses


@pytest.mark.parametrize("wanted, share", [((0, 1), 0.5), ((2, 3), 0.25), ((8, 9), 0.25), ((4, 5), 0.0)])
def test_accuracy_is_the_share_in_the_classes_of_the_task(wanted, share):
    assert metrics.task_accuracy(torch.tensor([0, 1, 1, 3, 9, 0, 2, 8]), wanted) == share


def images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 4, 4), generator=seeded(3), dtype=torch.uint8)


def toy(x, t):
    return torch.sin(x + t.view(-1, 1, 1, 1))


@pytest.mark.parametrize("batch_size", [1, 5, 512])
def test_losses_by_timestep_are_those_of_a_direct_loop(batch_size):
    diffusion, pictures, timesteps = Diffusion(100), images(7), [90, 0, 37]
    generator = seeded(5)
    parts = torch.empty(21, 1, 4, 4).split(batch_size)
    noise = torch.cat([torch.randn(part.shape, generator=generator) for part in parts]).view(3, 7, 1, 4, 4)
    expected = []
    for j, timestep in enumerate(timesteps):
        a = diffusion.alpha_bar[timestep].float()
        loss = 0
        for i in range(7):
            x_t = a.sqrt() * (pictures[i].float() / 127.5 - 1) + (1 - a).sqrt() * noise[j, i]
            loss += (torch.sin(x_t + timestep) - noise[j, i]).square().mean().item() / 7
        expected.append(loss)
    found = metrics.losses_by_timestep(diffusion, toy, pictures, timesteps, seeded(5), batch_size)
    assert found == pytest.approx(expected, rel=1e-5)


def test_losses_by_timestep_draw_from_their_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    metrics.losses_by_timestep(Diffusion(100), toy, images(3), [0, 50], seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_bits_per_dim_is_the_mean_over_images():
    white = lambda x, t: torch.full_like(x, -1e6)  # noqa: E731
    pictures = images(4)
    found = metrics.bits_per_dim(Diffusion(50), white, pictures, 50, seeded())
    total, _, _ = Diffusion(50).bits_per_dim(white, to_model(pictures), generator=seeded(9))
    assert found == pytest.approx(total.mean().item(), rel=1e-6)


# Tables


def score(after, task, metric, value, split=None) -> dict:
    return dict(zip(COLUMNS, (after, task, metric, value, split, "lenet", 100, "ddim50")))


def scores(run: str = "a", label: str = "Finetuning", seed: int = 0, shift: float = 0) -> pd.DataFrame:
    """Two tasks, in no order, among rows that the tables leave alone."""
    rows = [score(2, 2, "fid", 5 + shift, "train"), score(1, 1, "fid", 10 + shift, "train"),
            score(2, 1, "fid", 30 + shift, "train"),
            *(score(j, i, "fid", 1000, "test") for j, i in ((1, 1), (2, 1), (2, 2))),
            score(2, 1, "bpd", 4 + shift, "test"), score(1, 1, "bpd", 3 + shift, "test"),
            score(2, 2, "bpd", 2 + shift, "test"),
            score(1, 1, "accuracy", 0.9), score(2, 1, "accuracy", 0.4), score(2, 2, "accuracy", 1.0),
            score(2, 1, "taken_for_current", 0.6), score(None, 1, "fid_floor", 1, "train")]
    return pd.DataFrame(rows).convert_dtypes().assign(run=run, label=label, seed=seed)


@pytest.mark.parametrize("metric, split, expected", [
    ("fid", "train", [[10, NAN], [30, 5]]),
    ("fid", "test", [[1000, NAN], [1000, 1000]]),
    ("bpd", "test", [[3, NAN], [4, 2]]),
    ("accuracy", None, [[0.9, NAN], [0.4, 1.0]]),
])
def test_result_matrix_has_a_row_after_each_task_and_a_column_by_task(metric, split, expected):
    np.testing.assert_array_equal(metrics.result_matrix(scores(), metric, split), expected)


@pytest.mark.parametrize("table, metric, split", [
    (scores(), "fid", None), (scores(), "kid", "train"), (pd.concat([scores(), scores("b")]), "fid", "train"),
])
def test_result_matrix_of_no_run_or_of_two_is_refused(table, metric, split):
    with pytest.raises(ValueError, match=f"no {metric}"):
        metrics.result_matrix(table, metric, split)


def test_summary_has_average_and_forgetting_of_each_metric():
    table = metrics.summarise(scores()).set_index("metric")
    assert list(table.columns) == ["run", "label", "seed", "average", "forgetting"]
    assert table.average.to_dict() == pytest.approx({"fid": 17.5, "bpd": 3.0, "accuracy": 0.7})
    assert table.forgetting.to_dict() == pytest.approx({"fid": 20, "bpd": 1, "accuracy": 0.5})


def test_summary_keeps_runs_and_seeds_apart():
    table = metrics.summarise(pd.concat([scores("b"), scores("a", shift=1), scores("c", "L2", 1, shift=2)]))
    fid = table[table.metric == "fid"]
    assert list(zip(fid.run, fid.label, fid.seed, fid.average)) == [
        ("b", "Finetuning", 0, 17.5), ("a", "Finetuning", 0, 18.5), ("c", "L2", 1, 19.5)]
    assert len(table) == 9
