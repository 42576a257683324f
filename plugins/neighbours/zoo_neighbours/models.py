"""The plugins: what each is called, takes and learns. The fitted models are in ``counting`` and ``linear``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from zoo.plugin import Artefact, FittedModel, ModelSpec, PluginError, Progress, TrainingData

if TYPE_CHECKING:
    from pydantic import BaseModel

INPUTS = ("items", "event_types", "ages")


class _Neighbours(ABC):
    """params: the name of the class in ``params``."""

    name: str
    params: str
    summary: str

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.name, self._params, INPUTS, frozenset({"ranking"}), self.summary)

    def _params(self) -> type[BaseModel]:
        from zoo_neighbours import params  # pydantic, which listing the model need not import

        found: type[BaseModel] = getattr(params, self.params)
        return found

    def tiny(self) -> BaseModel:
        return self._params()()

    def fit(self, data: TrainingData, *, params: BaseModel, seed: int, progress: Progress) -> FittedModel:  # noqa: ARG002 - they draw nothing
        if data.kind.kind != "ranking":
            raise PluginError(f"{self.name} cannot learn a target of kind {data.kind.kind!r}; it learns ranking")
        progress(0.0, "histories")
        fitted = self._fit(data, params, progress)
        progress(1.0, "fitted")
        return fitted

    @abstractmethod
    def _fit(self, data: TrainingData, params: Any, progress: Progress) -> FittedModel:
        """``fit`` on data of the kind that it learns."""

    @abstractmethod
    def load(self, artefact: Artefact) -> FittedModel:
        """The fitted model that ``save`` wrote."""


class Popularity(_Neighbours):
    """The same items for everybody, newer events counting more if asked; and one's own if asked."""

    name, params, summary = "popularity", "PopularityParams", "most popular items, with decay"

    def _fit(self, data: TrainingData, params: Any, progress: Progress) -> FittedModel:  # noqa: ARG002 - counting takes no time
        from zoo_neighbours.counting import FittedPopularity

        return FittedPopularity.fit(data, params)

    def load(self, artefact: Artefact) -> FittedModel:
        from zoo_neighbours.counting import FittedPopularity

        return FittedPopularity.load(artefact)


class Repeat(_Neighbours):
    """What one took before, often, lately, and unlike others."""

    name, params, summary = "repeat", "RepeatParams", "items of one's own history, often, lately and rarely taken by others"

    def _fit(self, data: TrainingData, params: Any, progress: Progress) -> FittedModel:  # noqa: ARG002 - counting takes no time
        from zoo_neighbours.counting import FittedRepeat

        return FittedRepeat.fit(data, params)

    def load(self, artefact: Artefact) -> FittedModel:
        from zoo_neighbours.counting import FittedRepeat

        return FittedRepeat.load(artefact)


class Covisit(_Neighbours):
    """What others did next, or just before, after the items of one's newest events."""

    name, params, summary = "covisit", "CovisitParams", "item-to-item co-visitation with direction, lag and time"

    def _fit(self, data: TrainingData, params: Any, progress: Progress) -> FittedModel:
        from zoo_neighbours.counting import covisit

        return covisit(data, params, progress)

    def load(self, artefact: Artefact) -> FittedModel:
        from zoo_neighbours.counting import FittedSimilar

        return FittedSimilar.load(artefact)


class ItemKNN(Covisit):
    """Items in the same users' histories, by cosine (Sarwar et al., 2001)."""

    name, params, summary = "itemknn", "ItemKNNParams", "items of the same users, by cosine"

    def _fit(self, data: TrainingData, params: Any, progress: Progress) -> FittedModel:
        from zoo_neighbours.counting import itemknn

        return itemknn(data, params, progress)


class Ease(_Neighbours):
    """A linear model of the items of a history by each other, in closed form (Steck, 2019)."""

    name, params, summary = "ease", "EaseParams", "closed-form linear item-to-item model of histories"

    def _fit(self, data: TrainingData, params: Any, progress: Progress) -> FittedModel:
        from zoo_neighbours.linear import ease

        return ease(data, params, progress)

    def load(self, artefact: Artefact) -> FittedModel:
        from zoo_neighbours.linear import FittedLinear

        return FittedLinear.load(artefact)


class Slit(Ease):
    """A linear model of the next item by the newest ones, in closed form (after SLIT of Choi et al., 2021)."""

    name, params, summary = "slit", "SlitParams", "closed-form linear model of the next item"

    def _fit(self, data: TrainingData, params: Any, progress: Progress) -> FittedModel:
        from zoo_neighbours.linear import slit

        return slit(data, params, progress)
