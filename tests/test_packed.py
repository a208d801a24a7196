"""KMNIST and CIFAR-10: data sets that are read from their archives, on files as their makers wrote them."""

import dataclasses
import re
import urllib.error
from functools import partial
from pathlib import Path

import datafiles
import nbformat
import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image

import cldiff.measure
from cldiff import METHODS, Run, features, load_scores, loaders, make_run
from cldiff.learner import Learner
from cldiff.measure import SHOWN
from cldiff.tasks import DATASETS, DataError, load_tasks, to_model

PACKED = ("kmnist", "cifar10")
FILES = [(dataset, name) for dataset in PACKED for name in DATASETS[dataset].sha256]
FOLDER = {"kmnist": "KMNIST/raw", "cifar10": "."}


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)


@pytest.mark.parametrize("dataset", PACKED)
def test_every_pixel_and_label_is_that_of_the_archives(dataset, tmp_path, monkeypatch, offline):
    written = datafiles.known(monkeypatch, dataset, tmp_path)
    places = {image.tobytes(): (part, i) for part, images in written.items() for i, image in enumerate(images)}
    found = []
    for task in load_tasks(dataset, tmp_path):
        for name in ("train", "validation", "test"):
            split = getattr(task, name)
            assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
            own = [places[image.numpy().tobytes()] for image in split.images]
            assert {part for part, _ in own} == {"t10k" if name == "test" else "train"}
            assert [i % 10 for _, i in own] == split.labels.tolist() and set(split.labels.tolist()) == set(task.classes)
            found += own
    assert sorted(found) == sorted(places.values())


def test_the_colours_of_cifar10_reach_samples_png_pixel_by_pixel(tmp_path, monkeypatch, offline):
    """A model that draws the training images: red, green and blue of each pixel stand at their place."""
    written = datafiles.known(monkeypatch, "cifar10", tmp_path)["train"]
    trained_here(monkeypatch, "cifar10", tmp_path)
    monkeypatch.setattr(Learner, "sample", lambda self, task, n, *_: to_model(self.tasks[task].train.images[:n]))
    run = tiny(dataset="cifar10", steps=1, tasks=3, attention=8)
    assert make_run(run, tmp_path / run.name, tmp_path, device="cpu")
    sheet = np.asarray(Image.open(tmp_path / run.name / "samples.png"))
    assert sheet.shape == (3 * 32, 3 * SHOWN * 32, 3)
    tasks = load_tasks("cifar10", tmp_path)
    planes = {image.tobytes(): image for image in written}  # (3, 32, 32) as they were written
    for after in range(3):
        for column in range(3 * SHOWN):
            shown = sheet[32 * after :, 32 * column :][:32, :32]
            task, k = divmod(column, SHOWN)
            if task > after:
                assert (shown == 255).all()
                continue
            image = planes[tasks[task].train.images[k].numpy().tobytes()]
            for colour in range(3):
                assert (shown[:, :, colour] == image[colour]).all()


@pytest.mark.parametrize("dataset, name", FILES)
def test_a_missing_archive_is_named_with_its_folder(dataset, name, tmp_path, monkeypatch, offline):
    datafiles.known(monkeypatch, dataset, tmp_path)
    folder = tmp_path / FOLDER[dataset]
    (folder / name).unlink()
    message = re.escape(f"{name} is missing: put it into {folder} (no download: URLError)")
    with pytest.raises(DataError, match=f"^{message}$"):
        load_tasks(dataset, tmp_path)


def test_an_archive_that_was_cut_on_its_way_is_damaged_not_missing(tmp_path, monkeypatch):
    def cut(url, folder, name, md5):
        Path(folder, name).write_bytes(b"half")
        raise RuntimeError("File not found or corrupted.")

    datafiles.known(monkeypatch, "cifar10", tmp_path)
    (path,) = (tmp_path / name for name in DATASETS["cifar10"].sha256)
    path.unlink()
    monkeypatch.setattr("torchvision.datasets.utils.download_url", cut)
    with pytest.raises(DataError, match=f"^{path} is damaged .wrong SHA-256.: delete it"):
        load_tasks("cifar10", tmp_path)


@pytest.mark.parametrize("dataset, name", FILES)
@pytest.mark.parametrize("damage", ["changed", "cut", "empty"])
def test_a_damaged_archive_is_named_and_not_read(dataset, name, damage, tmp_path, monkeypatch, offline):
    datafiles.known(monkeypatch, dataset, tmp_path)
    path = tmp_path / FOLDER[dataset] / name
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    path.write_bytes({"changed": flipped, "cut": content[:-20], "empty": b""}[damage])
    monkeypatch.setattr(loaders.pickle, "load", None)  # a pickle runs code
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} is damaged"):
        load_tasks(dataset, tmp_path)


@pytest.mark.parametrize("dataset, name", FILES)
def test_what_is_missing_is_downloaded_from_its_makers(dataset, name, tmp_path, monkeypatch):
    datafiles.known(monkeypatch, dataset, tmp_path)
    path = tmp_path / FOLDER[dataset] / name
    content, asked = path.read_bytes(), []

    def download(url: str, root: str, filename: str, md5: str) -> None:
        asked.append(url)
        (Path(root) / filename).write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    path.unlink()
    assert len(load_tasks(dataset, tmp_path)) == 5
    assert len(asked) == 1 and asked[0].startswith("http") and asked[0].endswith(f"/{name}")


@pytest.mark.parametrize("dataset", PACKED)
def test_archives_in_a_folder_that_is_read_only_are_read(dataset, tmp_path, monkeypatch, offline):
    def refuse(*words, **how):
        raise PermissionError(13, "Permission denied")

    datafiles.known(monkeypatch, dataset, tmp_path)
    monkeypatch.setattr(loaders, "locked", refuse)
    assert len(load_tasks(dataset, tmp_path)) == 5
    folder = tmp_path / FOLDER[dataset]
    (folder / next(iter(DATASETS[dataset].sha256))).unlink()
    with pytest.raises(DataError, match=re.escape(f"cannot write to the data folder {folder}: Permission denied")):
        load_tasks(dataset, tmp_path)


@pytest.mark.parametrize("dataset", PACKED)
def test_without_its_lenet_a_run_says_before_training_which_command_trains_it(dataset, tmp_path, monkeypatch, offline):
    datafiles.known(monkeypatch, dataset, tmp_path)
    monkeypatch.setattr(cldiff.measure, "load_lenet", partial(features.load_lenet, folder=tmp_path))
    run = tiny(dataset=dataset)
    steps = []
    with pytest.raises(features.FeatureError) as error:
        make_run(run, tmp_path / run.name, tmp_path, device="cpu", progress=steps.append)
    assert f"{dataset}.pt is missing: `python -m cldiff features {dataset}` trains it" in str(error.value)
    assert not steps and "\n" not in str(error.value)


def trained_here(monkeypatch, dataset: str, folder: Path) -> None:
    """What `python -m cldiff features` does, in a folder of the test's own."""
    tasks = load_tasks(dataset, folder)
    (folder / "lenet").mkdir()
    features.save_lenet(features.train_lenet(tasks, 1), tasks, folder / "lenet" / f"{dataset}.pt")
    monkeypatch.setattr(cldiff.measure, "load_lenet", partial(features.load_lenet, folder=folder / "lenet"))


def run_notebook(run: Run, folder: Path) -> None:
    """run.ipynb with the parameters of a run, in this process, which takes the files of a test for those of the makers."""
    book = nbformat.read(Path(__file__).parents[1] / "notebooks" / "run.ipynb", as_version=4)
    given = {**dataclasses.asdict(run), "results": str(folder / "results"), "data": str(folder), "device": "cpu"}
    names = {}
    for cell in book.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            names |= given if "parameters" in cell.metadata.get("tags", ()) else {}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", PACKED)
def test_every_method_goes_through_the_notebook(dataset, tmp_path, monkeypatch, offline):
    datafiles.known(monkeypatch, dataset, tmp_path)
    trained_here(monkeypatch, dataset, tmp_path)
    for method in METHODS:
        own = {"images": 2} if "images" in METHODS[method].Options.names() else {}
        run = tiny(method, dataset=dataset, steps=1, patch=4, bound_images=2, curve_images=2, options=own)
        run_notebook(run, tmp_path)
    scores = load_scores(tmp_path / "results", dataset)
    assert set(scores.method) == set(METHODS) and set(scores.after_task.dropna()) == {1, 2, 3, 4, 5}
    assert scores.value.notna().all()
