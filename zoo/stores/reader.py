"""The log behind a Feast repository: where it lies, what time it is there, and its newest version opened for reading."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from zoo.errors import FeatureError
from zoo.events.given import microseconds
from zoo.events.log import EventLog
from zoo.events.view import LogView

CLOCKS = "wall, log_end or a UTC instant such as 2017-12-01T00:00:00Z"


def instant(moment: datetime | None) -> int | None:
    """Microseconds UTC of a moment that Feast gives; a naive one is UTC, as Feast takes it."""
    return None if moment is None else microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


@dataclass
class LogReader:
    """Opens the log of one repository and keeps the view of its newest version.

    clock: ``wall``, ``log_end`` (just after the newest event: a log that has ended) or an instant. One view at a time is kept, so
    memory does not grow with versions. A log that is made anew in the same folder is opened anew, by its first commit's file.
    """

    root: Path
    clock: str
    _view: LogView | None = None
    _pinned: bool = False
    _mark: tuple[int, int] | None = None
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def of(cls, config: Any) -> LogReader:
        """The reader of a Feast RepoConfig whose offline store is an EventLogOfflineStore.

        It is kept on the config, whose life is the FeatureStore's; there is no registry of readers.
        """
        reader = config.__dict__.get("_zoo_reader")
        if reader is None:
            settings = config.offline_store
            if not hasattr(settings, "log"):
                raise FeatureError(
                    f"feature_store.yaml names the offline store {settings.type!r}; event features need "
                    "type: zoo.stores.EventLogOfflineStore with log: PATH"
                )
            root = Path(settings.log)
            reader = cls(root if root.is_absolute() else Path(config.repo_path or ".") / root, settings.clock)
            config.__dict__["_zoo_reader"] = reader
        assert isinstance(reader, cls)
        return reader

    @property
    def held(self) -> LogView | None:
        """The version of the last look, None before the first."""
        return self._view

    def view(self) -> LogView:
        """The newest version of the log and of its tables."""
        with self._lock:
            if self._pinned and self._view is not None:
                return self._view
            mark = self._first()
            if self._view is not None and mark == self._mark:
                self._view = self._view.newest()
                return self._view
            if self._view is not None:
                self._view.log.close()
            self._view, self._mark = LogView.open(self.root), mark
            return self._view

    def _first(self) -> tuple[int, int] | None:
        """What tells the log from one made anew: inode and time of its first commit's file, which never changes."""
        try:
            found = os.stat(f"{self.root}/log/_delta_log/{0:020d}.json")  # noqa: PTH116 - asked on every read
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def pinned(self) -> LogReader:
        """A reader that stays at the version that is the newest now, whatever is committed later."""
        return LogReader(self.root, self.clock, self.view(), _pinned=True)

    def close(self) -> None:
        """Close the log, where it was opened."""
        if self._view is not None:
            self._view.log.close()

    @property
    def log(self) -> EventLog:
        """The log itself, which every version shares."""
        held = self._view
        return held.log if held is not None and (self._pinned or self._first() == self._mark) else self.view().log

    def now(self, view: LogView | None = None) -> int:
        """What time it is, microseconds UTC. view: the newest, where one was just opened."""
        if self.clock == "wall":
            return time.time_ns() // 1000
        if self.clock == "log_end":
            end = self.log.end() if view is None else view.end
            return 0 if end is None else end + 1
        try:
            return microseconds(datetime.fromisoformat(self.clock))
        except ValueError:
            raise FeatureError(f"feature_store.yaml has clock: {self.clock!r}; expected {CLOCKS}") from None
