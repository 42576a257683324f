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

        self._lib, self._booster = _LIB, booster  # the settings point into the booster
        self._handle = handle = ctypes.c_void_p()
        settings = b"num_threads=1 verbosity=-1"
        what = (booster._handle, _NORMAL, 0, -1, _FLOAT32, ctypes.c_int32(columns), settings, ctypes.byref(handle))
        _safe_call(_LIB.LGBM_BoosterPredictForMatSingleRowFastInit(*what))
        # kept with their addresses: to ask for those of each row anew takes a tenth of an answer's time, as do attributes
        given, answer = np.zeros((1, columns), np.float32), np.zeros(width)
        row, length = ctypes.c_void_p(given.ctypes.data), ctypes.byref(ctypes.c_int64())
        into = answer.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        # some microseconds, for which giving the interpreter away and waiting to have it back is not worth it
        call = ctypes.PyDLL(_LIB._name).LGBM_BoosterPredictForMatSingleRowFast

        def ask(asked: Array) -> Array:
            given[:] = asked
            if code := call(handle, row, length, into):
                _safe_call(code)
            return answer.copy()

        self.ask = ask

    def __del__(self) -> None:
        if self._handle:
            self._lib.LGBM_FastConfigFree(self._handle)


class SingleRow(threading.local):
    """``ask`` is ``booster.predict`` of one row float32 (1, columns), to the bit: float64 (width,). Each thread has its own."""

    def __init__(self, booster: Any, columns: int, width: int) -> None:
        self._made = booster, columns, width
        self._config = _Config(*self._made)
        self.ask = self._config.ask

    def __reduce__(self) -> Any:
        return SingleRow, self._made
