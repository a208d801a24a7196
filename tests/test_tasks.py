import hashlib
import os
import re
import shutil
import socket
import struct
import tempfile
import urllib.error
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import documented

from cldiff import files, loaders, tasks
from cldiff.loaders import Split
from cldiff.tasks import DATASETS, ORDERS, DataError, Dataset, load_tasks, sequence, to_model, to_uint8

DATA = Path(__file__).parents[1] / "data"
SPLITS = ("train", "validation", "test")


def each_image(task_list, splits=SPLITS) -> list[bytes]:
    return [image.numpy().tobytes() for task in task_list for split in splits for image in getattr(task, split).images]


def counts(task_list, *splits) -> Counter:
    return Counter(label for task in task_list for split in splits for label in getattr(task, split).labels.tolist())


# Pixels


def test_all_pixel_values_survive_the_way_to_the_model_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    x = to_model(values)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    assert torch.equal(to_uint8(x), values)


def test_to_uint8_takes_the_nearest_value_and_clips():
    x = (torch.tensor([-5.0, -0.4, 0.4, 99.6, 255.4, 300.0]) / 127.5) - 1
    assert to_uint8(x).tolist() == [0, 0, 0, 100, 255, 255]


# Digits


def test_digits_are_five_tasks_of_two_classes(digits):
    assert [task.index for task in digits] == [0, 1, 2, 3, 4]
    assert [task.classes for task in digits] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    for task in digits:
        for name in SPLITS:
            split = getattr(task, name)
            assert tuple(split.labels.unique().tolist()) == task.classes
            assert split.images.shape == (len(split.labels), 1, 8, 8) and split.images.dtype == torch.uint8
            assert len(split) == len(split.labels)


def test_the_first_tasks_alone_are_those_of_all(digits):
    two = load_tasks("digits", first=2)
    assert [task.classes for task in two] == [(0, 1), (2, 3)]
    assert all(torch.equal(one.train.images, other.train.images) for one, other in zip(two, digits))


def test_orders_are_of_the_same_tasks():
    label, reverse = (sequence("digits", order=order) for order in ("label", "reversed"))
    assert label == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)] and reverse == label[::-1]
    shuffled = [sequence("digits", order="shuffled", seed=seed) for seed in range(3)]
    assert all(sorted(tasks) == label for tasks in shuffled)
    assert len(set(map(tuple, (label, reverse, *shuffled)))) == 5  # the three seeds of the experiment
    assert shuffled[0] == sequence("digits", order="shuffled") == [(0, 1), (6, 7), (8, 9), (2, 3), (4, 5)]  # lasts


@pytest.mark.parametrize("per, number", [(1, 10), (2, 5), (5, 2)])
def test_cuts_have_each_class_once(per, number):
    for order in ORDERS:
        tasks = sequence("digits", order=order, classes_per_task=per)
        assert len(tasks) == number and sorted(label for classes in tasks for label in classes) == list(range(10))
        assert all(classes == tuple(range(classes[0], classes[0] + per)) for classes in tasks)


def test_tasks_of_another_order_and_cut_hold_the_same_images_in_the_same_splits(digits):
    """What is held out stays held out: of a LeNet's training images none is in another sequence's validation split."""
    for words in ({"order": "reversed"}, {"order": "shuffled", "seed": 3}, {"classes_per_task": 1}, {"first": 0}):
        found = load_tasks("digits", **words)
        assert [task.index for task in found] == list(range(len(found)))
        assert [task.classes for task in found] == sequence("digits", **words)
        for split in SPLITS:
            assert sorted(each_image(found, [split])) == sorted(each_image(digits, [split]))
            assert all(set(getattr(task, split).labels.tolist()) == set(task.classes) for task in found)


def test_the_first_tasks_of_another_order_are_its_own():
    assert [task.classes for task in load_tasks("digits", first=2, order="reversed")] == [(8, 9), (6, 7)]


def test_digits_use_the_whole_range_of_grey(digits):
    images = torch.cat([task.train.images for task in digits])
    assert images.unique().tolist() == [round(255 * grey / 16) for grey in range(17)]


def test_digits_share_no_image_between_splits_or_tasks(digits):
    images = each_image(digits)
    assert len(images) == 1797
    assert len(set(images)) == 1797  # scikit-learn's digits hold no image twice


def test_labels_of_digits_stay_with_their_images(digits):
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    known = {
        (image * 255 / 16).round().astype("uint8").tobytes(): label for image, label in zip(bunch.images, bunch.target)
    }
    for task in digits:
        for split in (task.train, task.validation, task.test):
            assert [known[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()


def test_validation_is_a_tenth_and_test_a_fifth_of_each_class_of_digits(digits):
    every, rest = counts(digits, *SPLITS), counts(digits, "train", "validation")
    assert counts(digits, "test") == {label: n // 5 for label, n in every.items()}
    assert counts(digits, "validation") == {label: n // 10 for label, n in rest.items()}


def test_splits_are_drawn_across_the_data_set(digits):
    """Not the first of each class: scikit-learn's digits come writer by writer."""
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    place = {(image * 255 / 16).round().astype("uint8").tobytes(): i for i, image in enumerate(bunch.images)}
    for split in ("validation", "test"):
        places = [place[image] for image in each_image(digits, [split])]
        assert sum(places) / len(places) == pytest.approx(1797 / 2, rel=0.15)


def test_splits_are_the_same_at_each_call_and_draw_no_global_random_number(digits):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = load_tasks("digits")
    assert torch.equal(torch.get_rng_state(), before)
    for task, other in zip(digits, again, strict=True):
        for split in SPLITS:
            assert torch.equal(getattr(task, split).images, getattr(other, split).images)
            assert torch.equal(getattr(task, split).labels, getattr(other, split).labels)


def test_splits_of_digits_are_those_of_the_published_results(digits):
    found = hashlib.sha256(b"".join(each_image(digits))).hexdigest()
    assert found == "79e7890a6a098c7a2dee1077334a96143294997124073eaf03dcaea6d331b246"


def test_changed_digits_are_refused(monkeypatch):
    monkeypatch.setitem(tasks.DATASETS["digits"].sha256, "images and labels", "0" * 64)
    with pytest.raises(DataError, match="digits have changed"):
        load_tasks("digits")


def test_unknown_data_set_names_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown data set 'cifar'; known: {', '.join(DATASETS)}"):
        load_tasks("cifar")


def test_hash_of_a_data_set_depends_on_each_of_its_files(monkeypatch):
    before = tasks.data_sha256("mnist")
    assert before != tasks.data_sha256("fashion_mnist")
    monkeypatch.setitem(tasks.DATASETS["mnist"].sha256, "t10k-labels-idx1-ubyte", "0" * 64)
    assert tasks.data_sha256("mnist") != before


# Files of MNIST, with small ones in their place

MNIST_FILES = list(tasks.DATASETS["mnist"].sha256)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


@pytest.fixture
def raw(tmp_path, monkeypatch, offline) -> Path:
    """20 training and 10 test images of each class, 4x4; the first pixels say which class and which image it is."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 10)):
        pairs = [(label, i) for i in range(n) for label in range(10)]
        images = b"".join(bytes([label, i, n]) + bytes(13) for label, i in pairs)
        labels = bytes(label for label, _ in pairs)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, len(pairs), 4, 4) + images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(pairs)) + labels)
    for name in MNIST_FILES:
        monkeypatch.setitem(
            tasks.DATASETS["mnist"].sha256, name, hashlib.sha256((folder / name).read_bytes()).hexdigest()
        )
    return folder


def test_unpacked_files_are_read_without_network(raw):
    found = load_tasks("mnist", raw.parents[1])
    assert counts(found, "train") == {label: 18 for label in range(10)}
    assert counts(found, "validation") == {label: 2 for label in range(10)}
    assert counts(found, "test") == {label: 10 for label in range(10)}
    assert len(set(each_image(found))) == 300
    for task in found:
        for split in (task.train, task.validation, task.test):
            assert split.images.shape[1:] == (1, 4, 4) and split.images.dtype == torch.uint8
            assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)
        assert (task.test.images[:, 0, 0, 2] == 10).all()


@pytest.mark.parametrize("name", MNIST_FILES)
@pytest.mark.parametrize("damage", ["changed", "cut", "empty"])
def test_damaged_file_is_named(raw, name, damage):
    content = (raw / name).read_bytes()
    (raw / name).write_bytes(
        {"changed": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[: len(content) // 2], "empty": b""}[damage]
    )
    with pytest.raises(DataError, match=re.escape(f"{raw / name} is damaged")):
        load_tasks("mnist", raw.parents[1])


@pytest.mark.parametrize("name", MNIST_FILES)
def test_damaged_archive_is_named(raw, name):
    (raw / f"{name}.gz").write_bytes(b"\x1f\x8b\x08\x00 cut short")
    with pytest.raises(DataError, match=re.escape(f"{raw / name}.gz is damaged")):
        load_tasks("mnist", raw.parents[1])


@pytest.mark.parametrize("name", MNIST_FILES)
def test_missing_file_without_network_is_named_with_its_folder(raw, name):
    (raw / name).unlink()
    with pytest.raises(DataError, match=re.escape(f"{name}.gz is missing: put it into {raw}")):
        load_tasks("mnist", raw.parents[1])


def test_empty_folder_without_network_says_where_the_files_belong(tmp_path, offline):
    raw = tmp_path / "new" / "FashionMNIST" / "raw"
    with pytest.raises(DataError, match=re.escape(f"train-images-idx3-ubyte.gz is missing: put it into {raw}")):
        load_tasks("fashion_mnist", tmp_path / "new")


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_folder_in_a_files_place_is_named(raw, ending):
    """As some tools unpack an archive: the file lies in a folder of its own name."""
    path = raw / f"{MNIST_FILES[0]}{ending}"
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(
        DataError, match=rf"^{path} is a folder: expected a file; move the file inside it to its place$"
    ):
        load_tasks("mnist", raw.parents[1])


def test_files_of_torchvisions_old_form_do_not_stand_for_missing_ones(raw):
    """With them it downloads nothing, and says nothing."""
    (raw.parent / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28), torch.zeros(1)), raw.parent / "processed" / name)
    name = "t10k-labels-idx1-ubyte"
    (raw / name).unlink()
    with pytest.raises(DataError, match=re.escape(f"{name}.gz is missing: put it into {raw}")):
        load_tasks("mnist", raw.parents[1])


@pytest.mark.parametrize("name", MNIST_FILES)
def test_files_as_other_tools_name_them_are_recognised(raw, name):
    """train-images.idx3-ubyte: as 7-zip unpacks it, and as Kaggle has it."""
    near = (raw / name).rename(raw / name.replace("-idx", ".idx"))
    with pytest.raises(DataError, match=rf"^{name}.gz is missing: rename {near} to {name} \(no download"):
        load_tasks("mnist", raw.parents[1])
    near.rename(raw / name)
    load_tasks("mnist", raw.parents[1])


def test_data_in_a_folder_that_is_read_only_are_read(raw, monkeypatch):
    """As on clusters: somebody keeps them for everybody."""

    def refuse(*words, **how):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(loaders, "locked", refuse)
    assert counts(load_tasks("mnist", raw.parents[1]), "test") == {label: 10 for label in range(10)}
    (raw / MNIST_FILES[0]).unlink()
    with pytest.raises(DataError, match=re.escape(f"cannot write to the data folder {raw}: Permission denied")):
        load_tasks("mnist", raw.parents[1])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("rights", [0o777, 0o755], ids=("of a group", "of somebody"))
def test_data_that_somebody_keeps_are_read_though_their_lock_is_his(raw, rights):
    """As huggingface/datasets 7900: even where the folder may be written to, the lock of its first user may not."""
    shared = Path(tempfile.mkdtemp())  # tmp_path lies in a folder that is root's alone
    try:
        shutil.copytree(raw, shared / "MNIST" / "raw")
        load_tasks("mnist", shared)
        for folder in (shared, *shared.rglob("*")):
            folder.chmod(rights if folder.is_dir() else 0o644)
        os.seteuid(65534)
        try:
            found = load_tasks("mnist", shared)
        finally:
            os.seteuid(0)
        assert counts(found, "test") == {label: 10 for label in range(10)}
        assert (shared / "MNIST" / "raw" / ".lock").stat().st_uid == 0
    finally:
        shutil.rmtree(shared)


def test_a_server_that_says_nothing_ends_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(files, "ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"] * 2)
        with pytest.raises(
            DataError, match=r"^train-images-idx3-ubyte.gz is missing: put it .*\(no download: TimeoutError"
        ):
            load_tasks("mnist", tmp_path)
    assert socket.getdefaulttimeout() is None


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=re.escape(f"cannot write to the data folder {tmp_path / 'file'}")):
        load_tasks("mnist", tmp_path / "file")


# The real files, where they are


def needs(dataset: str) -> Path:
    raw = DATA / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[dataset] / "raw"
    if not all((raw / name).exists() or (raw / f"{name}.gz").exists() for name in tasks.DATASETS[dataset].sha256):
        pytest.skip(f"the files of {dataset} are not in {raw.relative_to(DATA.parent)}")
    return raw


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_real_files_have_the_published_counts(dataset):
    needs(dataset)
    found = load_tasks(dataset, DATA)
    assert [task.classes for task in found] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    train, validation, test = (counts(found, split) for split in SPLITS)
    assert (train + validation).total() == 60_000
    assert test.total() == 10_000
    assert validation == {label: n // 10 for label, n in (train + validation).items()}
    for task in found:
        for split in (task.train, task.validation, task.test):
            assert split.images.shape == (len(split.labels), 1, 28, 28)
            assert set(split.labels.tolist()) == set(task.classes)


def test_two_data_sets_in_one_sequence_are_the_tasks_of_both_with_their_splits():
    """The same images are held out: of the extractor's training images none is anybody's validation image."""
    needs("mnist"), needs("fashion_mnist")
    both = load_tasks("mnist_fashion", DATA)
    alone = [*load_tasks("mnist", DATA), *load_tasks("fashion_mnist", DATA)]
    assert [task.index for task in both] == list(range(10))
    assert [task.classes for task in both] == [(2 * k, 2 * k + 1) for k in range(10)]
    for k, (task, other) in enumerate(zip(both, alone, strict=True)):
        for name in SPLITS:
            found, own = getattr(task, name), getattr(other, name)
            assert torch.equal(found.images, own.images) and torch.equal(found.labels, own.labels + 10 * (k // 5))


def test_hash_of_two_data_sets_is_that_of_each(monkeypatch):
    before = tasks.data_sha256("mnist_fashion")
    for part in ("mnist", "fashion_mnist"):
        with monkeypatch.context() as patch:
            patch.setitem(tasks.DATASETS[part].sha256, "t10k-labels-idx1-ubyte", "0" * 64)
            assert tasks.data_sha256("mnist_fashion") != before


def test_archive_cut_short_is_named(tmp_path, offline):
    name = "t10k-images-idx3-ubyte.gz"
    archive = needs("mnist") / name
    if not archive.exists():
        pytest.skip("the archives of mnist have been deleted")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    shutil.copy(archive, raw)
    with (raw / name).open("r+b") as file:
        file.truncate(archive.stat().st_size - 100)
    with pytest.raises(DataError, match=re.escape(f"{raw / name} is damaged")):
        load_tasks("mnist", tmp_path)


def splits(change=lambda train, test: (train, test)):
    """What a loader of a data set of two classes returns."""
    train, test = (Split(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), torch.arange(n) % 2) for n in (40, 8))
    return change(train, test)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda a, b: (Split(a.images / 255, a.labels), b), r"its training images are torch.float32 \(40, 1, 8, 8\)"),
        (lambda a, b: (Split(a.images[:, 0], a.labels), b), r"its training images are torch.uint8 \(40, 8, 8\)"),
        (lambda a, b: (a, Split(b.images[..., :7], b.labels)), r"its test images are torch.uint8 \(8, 1, 8, 7\)"),
        (lambda a, b: (Split(a.images, a.labels[:-1]), b), r"its training images are .*, labels torch.int64 \(39,\)"),
        (lambda a, b: (a, Split(b.images, b.labels.float())), r"its test images are .*, labels torch.float32 \(8,\)"),
        (
            lambda a, b: (Split(a.images.numpy(), a.labels.numpy()), b),
            "its training images are uint8 .*mend its loader",
        ),
        (
            lambda *splits: [Split(s.images.repeat(1, 4, 1, 1), s.labels) for s in splits],
            r"its training images are torch.uint8 \(40, 4, 8, 8\).*expected square ones, uint8 \(N, 1 or 3 colours",
        ),
        (
            lambda *splits: [Split(s.images[..., :4], s.labels) for s in splits],
            r"its training images are torch.uint8 \(40, 1, 8, 4\).*expected square ones",
        ),
        (
            lambda *splits: [Split(s.images[..., :3, :3], s.labels) for s in splits],
            r"its training images are torch.uint8 \(40, 1, 3, 3\).*of 4 pixels or more",
        ),
        (lambda a, b: (a, b[b.labels == 1]), "has 1 colours and 1 classes up to 1 in its test images, expected 1 and"),
        (lambda a, b: (Split(a.images.repeat(1, 3, 1, 1), a.labels), b), "has 3 colours and 2 classes up to 1"),
    ],
)
def test_what_a_loader_returns_is_checked_and_the_message_says_what_to_mend(change, words, monkeypatch):
    own = Dataset("Own", lambda root, sha256: splits(change), {}, classes=2)
    monkeypatch.setitem(DATASETS, "own", own)
    with pytest.raises(DataError, match=f"^Own:? {words}"):
        load_tasks("own", classes_per_task=1)
    monkeypatch.setitem(DATASETS, "own", Dataset("Own", lambda root, sha256: splits(), {}, classes=2))
    assert len(load_tasks("own", classes_per_task=1)) == 2


@pytest.mark.parametrize("size", [3, 0, 20])
def test_a_cut_that_does_not_come_out_even_is_refused(size):
    with pytest.raises(ValueError, match=f"^classes_per_task={size}: expected a divisor of 10, the classes of digits$"):
        load_tasks("digits", classes_per_task=size)


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match="^order='random': expected one of label, reversed, shuffled$"):
        load_tasks("digits", order="random")


def test_labels_that_images_lack_are_named_by_the_split_into_validation():
    with pytest.raises(DataError, match="^4 images and 3 labels: expected one for each image$"):
        loaders.cut(Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(3)), one_in=10)


def test_the_data_set_of_the_docs_is_read_and_its_damage_named(tmp_path, monkeypatch):
    names = dict(vars(loaders))
    exec(documented("def load_arrays"), names)
    (tmp_path / "own").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (200, 1, 16, 16), dtype=np.uint8)
    labels, sha256 = np.arange(200) % 10, {}
    for name, values in (("images.npy", images), ("labels.npy", labels)):
        np.save(tmp_path / "own" / name, values)
        sha256[name] = hashlib.sha256((tmp_path / "own" / name).read_bytes()).hexdigest()
    monkeypatch.setitem(DATASETS, "own", Dataset("Own images", names["load_arrays"], sha256))
    found = load_tasks("own", tmp_path)
    assert len(found) == 5 and [sum(len(getattr(t, s)) for t in found) for s in SPLITS] == [150, 10, 40]
    assert Counter(each_image(found)) == Counter(image.tobytes() for image in images)
    (tmp_path / "own" / "labels.npy").write_bytes(b"")
    with pytest.raises(DataError, match="labels.npy is damaged"):
        load_tasks("own", tmp_path)
    (tmp_path / "own" / "labels.npy").unlink()
    with pytest.raises(DataError, match="labels.npy is missing: put it there"):
        load_tasks("own", tmp_path)


def test_a_download_leaves_how_long_others_wait_as_it_was(monkeypatch):
    monkeypatch.setattr(files, "ANSWER", 3)
    try:
        socket.setdefaulttimeout(7)
        with files.answered():
            assert socket.getdefaulttimeout() == 3
        assert socket.getdefaulttimeout() == 7
    finally:
        socket.setdefaulttimeout(None)
