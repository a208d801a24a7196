"""What drawing costs before anything is drawn, and where things stand."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cldiff.report.plots import log_axes, mark_tasks, name_points, save_figure, show_samples

DRAW = (  # what the process imports that executes a notebook, and what the notebook's own process does
    "import cldiff.plan, cldiff.report.execute, cldiff.report.page",
    "import cldiff.contrasts, cldiff.findings, cldiff.report.benchmark, cldiff.report.plots, cldiff.report.tables",
    "from cldiff import METHODS, METRICS, DATASETS, Run, load_scores; Run(method='lora').name",
    "from cldiff.study import PROFILES, planned; planned('small')",
)


@pytest.mark.parametrize("code", DRAW)
def test_tables_and_figures_are_drawn_without_loading_torch(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print('torch' in sys.modules)"], capture_output=True
    )
    assert done.stdout.split() == [b"False"], (
        done.stderr.decode() or "a module imports torch at its top: `from .lazy import torch` does when it is used"
    )


def test_a_factor_is_equally_long_on_axes_of_different_ranges_and_all_points_are_in_view():
    figure, (left, right) = plt.subplots(1, 2)
    left.plot([0.05, 0.06])
    right.plot([1, 4, 40])
    log_axes(left, right)
    shares = [
        np.diff(axis.transAxes.inverted().transform(axis.transData.transform([(0, a), (0, 2 * a)]))[:, 1])
        for axis, a in ((left, 0.05), (right, 10))
    ]  # of a doubling
    assert shares[0] == pytest.approx(shares[1]) and 0 < shares[0] < 1
    for axis, values in ((left, (0.05, 0.06)), (right, (1, 40))):
        low, high = axis.get_ylim()
        assert low < values[0] and values[1] < high
    plt.close(figure)


def test_names_stand_away_from_neighbours_and_above_to_the_right_of_lone_points():
    figure, axis = plt.subplots()
    points = np.array([[0.1, 0.5], [0.12, 0.5], [0.9, 0.9]])
    axis.plot(*points.T, "o")
    name_points(axis, points, ["left", "right", "alone"])
    x = {text.get_text(): text.get_position() for text in axis.texts}
    assert x["left"][0] < -7 < 7 < x["right"][0]
    assert x["alone"] == pytest.approx((8 / 2**0.5, 8 / 2**0.5), abs=0.2)
    plt.close(figure)


def test_samples_are_shown_black_on_white_one_row_beside_each_label():
    samples = np.zeros((2, 3, 4, 4), np.uint8)
    samples[1, 0] = 255
    figure, axis = plt.subplots()
    show_samples(axis, samples, ["first", "second"])
    sheet = np.asarray(axis.images[0].get_array())
    assert sheet.shape == (12, 18) and (sheet[7:11, 1:5] == 0).all() and (sheet == 0).sum() == 16
    assert axis.get_yticks().tolist() == [2.5, 8.5]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]
    plt.close(figure)


def test_tasks_are_named_in_their_middle_and_parted_by_lines():
    figure, axis = plt.subplots()
    mark_tasks(axis, 100, 2)
    assert [(text.get_text(), text.get_position()[0]) for text in axis.texts] == [("task 1", 50), ("task 2", 150)]
    assert [line.get_xdata()[0] for line in axis.lines] == [0, 100] and axis.get_xlim() == (0, 200)
    plt.close(figure)


def test_a_figure_is_saved_as_a_pdf_and_as_a_picture(tmp_path):
    figure = plt.figure(figsize=(1, 1))
    save_figure(figure, tmp_path, "one")
    assert (tmp_path / "one.pdf").read_bytes()[:4] == b"%PDF" and (tmp_path / "one.png").read_bytes()[1:4] == b"PNG"
    plt.close(figure)
