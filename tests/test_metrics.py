import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN

from cldiff import frechet_distance, metrics, stats
from cldiff.diffusion import Diffusion
from cldiff.results import COLUMNS
from cldiff.tasks import to_model

NAN = math.nan


def distances(drawn: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    precision, recall = metrics.precision_recall(drawn, real)
    return {"kid": metrics.kid(drawn, real), "precision": precision, "recall": recall}


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
    assert stats.average(MATRIX) == pytest.approx(119 / 3)


def test_forgetting_is_the_mean_rise_since_each_task_but_the_last():
    assert stats.forgetting(MATRIX) == pytest.approx((5 + 3) / 2)


def test_forgetting_is_negative_where_old_tasks_improve():
    assert stats.forgetting([[5.0, NAN], [2.0, 7.0]]) == -3


def test_a_missing_last_row_is_not_averaged_away():
    assert math.isnan(stats.average([[1.0, NAN], [NAN, 2.0]]))
    assert math.isnan(stats.forgetting([[1.0, NAN], [NAN, 2.0]]))


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0)), np.zeros((2, 2, 2)), 1.0])
@pytest.mark.parametrize("metric", [stats.average, stats.forgetting])
def test_matrices_that_are_not_square_are_refused(metric, matrix):
    with pytest.raises(ValueError, match="result matrix of shape"):
        metric(matrix)


def test_forgetting_of_one_task_is_refused():
    with pytest.raises(ValueError, match="at least two tasks"):
        stats.forgetting([[1.0]])


# Fréchet distance

MEANS = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
STDS = np.array([1.0, 2.0, 0.1]), np.array([3.0, 0.5, 0.2])
DISTANCE = 1 + 9 + 4 + 2.25 + 0.01


def gaussian(mean, std, rotation) -> metrics.Gaussian:
    """Of independent parts with these deviations, rotated."""
    mean, std, rotation = (torch.as_tensor(x, dtype=torch.float64) for x in (mean, std, rotation))
    return metrics.Gaussian(rotation @ mean, std.diag() @ rotation.T)


def test_distance_of_gaussians_that_differ_in_one_dimension():
    one, other = gaussian([1.0, 7.0], [2.0, 1.0], np.eye(2)), gaussian([4.0, 7.0], [0.5, 1.0], np.eye(2))
    assert metrics.fid(one, other) == pytest.approx(9 + 1.5**2)


@pytest.mark.parametrize("rotation", [np.eye(3), np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]])
def test_distance_of_gaussians_is_that_of_their_parts_however_rotated(rotation):
    found = metrics.fid(*(gaussian(mean, std, rotation) for mean, std in zip(MEANS, STDS)))
    assert found == pytest.approx(DISTANCE, rel=1e-9)


def test_distance_of_a_gaussian_to_itself_is_zero():
    one = metrics.Gaussian.of(features(100))
    assert metrics.fid(one, one) == pytest.approx(0, abs=1e-6)


# FID


def test_fid_of_few_images_divides_variances_by_one_less_than_their_number():
    one, other = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 3.0], [5.0, 3.0], [9.0, 3.0]])
    assert metrics.fid(one, other) == pytest.approx(4**2 + 3**2 + (math.sqrt(2) - 4) ** 2)


@pytest.mark.parametrize("n, m, width", [(300, 200, 6), (300, 20, 84), (20, 30, 84), (500, 400, 84)])
def test_fid_is_that_of_clean_fid_and_of_torch_fidelity(n, m, width):
    """Also where there are fewer images than features, so that covariances are singular."""
    from cleanfid.fid import frechet_distance as clean_fid
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    x, y = features(n, width), features(m, width, seed=1).relu()
    statistics = [fid_features_to_statistics(z.double()) for z in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    with warnings.catch_warnings():  # SciPy's, of clean-fid's call
        warnings.simplefilter("ignore")
        clean = clean_fid(*(part for s in statistics for part in (s["mu"], s["sigma"])))
    assert metrics.fid(x, y) == pytest.approx(theirs, rel=1e-6)
    of_moments = frechet_distance(*(part for s in statistics for part in (s["mu"], s["sigma"])))
    assert of_moments == pytest.approx(theirs, rel=1e-6 if min(n, m) > width else 1e-4)
    # clean-fid takes the root of a singular matrix less exactly
    assert metrics.fid(x, y) == pytest.approx(clean, rel=1e-6 if min(n, m) > width else 1e-4)


def test_fid_of_few_images_with_2048_features_each():
    """As wide as Inception's: the libraries need 8 seconds, or minutes where the covariance is singular."""
    x, y = features(60, 2048), features(50, 2048, seed=1)
    mean, spread = (x.mean(0) - y.mean(0)).square().sum(), x.var(0).sum() + y.var(0).sum()
    root = torch.linalg.matrix_norm((x - x.mean(0)).double() @ (y - y.mean(0)).double().T, "nuc") / (59 * 49) ** 0.5
    assert metrics.fid(x, y) == pytest.approx((mean + spread - 2 * root).item(), rel=1e-5)


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


def test_bits_per_dim_of_each_image_by_name():
    white = lambda x, t: torch.full_like(x, -1e6)  # noqa: E731
    pictures = images(4)
    predictor = metrics.Predictor(Diffusion(50), white, pictures, 50, seeded())
    found = {name: metrics.METRICS[name].value(predictor) for name in ("bpd", "bpd_fixedsmall")}
    for name, variance in (("bpd", "fixedlarge"), ("bpd_fixedsmall", "fixedsmall")):
        total, _, _ = Diffusion(50, variance).bits_per_dim(white, to_model(pictures), generator=seeded(9))
        assert found[name].shape == (4,) and torch.allclose(found[name], total, rtol=1e-6)


# KID, precision and recall


def clouds(n: int, seed: int, shift: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(n, 8, generator=seeded(seed)) * spread + shift


def test_kid_of_one_distribution_is_zero_on_average():
    found = [distances(clouds(60, 2 * k), clouds(60, 2 * k + 1))["kid"] for k in range(60)]
    error = np.std(found, ddof=1) / 60**0.5
    assert abs(np.mean(found)) < 3 * error and min(found) < 0 < max(found)


def test_kid_is_the_squared_distance_of_cubic_kernels():
    x, y = clouds(12, 0), clouds(12, 1, shift=0.5)
    kernel = lambda a, b: (a @ b.T / 8 + 1) ** 3  # noqa: E731
    off = lambda k: (k.sum() - k.diagonal().sum()) / (12 * 11)  # noqa: E731
    expected = off(kernel(x, x)) + off(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert distances(x, y)["kid"] == pytest.approx(expected.item(), rel=1e-4)


def test_kid_is_the_mean_over_twenty_subsets_of_at_most_a_thousand(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "torch_fidelity.metric_kid.kid_features_to_metric",
        lambda *_, **how: asked.update(how) or {KEY_METRIC_KID_MEAN: 1},
    )
    metrics.kid(clouds(1200, 0), clouds(1500, 1))
    assert (asked["kid_subsets"], asked["kid_subset_size"]) == (20, 1000)


def test_a_collapsed_model_is_precise_and_recalls_little_and_noise_the_reverse():
    real = clouds(300, 0)
    collapsed = distances(clouds(200, 1, spread=0.05), real)
    assert collapsed["precision"] > 0.95 and collapsed["recall"] < 0.05
    noise = distances(clouds(200, 1, spread=6.0), real)
    assert noise["precision"] < 0.05 and noise["recall"] > 0.9
    good = distances(clouds(200, 1), real)
    assert good["precision"] > 0.5 and good["recall"] > 0.5


def test_precision_and_recall_go_by_their_names():
    drawn, real = metrics.Drawn(clouds(200, 1, spread=0.05), None, None, None), metrics.Real(clouds(300, 0))
    precision, recall = (metrics.METRICS[name].value(drawn, real) for name in ("precision", "recall"))
    assert precision > 0.95 and recall < 0.05


def test_precision_takes_real_images_from_everywhere_in_the_file():
    """Which may be sorted by class: here the samples lie in its second half."""
    real = torch.cat([clouds(200, 0), clouds(200, 1) + 50])
    assert metrics.precision_recall(clouds(200, 2) + 50, real)[0] > 0.5


def test_fid_of_gaussians_is_the_closed_form_within_sampling_error():
    scale = torch.linspace(0.5, 2, 8)
    found = metrics.fid(clouds(20_000, 0) * scale + 1, clouds(20_000, 1))
    assert found == pytest.approx(8 + (scale - 1).square().sum().item(), rel=0.02)


@pytest.mark.parametrize("n, expected", [(5, [5]), (8, [8]), (16, [8, 16]), (100, [8, 16, 32, 64, 100])])
def test_sample_sizes_end_at_all_of_them(n, expected):
    assert metrics.sample_sizes(n) == expected


# Tables


def score(after, task, metric, value, split=None) -> dict:
    return dict(zip(COLUMNS, (after, task, metric, value, split, "lenet", 100, "ddim50")))


def scores(run="a", label="Finetuning", seed=0, shift=0.0, weight=None) -> pd.DataFrame:
    """Two tasks, in no order, among rows that the tables leave alone."""
    rows = [
        score(2, 2, "fid", 5 + shift, "train"),
        score(1, 1, "fid", 10 + shift, "train"),
        score(2, 1, "fid", 30 + shift, "train"),
        *(score(j, i, "fid", 1000, "test") for j, i in ((1, 1), (2, 1), (2, 2))),
        score(2, 1, "bpd", 4 + shift, "test"),
        score(1, 1, "bpd", 3 + shift, "test"),
        score(2, 2, "bpd", 2 + shift, "test"),
        score(1, 1, "accuracy", 0.9),
        score(2, 1, "accuracy", 0.4),
        score(2, 2, "accuracy", 1.0),
        score(2, 1, "taken_for_current", 0.6),
        score(None, 1, "fid_floor", 1, "train"),
    ]
    return pd.DataFrame(rows).convert_dtypes().assign(run=run, label=label, seed=seed, weight=weight)


@pytest.mark.parametrize(
    "metric, split, expected",
    [
        ("fid", "train", [[10, NAN], [30, 5]]),
        ("fid", "test", [[1000, NAN], [1000, 1000]]),
        ("bpd", "test", [[3, NAN], [4, 2]]),
        ("accuracy", None, [[0.9, NAN], [0.4, 1.0]]),
    ],
)
def test_result_matrix_has_a_row_after_each_task_and_a_column_by_task(metric, split, expected):
    np.testing.assert_array_equal(stats.result_matrix(scores(), metric, split), expected)


@pytest.mark.parametrize(
    "table, metric, split, words",
    [
        (
            scores(),
            "fid",
            None,
            r"^no fid with split=None, extractor='lenet' .*: expected one of \[\['train', 'lenet'\]",
        ),
        (scores(), "kid", "train", r"^no kid with split='train', .*: expected one of \[.*'fid'"),
        (pd.concat([scores(), scores("b")]), "fid", "train", "^several values of fid for a task: expected one run"),
        (scores(), "accuracy", "test", r"expected one of \[\[None, 'lenet'\]\]$"),
    ],
)
def test_result_matrix_of_no_run_or_of_two_is_refused(table, metric, split, words):
    with pytest.raises(ValueError, match=words):
        stats.result_matrix(table, metric, split)


def test_two_data_sets_are_no_summary():
    with pytest.raises(ValueError, match="^scores of mnist and digits: expected those of one data set$"):
        stats.summarise(pd.concat([scores().assign(dataset=name) for name in ("mnist", "digits")]))


def test_summary_has_average_what_was_learned_and_forgetting_of_each_metric():
    table = stats.summarise(scores()).set_index("metric")
    assert list(table.columns) == ["run", "label", "seed", "average", "learned", "forgetting"]
    assert table.average.to_dict() == pytest.approx({"fid": 17.5, "bpd": 3.0, "accuracy": 0.7})
    assert table.learned.to_dict() == pytest.approx({"fid": 7.5, "bpd": 2.5, "accuracy": 0.95})
    assert table.forgetting.to_dict() == pytest.approx({"fid": 20, "bpd": 1, "accuracy": 0.5})


def test_summary_keeps_runs_and_seeds_apart():
    table = stats.summarise(pd.concat([scores("b"), scores("a", seed=2, shift=1), scores("c", "L2", 1, shift=2)]))
    fid = table[table.metric == "fid"]
    assert list(zip(fid.run, fid.label, fid.seed, fid.average)) == [
        ("b", "Finetuning", 0, 17.5),
        ("a", "Finetuning", 2, 18.5),
        ("c", "L2", 1, 19.5),
    ]
    assert len(table) == 9


def test_two_runs_are_not_one_row():
    with pytest.raises(ValueError, match="a and b would be one row"):
        stats.summarise(pd.concat([scores("a"), scores("b")]))
    with pytest.raises(ValueError, match="b and c would be one row"):  # of a label that leaves the weight out
        stats.summarise(pd.concat([scores("a"), scores("b", "L2", 0, weight=1), scores("c", "L2", 1, weight=10)]))


def test_methods_are_ranked_by_their_means_the_best_first():
    table = stats.summarise(
        pd.concat(
            [scores("a"), scores("b", "L2", shift=-2), scores("c", "L2", 1, shift=4), scores("d", "EWC", shift=0.5)]
        )
    )
    assert stats.ranking(table, "fid") == ["Finetuning", "EWC", "L2"]
    table.loc[table.label == "EWC", ["average", "forgetting"]] = 0.95
    assert stats.ranking(table, "accuracy") == ["EWC", "Finetuning", "L2"]  # more is better, and of a tie the first
    assert stats.ranking(table, "accuracy", "forgetting") == ["Finetuning", "L2", "EWC"]


def test_scores_in_other_features_are_left_alone():
    other = scores(shift=100).assign(extractor="inception")
    both = pd.concat([scores(), other[other.metric == "fid"]])
    np.testing.assert_array_equal(stats.result_matrix(both, "fid", "train"), [[10, NAN], [30, 5]])
    np.testing.assert_array_equal(stats.result_matrix(both, "fid", "train", "inception"), [[110, NAN], [130, 105]])


# Differences


def bootstrap_of(table: pd.DataFrame, noise=(0.0, 0.0)) -> pd.DataFrame:
    rows = table[(table.metric != "fid") | (table.split == "train")]
    rows = rows[rows.metric.isin(["fid", "bpd", "accuracy"])].drop(columns=["split", "extractor", "n", "sampler"])
    for k, shift in enumerate(noise):
        rows[f"replicate{k}"] = rows.value.astype(float) + shift * (rows.after_task.astype(int) == 2)
    return rows.drop(columns="value")


def test_a_replicate_is_summarised_as_the_scores_are():
    table = pd.concat([scores("a"), scores("c", "L2", 1, shift=2)])
    replicates = stats.summarise_replicates(bootstrap_of(table, (0.0, 7.0)))
    keys = ["run", "label", "seed", "metric"]
    plain = stats.summarise(table).sort_values(keys).reset_index(drop=True)
    same = replicates[replicates.replicate == 0].sort_values(keys).reset_index(drop=True)
    pd.testing.assert_frame_equal(same[plain.columns], plain, check_dtype=False)
    moved = replicates[(replicates.replicate == 1) & (replicates.metric == "fid")]
    assert moved.average.tolist() == [24.5, 26.5] and moved.forgetting.tolist() == [27, 27]


def test_a_difference_of_seeds_is_paired():
    """The seeds differ far more than the methods; each seed has the same difference."""
    one = np.array([[10.0], [50.0], [90.0]])
    d = stats.paired_difference(one, one + 2)
    assert (d.mean, d.low, d.high) == pytest.approx((-2, -2, -2)) and d.beyond_noise
    unpaired = stats.paired_difference(one, one[[1, 2, 0]] + 2)
    assert not unpaired.beyond_noise


def test_image_noise_widens_the_interval_and_pairs_up():
    random = np.random.default_rng(1)
    noise = random.normal(size=(1, 2000))
    one, other = np.hstack([[[5.0]], 5 + noise]), np.hstack([[[4.0]], 4 + noise])
    assert stats.paired_difference(one, other).low == pytest.approx(1)  # the same images: their noise cancels
    other = np.hstack([[[4.0]], 4 + random.normal(size=(1, 2000))])
    d = stats.paired_difference(one, other)
    assert (d.mean, d.low, d.high) == pytest.approx((1, 1 - 1.96 * 2**0.5, 1 + 1.96 * 2**0.5), abs=0.15)
    assert not d.beyond_noise


def test_each_seed_has_its_own_image_noise_around_its_own_bias():
    """Standard deviations 0, 2, 2, 2: that of the mean of four picked ones is the root of 3 / 4."""
    noise = np.random.default_rng(3).normal(size=(4, 4000)) * [[0], [2], [2], [2]] + [[0], [20], [-40], [60]]
    d = stats.paired_difference(np.hstack([np.ones((4, 1)), 1 + noise]), np.zeros((4, 4001)))
    assert (d.low, d.high) == pytest.approx((1 - 1.96 * 0.75**0.5, 1 + 1.96 * 0.75**0.5), abs=0.15)


def test_noise_of_the_same_images_does_not_shrink_with_the_number_of_seeds():
    """BPD is that of the same test images under every seed; a FID's samples are each seed's own."""
    random = np.random.default_rng(1)
    other = np.zeros((9, 2001))
    alike = np.hstack([np.ones((9, 1)), 1 + np.tile(random.normal(size=2000), (9, 1))])
    d = stats.paired_difference(alike, other, same_images=True)
    assert (d.low, d.high) == pytest.approx((1 - 1.96, 1 + 1.96), abs=0.15)
    own = np.hstack([np.ones((9, 1)), 1 + random.normal(size=(9, 2000))])
    d = stats.paired_difference(own, other)
    assert (d.low, d.high) == pytest.approx((1 - 1.96 / 3, 1 + 1.96 / 3), abs=0.05)


@pytest.mark.parametrize("metric, wide", [("bpd", True), ("fid", False)])
def test_a_comparison_knows_whose_images_are_the_same(metric, wide):
    columns = {"label": ["A"] * 9 + ["B"] * 9, "metric": metric, "seed": [*range(9)] * 2, "average": 1.0}
    summary = pd.DataFrame(columns)
    noise = {"A": 1, "B": 0}
    replicates = pd.concat(summary.assign(replicate=k, average=1 + summary.label.map(noise) * k) for k in (-1, 1))
    d = stats.compare(summary, replicates, "A", "B", metric, "average")
    assert ((d.low, d.high) == (-1, 1)) == wide


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """Over 20 seeds, whose number the percentiles suffice for."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        d = stats.paired_difference(random.normal(1, 1, (20, 1)), np.zeros((20, 1)), draws=500)
        hits += d.low < 1 < d.high
    assert 0.88 < hits / 200 < 0.98


def test_the_bias_of_replicates_does_not_move_the_interval():
    biased = np.hstack([[[5.0]], 9 + np.array([[-1.0, 1.0]])])
    d = stats.paired_difference(biased, np.zeros((1, 3)))
    assert (d.mean, d.low, d.high) == (5, 4, 6)


def test_other_seeds_are_refused_and_compare_takes_those_of_both():
    with pytest.raises(ValueError, match="same seeds"):
        stats.paired_difference(np.zeros((2, 1)), np.zeros((3, 1)))
    table = pd.concat([scores("a"), scores("b", seed=1, shift=4), scores("c", "L2", 1, shift=1)])
    d = stats.compare(
        stats.summarise(table), stats.summarise_replicates(bootstrap_of(table)), "Finetuning", "L2", "fid", "average"
    )
    assert d == (3, 3, 3)  # of seed 1 alone
    with pytest.raises(ValueError, match="^Finetuning and L2 have no seed in common; expected runs of the same"):
        apart = table[(table.label == "L2") | (table.seed == 0)]
        stats.compare(
            stats.summarise(apart),
            stats.summarise_replicates(bootstrap_of(apart)),
            "Finetuning",
            "L2",
            "fid",
            "average",
        )


def test_a_copy_is_closer_to_one_kept_image_than_a_third_of_the_way_to_any_other():
    kept = torch.tensor([0, 90, 200], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    # 22 of 68 is less than a third, 23 of 67 is not; 45 lies between; 180 is 20 of 90 away
    samples = torch.tensor([22, 23, 45, 180, 90], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    assert metrics.copied(samples, kept) == 3 / 5


def test_a_sample_at_a_third_of_the_way_is_no_copy():
    kept = torch.tensor([0, 80], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    samples = torch.tensor([19, 20], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert metrics.copied(samples, kept) == 1 / 2
