"""One row through a booster by LightGBM's own fast path: the settings are read once, not at every call."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

from zoo.plugin import Array

_NORMAL, _FLOAT32 = 0, 0
"""C_API_PREDICT_NORMAL, C_API_DTYPE_FLOAT32."""


class _Config:
    """What one thread needs to ask one booster: LightGBM's settings must not be used by two threads at once."""

    def __init__(self, booster: Any, columns: int, width: int) -> None:
        from lightgbm.basic import _LIB, _safe_call

        self._lib, self._check, self._booster = _LIB, _safe_call, booster  # the settings point into the booster
        self._handle = ctypes.c_void_p()
        settings = b"num_threads=1 verbosity=-1"
        asked = (booster._handle, _NORMAL, 0, -1, _FLOAT32, ctypes.c_int32(columns), settings, ctypes.byref(self._handle))
        _safe_call(_LIB.LGBM_BoosterPredictForMatSingleRowFastInit(*asked))
        self.answer = np.zeros(width)
        self._length = ctypes.c_int64()
        self._into = self.answer.ctypes.data_as(ctypes.POINTER(ctypes.c_double))

    def ask(self, row: Array) -> Array:
        given = ctypes.c_void_p(row.ctypes.data)
        code = self._lib.LGBM_BoosterPredictForMatSingleRowFast(self._handle, given, ctypes.byref(self._length), self._into)
        self._check(code)
        return self.answer

    def __del__(self) -> None:
        if self._handle:
            self._lib.LGBM_FastConfigFree(self._handle)


class SingleRow:
    """As ``booster.predict`` of one row float32 (1, columns), to the bit: float64 (width,). Thread-safe."""

    def __init__(self, booster: Any, columns: int, width: int) -> None:
        self._made = booster, columns, width
        self._local = threading.local()

    def __reduce__(self) -> Any:
        return SingleRow, self._made

    def __call__(self, row: Array) -> Array:
        config = getattr(self._local, "config", None)
        if config is None:
            config = self._local.config = _Config(*self._made)
        return config.ask(np.ascontiguousarray(row, np.float32)).copy()
