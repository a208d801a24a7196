"""Bad input: one line that says what was wrong, and nothing written. A table of cases, and what hypothesis thinks of."""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cldiff import DATASETS, Run, __main__, load_scores, load_tasks, work
from cldiff.features import LENETS
from cldiff.report.execute import ExecutionError, check_parameters
from cldiff.results import ResultError, read_result

ROOT = Path(__file__).parents[1]
RUN = ROOT / "notebooks" / "run.ipynb"
NAN, INF = float("nan"), float("inf")

RUNS = [
    (dict(dataset="MNIST"), f"unknown dataset 'MNIST'; known: {', '.join(DATASETS)}"),
    (dict(dataset=""), f"unknown dataset ''; known: {', '.join(DATASETS)}"),
    (dict(dataset="../x"), f"unknown dataset '../x'; known: {', '.join(DATASETS)}"),
    (dict(dataset=None), "dataset=None: expected a str, not NoneType"),
    (dict(dataset=["digits"]), "dataset=['digits']: expected a str, not list"),
    (dict(method="Finetune"), "unknown method 'Finetune'; known: finetune, l2, replay, generative"),
    (dict(method="ｆｉｎｅｔｕｎｅ"), "unknown method 'ｆｉｎｅｔｕｎｅ'; known: finetune, l2, replay, generative"),
    (dict(method="l2\n"), "unknown method 'l2\\n'; known: finetune, l2, replay, generative"),
    (dict(method=2), "method=2: expected a str, not int"),
    (dict(weight=0.5), "weight=0.5: finetune has no loss of its own to weigh; leave it out"),
    (dict(method="l2", weight="1"), "weight='1': expected a float, not str"),
    (dict(method="l2", weight=True), "weight=True: expected a float, not bool"),
    (dict(method="l2", weight=-0.1), "weight=-0.1: expected at least 0"),
    (dict(method="l2", weight=NAN), "weight=nan: expected a finite number"),
    (dict(method="l2", weight=10**400), "weight=inf: expected a finite number"),
    (dict(seed="0"), "seed='0': expected an int, not str"),
    (dict(seed=0.0), "seed=0.0: expected an int, not float"),
    (dict(seed=-1), "seed=-1: expected 0 .. 2147483647"),
    (dict(seed=2**31), "seed=2147483648: expected 0 .. 2147483647"),
    (dict(tasks=1), "tasks=1: expected 0 (all of digits), or 2 .. 5"),
    (dict(tasks=6), "tasks=6: expected 0 (all of digits), or 2 .. 5"),
    (dict(tasks=-1), "tasks=-1: expected at least 0"),
    (dict(steps=0), "steps=0: expected at least 1"),
    (dict(steps=None), "steps=None: expected an int, not NoneType"),
    (dict(batch=-8), "batch=-8: expected at least 1"),
    (dict(batch=1e3), "batch=1000.0: expected an int, not float"),
    (dict(learning_rate=0), "learning_rate=0.0: expected 1e-12 .. 1"),
    (dict(learning_rate=2.0), "learning_rate=2.0: expected 1e-12 .. 1"),
    (dict(learning_rate="2e-4"), "learning_rate='2e-4': expected a float, not str"),
    (dict(learning_rate=INF), "learning_rate=inf: expected a finite number"),
    (dict(ema=1.5), "ema=1.5: expected 0 .. 1"),
    (dict(clip=0.0), "clip=0.0: expected at least 1e-12"),
    (dict(buffer=0), "buffer=0: expected at least 1"),
    (dict(pool=0), "pool=0: expected at least 1"),
    (dict(pool_steps=1001), "pool_steps=1001: expected a divisor of timesteps=1000"),
    (dict(precision="bf16"), "unknown precision 'bf16'; known: float32, bfloat16"),
    (dict(deterministic=1), "deterministic=1: expected a bool, not int"),
    (dict(timesteps=10), "timesteps=10: expected at least 20"),
    (dict(channels=20), "channels=20: expected a multiple of 8"),
    (dict(channels=4), "channels=4: expected at least 8"),
    (dict(multipliers=[]), "multipliers=[]: expected a list of integers of at least 1"),
    (
        dict(multipliers="[1,2]"),
        "multipliers='[1,2]': expected a list of integers of at least 1 (papermill takes one by -y 'multipliers: [1, 2]')",
    ),
    (dict(multipliers=[True, 2]), "multipliers=[True, 2]: expected a list of integers of at least 1"),
    (dict(multipliers=[1, 2.0]), "multipliers=[1, 2.0]: expected a list of integers of at least 1"),
    (dict(blocks=0), "blocks=0: expected at least 1"),
    (dict(attention=0), "attention=0: expected at least 1"),
    (dict(dropout=1.0), "dropout=1.0: expected 0 .. 0.99"),
    (dict(samples=15), "samples=15: expected at least 16"),
    (dict(sample_steps=0), "sample_steps=0: expected at least 1"),
    (dict(eta=1.1), "eta=1.1: expected 0 .. 1"),
    (dict(inception="yes"), "inception='yes': expected a bool, not str"),
    (dict(bound_terms=2000), "bound_terms=2000: expected at most timesteps=1000"),
    (dict(curve_every=999), "curve_every=999: expected a divisor of steps=20000"),
    (dict(early=49), "early=49: expected one of [0, 50,"),
    (dict(late=1000), "late=1000: expected one of [0, 50,"),
    (dict(early=700, late=700), "early=700: expected less than late=700"),
]
WORDS = [  # of python -m cldiff
    (["list", ""], "unknown profile ''; known: smoke, digits, "),
    (["list", "DIGITS"], "unknown profile 'DIGITS'; known: smoke, digits, "),
    (["plan", "../digits"], "unknown profile '../digits'; known: smoke, digits, "),
    (["plan"], "the following arguments are required: profile"),
    ([], "the following arguments are required: COMMAND"),
    (["lists"], "argument COMMAND: invalid choice: 'lists' (choose from "),
    (["plan", "smoke", "--seeds", "-1"], "seeds=-1: expected at least 1"),
    (["plan", "smoke", "--seeds", "1.5"], "argument --seeds: invalid int value: '1.5'"),
    (["plan", "smoke", "--device", "gpu"], "unknown device 'gpu'; known: auto, cpu, cuda"),
    (["plan", "smoke", "--checkpoint", "0"], "checkpoint=0: expected at least 1 second"),
    (["list", "smoke", "more"], "unrecognized arguments: more"),
    (["run", "smoke", "--budget", "9 m"], "budget '9 m': expected a number and s, m or h, for example 9m"),
    (["run", "smoke", "--budgt", "9m"], "unrecognized arguments: --budgt 9m"),
    (["run", "smoke", "--out", "/proc/nowhere"], "[Errno 2] No such file or directory: '/proc/nowhere'"),
    (["run", "huge"], "unknown profile 'huge'; known: smoke, digits, "),
    (
        ["run", "smoke", "--only", "mnist"],
        "no run of smoke starts with 'mnist': `python -m cldiff list smoke` names them; a method of your own "
        "needs a row in cldiff/rows.py and its name in METHODS",
    ),
    (["list", "smoke", "--budget", "9m"], "unrecognized arguments: --budget 9m"),
    (["accept", "smoke"], "'smoke' is no sweep; known: digits-sweep, fashion_mnist-sweep, "),
    (["accept", "digits-sweep"], "results/digits-sweep lacks 65 of the trials, digits-l2-w0.001-s0-"),
    (["run", "smoke", "--checkpoint", "-1"], "checkpoint_seconds=-1: expected a number of at least 0"),
    (["execute", "none.ipynb", "out.ipynb"], "no notebook none.ipynb: expected one of the folder notebooks"),
    (["features", "own"], f"unknown data set 'own'; known: {', '.join(DATASETS)}"),
    (["verify", "none"], "none: no such folder; expected one of results"),
    (["make", "smoke", "target"], "results/smoke/jobs.json is missing: `python -m cldiff plan smoke` writes it"),
    (["run", "smoke", "--budget", ""], "budget '': expected a number and s, m or h, for example 9m"),
    (["run", "smoke", "--budget", "²m"], "budget '²m': expected a number and s, m or h, for example 9m"),
    (["features", "digits"], f"{LENETS}/digits.pt is there already, and results name its SHA-256: delete it"),
]
PARAMETERS = [  # of a notebook
    ({"stepps": 1}, "run.ipynb has no parameter 'stepps'; known: results, data, device"),
    ({"Steps": 1}, "run.ipynb has no parameter 'Steps'; known: results, data, device"),
    ({"steps": "200"}, "run.ipynb: steps='200': expected int, like 200, not str"),
    ({"learning_rate": "1e-4"}, "run.ipynb: learning_rate='1e-4': expected float, like 0.004, not str"),
    ({"multipliers": "[1, 2]"}, "run.ipynb: multipliers='[1, 2]': expected list, like [1, 2], not str"),
    ({"deterministic": 0}, "run.ipynb: deterministic=0: expected bool, like False, not int"),
    ({"dataset": {"a": 1}}, "run.ipynb: dataset={'a': 1}: expected str, like 'digits', not dict"),
]


def test_there_are_as_many_cases_as_is_promised():
    """In docs/guarantees.md."""
    assert len(RUNS) + len(WORDS) + len(PARAMETERS) > 60


@pytest.mark.parametrize("values, message", RUNS, ids=lambda case: str(case)[:40])
def test_bad_parameters_of_a_run(values, message):
    with pytest.raises((ValueError, TypeError)) as error:
        Run(**values)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("words, message", WORDS, ids=lambda case: " ".join(case)[:40] or "none")
def test_bad_words_on_the_command_line(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cldiff", *words])
    monkeypatch.setattr(work.signal, "signal", lambda *_: None)  # that of the tests stays
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert (
        str(stop.value).startswith(f"error: {message}") and "\n" not in str(stop.value) and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize("parameters, message", PARAMETERS, ids=str)
def test_bad_parameters_of_a_notebook(parameters, message):
    with pytest.raises(ExecutionError) as error:
        check_parameters(RUN, parameters)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


# What hypothesis thinks of

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
some = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@some
@given(st.sampled_from(Run.names()), anything)
def test_any_value_of_a_parameter_is_taken_or_refused_in_one_line(name, value):
    try:
        run = Run(**{name: value})
    except (ValueError, TypeError) as error:
        assert "\n" not in str(error)
        assert name in str(error) or name in (
            "timesteps",
            "steps",
            "options",
        )  # which may not fit to another parameter: that is named
    else:
        assert re.fullmatch(r"[a-z0-9_.+-]+", run.name)  # a folder's name, in the folder of results
        assert Run(**json.loads(json.dumps(run.__dict__))) == run


@some
@given(
    st.dictionaries(
        st.one_of(st.sampled_from(["steps", "results", "weight"]), st.text(max_size=10)), anything, max_size=3
    )
)
def test_any_parameters_of_a_notebook_are_taken_or_refused_in_one_line(parameters):
    try:
        check_parameters(RUN, parameters)
    except ExecutionError as error:
        assert "\n" not in str(error)


@some
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(
                ["smoke", "run", "list", "plan", "--seeds", "--budget", "--out", "--device", "--only", "--"]
            ),
            st.text(max_size=8),
        ),
        max_size=5,
    )
)
def test_any_words_are_a_list_of_runs_or_one_line(words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cldiff", *words])
    monkeypatch.setattr(work, "run_pending", lambda *_, **__: {})
    try:
        __main__.main()
    except SystemExit as stop:
        assert stop.code in (None, 0) or "\n" not in str(stop.code)
    else:
        assert capsys.readouterr().out or (tmp_path / "results/smoke/jobs.json").exists()  # plan


@some
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.recursive(anything, lambda x: st.dictionaries(st.sampled_from(["protocol", "run", "sha256", "seconds"]), x))
        .filter(lambda x: not isinstance(x, bytes))
        .map(lambda x: json.dumps(x, default=str).encode(errors="replace")),
    )
)
def test_any_result_file_is_read_or_refused_in_one_line(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "run"
    folder.mkdir()
    (folder / "result.json").write_bytes(content)
    with pytest.raises(ResultError) as error:
        read_result(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    with pytest.raises(ResultError):
        load_scores(folder.parent)


@some
@given(st.text(max_size=30))
def test_any_name_of_a_data_set_is_known_or_refused(name):
    """Hypothesis also tries the words that it finds in the code, the names of data sets among them."""
    if name not in DATASETS:
        with pytest.raises(ValueError, match="unknown data set"):
            load_tasks(name)


@pytest.mark.parametrize(
    "content, target",
    [
        ("{", "t"),
        ("{}", "t"),
        ("[]", "t"),
        ("{}", "other"),
        ('{"t": 1}', "t"),
        ('{"t": {}}', "t"),
        ('{"t": {"kind": "run", "notebook": "none.ipynb", "output": "o", "parameters": {}}}', "t"),
    ],
)
def test_a_bad_list_of_jobs_is_one_line(content, target, tmp_path, monkeypatch):
    (tmp_path / "results/any").mkdir(parents=True)
    (tmp_path / "results/any/jobs.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cldiff", "make", "any", target])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert str(stop.value).startswith("error: ") and "\n" not in str(stop.value)
    if content in ("{}", "[]"):
        assert str(stop.value).startswith(f"error: {target} is not in the plan of any: `make paper PROFILE=any`")


COUNTS = [f.name for f in fields(Run) if f.type is int and f.name not in ("seed", "tasks", "early", "late")]


@pytest.mark.parametrize("name", COUNTS)
def test_a_number_of_things_is_at_least_one(name):
    with pytest.raises(ValueError, match=f"^{name}=0: expected at least "):
        Run(**{name: 0})
