import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, need, same, tiny, with_noise_held_out
from PIL import Image

from cldiff import Measurer, features
from cldiff.__main__ import main
from cldiff.errors import Problem
from cldiff.features import INCEPTION, LENETS, FeatureError, load_inception, load_lenet
from cldiff.tasks import DATASETS, load_tasks, to_model
from cldiff.train import train

# LeNet


@pytest.mark.parametrize(
    "dataset, at_least", [("digits", 0.98), ("mnist", 0.99), ("fashion_mnist", 0.90), ("mnist_fashion", 0.95)]
)
def test_the_lenet_that_ships_knows_its_data_set(dataset, at_least):
    """The stated accuracy is the one that is found, at least what the study asks for."""
    need(dataset)
    lenet = load_lenet(dataset)
    tasks = load_tasks(dataset, DATA)
    right = torch.cat([lenet.extract(task.test.images)[1] == task.test.labels for task in tasks])
    assert right.double().mean().item() == pytest.approx(
        lenet.accuracy, abs=2e-4
    )  # another machine may round otherwise
    assert lenet.accuracy >= at_least


def test_training_depends_on_training_images_alone_and_on_no_global_state(three):
    nets = []
    for tasks in (three, with_noise_held_out(three)):
        state = torch.manual_seed(len(nets)).get_state()
        nets.append(features.train_lenet(tasks, epochs=2))
        assert torch.equal(torch.get_rng_state(), state)
    assert same(*(net.state_dict() for net in nets))


def test_a_lenet_is_kept_and_read_back(three, tmp_path):
    net = features.train_lenet(three, epochs=3)
    accuracy = features.save_lenet(net, three, tmp_path / "digits.pt")
    lenet = load_lenet("digits", folder=tmp_path)
    images, labels = (torch.cat([getattr(task.test, name) for task in three]) for name in ("images", "labels"))
    found, classes = lenet.extract(images)
    assert accuracy == lenet.accuracy == pytest.approx((classes == labels).double().mean().item())
    assert accuracy > 0.6  # after three epochs
    assert found.shape == (len(images), 84) and torch.equal(found, lenet.extract(images)[0])  # no dropout
    assert torch.allclose(found, net.features(to_model(images)), atol=1e-5)
    assert lenet.sha256 != load_lenet("digits").sha256


def flipped(data: bytes) -> bytes:
    """One bit in the middle is another one."""
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


@pytest.mark.parametrize(
    "damage",
    (lambda data: b"", lambda data: data[:-100], lambda data: b"no weights" + data, lambda data: flipped(data)),
)
def test_a_damaged_lenet_is_named(damage, tmp_path):
    (tmp_path / "digits.pt").write_bytes(damage((LENETS / "digits.pt").read_bytes()))
    shutil.copy(LENETS / features.SUMS, tmp_path)
    with pytest.raises(FeatureError, match=f"{re.escape(str(tmp_path))}.*damaged.*cldiff features digits"):
        load_lenet("digits", folder=tmp_path)


def test_a_missing_lenet_is_named():
    with pytest.raises(FeatureError, match="own.pt is missing: `python -m cldiff features own` trains it"):
        load_lenet("own")


# Inception, with a network of the same interface in the place of its weights


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_inception_features_are_those_of_clean_fid(stand_in, digits, tmp_path):
    """Read from files, resized and normalised by clean-fid itself."""
    from cleanfid.fid import get_files_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = digits[0].train.images[:7]  # two pictures of three planes, and one more
    files = [str(tmp_path / f"{k}.png") for k in range(len(images))]
    for file, image in zip(files, images):
        Image.fromarray(image[0].numpy()).convert("RGB").save(file)
    theirs = get_files_features(
        files,
        model=InceptionV3W(str(stand_in), download=False).eval(),
        num_workers=0,
        device=torch.device("cpu"),
        mode="clean",
        verbose=False,
    )
    ours, classes = load_inception(stand_in).extract(images)
    assert classes is None and ours.shape == (7, 2048)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)
    parts = torch.cat([load_inception(stand_in).extract(part)[0] for part in images.split(3)])
    torch.testing.assert_close(ours, parts)


def test_missing_weights_are_named_with_their_place(tmp_path, offline):
    with pytest.raises(FeatureError) as error:
        load_inception(tmp_path / "data")
    message = str(error.value)
    assert "\n" not in message and str(tmp_path / "data" / INCEPTION) in message and "is missing" in message
    assert [path.name for path in (tmp_path / "data").iterdir()] == [INCEPTION.replace(".pt", ".lock")]


def test_a_download_that_is_another_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cleanfid.downloads_helper.check_download_inception",
        lambda folder: (Path(folder) / INCEPTION).write_bytes(b"another network"),
    )
    with pytest.raises(FeatureError, match="its download failed"):
        load_inception(tmp_path)
    assert not (tmp_path / INCEPTION).exists()


def test_a_download_that_breaks_off_leaves_no_weights(tmp_path, monkeypatch):
    def half(folder):
        (features.Path(folder) / INCEPTION).write_bytes(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr("cleanfid.downloads_helper.check_download_inception", half)
    with pytest.raises(FeatureError):
        load_inception(tmp_path)
    assert not (tmp_path / INCEPTION).exists()


def test_the_lenet_of_another_data_set_is_named(tmp_path):
    """Both files are whole and listed, and fit to the same images."""
    shutil.copytree(features.LENETS, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "fashion_mnist.pt", tmp_path / "mnist.pt")
    with pytest.raises(FeatureError, match=re.escape(f"{tmp_path / 'mnist.pt'} is damaged")):
        load_lenet("mnist", folder=tmp_path)


def test_weights_and_features_in_a_folder_that_is_read_only_are_used(stand_in, digits, tmp_path, monkeypatch):
    shutil.copy(stand_in / INCEPTION, tmp_path)

    def refuse(*words, **how):
        raise PermissionError(13, "Permission denied")

    for name in ("locked", "TemporaryDirectory", "save_tensors"):
        monkeypatch.setattr(features, name, refuse)
    splits = ("train", "validation", "test")
    few = [dataclasses.replace(t, **{k: getattr(t, k)[torch.arange(5)] for k in splits}) for t in digits[:1]]
    found = features.real_features(load_inception(tmp_path), few, tmp_path)
    assert {split: len(parts[0]) for split, parts in found.items()} == dict.fromkeys(splits, 5)
    assert [path.name for path in tmp_path.iterdir()] == [INCEPTION]


def test_too_few_images_for_a_batch_of_the_lenet_are_one_line(three):
    few = [dataclasses.replace(three[0], train=three[0].train[torch.arange(63)])]
    with pytest.raises(Problem, match="^a LeNet cannot be trained on 63 images: expected at least 64, a batch$"):
        features.train_lenet(few, epochs=1)


def test_too_few_images_for_the_neighbours_of_precision_are_one_line_before_training(three):
    few = [three[0], dataclasses.replace(three[1], validation=three[1].validation[torch.arange(3)])]
    with pytest.raises(Problem, match="^digits: a task has 3 images in one of its splits, expected more than 3: "):
        Measurer(tiny(), few)
    Measurer(tiny(), [three[0], dataclasses.replace(three[1], validation=three[1].validation[torch.arange(4)])])


def test_a_device_without_memory_for_inception_is_not_called_a_damaged_file(stand_in, monkeypatch):
    def refuse(*words):
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr("cleanfid.inception_torchscript.InceptionV3W.to", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        load_inception(stand_in)


def test_kept_features_are_those_of_a_cut_into_tasks(stand_in, digits, tmp_path):
    """Images in the order of their classes, in two tasks and in one: the same bytes."""
    inception, few = load_inception(stand_in), torch.arange(5)
    halves = [
        dataclasses.replace(t, **{k: getattr(t, k)[few] for k in ("train", "validation", "test")}) for t in digits[:2]
    ]
    images = torch.cat([t.train.images for t in halves]), torch.cat([t.train.labels for t in halves])
    whole = dataclasses.replace(halves[0], train=features.Split(*images))
    for tasks, sizes in ((halves, [5, 5]), ([whole], [10])):
        assert [len(part) for part in features.real_features(inception, tasks, tmp_path)["train"]] == sizes
    last = features.Split(images[0].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), images[1])  # colours last
    features.real_features(inception._replace(extract=None), [dataclasses.replace(whole, train=last)], tmp_path)


@pytest.mark.parametrize("damage", ["cut", "folder"])
def test_inception_that_is_cut_or_a_folder_is_named(damage, stand_in, tmp_path):
    content = (stand_in / INCEPTION).read_bytes()
    (tmp_path / INCEPTION).mkdir() if damage == "folder" else (tmp_path / INCEPTION).write_bytes(content[:9999])
    with pytest.raises(FeatureError, match=re.escape(f"{tmp_path / INCEPTION} is damaged; delete it")):
        load_inception(tmp_path)


def test_kept_features_are_used_again_and_named_when_a_bit_is_flipped(stand_in, digits, tmp_path):
    inception = load_inception(stand_in)
    found = features.real_features(inception, digits[:1], tmp_path)
    unused = inception._replace(extract=None)
    again = features.real_features(unused, digits[:1], tmp_path)
    assert all(torch.equal(again[split][0], found[split][0]) for split in found)
    path = next(tmp_path.glob("features-inception-*.pt"))
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(FeatureError, match=f"{re.escape(str(path))} is damaged: delete it"):
        features.real_features(unused, digits[:1], tmp_path)


def test_damaged_weights_are_named(tmp_path):
    (tmp_path / INCEPTION).write_bytes(b"no weights")
    with pytest.raises(FeatureError, match="is damaged; delete it"):
        load_inception(tmp_path)


def test_a_run_with_inception_has_both_extractors_and_keeps_the_real_features(stand_in, three, monkeypatch):
    few = [
        features.Task(
            task.index,
            task.classes,
            *(getattr(task, name)[torch.arange(20)] for name in ("train", "validation", "test")),
        )
        for task in three[:2]
    ]
    run = tiny(steps=2, inception=True)
    measure = Measurer(run, few, stand_in)
    for step in train(run, few):
        measure(step)
    rows = {
        (row["metric"], row["extractor"], row["split"], row["after_task"], row["eval_task"])
        for row in step.learner.record["scores"] + measure.floors()
        if not row["metric"].endswith("by_n")
    }
    for metric in ("fid", "kid", "precision", "recall"):
        assert {(metric, e, s, 2, 1) for e in ("lenet", "inception") for s in ("train", "validation", "test")} <= rows
    assert ("fid_floor", "inception", "train", None, 1) in rows and ("accuracy", "inception", None, 2, 1) not in rows
    kept = measure.real["inception"]
    assert torch.equal(kept["test"][1].features, load_inception(stand_in).extract(few[1].test.images)[0])
    monkeypatch.setattr(features, "inception_features", lambda *_: 1 / 0)  # read from the cache, not computed again
    again = Measurer(run, few, stand_in).real["inception"]
    assert all(torch.equal(x.features, y.features) for split in kept for x, y in zip(kept[split], again[split]))


def test_without_weights_the_rest_is_to_be_measured_and_one_line_says_so(three, tmp_path, offline):
    measure = Measurer(tiny(steps=2, inception=True), three, tmp_path)
    assert "no Inception features" in measure.missing and "\n" not in measure.missing
    assert [extractor.name for extractor in measure.extractors] == ["lenet"]


def test_features_that_were_kept_under_other_weights_are_not_used(three, tmp_path):
    def constant(value: float, sha256: str) -> features.Extractor:
        return features.Extractor("inception", sha256, None, lambda images: (torch.full((len(images), 2), value), None))

    for value, sha256 in ((1.0, "a" * 64), (2.0, "b" * 64)):
        found = features.real_features(constant(value, sha256), three, tmp_path)
        assert all((part == value).all() for parts in found.values() for part in parts)


def test_a_lenet_that_is_kept_leaves_those_of_other_data_sets_listed(three, tmp_path):
    for name in ("digits", "own"):
        features.save_lenet(features.LeNet(8), three, tmp_path / f"{name}.pt")
    assert [load_lenet(name, folder=tmp_path).name for name in ("digits", "own")] == ["lenet", "lenet"]


def test_inception_features_of_many_images_are_those_of_each(stand_in, digits):
    inception, images = load_inception(stand_in), digits[0].train.images[:103]
    found, _ = inception.extract(images)
    assert len(found) == 103
    torch.testing.assert_close(found[99:], inception.extract(images[99:])[0])


def test_the_command_trains_a_lenet_as_long_as_its_data_set_asks_on_the_data_it_is_given(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("cldiff.tasks.load_tasks", lambda *words: words)
    monkeypatch.setattr(features, "train_lenet", lambda tasks, epochs: (tasks, epochs))
    monkeypatch.setattr(features, "save_lenet", lambda *words: saved.append(words) or 0.5)
    monkeypatch.setattr(features, "LENETS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["cldiff", "features", "kmnist", "--data", "/of/all"])
    saved = []
    main()
    asked, path = ("kmnist", "/of/all"), tmp_path / "kmnist.pt"
    assert saved == [((asked, DATASETS["kmnist"].lenet_epochs), asked, path)]
    assert capsys.readouterr().out == f"{path}: 50.00% of the test images right\n"
