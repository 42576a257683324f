"""The plugin ``gpt``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.plugin import NO_CHECKPOINT, Artefact, Checkpoint, ModelSpec, Progress, TrainingData

# torch takes over a second to import and pydantic a quarter: both stay inside functions so that listing plugins is quick.
if TYPE_CHECKING:
    from pydantic import BaseModel

    from zoo.nextitem.model import FittedNextItem


def _params() -> type[BaseModel]:
    from zoo_gpt.params import GPTParams

    return GPTParams


class GPT:
    """Self-attention over the items of a history, each told from those before it (after SASRec, Kang and McAuley 2018)."""

    spec = ModelSpec(
        "gpt",
        _params,
        ("items", "event_types", "gaps"),
        frozenset({"ranking"}),
        "causal transformer over items and event types",
        resumes=True,
    )

    def tiny(self) -> BaseModel:
        return _params()(
            width=16, max_length=24, layers=1, dropout=0.0, embedding_dropout=0.0, epochs=6, tokens=400, learning_rate=2e-2
        )

    def fit(
        self, data: TrainingData, *, params: Any, seed: int, progress: Progress, checkpoint: Checkpoint = NO_CHECKPOINT
    ) -> FittedNextItem:
        """Raises PluginError for another kind of target, for nothing to learn, and for a loss that diverges."""
        from zoo.nextitem.model import fit_next_item
        from zoo_gpt.network import GPTNetwork

        return fit_next_item(GPTNetwork, data, params, seed, progress, checkpoint)

    def load(self, artefact: Artefact) -> FittedNextItem:
        from zoo.nextitem.model import load_next_item
        from zoo_gpt.network import GPTNetwork
        from zoo_gpt.params import GPTParams

        return load_next_item(GPTNetwork, GPTParams, artefact)
