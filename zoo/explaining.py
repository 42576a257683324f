"""What moved a prediction: members of the stack, columns of each member, and single events; and what moves predictions on the whole.

Members are weighed by Shapley values of the final model (Lundberg and Lee, 2017), columns by the model's own account where it gives one
(``Explains``; TreeSHAP for trees), else by leaving one out at a time, events by leaving one out at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from zoo.calibration import logits
from zoo.deadline import left
from zoo.errors import LateError
from zoo.finals import Scores
from zoo.fitting import Averaged
from zoo.plugin import PADDING, Array, Block, Column, Contributions, Explains, FeatureBatch, FittedModel, Target
from zoo.stacking import Ensemble, Fitted

EXACT = 8
"""Members up to which every coalition is asked; of more, ORDERS random orders."""
ORDERS = 64
SAMPLE = 200
"""Rows over which importance is averaged, at most."""
BUDGET = 5.0
"""Seconds that importance may take for a member that does not explain itself."""
KEPT = 30
"""Columns of a member that importance keeps."""
SHAP, OWN, LEFT_OUT = "TreeSHAP", "the model's own account", "leaving out one column at a time"
SOFTMAX = "TreeSHAP, of scores before the softmax"
"""Of trees for several classes: a class's score there is no log-odds, for adding the same to all classes changes nothing."""


@dataclass(frozen=True)
class Explanation:
    """Of one row and one output. Everything is on the scale of ``raw``, log-odds of probabilities, the value itself of values, but for
    columns of which ``how`` says another one.

    members: name -> how much it moved the stack; they sum to ``raw - base``, base being the stack's answer where every member gives
    the base rate. features: member -> (column, how much it moved that member's own raw score), the strongest first. how: member ->
    how its columns were weighed. events: newest first within a sequence; ``moved`` by line (``stack`` and members): how much less it
    would be without that event. source: where the features came from, as ``features`` of an answer: ``fresh`` or, while the store is
    down, ``last_known`` or ``cold``. known: False of a user without events before the instant, answered as new; None where the store did
    not say. units: of ``raw`` and all that moved it, ``log-odds`` or ``value``. id: of this answer, as of a prediction.
    """

    output: str | None
    score: float
    raw: float
    base: float
    members: Mapping[str, float]
    features: Mapping[str, Sequence[tuple[str, float]]]
    how: Mapping[str, str]
    events: Sequence[Mapping[str, Any]]
    source: str = "fresh"
    known: bool | None = None
    units: str = "log-odds"
    id: str = field(default="", compare=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        features = {name: [{"column": c, "moved": v} for c, v in columns] for name, columns in self.features.items()}
        return {
            **vars(self),
            "members": dict(self.members),
            "how": dict(self.how),
            "features": features,
            "events": list(self.events),
        }


def explain(
    ensemble: Ensemble,
    batch: FeatureBatch,
    rates: Array,
    *,
    sequences: Sequence[Sequence[str]] = (),
    output: int | None = None,
    top: int = 10,
    events: int = 10,
) -> list[Explanation]:
    """An explanation a row of a batch in the log's codes.

    rates: float (k,), the base rate of each output. sequences: columns whose entries are of the same events, by event kind. output:
    which of k outputs; default: each row's largest. top: columns of each member. events: newest ones of each sequence. Raises LateError
    past the deadline of ``zoo.deadline.until``.
    """
    scores = ensemble.member_scores(batch)
    final = ensemble.combine(batch, scores)
    asked = final.argmax(axis=1) if output is None else np.full(len(batch), output)
    rows, scale = np.arange(len(batch)), _scale(ensemble.target)
    raw = scale(final)[rows, asked]
    base, moved = shapley(ensemble, batch, scores, rates)
    without = _without_events(ensemble, batch, sequences, events)
    known = ensemble.vocabulary.apply(batch)
    found = {m.name: columns_of(m, known, ensemble.target) for m in ensemble.members}
    outputs = ensemble.target.classes or ensemble.target.horizons
    out = []
    for row, k in enumerate(asked.tolist()):
        features = {}
        for name, (_, names, values) in found.items():
            order = np.argsort(-np.abs(values[row, k]), kind="stable")[:top]
            features[name] = [(names[at], float(values[row, k, at])) for at in order if values[row, k, at]]
        out.append(
            Explanation(
                outputs[k] if ensemble.target.width > 1 else None,
                float(final[row, k]),
                float(raw[row]),
                float(base[row, k]),
                {m.name: float(moved[row, at, k]) for at, m in enumerate(ensemble.members)},
                features,
                {name: how for name, (how, _, _) in found.items()},
                _events(batch, without, row, k, raw[row], scale(scores)[row, :, k], ensemble.members, scale),
                units=_units(ensemble.target),
            )
        )
    return out


def _in_time() -> None:
    """Raise LateError past the deadline of this thread's work, of which each step is a prediction."""
    if left() == 0:
        raise LateError("the explanation was not there by the deadline")


def rates(record: Mapping[str, Any], target: Target) -> Array:
    """float64 (k,): the base rate of each output by a training record, else alike for all; 0 of values."""
    if target.kind == "binary":
        return np.full(target.width, float(record.get("base_rate") or 0.5))
    if target.kind == "multiclass":
        shares = record.get("classes") or dict.fromkeys(target.classes, 1 / target.width)
        return np.array([float(shares[name]) for name in target.classes])
    return np.zeros(target.width)


def importance(ensemble: Ensemble, batch: FeatureBatch, rates: Array) -> dict[str, Any]:
    """How much members and columns move scores on the whole, JSON-ready: mean absolute contributions over a sample of the rows.

    ``units``: as of ``Explanation``. ``members``: name -> of the stack's raw score. ``features``: member -> ``how``, ``rows`` and
    ``columns``, the strongest first; of a member that does not explain itself as many rows as ``BUDGET`` allows, none where it allows
    fewer than five.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(batch))[:SAMPLE])
    batch = batch.take(rows).compact()
    _, moved = shapley(ensemble, batch, ensemble.member_scores(batch), rates)
    strength = np.abs(moved).mean(axis=(0, 2)) if len(batch) else np.zeros(len(ensemble.members))
    known = ensemble.vocabulary.apply(batch)
    features: dict[str, Any] = {}
    for member in ensemble.members:
        own = known
        if account(member.fitted, known.select(member.inputs).take(np.zeros(0, np.int64))) is None:
            few = known.take(np.arange(min(20, len(known))))
            started = perf_counter()
            member.fitted.predict(few.select(member.inputs))
            each = (perf_counter() - started) / max(1, len(few)) * (1 + len(_groups(known.select(member.inputs))))
            own = known.take(np.arange(min(len(known), int(BUDGET / max(each, 1e-9)))))
            if len(own) < min(5, len(known)):
                features[member.name] = {"how": f"not measured: a row takes {each:.1f} s", "rows": 0, "columns": {}}
                continue
        how, names, values = columns_of(member, own, ensemble.target)
        mean = np.abs(values).mean(axis=(0, 1)) if len(own) else np.zeros(len(names))
        order = np.argsort(-mean, kind="stable")[:KEPT]
        features[member.name] = {
            "how": how,
            "rows": len(own),
            "columns": {names[at]: float(mean[at]) for at in order if mean[at]},
        }
    moves = {m.name: float(s) for m, s in zip(ensemble.members, strength, strict=True)}
    return {"units": _units(ensemble.target), "members": moves, "features": features}


def over_folds(scores: Scores, final: str, ensemble: Ensemble) -> dict[str, Any]:
    """How the members' part in a stack settles, JSON-ready: ``rows``, how many out-of-fold rows the first fold, the first two folds and so
    on have, and ``shares`` by member, what of the movement of a final model fitted on these is its. Empty of one member.
    """
    names = [member.name for member in ensemble.members]
    if len(names) < 2:
        return {}
    scores = replace(scores, oof=scores.oof.only(names))
    fold, counts, shares = scores.oof.fold, [], []
    for number in range(int(fold.max(initial=-1)) + 1):
        rows = np.flatnonzero((fold >= 0) & (fold <= number))
        fitted = replace(ensemble, final=scores.fit(final, rows))
        some = np.sort(np.random.default_rng(0).permutation(rows)[:SAMPLE])
        given = scores.oof.scores[some].astype(np.float32)
        moved = np.abs(shapley(fitted, scores.data.batch.take(some), given, given.mean(axis=(0, 1)))[1]).mean(axis=(0, 2))
        counts.append(len(rows))
        shares.append((moved / max(float(moved.sum()), 1e-12)).tolist())
    return {"rows": counts, "shares": {name: [each[at] for each in shares] for at, name in enumerate(names)}}


def shapley(ensemble: Ensemble, batch: FeatureBatch, scores: Array, rates: Array) -> tuple[Array, Array]:
    """How much each member moved the stack: base (n, k) and contributions (n, members, k) that sum to raw - base, float64.

    A member that is left out of a coalition says the base rate. scores: float32 (n, members, k). rates: (k,).
    """
    n, m, k = scores.shape
    scale, silent = _scale(ensemble.target), np.broadcast_to(rates.astype(np.float32), scores.shape)
    known: dict[tuple[bool, ...], Array] = {}

    def value(inside: tuple[bool, ...]) -> Array:
        if inside not in known:
            _in_time()
            known[inside] = scale(ensemble.combine(batch, np.where(np.array(inside)[None, :, None], scores, silent)))
        return known[inside]

    moved = np.zeros((n, m, k))
    nobody = (False,) * m
    if m <= EXACT:
        for number in range(2**m):
            inside = tuple(bool(number >> at & 1) for at in range(m))
            size = sum(inside)
            for at in range(m):
                if not inside[at]:
                    weight = math.factorial(size) * math.factorial(m - size - 1) / math.factorial(m)
                    moved[:, at] += weight * (value((*inside[:at], True, *inside[at + 1 :])) - value(inside))
        return value(nobody), moved
    rng = np.random.default_rng(0)
    for _ in range(ORDERS):
        inside = nobody
        for at in rng.permutation(m).tolist():
            more = (*inside[:at], True, *inside[at + 1 :])
            moved[:, at] += (value(more) - value(inside)) / ORDERS
            inside = more
    return value(nobody), moved


def columns_of(member: Fitted, known: FeatureBatch, target: Target) -> tuple[str, tuple[str, ...], Array]:
    """How a member's columns were weighed, their names, and float64 (n, k, columns), for a batch in the member's codes.

    A model's own account is on its own scale; what is left out is measured in log-odds of probabilities.
    """
    _in_time()
    batch, scale = known.select(member.inputs), _scale(target)
    said = account(member.fitted, batch)
    if said is not None:
        trees = SOFTMAX if target.kind == "multiclass" else SHAP
        return (trees if member.model == "gbdt" else OWN), said.names, said.values
    whole = scale(member.fitted.predict(batch))
    names, values = [], []
    for name, changed in _blanked(batch):
        _in_time()
        names.append(name)
        values.append(whole - scale(member.fitted.predict(changed)))
    return LEFT_OUT, tuple(names), np.stack(values, axis=2) if values else np.zeros((*whole.shape, 0))


def account(fitted: FittedModel, batch: FeatureBatch) -> Contributions | None:
    """A model's own account of its scores, of an average of several the mean of theirs; None where it gives none."""
    if isinstance(fitted, Explains):
        return fitted.explain(batch)
    if not isinstance(fitted, Averaged):
        return None
    found = [account(each, batch) for each in fitted.models]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    names = tuple(dict.fromkeys(name for each in known for name in each.names))
    place, base = {name: at for at, name in enumerate(names)}, known[0].base / len(known)
    values = np.zeros((*base.shape, len(names)))
    for number, each in enumerate(known):
        values[:, :, [place[name] for name in each.names]] += each.values / len(known)
        base = base + each.base / len(known) if number else base
    return Contributions(names, values, base)


def _odds(target: Target) -> bool:
    """Whether its scores are probabilities."""
    return target.kind in ("binary", "multiclass")


def _units(target: Target) -> str:
    return "log-odds" if _odds(target) else "value"


def _scale(target: Target) -> Any:
    """From scores to where contributions add up: log-odds of probabilities, values as they are."""
    return logits if _odds(target) else lambda scores: np.asarray(scores, np.float64)


# Leaving out


def _groups(batch: FeatureBatch) -> list[tuple[str, list[str]]]:
    """(entity, columns) that are left out together: one value column, or sequences of equal offsets."""
    out: list[tuple[str, list[str]]] = []
    for entity, block in batch.blocks.items():
        sequences: list[list[str]] = []
        for name, column in block.items():
            if column.offsets is None:
                out.append((entity, [name]))
                continue
            for group in sequences:
                other = block[group[0]].offsets
                if other is not None and np.array_equal(other, column.offsets):
                    group.append(name)
                    break
            else:
                sequences.append([name])
        out += [(entity, group) for group in sequences]
    return out


def _blanked(batch: FeatureBatch) -> Iterator[tuple[str, FeatureBatch]]:
    """The batch without one column, or without one group of sequences, at a time: as if nothing were known there."""
    for entity, names in _groups(batch):
        block = dict(batch.blocks[entity])
        for name in names:
            block[name] = _nothing(block[name])
        yield ", ".join(names), replace(batch, blocks={**batch.blocks, entity: block})


def _nothing(column: Column) -> Column:
    if column.offsets is not None:
        return replace(column, values=column.values[:0], offsets=np.zeros(len(column) + 1, np.int64))
    if column.is_text:
        return replace(column, values=np.full(len(column), "", object))
    return replace(column, values=np.full_like(column.values, np.nan if column.values.dtype.kind == "f" else PADDING))


@dataclass(frozen=True)
class _Left:
    """What scores are without one event. columns: of its sequence. back: 0 for the newest. final: (n, k); members: (n, m, k)."""

    columns: Sequence[str]
    back: int
    final: Array
    members: Array


def _without_events(ensemble: Ensemble, batch: FeatureBatch, sequences: Sequence[Sequence[str]], events: int) -> list[_Left]:
    out = []
    for columns in sequences:
        own = [name for name in columns if name in batch and batch.stored(name)[1].is_sequence]
        if not own:
            continue
        for back in range(min(events, int(batch.column(own[0]).lengths.max(initial=0)))):
            _in_time()
            changed = _without_event(batch, own, back)
            scores = ensemble.member_scores(changed)
            out.append(_Left(own, back, ensemble.combine(changed, scores), scores))
    return out


def _without_event(batch: FeatureBatch, columns: Sequence[str], back: int) -> FeatureBatch:
    """The batch without the event ``back`` places before the newest of these sequences, where there is one."""
    blocks: dict[str, Block] = dict(batch.blocks)
    for name in columns:
        entity, column = batch.stored(name)
        offsets, lengths = column.offsets, column.lengths
        assert offsets is not None
        some = lengths > back
        keep = np.ones(len(column.values), bool)
        keep[offsets[1:][some] - 1 - back] = False
        shorter = np.concatenate([[0], np.cumsum(lengths - some)]).astype(np.int64)
        blocks[entity] = {
            **blocks[entity],
            name: replace(column, values=column.values[: offsets[-1]][keep[: offsets[-1]]], offsets=shorter),
        }
    return replace(batch, blocks=blocks)


def _events(
    batch: FeatureBatch,
    without: Sequence[_Left],
    row: int,
    k: int,
    raw: float,
    members: Array,
    names: Sequence[Fitted],
    scale: Any,
) -> list[dict[str, Any]]:
    """What each event of a row moved, for those that moved anything. members: raw scores (m,)."""
    out = []
    for each in without:
        if int(batch.column(each.columns[0]).lengths[row]) <= each.back:
            continue
        moved = {"stack": float(raw - scale(each.final[row, k]))}
        moved |= {m.name: float(members[at] - scale(each.members[row, at, k])) for at, m in enumerate(names)}
        if any(moved.values()):
            what = {name: _said(batch, name, row, each.back) for name in each.columns}
            out.append({"sequence": each.columns[0], "back": each.back, "event": what, "moved": moved})
    return out


def _said(batch: FeatureBatch, name: str, row: int, back: int) -> Any:
    """An entry of a sequence as people read it: text of a code, a number, or None."""
    column = batch.column(name)
    assert column.offsets is not None
    value = column.values[column.offsets[row + 1] - 1 - back]
    if column.dictionary is not None:
        return str(batch.catalogue.names[column.dictionary][value]) if value != PADDING else None
    if column.is_text:
        return str(value)
    return float(value) if np.isfinite(float(value)) else None  # JSON has no other
