"""Item text ranking: what the item table says of each item, read once by the encoder's frozen layers, and a network over that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
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
from zoo_bert.states import Kind, States
from zoo_bert.tuned import TextLayers, Texts

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
    """Reads texts. mean, scale: float32 (size,), of the training items' vectors. top: trained layers over ``states`` of tokens, if any."""

    states: States
    mean: Array
    scale: Array
    top: TextLayers | None = None

    @staticmethod
    def learn(states: States, texts: Sequence[str], tell: Any, top: TextLayers | None = None) -> tuple[TextVectors, Array, Texts]:
        """With the standardised vectors (n, size) of the texts, zeros for empty ones, and what they were made of."""
        said = list(dict.fromkeys(text for text in texts if text)) or ["nothing"]
        number = {text: at for at, text in enumerate(said)}
        of = np.array([number.get(text, -1) for text in texts], np.int64)
        read = states.of(states.encoder.tokens(said), tell)
        distinct = pooled(read, states.encoder.size, top)
        vectors = distinct[of[of >= 0]] if (of >= 0).any() else distinct
        mean, std = vectors.mean(0), vectors.std(0)
        # an encoder may have directions in which texts hardly differ: they are not blown up
        scale = 1 / np.maximum(std, max(1e-6, 0.1 * float(np.median(std))))
        out = np.zeros((len(texts), len(mean)), np.float32)
        out[of >= 0] = (distinct[of[of >= 0]] - mean) * scale
        return TextVectors(states, mean, scale, top), out, Texts(read, of, mean, scale)

    def of(self, texts: Sequence[str]) -> Array:
        """float32 (n, size), standardised; zeros for empty texts."""
        out = np.zeros((len(texts), len(self.mean)), np.float32)
        some = [at for at, text in enumerate(texts) if text]
        if some:
            read = self.states.of(self.states.encoder.tokens([texts[at] for at in some]))
            out[some] = (pooled(read, len(self.mean), self.top) - self.mean) * self.scale
        return out


def pooled(read: Sequence[Array], size: int, top: TextLayers | None) -> Array:
    """float32 (n, size), the mean over each text's tokens, of states that are means already or still have layers before them."""
    if top is not None:
        return top.of(read)
    return np.array([each[0] for each in read], np.float32).reshape(len(read), size)


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
        weight: Array = self._of(catalogue).network.items.weight.detach().cpu().numpy()
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
    encoder = encoders.load(params.model_name_or_path, chosen.trained_layers)
    states = _states(encoder, params)
    tell = lambda done, of: progress(READING * done / of, f"{done} of {of} item texts encoded")  # noqa: E731
    top = TextLayers.pretrained(encoder) if chosen.trained_layers else None
    vectors, held, read = TextVectors.learn(states, texts, tell, top)
    build = lambda ranking, _items, types: TextNetwork(ranking, types, torch.from_numpy(held), top, read)  # noqa: E731
    rest = lambda done, text: progress(READING + (1 - READING) * done, text)  # noqa: E731
    model = fit_next_item(build, data, chosen, seed, rest, checkpoint)
    items = model.network.items
    assert isinstance(items, TextItems)
    items.texts = None
    return FittedItemText(vectors, model, params, digests(texts))


def load(artefact: Artefact) -> FittedItemText:
    """What ``FittedItemText.save`` wrote. Raises PluginError where the encoder is missing or is another one."""
    stored = json.loads(artefact.texts[ITEM_TEXT])
    params = BertParams.model_validate(stored["params"])
    layers = _ranking(params).trained_layers
    encoder = encoders.found(artefact, params, stored["encoder"], layers)
    known, mean, scale = (artefact.arrays[name] for name in ("known", "mean", "scale"))
    if known.dtype != np.uint8 or known.shape[1:] != (DIGEST,) or any(each.shape != (encoder.size,) for each in (mean, scale)):
        raise PluginError(
            f"digests of texts are {known.dtype.name} {list(known.shape)}, mean and scale {list(mean.shape)} and {list(scale.shape)}; "
            f"expected uint8 [n, {DIGEST}] and the encoder's width {encoder.size}; restore the artefact, or train again"
        )

    def build(ranking: Any, _items: int, types: int) -> TextNetwork:
        top = TextLayers(encoder.config, layers) if layers else None
        return TextNetwork(ranking, types, torch.zeros(len(known), encoder.size), top)

    model = load_next_item(build, TextRanking, artefact.part("model"))
    items = model.network.items
    assert isinstance(items, TextItems)
    return FittedItemText(TextVectors(_states(encoder, params), mean, scale, items.top), model, params, known)


def digests(texts: Sequence[str]) -> Array:
    """uint8 (n, 16)."""
    made = b"".join(hashlib.sha256(text.encode()).digest()[:DIGEST] for text in texts)
    return np.frombuffer(made, np.uint8).reshape(len(texts), DIGEST)


def _states(encoder: Encoder, params: BertParams) -> States:
    kind: Kind = "tokens" if _ranking(params).trained_layers else "pooled"
    return States(encoder, kind, encoder.frozen_layers, params.cache_mb)


def _ranking(params: BertParams) -> TextRanking:
    assert isinstance(params.ranking, TextRanking)
    return params.ranking
