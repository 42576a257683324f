"""Item text ranking: what the item table says of each item, read once by the frozen encoder, and a network over those vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zoo.nextitem.model import FittedNextItem, fit_next_item, load_next_item
from zoo.plugin import UNKNOWN, Array, Artefact, Catalogue, Checkpoint, FeatureBatch, PluginError, Progress, TrainingData
from zoo_bert import encoder as encoders
from zoo_bert.itemnet import TextItems, TextNetwork
from zoo_bert.model import ITEM_TEXT
from zoo_bert.params import BertParams, TextRanking
from zoo_bert.states import States

if TYPE_CHECKING:
    from zoo_bert.encoder import Encoder

DIGEST = 16
"""Bytes of a text's sha256 that are kept."""
READING = 0.5
"""Share of the progress bar for the encoder."""


def item_texts(catalogue: Catalogue, patterns: Sequence[str]) -> list[str]:
    """By item code: the words of the item table's columns, the title first; empty for what has none."""
    size = catalogue.size("item_id")
    names = [name for name, column in catalogue.items.items() if column.is_code or column.is_text]
    names = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    parts = []
    for name in sorted(names, key=lambda name: name != "title"):
        column = catalogue.items[name]
        if column.dictionary is None:
            said = column.values
        elif column.dictionary in catalogue.names:
            texts = catalogue.names[column.dictionary].copy()
            texts[: UNKNOWN + 1] = ""
            said = texts[column.values]
        else:
            continue
        parts.append([" ".join(str(text or "").replace("|", ", ").split()) for text in said[:size].tolist()])
    if not parts:
        raise PluginError(
            "bert with ranking.mode = 'text' reads words of the item table, and the catalogue has no column of text that matches "
            f"item_columns={list(patterns)}; it has: {', '.join(catalogue.items) or '(none)'}. Bring an item table with titles, or "
            "use ranking.mode = 'items'"
        )
    out = [". ".join(filter(None, said)) for said in zip(*parts, strict=True)]
    return ["" if code <= UNKNOWN else text for code, text in enumerate(out)] + [""] * (size - len(out))


@dataclass(frozen=True)
class TextVectors:
    """Reads texts. mean, scale: float32 (size,), of the training items' vectors."""

    states: States
    mean: Array
    scale: Array

    @staticmethod
    def read(states: States, texts: Sequence[str], tell: Any = None) -> Array:
        """float32 (n, size), the mean over each text's tokens."""
        vectors = [each[0] for each in states.of(states.encoder.tokens(texts), tell)]
        return np.array(vectors, np.float32).reshape(len(texts), states.encoder.size)

    @staticmethod
    def learn(states: States, texts: Sequence[str], tell: Any) -> tuple[TextVectors, Array]:
        """With the standardised vectors (n, size) of the texts, zeros for empty ones."""
        said = [text for text in texts if text] or ["nothing"]
        vectors = TextVectors.read(states, said, tell)
        std = vectors.std(0)
        # an encoder may have directions in which texts hardly differ: they are not blown up
        made = TextVectors(states, vectors.mean(0), 1 / np.maximum(std, max(1e-6, 0.1 * float(np.median(std)))))
        return made, made.of(texts)

    def of(self, texts: Sequence[str]) -> Array:
        """float32 (n, size), standardised; zeros for empty texts."""
        out = np.zeros((len(texts), len(self.mean)), np.float32)
        some = [at for at, text in enumerate(texts) if text]
        if some:
            out[some] = (self.read(self.states, [texts[at] for at in some]) - self.mean) * self.scale
        return out


@dataclass(frozen=True)
class FittedItemText:
    """known: uint8 (codes, 16), digests of the texts whose vectors the network holds. Scoring is safe from several threads."""

    vectors: TextVectors
    model: FittedNextItem
    params: BertParams
    known: Array
    _lock: Lock = field(default_factory=Lock, compare=False)
    _met: list[tuple[Catalogue, FittedNextItem]] = field(default_factory=list, compare=False)

    def scorable(self, catalogue: Catalogue) -> Array:
        """bool (codes,): the items that have a text."""
        return np.array([bool(text) for text in self.texts(catalogue)])

    def texts(self, catalogue: Catalogue) -> list[str]:
        """What the encoder reads of each item."""
        return item_texts(catalogue, _ranking(self.params).item_columns)

    def item_vectors(self, catalogue: Catalogue) -> Array:
        """float32 (codes, width): the item vectors that histories and scores are made of, of any catalogue of the log."""
        weight: Array = self._of(catalogue).network.items.weight.detach().numpy()
        return weight

    def score_items(self, batch: FeatureBatch, items: Array | None = None) -> Array:
        return self._of(batch.catalogue).score_items(batch, items)

    def predict(self, batch: FeatureBatch) -> Array:
        return self.score_items(batch)

    def save(self) -> Artefact:
        """The network with the vectors of training's items; the encoder itself, or its digest and where it was found."""
        about = {"params": self.params.model_dump(mode="json"), "encoder": self.vectors.states.encoder.digest}
        arrays = {"known": self.known, "mean": self.vectors.mean, "scale": self.vectors.scale}
        own = Artefact.merged(Artefact(arrays, {ITEM_TEXT: json.dumps(about, indent=1)}), self.model.save().nested("model"))
        return Artefact.merged(own, self.vectors.states.encoder.save()) if self.params.embed_encoder else own

    def _of(self, catalogue: Catalogue) -> FittedNextItem:
        """The model over this catalogue's items: vectors held where the text is the one of training, else read from the text."""
        with self._lock:
            if not (self._met and self._met[0][0] is catalogue):
                self._met[:] = [(catalogue, self._over(self.texts(catalogue)))]
            return self._met[0][1]

    def _over(self, texts: Sequence[str]) -> FittedNextItem:
        items = self.model.network.items
        assert isinstance(items, TextItems)
        found = digests(texts)
        both = min(len(found), len(self.known))
        same = np.zeros(len(texts), bool)
        same[:both] = (found[:both] == self.known[:both]).all(1)
        if same.all() and len(texts) == len(self.known):
            return self.model
        vectors = np.zeros((len(texts), items.vectors.shape[1]), np.float32)
        vectors[same] = items.vectors.numpy()[np.flatnonzero(same)]
        vectors[~same] = self.vectors.of([text for text, held in zip(texts, same, strict=True) if not held])
        network, wide = copy(self.model.network), copy(items)
        network._modules, wide._buffers = dict(network._modules), {"vectors": torch.from_numpy(vectors)}
        network.items = wide
        return FittedNextItem(network, self.model.params, self.model.training)


def fit(data: TrainingData, params: BertParams, seed: int, progress: Progress, checkpoint: Checkpoint) -> FittedItemText:
    """Raises PluginError where the item table has no text, for an encoder that is not to be had, and a loss that diverges."""
    chosen = _ranking(params)
    texts = item_texts(data.batch.catalogue, chosen.item_columns)
    progress(0.0, f"loading {params.model_name_or_path}")
    states = _states(encoders.load(params.model_name_or_path, 0), params)
    tell = lambda done, of: progress(READING * done / of, f"{done} of {of} item texts encoded")  # noqa: E731
    vectors, held = TextVectors.learn(states, texts, tell)
    build = partial(_build, torch.from_numpy(held))
    rest = lambda done, text: progress(READING + (1 - READING) * done, text)  # noqa: E731
    model = fit_next_item(build, data, chosen, seed, rest, checkpoint)
    return FittedItemText(vectors, model, params, digests(texts))


def load(artefact: Artefact) -> FittedItemText:
    """What ``FittedItemText.save`` wrote. Raises PluginError where the encoder is missing or is another one."""
    stored = json.loads(artefact.texts[ITEM_TEXT])
    params = BertParams.model_validate(stored["params"])
    encoder = encoders.found(artefact, params, stored["encoder"], 0)
    known, mean, scale = (artefact.arrays[name] for name in ("known", "mean", "scale"))
    if known.dtype != np.uint8 or known.shape[1:] != (DIGEST,) or any(each.shape != (encoder.size,) for each in (mean, scale)):
        raise PluginError(
            f"digests of texts are {known.dtype.name} {list(known.shape)}, mean and scale {list(mean.shape)} and {list(scale.shape)}; "
            f"expected uint8 [n, {DIGEST}] and the encoder's width {encoder.size}; restore the artefact, or train again"
        )
    vectors = TextVectors(_states(encoder, params), mean, scale)
    build = partial(_build, torch.zeros(len(known), encoder.size))
    return FittedItemText(vectors, load_next_item(build, TextRanking, artefact.part("model")), params, known)


def digests(texts: Sequence[str]) -> Array:
    """uint8 (n, 16)."""
    made = b"".join(hashlib.sha256(text.encode()).digest()[:DIGEST] for text in texts)
    return np.frombuffer(made, np.uint8).reshape(len(texts), DIGEST)


def _build(vectors: torch.Tensor, params: Any, items: int, types: int) -> TextNetwork:  # noqa: ARG001 - one vector an item
    return TextNetwork(params, types, vectors)


def _states(encoder: Encoder, params: BertParams) -> States:
    return States(encoder, "pooled", encoder.frozen_layers, params.cache_mb)


def _ranking(params: BertParams) -> TextRanking:
    assert isinstance(params.ranking, TextRanking)
    return params.ranking
