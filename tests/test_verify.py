"""`make verify`: fresh samples from published weights against published scores."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny

from cldiff import Measurer
from cldiff.__main__ import main
from cldiff.errors import Problem
from cldiff.files import file_sha256, save_tensors
from cldiff.learner import Learner
from cldiff.measure import predictors
from cldiff.results import WEIGHTS, ResultError
from cldiff.train import train
from cldiff.unet import UNet, load_unet, save_unet
from cldiff.verify import LIMIT, largest, verify


@pytest.fixture(scope="module")
def published(digits, tmp_path_factory):
    """The folder of a run of all five tasks, long enough for a network that is no longer one that knows nothing."""
    run = tiny("replay", steps=30, samples=64, sample_steps=5)
    folder = tmp_path_factory.mktemp("results") / run.name
    measure = Measurer(run, digits)
    for step in train(run, digits, folder):
        measure(step)
    measure.save(folder, step.learner)
    return folder


def test_fresh_samples_agree_with_the_scores_and_are_not_the_published_ones(published):
    table = verify(published)
    table = table[table.metric != "bpd"]
    assert table.task.tolist() == [k for k in range(1, 6) for _ in range(3)] and set(table.samples) == {64}
    assert table.z.abs().max() <= LIMIT and (table.error > 0).all()
    scores = pd.read_csv(published / "scores.csv")
    for metric, split in (("fid", "train"), ("fid, test", "test")):
        last = scores[(scores.after_task == 5) & (scores.split == split) & (scores.metric == "fid")]
        fid = table[table.metric == metric]
        assert fid.published.tolist() == pytest.approx(last.value.tolist()) and (fid.fresh != fid.published).all()


def test_fewer_samples_are_compared_with_the_fid_of_as_many(published):
    table = verify(published, drawn=40)
    scores = pd.read_csv(published / "scores.csv")
    by_n = scores[(scores.metric == "fid_by_n") & (scores.n == 32)]
    fresh = table[table.metric != "bpd"]
    assert set(fresh.samples) == {32} and set(fresh.metric) == {"fid", "accuracy"}
    assert table[table.metric == "fid"].published.tolist() == pytest.approx(by_n.value.tolist())


@pytest.fixture
def copy(published, tmp_path):
    """To be changed: result.json still vouches for the scores, nothing does for the weights but themselves, as in results
    of earlier versions."""
    folder = tmp_path / "results" / published.name
    folder.mkdir(parents=True)
    for path in published.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    result = json.loads((folder / "result.json").read_text())
    del result["sha256"][WEIGHTS]
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def vouch(folder) -> None:
    """Writes the hash of scores.csv as it is into result.json."""
    result = json.loads((folder / "result.json").read_text())
    result["sha256"]["scores.csv"] = file_sha256(folder / "scores.csv")
    (folder / "result.json").write_text(json.dumps(result))


def forge(folder, value, **where) -> None:
    """Writes another value into scores.csv, and its hash into result.json, which then vouches for it."""
    scores = pd.read_csv(folder / "scores.csv")
    rows = (scores[list(where)] == pd.Series(where)).all(axis=1)
    assert rows.sum() == 1
    scores.loc[rows, "value"] = value
    scores.to_csv(folder / "scores.csv", index=False)
    vouch(folder)


def test_an_invented_score_with_the_right_hash_is_found(copy):
    after = {"after_task": 5, "eval_task": 2, "extractor": "lenet"}
    forge(copy, 0.5, metric="fid", split="test", **after)
    table = verify(copy)
    assert table[(table.task == 2) & (table.metric == "fid, test")].z.item() > LIMIT
    forge(copy, 0.5, metric="fid", split="train", **after)
    with pytest.raises(ResultError, match="two values of the FID of task 2 in scores.csv"):
        verify(copy)


@pytest.mark.parametrize("metric, value, split", [("accuracy", 1.0, None), ("fid", 0.5, "test"), ("fid", 9e3, "test")])
def test_the_command_finds_what_is_too_good_and_too_bad(metric, value, split, copy, monkeypatch):
    scores = pd.read_csv(copy / "scores.csv")
    rows = scores[(scores.metric == metric) & (scores.after_task == 5)]
    of = int(rows.set_index("eval_task").value.idxmin()) if metric == "accuracy" else 2
    where = {"split": split} if split else {}
    forge(copy, value, metric=metric, after_task=5, eval_task=of, extractor="lenet", **where)
    monkeypatch.setattr(sys, "argv", ["cldiff", "verify", str(copy.parent)])
    with pytest.raises(SystemExit, match="standard errors, more than"):
        main()


def test_bits_are_computed_again_and_hundredths_of_one_that_were_invented_are_found(copy):
    table = verify(copy)
    bits = table[table.metric == "bpd"]
    scores = pd.read_csv(copy / "scores.csv")
    scores = scores[(scores.metric == "bpd") & (scores.after_task == 5)]
    assert bits.published.tolist() == scores.value.tolist() and bits.samples.tolist() == scores.n.tolist()
    assert (bits.fresh - bits.published).abs().max() < 2e-3 and bits.z.abs().max() < LIMIT / 2
    forge(copy, scores.value.iloc[1] - 0.01, metric="bpd", after_task=5, eval_task=2)
    assert verify(copy).set_index(["metric", "task"]).z["bpd", 2] > 2 * LIMIT


def test_scores_that_are_a_little_too_good_in_every_task_are_found(copy, monkeypatch):
    """Each within LIMIT, and always on the same side."""
    table = verify(copy)
    for row in table[table.metric == "fid, test"].itertuples():
        where = {"after_task": 5, "eval_task": row.task, "extractor": "lenet", "split": "test", "metric": "fid"}
        forge(copy, row.fresh - 2.5 * row.error, **where)
    assert verify(copy).z.abs().max() < LIMIT
    monkeypatch.setattr(sys, "argv", ["cldiff", "verify", str(copy.parent)])
    words = rf"^error: .*{copy.name}: the published fid, test over all tasks differs .* by 5\.6 standard errors, more than 4$"
    with pytest.raises(SystemExit, match=words):
        main()


def test_bits_of_a_gpu_whose_random_numbers_are_others_are_compared_within_their_noise(copy, monkeypatch):
    def elsewhere(learner, task):
        learner.step += 1
        found = predictors(learner, task)
        learner.step -= 1
        return found

    monkeypatch.setattr("cldiff.verify.predictors", elsewhere)
    assert largest(verify(copy))[0] > LIMIT
    result = json.loads((copy / "result.json").read_text())
    result["machine"]["gpu"] = "one"
    (copy / "result.json").write_text(json.dumps(result))
    assert largest(verify(copy))[0] < LIMIT


@pytest.mark.parametrize("z", ([math.nan, 0.5], [0.5, math.nan]))
def test_what_is_no_number_is_beyond_every_limit(z):
    """As what a broken network gives, whose comparison with the largest so far would be false."""
    assert largest(pd.DataFrame({"task": [1, 2], "metric": "bpd", "z": z}))[0] == math.inf


@pytest.mark.parametrize("twice", (False, True), ids=("dropped", "doubled"))
@pytest.mark.parametrize(
    "metric, split", [("fid_by_n", None), ("fid", "train"), ("fid", "test"), ("accuracy", None), ("bpd", None)]
)
def test_scores_with_a_row_dropped_or_doubled_are_one_line_before_samples_are_drawn(
    metric, split, twice, copy, monkeypatch
):
    scores = pd.read_csv(copy / "scores.csv")
    rows = (scores.metric == metric) & (scores.after_task == 5) & (scores.eval_task == 2)
    rows &= scores.split == split if split else True
    changed = pd.concat([scores, scores[rows]]) if twice else scores[~rows]
    changed.to_csv(copy / "scores.csv", index=False)
    vouch(copy)
    monkeypatch.setattr(Learner, "sample", lambda *words: pytest.fail("samples were drawn before"))
    with pytest.raises(ResultError, match=f"^[^\n]*scores.csv has no {metric} of task 2[^\n]*, or several$"):
        verify(copy)


def test_a_blank_score_is_named(copy):
    forge(copy, float("nan"), metric="accuracy", after_task=5, eval_task=3, extractor="lenet")
    with pytest.raises(ResultError, match=f"{copy.name}: scores.csv has no accuracy of task 3, or several$"):
        verify(copy)


def test_the_error_of_a_difference_is_that_of_two_samples(published, monkeypatch):
    """Of the FID's replicates by the resampled images, twice their variance; here 1, 2 and 3 whatever the images."""
    values = iter(range(10**6))
    monkeypatch.setattr("cldiff.verify.resampled", lambda n: [0, 1, 2])
    monkeypatch.setattr("cldiff.verify.fid", lambda features, of: 1.0 + next(values) % 4)
    table = verify(published)
    assert table[table.metric == "fid"].error.to_numpy() == pytest.approx(2**0.5)


def test_the_error_of_a_share_is_that_of_both_samples(published, monkeypatch):
    """n fresh samples, all right, beside n published ones, nearly all right: a binomial's variance, twice."""
    table = verify(published).query("metric == 'accuracy'")
    share = (table.published * table.samples + table.fresh * table.samples + 1) / (2 * table.samples + 2)
    assert table.error.to_numpy() == pytest.approx(np.sqrt(2 * share * (1 - share) / table.samples).to_numpy())


def test_the_weights_of_another_run_are_named(published, copy):
    (copy / "result.json").write_bytes((published / "result.json").read_bytes())
    net = load_unet(copy / WEIGHTS)
    torch.nn.init.zeros_(net.last[-1].bias)
    save_unet(copy / WEIGHTS, net, net.arguments)
    with pytest.raises(ResultError, match=f"{WEIGHTS} is not the file that was written"):
        verify(copy)


@pytest.mark.parametrize("content", [[1, 2, 3], {}, {"arguments": 1, "parameters": {}}])
def test_a_file_that_is_whole_and_holds_no_network_is_named(content, tmp_path):
    save_tensors(tmp_path / WEIGHTS, content)
    with pytest.raises(Problem, match=f"{WEIGHTS} is whole, and not what belongs there"):
        load_unet(tmp_path / WEIGHTS)


def test_other_weights_do_not_pass(copy, monkeypatch):
    net = load_unet(copy / WEIGHTS)
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    save_unet(copy / WEIGHTS, net, net.arguments)
    most = verify(copy).groupby("metric").z.agg(lambda z: z.abs().max())
    assert set(most.index) == {"fid", "fid, test", "accuracy", "bpd"} and (most > LIMIT).all()
    monkeypatch.setattr(sys, "argv", ["cldiff", "verify", str(copy.parent)])
    words = f"^error: [^\n]*{copy.name}: the published [^\n]* by [^\n]* standard errors, more than {LIMIT:g}$"
    with pytest.raises(SystemExit, match=words):
        main()


def test_command_passes_and_shows_its_table(published):
    words = [sys.executable, "-m", "cldiff", "verify", str(published.parent)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert published.name in done.stdout and "every difference, of a task and over all, is at most" in done.stdout


def test_damaged_or_missing_weights_are_one_line(copy, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cldiff", "verify", str(copy.parent)])
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[1000] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(SystemExit, match=f"^error: {re.escape(str(copy / WEIGHTS))} is damaged$"):
        main()
    (copy / WEIGHTS).unlink()
    with pytest.raises(SystemExit, match="^error: no weights.pt in the folders of [^\n]*$"):
        main()
    monkeypatch.setattr(sys, "argv", ["cldiff", "verify", str(copy / "nowhere")])
    with pytest.raises(SystemExit, match="^error: [^\n]*nowhere: no such folder; expected one of results"):
        main()


def test_one_run_alone_can_be_asked_for(tmp_path, monkeypatch, capsys):
    for name in ("digits-late-s0", "digits-replay-s0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).touch()
    monkeypatch.setattr(
        "cldiff.verify.verify", lambda folder, data, device: pd.DataFrame({"task": [1], "metric": ["fid"], "z": [0.5]})
    )
    for name in ("digits-late-s0", "digits-late-s1", "digits-replay-s1"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "result.json").touch()
    words = ["cldiff", "verify", str(tmp_path), "--only"]
    monkeypatch.setattr(sys, "argv", [*words, "digits-late"])
    main()
    assert "digits-late-s0" in (shown := capsys.readouterr().out) and "digits-replay-s0" not in shown
    assert "\n1 of 2 runs have no weights.pt here, and were not verified\n" in shown
    monkeypatch.setattr(sys, "argv", [*words, "digits-none"])
    with pytest.raises(SystemExit, match="^error: no finished run in .* whose name starts with 'digits-none'$"):
        main()


def test_a_network_of_another_size_is_named(copy):
    net = load_unet(copy / WEIGHTS)
    arguments = {**net.arguments, "channels": 2 * net.channels}
    save_unet(copy / WEIGHTS, UNet(**arguments), arguments)
    with pytest.raises(ResultError, match="weights.pt: not the network of this run .*size mismatch"):
        verify(copy)


def test_scores_in_other_features_are_not_compared(copy):
    result = json.loads((copy / "result.json").read_text())
    result["sha256"]["lenet"] = "0"
    (copy / "result.json").write_text(json.dumps(result))
    with pytest.raises(ResultError, match="another LeNet"):
        verify(copy)


def test_the_share_of_two_samples_weighs_each_by_its_number(published):
    table = verify(published, drawn=40).query("metric == 'accuracy'")
    share = (64 * table.published + 32 * table.fresh + 1) / (64 + 32 + 2)
    assert (table.published != table.fresh).any()
    assert table.error.to_numpy() == pytest.approx(np.sqrt(share * (1 - share) * (1 / 64 + 1 / 32)).to_numpy())


@pytest.mark.parametrize("metric, z", [("bpd", 3), ("fid", 6)])
def test_what_is_a_little_off_in_all_tasks_adds_up_where_samples_are_drawn_apart(metric, z):
    assert largest(pd.DataFrame({"task": [1, 2, 3, 4], "metric": metric, "z": 3.0}))[0] == z
