"""One row through all networks of a model as one graph in ONNX Runtime, where that is installed.

By torch a row is a hundred calls of some microseconds each; the graph is one. It is made in memory of the weights, nothing of it is stored,
and it answers only where it says what torch says. Batches stay with torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.plugin import Array, TargetKind
from zoo_recurrent.inputs import Inputs, Stream
from zoo_recurrent.network import Mixer, Network, scores_of

AGREE = 1e-5
"""How far the graph's scores may be from torch's; of values (standardised) beyond 1, in parts of them."""
PROBED = (0, 1, 2, 9, 40)
"""Steps of the sequences on which both are asked."""
_log = logging.getLogger(__name__)


class SingleRow:
    """Called with inputs of one row, it is ``scores_of`` within AGREE. Threads and forked processes may share it: it has no threads.

    What keeps ONNX Runtime from answering is logged, and torch answers.
    """

    def __init__(self, networks: Sequence[Network], kind: TargetKind) -> None:
        self._made = networks, kind
        self._session: Any = None
        try:
            session = _session(networks, kind)
            away = _away(session, networks, kind)
        except ImportError as error:
            _log.info("torch answers single rows (%s); install feature-zoo-recurrent[onnx] for faster answers", error)
        except Exception as error:  # noqa: BLE001 - of any kind, as those of ONNX Runtime have no common one, and there is torch
            _log.warning("torch answers single rows, as ONNX Runtime failed: %s", error)
        else:
            if away <= AGREE:
                self._session = session
            else:
                _log.warning("torch answers single rows: ONNX Runtime's scores are %.1e from its own, more than %g", away, AGREE)

    def __call__(self, inputs: Inputs) -> Array:
        """float32 (networks, 1, k)."""
        if self._session is None:
            networks, kind = self._made
            return scores_of(networks, inputs, kind)
        return _asked(self._session, inputs)

    def __reduce__(self) -> Any:  # a session cannot be copied
        return SingleRow, self._made


def _session(networks: Sequence[Network], kind: TargetKind) -> Any:
    """In one thread, the caller's, and without memory that is kept between calls."""
    import onnxruntime  # an extra, and with onnx a quarter of a second

    from zoo_recurrent.graph import graph

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(graph(networks, kind), options, providers=["CPUExecutionProvider"])


def _asked(session: Any, inputs: Inputs) -> Array:
    fed = {"numbers": inputs.numbers[:, None], "codes": inputs.codes}
    for i, stream in enumerate(inputs.streams):
        numbers, codes, here = stream.numbers, stream.codes, len(stream.numbers) > 0
        if not here:  # cells want a step
            numbers, codes = (np.zeros((1, given.shape[1]), given.dtype) for given in (numbers, codes))
        fed |= {f"numbers{i}": numbers[:, None], f"codes{i}": codes, f"here{i}": np.array(here)}
    found: Array = session.run(None, fed)[0]
    return found


def _away(session: Any, networks: Sequence[Network], kind: TargetKind) -> float:
    """How far both ways are apart on rows drawn at random, at most."""
    rng, none, apart = np.random.default_rng(0), np.zeros(1, np.int64), 0.0

    def drawn(mixer: Mixer, rows: int) -> tuple[Array, Array]:
        codes = [rng.integers(0, table.num_embeddings, rows) for table in mixer.tables]
        numbers = rng.normal(size=(rows, mixer.numbers)).astype(np.float32)
        return numbers, np.array(codes, np.int32).reshape(len(codes), rows).T

    for steps in PROBED:
        streams = tuple(Stream(*drawn(each.mixer, steps), none, none + steps, none) for each in networks[0].encoders)
        inputs = Inputs(streams, *drawn(networks[0].mixer, 1))
        expected, found = scores_of(networks, inputs, kind), _asked(session, inputs)
        apart = max(apart, float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max()))
    return apart
