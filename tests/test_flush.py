"""The flusher: a process beside the one that pushes moves the tail, and is gone when it should be, whoever dies when."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zoo.errors import ZooError
from zoo.events import flush
from zoo.events.beside import NICE, Beside
from zoo.events.lock import BusyError, writer_lock
from zoo.events.log import EventLog
from zoo.events.schema import LogSchema

DEADLINE = 60.0


@pytest.fixture
def log(tmp_path):
    log = EventLog.create(tmp_path / "log", LogSchema())
    yield log
    log.close()


def push(log, *ids):
    return log.append([row(name) for name in ids])


def row(name):
    return {"user_id": 1, "item_id": 1, "event_type": "view", "timestamp": "2024-01-01T00:00:00Z", "event_id": name}


def children(parent, root):
    """Processes of a parent's that move the tail of this log, by number."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            owner = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if str(root).encode() in words and (parent is None or owner == parent):
            found.append(int(place.name))
    return found


def until(true):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_long_tail_is_moved_by_a_process_beside_which_lets_others_go_first(log, monkeypatch):
    monkeypatch.setattr(flush, "ROWS", 3)
    monkeypatch.setattr(flush, "AGE", DEADLINE)  # by length alone, and nobody leaves between two pushes, however slow the machine
    push(log, "a", "b")
    assert children(None, log.root) == []  # who pushes little starts none
    push(log, "c", "d")
    until(lambda: not log.lineage()["tail"] and not log.tail_file.segments)
    (child,) = children(os.getpid(), log.root)
    assert os.getpriority(os.PRIO_PROCESS, child) == min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
    assert log.version() == 1
    push(log, "e", "f", "g")
    until(lambda: log.version() == 2)
    assert children(os.getpid(), log.root) == [child]
    assert log.table()["event_id"].to_pylist() == list("abcdefg")


def test_whoever_pushes_no_more_is_left_alone_and_started_again(log, monkeypatch):
    monkeypatch.setattr(flush, "AGE", 0.2)
    push(log, "a")
    thread = log.flusher._thread
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert children(None, log.root) == []
    assert log.lineage()["tail"] == 0
    push(log, "b")
    assert log.flusher._thread not in (thread, None)
    until(lambda: not log.lineage()["tail"])


def test_a_process_that_dies_is_said_and_another_started(log, monkeypatch, caplog):
    monkeypatch.setattr(flush, "ROWS", 1)
    caplog.set_level(logging.WARNING, "zoo.events.flush")
    push(log, "a")
    until(lambda: log.version() == 1)
    (child,) = children(os.getpid(), log.root)
    os.kill(child, signal.SIGKILL)
    push(log, "b")
    until(lambda: not log.lineage()["tail"])
    assert "exit code -9" in caplog.text
    (other,) = children(os.getpid(), log.root)
    assert other != child
    assert log.table()["event_id"].to_pylist() == ["a", "b"]


def test_a_process_that_hangs_is_not_waited_for_without_end(log, monkeypatch):
    monkeypatch.setattr(flush, "ROWS", 1)
    monkeypatch.setattr(flush, "GRACE", 0.2)
    push(log, "a")
    until(lambda: children(os.getpid(), log.root))
    (child,) = children(os.getpid(), log.root)
    until(lambda: not log.lineage()["tail"])
    os.kill(child, signal.SIGSTOP)
    push(log, "b")
    time.sleep(0.1)
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < DEADLINE / 2
    assert not children(os.getpid(), log.root)
    assert EventLog.open(log.root).table()["event_id"].to_pylist() == ["a", "b"]


def test_killed_at_any_moment_of_its_work_nothing_is_lost_or_doubled(log, monkeypatch):
    monkeypatch.setattr(flush, "ROWS", 20)
    monkeypatch.setattr(flush, "AGAIN", 0.01)
    number, killed, deadline = 0, 0, time.monotonic() + DEADLINE
    while killed < 5:
        assert time.monotonic() < deadline
        for _ in range(10):
            push(log, f"{number}", f"{number}+")
            number += 1
        for child in children(os.getpid(), log.root):
            time.sleep(0.003 * killed)
            os.kill(child, signal.SIGKILL)
            killed += 1
        time.sleep(0.3)
    log.close()
    for reader in (log, EventLog.open(log.root)):
        table = reader.table()
        assert table["event_id"].to_pylist() == [name for n in range(number) for name in (f"{n}", f"{n}+")]
        assert table["seq"].to_pylist() == list(range(2 * number))
    log.flush()
    assert sorted(EventLog.open(log.root).table()["seq"].to_pylist()) == list(range(2 * number))


PUSHER = """
import sys, time
from zoo.errors import ZooError
from zoo.events import flush
from zoo.events.log import EventLog
flush.ROWS = 1
log = EventLog.open(sys.argv[1])
log.append([{"user_id": 1, "item_id": 1, "event_type": "view", "timestamp": "2024-01-01T00:00:00Z", "event_id": "a"}])
while log.lineage()["tail"]:
    time.sleep(0.01)
print("moved", flush=True)
if sys.argv[2] == "stay":
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_no_process_is_left_behind(log, how):
    pusher = subprocess.Popen(
        [sys.executable, "-c", PUSHER, log.root, "stay" if how else "end"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert pusher.stdout.readline() == "moved\n"
    if how:
        assert len(children(pusher.pid, log.root)) == 1
        pusher.send_signal(how)
    pusher.communicate(timeout=DEADLINE)
    until(lambda: not [c for c in children(None, log.root) if c != pusher.pid])
    assert log.table()["event_id"].to_pylist() == ["a"]


def test_it_waits_for_no_other_writer_and_says_what_failed(log):
    push(log, "a")
    with Beside(log.root) as beside:
        with writer_lock(log.root), pytest.raises(BusyError):
            beside.copy()
        beside.copy()
        assert log.lineage()["tail"] == 0
    (log.root / "log").rename(log.root / "elsewhere")
    with Beside(log.root) as beside, pytest.raises(ZooError, match="no event log in"):
        beside.copy()


def test_a_closed_log_has_nobody_at_work_in_its_folder_and_takes_pushes_on(log, monkeypatch):
    monkeypatch.setattr("zoo.events.flush.AGE", 0.0)
    others = set(threading.enumerate())  # of logs that earlier tests of this process pushed to
    for number in range(3):
        log.append([{"user_id": 1, "item_id": 1, "event_type": "view", "timestamp": "2024-01-01T00:00:00Z"}], f"k{number}")
        log.close()
        assert not [t for t in set(threading.enumerate()) - others if t.name == "zoo-flusher"]
    assert log.count() == 3
