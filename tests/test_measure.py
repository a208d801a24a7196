import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import documented, same, tiny, weights

import cldiff.measure
from cldiff import features, metrics, stats
from cldiff.diffusion import Diffusion
from cldiff.learner import Learner
from cldiff.measure import SHOWN, Measurer, mosaic
from cldiff.methods.replay import buffer
from cldiff.metrics import METRICS, AgainstKept, metrics_of
from cldiff.report.plots import load_samples
from cldiff.results import COLUMNS, CURVES, FILES, WEIGHTS, ResultError, load_bootstrap, load_curves, load_scores
from cldiff.tasks import DATASETS, Dataset, Split, load_tasks, to_model, to_uint8
from cldiff.train import Step, forget, train
from cldiff.unet import load_unet
from cldiff.work import make_run

TRIANGLE = [(after, task) for after in (1, 2, 3) for task in range(1, after + 1)]
# What the stand-in for LeNet's classifier says of 16 samples: 1 falls into task 1, 2 into task 2, 4 into task 3.
CLASSES = torch.tensor([0] + [2] * 2 + [5] * 4 + [9] * 9)

BOUNDS = dict(zip(metrics.metrics_of(metrics.OfImages), metrics.BOUNDS))  # (variance, clip) by name


@pytest.fixture(scope="module")
def finished(three, tmp_path_factory):
    """A run that was measured and saved; and what it was measured from, noted apart after each task."""
    run, classified, drawn, bounds = tiny("replay"), [], [], []
    folder = tmp_path_factory.mktemp("results") / run.name
    measure = Measurer(run, three)
    (lenet,) = measure.extractors
    measure.extractors = [
        lenet._replace(extract=lambda images: (lenet.extract(images)[0], classified.append(images) or CLASSES))
    ]
    state = torch.manual_seed(11).get_state()
    for step in train(run, three, folder):
        measure(step)
        learner = step.learner
        if step.step == run.steps:
            for task in range(step.task + 1):
                images, noise = three[task].test.images[:8], learner.generator(f"bound {task}")
                drawn.append(to_uint8(learner.sample(task, run.samples, run.sample_steps, run.eta, "samples")))
                predictor = metrics.Predictor(learner.diffusion, learner.model(task), images, 4, noise)
                bounds.append(predictor.bits["fixedlarge", True])
    undisturbed = torch.equal(torch.get_rng_state(), state)
    had_checkpoint, order, replace = (folder / "checkpoint.pt").exists(), [], os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda old, new: order.append(os.path.basename(new)) or replace(old, new))
        measure.save(folder, learner)
    forget(folder)
    return SimpleNamespace(
        lenet=lenet,
        run=run,
        folder=folder,
        measure=measure,
        learner=learner,
        undisturbed=undisturbed,
        had_checkpoint=had_checkpoint,
        order=order,
        classified=classified,
        drawn=drawn,
        bounds=bounds,
        scores=pd.DataFrame(learner.record["scores"]),
        curves=pd.DataFrame(learner.record["curves"]),
    )


def test_measuring_does_not_change_training(finished, trained):
    assert same(weights(finished.learner), trained("replay", steps=4)[-1])


def test_measuring_leaves_the_global_generator_as_it_was(finished):
    assert finished.undisturbed


# Curves


def test_the_curves_have_a_point_every_so_many_steps_and_at_the_end_of_each_task(finished):
    points = finished.curves[["step", "task", "eval_task"]].drop_duplicates()
    assert points.values.tolist() == [[2, 1, 1], [4, 1, 1], [6, 2, 1], [8, 2, 1], [10, 3, 1], [12, 3, 1]]


def test_each_point_has_the_whole_grid_of_timesteps_for_both_splits_and_one_bound(finished):
    grid = finished.run.curve_timesteps
    assert len(grid) >= 20 and {50, 700} <= set(grid)
    for _, point in finished.curves.groupby("step"):
        losses, bound = point[point.loss.notna()], point[point.loss.isna()]
        assert {split: rows.timestep.tolist() for split, rows in losses.groupby("split")} == {
            "validation": grid,
            "buffer": grid,
        }
        assert losses.bpd.isna().all() and np.isfinite(losses.loss).all()
        assert bound.split.tolist() == ["validation"] and bound.timestep.isna().all() and np.isfinite(bound.bpd).all()


def test_each_point_has_the_same_images_of_task_1_and_the_same_noise_under_the_average(finished, three, monkeypatch):
    calls = []

    def losses(diffusion, model, images, timesteps, generator):
        calls.append((images, generator.initial_seed(), model(x, t)))
        return [0.0] * len(timesteps)

    def bound(diffusion, model, x0, generator, terms):
        calls.append((to_uint8(x0), generator.initial_seed(), model(x, t)))
        return torch.zeros(len(x0)), None, None

    monkeypatch.setattr(cldiff.measure, "losses_by_timestep", losses)
    monkeypatch.setattr(Diffusion, "bits_per_dim", bound)
    x, t = torch.ones(1, 1, 8, 8), torch.tensor([9])
    learner = Learner(tiny(steps=6, curve_every=2, learning_rate=2e-2), three)
    expected = [three[0].validation.images[:8], buffer(learner, 0).images, three[0].validation.images[:8]]
    noise = []
    for task in (0, 1):
        for _ in range(2):
            loss = learner.update()
        finished.measure(Step(task, 2, loss, learner))
        assert len(calls) == 3
        for (images, seed, guess), wanted in zip(calls, expected):
            assert torch.equal(images, wanted)
            assert torch.equal(guess, learner.ema(x, t, torch.tensor([0])))
            assert not torch.equal(guess, learner.net(x, t, torch.tensor([0])))
        noise.append([seed for _, seed, _ in calls])
        calls.clear()
        learner.next_task()
    assert noise[0] == noise[1]


def test_losses_of_a_point_are_at_the_timesteps_that_they_name_and_its_bound_has_its_terms(three):
    run = tiny(steps=1, learning_rate=2e-2)
    measure = Measurer(run, three[:2])
    for step in train(run, three[:2]):
        measure(step)
    learner, x0 = step.learner, to_model(three[0].validation.images[:8])
    rows = pd.DataFrame(learner.record["curves"])
    rows = rows[(rows.step == 2) & (rows.split == "validation")]
    generator = learner.generator("losses validation", task=0, step=0)
    noise = torch.randn(8 * len(run.curve_timesteps), 1, 8, 8, generator=generator).split(8)
    losses = rows[rows.timestep.notna()]
    assert losses.timestep.tolist() == list(run.curve_timesteps)
    for t, loss, n in zip(losses.timestep, losses.loss, noise):
        t = torch.full((8,), int(t))
        guess = learner.ema(learner.diffusion.noised(x0, t, n), t, 0 * t)
        assert loss == pytest.approx((guess - n).square().mean().item(), rel=1e-4)
    generator = learner.generator("bound", task=0, step=0)
    bits, _, _ = learner.diffusion.bits_per_dim(learner.model(0), x0, generator=generator, terms=run.bound_terms)
    assert rows.bpd.dropna().item() == pytest.approx(bits.mean().item(), rel=1e-6)


def test_copies_are_looked_for_among_the_kept_images_of_the_evaluated_task(three, monkeypatch):
    asked = []
    monkeypatch.setitem(METRICS, "copied", AgainstKept("", 3, lambda samples, kept: asked.append(kept) or 0.0))
    run = tiny(steps=1)
    measure = Measurer(run, three[:2])
    for step in train(run, three[:2]):
        measure(step)
    wanted = [buffer(step.learner, task).images for task in (0, 0, 1)]
    assert len(asked) == 3 and all(map(torch.equal, asked, wanted))


# Scores


@pytest.mark.parametrize(
    "metric, splits",
    [
        *((metric, {"train", "validation", "test"}) for metric in ("fid", "kid", "precision", "recall")),
        ("accuracy", {None}),
        ("taken_for_current", {None}),
        *((metric, {"test"}) for metric in BOUNDS),
    ],
)
def test_each_score_fills_the_lower_triangle_once(metric, splits, finished):
    rows = finished.scores[finished.scores.metric == metric]
    assert set(rows.split.astype(object).where(rows.split.notna(), None)) == splits
    for split in splits:
        part = rows[rows.split.isna() if split is None else rows.split == split]
        assert sorted(zip(part.after_task, part.eval_task)) == TRIANGLE


def values(finished, metric, split=None) -> list[float]:
    """In the order of TRIANGLE."""
    scores = finished.scores
    rows = scores[(scores.metric == metric) & (scores.split.isna() if split is None else scores.split == split)]
    return rows.sort_values(["after_task", "eval_task"]).value.tolist()


@pytest.mark.parametrize("split", ("train", "validation", "test"))
def test_fid_compares_samples_for_a_task_with_the_images_of_that_task(split, finished, three):
    extract = lambda images: finished.lenet.extract(images)[0]  # noqa: E731
    by_hand = [
        metrics.fid(extract(samples), extract(getattr(task, split).images))
        for samples, task in zip(finished.drawn[-3:], three)
    ]  # the last row
    assert values(finished, "fid", split)[-3:] == by_hand and len(set(by_hand)) == 3


def test_fid_is_the_distance_of_two_gaussians(finished, three):
    x = finished.lenet.extract(finished.drawn[-1])[0].double().numpy()
    y = finished.lenet.extract(three[2].train.images)[0].double().numpy()
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0)).sum()
    by_hand = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * root
    assert values(finished, "fid", "train")[-1] == pytest.approx(by_hand, rel=1e-3)


def test_accuracy_counts_the_classes_of_the_evaluated_or_of_the_current_task(finished):
    share = {1: 1 / 16, 2: 2 / 16, 3: 4 / 16}
    assert values(finished, "accuracy") == [share[task] for _, task in TRIANGLE]
    assert values(finished, "taken_for_current") == [share[after] for after, _ in TRIANGLE]
    assert all(map(torch.equal, finished.classified, finished.drawn))


def test_the_bound_is_that_of_test_images_of_the_evaluated_task(finished):
    means = [bits.mean().item() for bits in finished.bounds]
    assert values(finished, "bpd", "test") == means and len(set(means)) == len(TRIANGLE)


def test_the_bound_is_given_for_both_variances_with_and_without_clipping(finished, three):
    by_name = {name: values(finished, name, "test")[-1] for name in BOUNDS}
    assert len(set(by_name.values())) == 4
    learner, images = finished.learner, three[2].test.images[:8]
    for name, (variance, clip) in BOUNDS.items():
        alone = Diffusion(finished.run.timesteps, variance=variance).bits_per_dim(
            learner.model(2), to_model(images), clip, learner.generator("bound 2"), finished.run.bound_terms
        )
        assert by_name[name] == alone[0].mean().item()
        (sampler,) = finished.scores[finished.scores.metric == name].sampler.unique()
        assert sampler == f"terms4-{variance}-{'clipped' if clip else 'unclipped'}"


# The bootstrap over images


def test_scores_that_average_and_forgetting_need_are_resampled(finished):
    table = load_bootstrap(finished.folder.parent, "digits")
    cells = sorted(zip(table.metric, table.after_task, table.eval_task))
    needed = [(1, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
    assert cells == [(metric, *cell) for metric in ("accuracy", "bpd", "fid") for cell in needed]


def test_a_replicate_is_the_score_of_resampled_images(finished, three):
    table = pd.DataFrame(finished.learner.record["bootstrap"])
    row = table[(table.after_task == 3) & (table.eval_task == 2)].set_index("metric")
    pick = metrics.resampled(16)[7]
    assert len(set(pick.tolist())) < 16
    features, real = finished.lenet.extract(finished.drawn[4])[0], finished.lenet.extract(three[1].train.images)[0]
    assert row.replicate7["fid"] == metrics.fid(features[pick], real)
    assert row.replicate7["accuracy"] == metrics.task_accuracy(CLASSES[pick], three[1].classes)
    assert row.replicate7["bpd"] == pytest.approx(finished.bounds[4][metrics.resampled(8)[7]].mean().item())


def test_fid_by_number_of_samples_ends_at_the_fid_of_the_table(finished):
    rows = finished.scores[finished.scores.metric == "fid_by_n"]
    assert set(rows.after_task) == {3} and sorted(rows.n.unique()) == [8, 16]
    assert rows[rows.n == 16].value.tolist() == values(finished, "fid", "train")[-3:]
    assert not set(rows[rows.n == 8].value) & set(rows[rows.n == 16].value)


def test_scores_say_what_they_rest_on(finished):
    bound = finished.scores.metric.isin(list(BOUNDS))
    copies = finished.scores.metric.isin(list(metrics_of(AgainstKept)))
    drawn, bound = finished.scores[~bound & ~copies & (finished.scores.metric != "fid_by_n")], finished.scores[bound]
    assert set(drawn.extractor) == {"lenet"} and set(drawn.n) == {16} and set(drawn.sampler) == {"ddim2"}
    of_pixels = finished.scores[copies]
    assert of_pixels.extractor.isna().all() and set(of_pixels.n) == {16} and set(of_pixels.split) == {"buffer"}
    assert bound.extractor.isna().all() and set(bound.n) == {8}


def test_the_first_samples_for_each_task_are_kept(finished):
    kept = [images for after in finished.learner.record["samples"] for images in after]
    assert [len(after) for after in finished.learner.record["samples"]] == [1, 2, 3]
    assert all(torch.equal(images, drawn[:SHOWN]) for images, drawn in zip(kept, finished.drawn))


def test_sixteen_samples_the_fewest_are_enough_for_every_metric(finished, three):
    assert finished.run.samples == 16
    assert set(finished.scores.metric) >= set(metrics.METRICS) and np.isfinite(finished.scores.value).all()
    scores = finished.scores[(finished.scores.after_task == 3) & (finished.scores.eval_task == 2)].set_index("metric")
    found = scores[scores.split == "train"].value
    drawn, real = (finished.lenet.extract(x)[0].double() for x in (finished.drawn[-2], three[1].train.images))
    parts = (drawn.mean(0) - real.mean(0)).square().sum() + drawn.var(0).sum() + real.var(0).sum()
    common = torch.linalg.matrix_norm((drawn - drawn.mean(0)) @ (real - real.mean(0)).T, "nuc")
    assert found["fid"] == pytest.approx((parts - 2 * common / (15 * (len(real) - 1)) ** 0.5).item(), rel=1e-6)

    def squared_distance(x, y):  # unbiased, with the cubic kernel
        inner = lambda z: ((z @ z.T / 84 + 1) ** 3).fill_diagonal_(0).sum() / (len(z) * (len(z) - 1))  # noqa: E731
        return (inner(x) + inner(y) - 2 * ((x @ y.T / 84 + 1) ** 3).mean()).item()

    again = torch.Generator().manual_seed(0)
    picks = [torch.randperm(len(real), generator=again)[:16] for _ in range(200)]
    subsets = [squared_distance(drawn, real[pick]) for pick in picks]
    assert abs(found["kid"] - squared_distance(drawn, real)) < 4 * np.std(subsets) / 20**0.5
    assert all(0 <= found[name] <= 1 and (found[name] * 16) % 1 == 0 for name in ("precision", "recall"))


# The folder of a finished run


def test_every_file_is_written_and_the_result_last(finished):
    assert sorted(finished.order) == sorted([*FILES, WEIGHTS]) and finished.order[-1] == "result.json"
    assert {path.name for path in finished.folder.iterdir()} == {*FILES, WEIGHTS}


def test_the_checkpoint_is_removed_and_the_first_task_kept(finished):
    assert finished.had_checkpoint and not (finished.folder / "checkpoint.pt").exists()
    assert list((finished.folder.parent / "first_task").glob("*.pt"))


def test_a_finished_run_is_not_overwritten(finished):
    before = [(finished.folder / name).read_bytes() for name in FILES]
    with pytest.raises(ResultError, match="finished run"):
        finished.measure.save(finished.folder, finished.learner)
    assert [(finished.folder / name).read_bytes() for name in FILES] == before


def test_the_result_names_extractor_and_times(finished):
    result = json.loads((finished.folder / "result.json").read_text())
    assert result["accuracy"] == {"lenet": finished.lenet.accuracy}
    assert result["sha256"]["lenet"] == finished.lenet.sha256
    assert result["seconds"]["train"] > 0 and result["seconds"]["measure"] > 0


def same_rows(table, written, columns) -> None:
    one, other = (rows[list(columns)].reset_index(drop=True).convert_dtypes() for rows in (table, written))
    pd.testing.assert_frame_equal(one, other, check_dtype=False, rtol=1e-12)


def test_scores_and_floors_are_read_back(finished, three):
    table = load_scores(finished.folder.parent, "digits")
    assert {*COLUMNS, "run", "dataset", "method", "weight", "seed", "label"} == set(table.columns)
    floors = table.metric.str.startswith("fid_floor")
    same_rows(table[~floors], finished.scores, COLUMNS)
    train, test = (
        [finished.lenet.extract(getattr(task, split).images)[0] for task in three] for split in ("train", "test")
    )
    for metric, split, n, expected in (
        ("fid_floor", "train", 16, [metrics.fid_floor(x, 16) for x in train]),
        ("fid_floor_by_n", "train", 8, [metrics.fid_floor(x, 8) for x in train]),
        ("fid_floor", "test", 16, [metrics.fid(x[:16], y) for x, y in zip(train, test)]),
    ):
        rows = table[(table.metric == metric) & (table.split == split) & (table.n == n)]
        assert rows.eval_task.tolist() == [1, 2, 3]
        assert rows.value.tolist() == pytest.approx(expected)


def test_curves_are_read_back(finished):
    table = load_curves(finished.folder.parent, "digits")
    assert {*CURVES, "run", "dataset", "method", "weight", "seed", "label"} == set(table.columns)
    same_rows(table, finished.curves, CURVES)


def test_the_weights_are_those_of_the_average_in_half_precision(finished):
    net, state = load_unet(finished.folder / WEIGHTS), finished.learner.ema.state_dict()
    assert all(torch.equal(value, state[name].half().float()) for name, value in net.state_dict().items())
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, task = torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(net(x, t, task), finished.learner.ema(x, t, task), atol=2e-3, rtol=2e-3)
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_the_picture_is_cut_up_into_the_samples(finished):
    pictures = load_samples(finished.folder)
    assert pictures.shape == (3, 3, SHOWN, 8, 8)
    for after, samples in enumerate(finished.learner.record["samples"]):
        assert (pictures[after, : after + 1] == samples[:, :, 0].numpy()).all()
        assert (pictures[after, after + 1 :] == 255).all()


# Images in colour


def test_samples_in_colour_come_back_pixel_by_pixel(tmp_path):
    drawn = [
        torch.randint(
            256, (after + 1, SHOWN, 3, 8, 8), generator=torch.Generator().manual_seed(after), dtype=torch.uint8
        )
        for after in range(2)
    ]
    mosaic(drawn).save(tmp_path / "samples.png")
    (tmp_path / "scores.csv").write_text("after_task\n1\n2\n")
    pictures = load_samples(tmp_path)
    assert pictures.shape == (2, 2, SHOWN, 8, 8, 3)
    for after, samples in enumerate(drawn):
        assert (pictures[after, : after + 1] == samples.permute(0, 1, 3, 4, 2).numpy()).all()
    assert (pictures[0, 1] == 255).all()


def coloured(root: Path, sha256: dict) -> tuple[Split, Split]:
    """Four classes of noise, each around a colour of its own."""
    splits = []
    for seed, n in enumerate((200, 40)):
        labels = torch.arange(n) % 4
        colours = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30]])[labels]
        noise = torch.randint(-30, 30, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
        splits.append(Split((colours[:, :, None, None] + noise).to(torch.uint8), labels))
    return tuple(splits)


def test_a_data_set_in_colour_is_one_entry_and_goes_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.setitem(
        DATASETS, "flags", Dataset("flags", coloured, {"made": "up"}, colours=3, classes=4, lenet_epochs=30)
    )
    monkeypatch.setattr(cldiff.measure, "load_lenet", partial(features.load_lenet, folder=tmp_path / "lenet"))
    tasks = load_tasks("flags")
    assert [task.classes for task in tasks] == [(0, 1), (2, 3)]
    net = features.train_lenet(tasks, DATASETS["flags"].lenet_epochs)
    assert features.save_lenet(net, tasks, tmp_path / "lenet" / "flags.pt") > 0.9
    # 150 steps of a small network are enough for the colour of a flat picture.
    run = tiny("replay", dataset="flags", steps=150, batch=16, learning_rate=1e-2, sample_steps=20, channels=16)
    assert make_run(run, tmp_path / run.name, device="cpu")
    pictures = load_samples(tmp_path / run.name)
    assert pictures.shape == (2, 2, SHOWN, 8, 8, 3)
    red, green, blue = pictures[0, 0].reshape(-1, 3).mean(0)  # of the red and the green class
    assert min(red, green) > blue + 20
    scores = load_scores(tmp_path)
    assert set(scores.metric) >= {"fid", "bpd", "accuracy"} and scores.value.notna().all()


def test_a_run_learns_and_measures_the_tasks_of_its_order_and_cut(tmp_path):
    run = tiny(steps=1, order="reversed", classes_per_task=1, tasks=3)
    seen = []
    make_run(
        run, tmp_path / run.name, device="cpu", progress=lambda step: seen.append(step.learner.tasks[step.task].classes)
    )
    assert seen == [(9,), (8,), (7,)]
    matrix = stats.result_matrix(load_scores(tmp_path, order="reversed"), "bpd", "test")
    assert matrix.shape == (3, 3) and load_samples(tmp_path / run.name).shape[:2] == (3, 3)


def test_the_metric_of_the_docs_is_measured(monkeypatch, three):
    """Of samples of a single class, half of a task's two are shown."""
    names = dict(vars(metrics))
    exec(documented("def shown"), names)
    monkeypatch.setitem(metrics.METRICS, "shown", names["METRICS"]["shown"])
    run = tiny(steps=1)
    measure = Measurer(run, three[:2])
    (lenet,) = measure.extractors

    def of_class_0(images):
        return lenet.extract(images)[0], torch.zeros(len(images), dtype=torch.int64)

    measure.extractors = [lenet._replace(extract=of_class_0)]
    for step in train(run, three[:2]):
        measure(step)
    rows = [row for row in step.learner.record["scores"] if row["metric"] == "shown"]
    assert [(row["after_task"], row["eval_task"], row["value"]) for row in rows] == [
        (1, 1, 0.5),
        (2, 1, 0.5),
        (2, 2, 0),
    ]


def test_a_metric_of_kept_images_in_the_tables_is_resampled_too(monkeypatch, three, tmp_path):
    """Half of the samples are bright, all are far from the buffer: of a resample a share about that."""
    share = metrics.AgainstKept(
        "bright", 2, lambda samples, kept: (samples[:, 0, 0, 0] > 9).double().mean().item(), headline=True
    )
    monkeypatch.setitem(metrics.METRICS, "bright", share)
    monkeypatch.setattr(stats, "HEADLINES", metrics.metrics_of(metrics.Metric, headline=True))
    for method in ("finetune", "replay"):
        run = tiny(method, steps=2)
        measure = Measurer(run, three)
        for step in train(run, three):
            measure(step)
        measure.save(tmp_path / run.name, step.learner)
    scores, bootstrap = load_scores(tmp_path), load_bootstrap(tmp_path)
    summary, replicates = stats.summarise(scores), stats.summarise_replicates(bootstrap)
    found = replicates[(replicates.metric == "bright") & (replicates.label == "Finetuning")].average
    assert len(found) == metrics.REPLICATES and found.nunique() > 9
    mean = summary[(summary.metric == "bright") & (summary.label == "Finetuning")].average.item()
    assert found.mean() == pytest.approx(mean, abs=0.1) and 0 < mean < 1
    stats.compare(summary, replicates, *scores.label.unique(), "bright", "forgetting")


def test_a_metric_is_one_entry(monkeypatch, three, tmp_path):
    monkeypatch.setitem(
        metrics.METRICS,
        "brightness",
        metrics.AgainstReal(
            "brightness",
            2,
            lambda drawn, real: drawn.features.mean().item() - real.features.mean().item(),
            True,
            headline=True,
        ),
    )
    monkeypatch.setattr(stats, "HEADLINES", metrics.metrics_of(metrics.Metric, headline=True))
    run = tiny(steps=2)
    measure = Measurer(run, three)
    for step in train(run, three):
        measure(step)
    measure.save(tmp_path / run.name, step.learner)
    summary = stats.summarise(load_scores(tmp_path)).set_index("metric")
    assert set(load_bootstrap(tmp_path).metric) == {"fid", "bpd", "accuracy", "brightness"}
    matrix = stats.result_matrix(load_scores(tmp_path), "brightness", "train")
    assert summary.forgetting["brightness"] == -stats.forgetting(matrix)  # more is better


def test_a_curve_takes_no_more_images_of_a_split_than_it_is_told(three, monkeypatch):
    asked = []

    def losses(diffusion, model, images, timesteps, generator):
        asked.append(len(images))
        return [0.0] * len(timesteps)

    monkeypatch.setattr(cldiff.measure, "losses_by_timestep", losses)
    run = tiny(steps=1, curve_images=3)
    measure = Measurer(run, three[:1])
    for step in train(run, three[:1]):
        measure(step)
    assert asked == [3, 3]


def test_the_floor_of_few_images_is_that_of_halves_and_says_so(three):
    few = dataclasses.replace(three[0], train=three[0].train[:21])
    rows = [row for row in Measurer(tiny(), [few]).floors() if row["split"] == "train"]
    expected = [("fid_floor", 10), ("fid_floor_by_n", 8), ("fid_floor_by_n", 10)]
    assert [(row["metric"], row["n"]) for row in rows] == expected


def test_of_a_buffer_of_one_image_no_copies_are_counted(three):
    run = tiny(steps=1, buffer=1)
    measure = Measurer(run, three[:2])
    for step in train(run, three[:2]):
        measure(step)
    found = {row["metric"] for row in step.learner.record["scores"]}
    assert "fid" in found and "copied" not in found


def test_the_result_has_the_accuracy_of_extractors_that_classify_alone(three, tmp_path):
    run = tiny(steps=1)
    measure = Measurer(run, three[:2])
    for step in train(run, three[:2]):
        measure(step)
    measure.extractors.append(features.Extractor("inception", "0", None, None))
    measure.save(tmp_path / run.name, step.learner)
    assert json.loads((tmp_path / run.name / "result.json").read_text())["accuracy"].keys() == {"lenet"}


def test_numbers_of_tasks_and_images_are_whole_in_the_tables(finished):
    """Beside missing ones, too, which pandas by itself writes as 1.0."""
    scores = pd.read_csv(finished.folder / "scores.csv", dtype=str)
    assert scores.after_task.isna().any()
    for name in ("after_task", "eval_task", "n"):
        assert scores[name].dropna().str.fullmatch(r"\d+").all()
