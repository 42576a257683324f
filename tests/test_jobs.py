from __future__ import annotations

import math
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from zoo.errors import FeatureError, UsageError
from zoo.jobs import Job, JobError, Processes, RemoteTraceback, Serial, cores
from zoo.plugin import Catalogue, Column, FeatureBatch, Target, TrainingData
from zoo.shared_data import load_training_data, save_training_data, scratch_folder

EXECUTORS = {"serial": Serial(), "one process": Processes(1), "two processes": Processes(2)}


def jobs(*arguments):
    return [Job(f"job {a}", a) for a in arguments]


def training_data() -> TrainingData:
    offsets = np.array([0, 2, 2, 5], np.int64)
    user = {
        "items": Column(np.array([2, 3, 4, 5, 2], np.int32), offsets, "item_id"),
        "values": Column(np.array([1.5, np.nan, 3, 4, 5]), offsets),
        "note": Column(np.array(["a", None, "ü\ud800"], object)),
    }
    empty = {"events": Column(np.zeros(0, np.float32), np.zeros(4, np.int64))}
    catalogue = Catalogue({"item_id": np.array(["", "?", "x", "y", "z", "w"], object)}, {"price": Column(np.arange(6.0))})
    stamps = np.array([10, 20, 30], np.int64)
    rows = np.array([2, 1, 0], np.int32)
    batch = FeatureBatch(
        {"user": user, "item": empty, "pair": {}},
        {"user": rows, "item": rows, "pair": rows},
        stamps,
        stamps - 1,
        catalogue,
        np.array([0, 1, 3], np.int64),
    )
    return TrainingData(batch, np.array([0.0, 1, 2]), np.ones(3), stamps, Target("multiclass", ("a", "b", "c")))


@pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
def test_every_job_comes_back_with_its_own_result(executor):
    found = {job.argument: result for job, result in executor.map(math.sqrt, jobs(*range(7)))}
    assert found == {n: math.sqrt(n) for n in range(7)}


@pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
def test_no_jobs_give_no_results(executor):
    assert list(executor.map(math.sqrt, [])) == []


@pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
def test_a_job_that_raises_is_named_with_its_cause(executor):
    with pytest.raises(JobError, match=r"^job -1 failed: ValueError: math domain error"):
        list(executor.map(math.sqrt, jobs(-1)))


def test_the_traceback_of_a_child_is_kept():
    with pytest.raises(JobError) as caught:
        list(Processes(1).map(math.sqrt, jobs(-1)))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "Traceback (most recent call last)" in str(caught.value.__cause__)


def test_a_child_that_dies_is_named_by_the_job_it_was_at():
    arguments = [Job("gru, fold 2", "import os; os._exit(7)"), Job("gbdt, fold 1", "1 + 1")]
    with pytest.raises(JobError, match=r"^gru, fold 2: the process that ran it ended with exit code 7 and no word"):
        list(Processes(2).map(exec, arguments))


def test_a_child_killed_by_the_system_says_by_which_signal():
    with pytest.raises(
        JobError, match="gru: the process that ran it was ended by SIGKILL; the system does this when memory runs out"
    ):
        list(Processes(1).map(exec, [Job("gru", "import os; os.kill(os.getpid(), 9)")]))


def test_a_job_that_exits_or_returns_what_cannot_be_sent_is_named():
    with pytest.raises(JobError, match=r"^a failed: SystemExit: 3"):
        list(Processes(1).map(sys.exit, [Job("a", 3)]))
    with pytest.raises(JobError, match=r"^b failed: its result cannot be sent"):
        list(Processes(1).map(operator.methodcaller("keys"), [Job("b", {})]))


def test_a_function_that_no_other_process_can_import_is_refused():
    with pytest.raises(UsageError, match="expected a function of a module"):
        list(Processes(1).map(lambda n: n, jobs(1)))
    assert not multiprocessing.active_children()


def test_an_argument_that_cannot_be_sent_is_named():
    with pytest.raises(JobError, match=r"^job <.*> failed: its argument cannot be sent"):
        list(Processes(1).map(math.sqrt, jobs(lambda: 1)))


def test_children_share_the_cores_and_the_parent_keeps_its_environment():
    before = dict(os.environ)
    ((_, threads),) = Processes(1).map(os.getenv, [Job("a", "OMP_NUM_THREADS")])
    assert threads == str(cores())
    assert {threads for _, threads in Processes(cores()).map(os.getenv, [Job("a", "OMP_NUM_THREADS")] * 3)} == {"1"}
    assert dict(os.environ) == before


def test_an_interrupt_ends_the_children():
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        results = Processes(2).map(time.sleep, [Job("nap", 0), Job("sleep", 60), Job("sleep", 60)])
        next(results)
        children = multiprocessing.active_children()
        assert len(children) == 2
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            next(results)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [child.exitcode for child in children] == [-signal.SIGTERM] * 2
    assert not multiprocessing.active_children()


def test_an_interrupt_is_held_back_from_children_from_their_first_instruction():
    ((_, blocked),) = Processes(1).map(eval, [Job("mask", "__import__('signal').pthread_sigmask(0, [])")])
    assert signal.SIGINT in blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_in_a_terminal_ends_everything_with_one_traceback(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import time\n"
        "from zoo.jobs import Job, Processes\n"
        "if __name__ == '__main__':\n"
        "    for job, _ in Processes(2).map(time.sleep, [Job('nap', 0), Job('sleep', 60)]):\n"
        "        print(job.name, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "nap\n"  # one child is idle then, the other busy
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)  # returns once every process that could write has ended
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == 1


def test_a_parent_that_is_killed_takes_its_children_along_and_the_next_run_removes_its_data(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from zoo.jobs import Job, Processes\n"
        "from zoo.shared_data import scratch_folder\n"
        "if __name__ == '__main__':\n"
        "    with scratch_folder(Path(sys.argv[1])) as folder:\n"
        "        (folder / 'data').write_text('much')\n"
        "        for job, _ in Processes(2).map(time.sleep, [Job('nap', 0), Job('sleep', 600)]):\n"
        "            print(job.name, flush=True)\n"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        [sys.executable, script, scratch], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "nap\n"
        process.kill()
        process.communicate(timeout=30)  # returns once every process that could write has ended
    (left,) = scratch.iterdir()
    with scratch_folder(scratch) as one, scratch_folder(scratch) as other:
        assert not left.exists()
        assert one.exists()
        assert other.exists()
    assert not list(scratch.iterdir())


def test_leaving_early_ends_the_children():
    results = Processes(2).map(time.sleep, [Job("nap", 0), *jobs(60, 60, 60)])
    next(results)
    results.close()
    assert not multiprocessing.active_children()


def test_no_workers_are_refused():
    with pytest.raises(UsageError, match="0 worker processes"):
        Processes(0)


def assert_same(a: TrainingData, b: TrainingData) -> None:
    assert a.kind == b.kind
    for name in ("target", "weight", "time"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert a.batch.names == b.batch.names
    assert list(a.batch.blocks) == list(b.batch.blocks)
    for name in a.batch.names:
        one, other = a.batch.stored(name)[1], b.batch.stored(name)[1]
        assert one.dictionary == other.dictionary
        assert one.values.dtype == other.values.dtype
        np.testing.assert_array_equal(one.values, other.values)
        assert (one.offsets is None) == (other.offsets is None)
        assert one.offsets is None or np.array_equal(one.offsets, other.offsets)
    for field in ("as_of", "newest", "group"):
        np.testing.assert_array_equal(getattr(a.batch, field), getattr(b.batch, field))
    for entity, rows in a.batch.row_of.items():
        np.testing.assert_array_equal(rows, b.batch.row_of[entity])
    for name, texts in a.batch.catalogue.names.items():
        assert b.batch.catalogue.names[name].tolist() == texts.tolist()
    for name, column in a.batch.catalogue.items.items():
        assert np.array_equal(b.batch.catalogue.items[name].values, column.values)


@pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
def test_shared_data_is_the_data(executor):
    data = training_data()
    with executor.share(data) as shared:
        ((_, loaded),) = executor.map(operator.methodcaller("load"), [Job("load", shared)])
    assert_same(data, loaded)


def test_saved_training_data_is_mapped_shared_between_columns_and_cannot_be_written_to(tmp_path):
    save_training_data(tmp_path, training_data())
    loaded = load_training_data(tmp_path)
    blocks = loaded.batch.blocks["user"]
    assert blocks["items"].offsets is blocks["values"].offsets
    with pytest.raises(ValueError, match="read-only"):
        blocks["values"].values[0] = 1
    assert not [path for path in tmp_path.iterdir() if path.suffix not in {".npy", ".json"}]


def test_a_text_column_of_something_else_is_refused(tmp_path):
    batch = FeatureBatch(
        {"user": {"note": Column(np.array([object()], object))}}, {"user": np.zeros(1, np.int32)}, np.zeros(1), np.zeros(1)
    )
    with pytest.raises(FeatureError, match="a text column holds <object"):
        save_training_data(tmp_path, TrainingData(batch, np.zeros(1), np.ones(1), np.zeros(1)))


def test_scratch_is_empty_again_afterwards(tmp_path):
    with Processes(1, scratch=tmp_path).share(training_data()) as shared:
        assert len(shared.load()) == 3
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
