import os
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import make_job

from cldiff.__main__ import main
from cldiff.plan import jobs
from cldiff.report.execute import ExecutionError, _Progress, _surroundings, check_parameters, execute

ROOT = Path(__file__).parents[1]
RUN = next(job for job in jobs("smoke").values() if job["kind"] == "run")


@pytest.fixture
def notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell('steps = 3\nrate = 0.5\nname = "a"\nwidths = [1]\nweight = None'),
        nbformat.v4.new_code_cell('import sys\nprint(steps * rate, name)\nprint("prog" + "ress", file=sys.stderr)'),
        nbformat.v4.new_code_cell('if name == "bad":\n    raise ValueError("one line\\ntwo lines")'),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    path = tmp_path / "book.ipynb"
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"stesp": 1}, "has no parameter 'stesp'; known: steps, rate, name, widths, weight"),
        ({"steps": "3"}, "steps='3': expected int"),
        ({"steps": 3.0}, "steps=3.0: expected int"),
        ({"rate": "1e-4"}, "rate='1e-4': expected float"),
        ({"rate": True}, "rate=True: expected float"),
        ({"name": 1}, "name=1: expected str"),
        ({"widths": 1}, "widths=1: expected list"),
    ],
)
def test_wrong_parameter_is_an_error_before_anything_is_written(notebook, tmp_path, parameters, words):
    with pytest.raises(ExecutionError) as error:
        execute(notebook, tmp_path / "out" / "book.ipynb", parameters)
    assert words in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_fitting_parameters_pass(notebook):
    check_parameters(notebook, {"steps": 1, "rate": 1, "widths": (1, 2), "weight": 0.5, "name": "b"})


def test_missing_notebook_is_an_error(tmp_path):
    with pytest.raises(ExecutionError, match="no notebook"):
        execute(tmp_path / "none.ipynb", tmp_path / "out.ipynb", {})


def test_output_is_the_same_twice_and_has_no_trace_of_time(notebook, tmp_path):
    texts = []
    for name in ("one.ipynb", "two.ipynb"):
        execute(notebook, tmp_path / name, {"steps": 4})
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert "2.0 a" in texts[0]  # the parameter arrived
    assert not any(
        word in texts[0] for word in ("papermill", "duration", "start_time", "iopub", "progress", str(tmp_path))
    )


def test_failing_cell_is_one_line_and_leaves_no_output_until_it_does_not_fail(notebook, tmp_path):
    with pytest.raises(ExecutionError) as error:
        execute(notebook, tmp_path / "out.ipynb", {"name": "bad"})
    assert "ValueError: one line" in str(error.value) and "\n" not in str(error.value)
    kept = tmp_path / "out.failed.ipynb"
    assert not (tmp_path / "out.ipynb").exists() and str(kept) in str(error.value) and kept.exists()
    execute(notebook, tmp_path / "out.ipynb", {})
    assert (tmp_path / "out.ipynb").exists() and not kept.exists()


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"device": "cuda"}, "device 'cuda': no GPU"),
    ],
)
def test_bad_run_ends_before_anything_is_loaded_or_written(tmp_path, changed, words):
    if "device" in changed:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    job = {
        **RUN,
        "notebook": str(ROOT / "notebooks" / "run.ipynb"),
        "output": str(tmp_path / "run.ipynb"),
        "parameters": {
            **RUN["parameters"],
            "results": str(tmp_path / "own"),
            "data": str(tmp_path / "data"),
            **changed,
        },
    }
    done = make_job(tmp_path, job)
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and words in lines[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "own").exists() and not (tmp_path / "data").exists()


def test_a_kernel_that_dies_is_one_line_and_leaves_nothing(tmp_path):
    path = tmp_path / "book.ipynb"
    cells = [
        nbformat.v4.new_code_cell("a = 1"),
        nbformat.v4.new_code_cell("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    with pytest.raises(ExecutionError, match="its kernel died"):
        execute(path, tmp_path / "out" / "book.ipynb", {})
    assert not list((tmp_path / "out").iterdir())


def test_what_another_process_made_meanwhile_stays(tmp_path):
    cells = [nbformat.v4.new_code_cell("a = 1"), nbformat.v4.new_code_cell("open('out.ipynb', 'w').write('its own')")]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "book.ipynb")
    execute(tmp_path / "book.ipynb", tmp_path / "out.ipynb", {})
    assert (tmp_path / "out.ipynb").read_text() == "its own"
    execute(tmp_path / "book.ipynb", tmp_path / "out.ipynb", {})  # made anew, where it was there before
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells


def test_states_of_a_kernels_progress_bar_are_lines_of_a_log(capsys):
    progress = _Progress()
    for text in ("\r10%", "\r20%\r30%", "", "\n", "\rdone\n", "\n", "next"):  # tqdm's, and those of others
        progress.write(text)
    assert capsys.readouterr().err == "10%\n20%\n30%\ndone\nnext"


def test_a_kernel_keeps_the_home_of_its_user(monkeypatch):
    monkeypatch.setenv("HOME", "/of/mine")
    with _surroundings():
        assert os.environ["HOME"] == "/of/mine"


@pytest.mark.parametrize("text, parameters", [("widgets = True", {"widgets": False}), ("steps = 3", {})])
def test_the_command_leaves_widgets_out_where_a_notebook_has_some(text, parameters, tmp_path, monkeypatch):
    asked, paths = [], (tmp_path / "book.ipynb", Path("out.ipynb"))
    paths[0].write_text(text)
    monkeypatch.setattr("cldiff.report.execute.execute", lambda *words: asked.append(words))
    monkeypatch.setattr(sys, "argv", ["cldiff", "execute", *map(str, paths)])
    main()
    assert asked == [(*paths, parameters)]
