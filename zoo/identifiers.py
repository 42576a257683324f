"""The identifiers behind a vocabulary's codes: by them a model means the same in a log that gave out other codes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import ArtefactError, FeatureError
from zoo.plugin import PADDING, UNKNOWN, Array, Artefact
from zoo.vocabulary import FIRST, Vocabulary

if TYPE_CHECKING:
    from zoo.events.dictionary import Dictionary
    from zoo.events.log import EventLog

FILE = "identifiers.json"
USERS, ITEMS, TYPES, EVENTS = "user_id", "item_id", "event_type", "events."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identifiers:
    """of: dictionary name -> Arrow int64 or large_string (n,), in the order of the vocabulary's codes, none null."""

    of: Mapping[str, Any]

    @staticmethod
    def behind(vocabulary: Vocabulary, log: EventLog) -> Identifiers:
        """What the codes mean in the log that they are of. Raises FeatureError where some of it was forgotten meanwhile."""
        found = {}
        for name, codes in vocabulary.kept.items():
            ids = log.dictionary(name).decode(codes)
            if ids.null_count:
                raise FeatureError(
                    f"{ids.null_count} identifiers of {name} that the model was trained on were forgotten while it was (zoo forget); "
                    "train again"
                )
            found[name] = _large(ids)
        return Identifiers(found)

    def save(self) -> Artefact:
        names, arrays = sorted(self.of), {}
        for at, name in enumerate(names):
            ids = self.of[name]
            if _is_int(ids):
                arrays[f"numbers/{at}"] = np.asarray(ids)
                continue
            offsets = (
                np.frombuffer(ids.buffers()[1], np.int64, len(ids) + 1, ids.offset * 8) if len(ids) else np.zeros(1, np.int64)
            )
            content = ids.buffers()[2]
            texts = np.zeros(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)
            arrays[f"texts/{at}"] = texts[offsets[0] : offsets[-1]].copy()
            arrays[f"offsets/{at}"] = offsets - offsets[0]
        return Artefact(arrays, {FILE: json.dumps(names)})

    @staticmethod
    def load(artefact: Artefact, vocabulary: Vocabulary) -> Identifiers | None:
        """What ``save`` wrote; None where nothing is there, as of old versions. Raises ArtefactError where it is not this vocabulary's."""
        if FILE not in artefact.texts:
            return None
        try:
            names = json.loads(artefact.texts[FILE])
            if names != sorted(vocabulary.kept):
                raise ValueError(f"dictionaries {str(names)[:200]}, and those of the vocabulary are {sorted(vocabulary.kept)}")
            found = {name: _stored(artefact.arrays, at, len(vocabulary.kept[name])) for at, name in enumerate(names)}
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise ArtefactError(
                f"not the identifiers of a vocabulary: {str(error)[:300]}; expected {FILE} with its dictionaries, and of each either "
                "numbers/N int64, or texts/N uint8 in UTF-8 and offsets/N int64; restore it, or train again"
            ) from error
        return Identifiers(found)

    def translated(self, vocabulary: Vocabulary, log: EventLog, who: str) -> Vocabulary:
        """The vocabulary in a log's codes; the very same where that log has these codes.

        A user, or a text of a table beside the log, that the log does not have is without a code (0): people are forgotten, and tables are
        replaced whole, so no row of this log holds it. So are texts of events, up to as many as were forgotten. Raises FeatureError for
        any other that is missing, with who is asked (``churn@3``), how many, and one of them.
        """
        kept = {}
        for name, codes in vocabulary.kept.items():
            found = self._codes(name, codes, log, who)
            if found is not codes:
                kept[name] = found
        return Vocabulary({**vocabulary.kept, **kept}) if kept else vocabulary

    def _codes(self, name: str, codes: Array, log: EventLog, who: str) -> Array:
        """int32 (n,): the log's codes of a dictionary's identifiers; the array given where they are the same."""
        ids = self.of[name]
        try:
            dictionary: Dictionary | None = log.dictionary(name)
        except FeatureError:  # a column or table that this log has not
            dictionary = None
        if dictionary is not None and (dictionary.kind == "int") != _is_int(ids):
            raise FeatureError(
                f"identifiers of {name} are {dictionary.kind} in this log, and {who} was trained on {_kind(ids)}: it is another log. "
                f"{_remedy(who)}"
            )
        if dictionary is not None and _same(dictionary, codes, ids):
            return codes
        found = np.full(len(ids), UNKNOWN, np.int32) if dictionary is None else _found(dictionary, ids)
        if np.bincount(found)[FIRST:].max(initial=0) > 1:
            raise ArtefactError(f"an identifier of {name} is in the vocabulary of {who} twice; restore it, or train again")
        gone = np.flatnonzero(found == UNKNOWN)
        if not len(gone):
            return found
        strict = name in (ITEMS, TYPES) or name.startswith(EVENTS)
        told = (
            f"{len(gone):,} of {len(ids):,} identifiers of {name} that {who} was trained on are not in this log, for instance "
            f"{ids[gone[0]].as_py()!r}"
        )
        if strict and len(gone) > (0 if dictionary is None else dictionary.values.null_count):
            raise FeatureError(f"{told}: it is another log. {_remedy(who)}")
        if not strict and name != USERS:
            _log.warning("%s; no row can hold them, so the answers do without", told)
        return np.where(found == UNKNOWN, PADDING, found).astype(np.int32)


def _same(dictionary: Dictionary, codes: Array, ids: Any) -> bool:
    """Whether the codes mean these identifiers; those that were forgotten mean nobody, here as there."""
    import pyarrow.compute as pc

    if codes.max(initial=0) >= dictionary.size:
        return False
    return bool(pc.all(pc.equal(_large(dictionary.decode(codes)), ids), min_count=0).as_py())


def _found(dictionary: Dictionary, ids: Any) -> Array:
    """int32 (n,): codes of identifiers, UNKNOWN of those that are not there. ``Dictionary.encode`` looks for repeats first."""
    import pyarrow.compute as pc

    index = pc.index_in(ids, value_set=_large(dictionary.values), skip_nulls=True)
    return np.asarray(index.fill_null(UNKNOWN - FIRST), np.int32) + FIRST


def _stored(arrays: Mapping[str, Array], at: int, length: int) -> Any:
    """Arrow (length,) of one dictionary's arrays. Raises KeyError or ValueError."""
    import pyarrow as pa

    def checked(name: str, dtype: str, size: int | None) -> Array:
        array = arrays[f"{name}/{at}"]
        if array.dtype != dtype or array.ndim != 1 or size not in (None, len(array)):
            raise ValueError(f"{name}/{at} is {array.dtype.name} {list(array.shape)}; expected {dtype} [{size or 'n'}]")
        return np.ascontiguousarray(array)

    if f"numbers/{at}" in arrays:
        return pa.array(checked("numbers", "int64", length))
    offsets, texts = checked("offsets", "int64", length + 1), checked("texts", "uint8", None)
    if offsets[0] != 0 or offsets[-1] != len(texts) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets/{at} do not rise from 0 to {len(texts)}, the number of bytes of texts/{at}")
    found = pa.LargeStringArray.from_buffers(length, pa.py_buffer(offsets), pa.py_buffer(texts))
    found.validate(full=True)  # ArrowInvalid, a ValueError, where it is no UTF-8
    return found


def _large(ids: Any) -> Any:
    """Texts with offsets of 64 bits, as they are stored; numbers as they are."""
    import pyarrow as pa

    return ids if _is_int(ids) else ids.cast(pa.large_string())


def _is_int(ids: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(ids.type))


def _kind(ids: Any) -> str:
    return "int" if _is_int(ids) else "string"


def _remedy(who: str) -> str:
    return f"Ingest the files that it was trained on, or train here: zoo train {who.partition('@')[0]}"
