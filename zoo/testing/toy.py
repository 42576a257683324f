"""A small shop for tests: the same items and rules for every seed, other shoppers for each. It knows no log and no Feast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zoo.contract import PADDING, UNKNOWN, Array, Block, Catalogue, Column, FeatureBatch, Target, TargetKind, TrainingData
from zoo.errors import UsageError

DAY = 86_400.0
CLASSES = ("lapses", "buys once", "buys often")
KINDS: tuple[TargetKind, ...] = ("binary", "multiclass", "value", "ranking", "relevance")
"""Kinds of target that there are toy rows of."""
EVENT_TYPES = ("", "?", "view", "cart", "purchase")
CATEGORIES = ("", "?", "bakery", "dairy", "fruit", "garden", "paper", "toys")
NAMES = {
    "bakery": "rye bread, wheat rolls, butter croissant, oat biscuits, apple cake",
    "dairy": "whole milk, goat cheese, plain yoghurt, salted butter, sour cream",
    "fruit": "red apples, ripe bananas, sweet grapes, green pears, fresh figs",
    "garden": "clay pot, grass seed, hand rake, watering can, tulip bulbs",
    "paper": "lined notebook, wrapping paper, gift cards, tissue box, paper plates",
    "toys": "wooden train, card game, rag doll, kite, jigsaw puzzle",
}
GROUP_SIZE = 5
ITEMS = sum(text.count(",") + 1 for text in NAMES.values())
FOLLOWS = 0.6
"""How often, in rows of kind ``ranking``, an item is the successor of the one before it."""
SUCCESSOR = np.concatenate([[PADDING, UNKNOWN], (np.arange(ITEMS) * 7 + 3) % ITEMS + 2]).astype(np.int32)
"""int32, by item code: the item that tends to follow."""
PURCHASE = EVENT_TYPES.index("purchase")
START = 1_700_000_000_000_000


def toy(n: int = 400, seed: int = 0, kind: TargetKind = "binary") -> TrainingData:
    """``n`` labelled rows whose label depends on the shopper's sequence; the same ``n`` and ``seed`` give the same features.

    user: line-level sequences ``items``, ``event_types``, ``categories``, ``values``, ``gaps``, ``ages`` (one set of offsets) and
    visit-level ``visit_gaps``, ``visit_values``, ``visit_items``, ``visit_ages`` (another), windows, recency (NaN where there is
    no event) and profile codes; about seven stored rows for ten rows, and one in twelve without any event. item: a candidate,
    shared by many rows. pair and context: a value a row, text among them. Gaps and ages in seconds, ``as_of`` in microseconds.
    kind: for ``relevance`` every ``GROUP_SIZE`` rows share a shopper and ``n`` is rounded up to whole groups; for ``ranking`` an item
    often follows from the one before it, and some items are popular.
    """
    if kind not in KINDS:
        raise UsageError(f"no toy data of kind {kind!r}; choose one of: {', '.join(sorted(KINDS))}")
    rng = np.random.default_rng([seed, 4])
    if kind == "relevance":
        n = -(-n // GROUP_SIZE) * GROUP_SIZE
    stored = max(1, n // GROUP_SIZE if kind == "relevance" else round(0.7 * n))
    catalogue = _catalogue()
    user, liking = _users(stored, rng, catalogue)
    if kind == "ranking":
        user = _chained(user, np.random.default_rng([seed, 5]), catalogue)
    as_of = START + rng.integers(0, round(60 * DAY), stored) * 1_000_000
    newest = np.where(np.isnan(user["user_recency"].values), -1, as_of - np.nan_to_num(user["user_recency"].values * 1e6))
    shoppers = np.repeat(np.arange(stored), GROUP_SIZE) if kind == "relevance" else _shared(n, stored, rng)
    candidates = rng.integers(2, catalogue.size("item_id"), n)
    batch = FeatureBatch(
        {"user": user, "item": _candidates(catalogue), "pair": _pairs(n, rng), "context": _context(n, rng)},
        {
            "user": shoppers.astype(np.int32),
            "item": candidates.astype(np.int32),
            "pair": np.arange(n, dtype=np.int32),
            "context": np.arange(n, dtype=np.int32),
        },
        as_of[shoppers],
        newest.astype(np.int64)[shoppers],
        catalogue,
        np.arange(0, n + 1, GROUP_SIZE) if kind == "relevance" else None,
    )
    noise = rng.logistic(size=n)
    if kind == "ranking":
        target = _next_items(user, np.random.default_rng([seed, 6]))[shoppers].astype(np.float64)
    elif kind == "relevance":
        liked = _newest_category(user)[shoppers] == catalogue.items["category"].values[candidates]
        popular = batch.column("item_popularity").values
        target = (3.0 * liked + 4.0 * (popular - 0.5) - 1.0 + noise > 0).astype(np.float64)
    else:
        target = _labels(liking[shoppers], noise, kind)
    target_kind = Target(kind, classes=CLASSES if kind == "multiclass" else ())
    return TrainingData(batch, target, np.ones(n), batch.as_of, target_kind)


def with_member_scores(data: TrainingData, seed: int = 0) -> TrainingData:
    """The rows as a final model gets them: beside the features, what two members of unlike skill scored, ``score:MEMBER[:CLASS]``."""
    rng = np.random.default_rng([seed, 9])
    width = data.kind.width
    truth = (data.target[:, None] == np.arange(width)).astype(np.float64) if width > 1 else data.target[:, None]
    block: dict[str, Column] = {}
    for name, noise in (("skilled", 0.8), ("poor", 2.0)):
        scores = truth * 2 + noise * rng.normal(size=truth.shape)
        if width > 1:
            scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        elif data.kind.kind == "binary":
            scores = 1 / (1 + np.exp(1 - scores))
        block |= {f"score:{name}:{k}" if width > 1 else f"score:{name}": Column(scores[:, k].copy()) for k in range(width)}
    return replace(data, batch=data.batch.with_block("members", block))


def _labels(liking: Array, noise: Array, kind: TargetKind) -> Array:
    """float64 (n,) of a standardised liking and standard logistic noise."""
    if kind == "binary":
        return (2.5 * liking + noise > 0).astype(np.float64)
    if kind == "multiclass":
        return np.digitize(2.5 * liking + noise, [-1.5, 1.5]).astype(np.float64)
    amounts: Array = np.round(np.maximum(0.0, 20 + 12 * liking + 2 * noise), 2)
    return amounts


def _catalogue() -> Catalogue:
    titles = [(category, title) for category, text in NAMES.items() for title in text.split(", ")]
    category = np.array([0, 1, *(CATEGORIES.index(name) for name, _ in titles)], np.int32)
    price = np.array([np.nan, np.nan, *(1.5 + 0.75 * (number % 9) for number in range(len(titles)))])
    names = {
        "item_id": _text("", "?", *(title for _, title in titles)),
        "event_type": _text(*EVENT_TYPES),
        "items.category": _text(*CATEGORIES),
        "users.age": _text("", "?", "18-24", "25-44", "45-64", "65+"),
        "users.region": _text("", "?", "north", "south"),
        "channel": _text("", "?", "web", "app", "store"),
    }
    items = {
        "title": Column(names["item_id"]),
        "category": Column(category, dictionary="items.category"),
        "price": Column(price),
    }
    return Catalogue(names, items)


def _users(stored: int, rng: np.random.Generator, catalogue: Catalogue) -> tuple[Block, Array]:
    """The user block, and float64 (stored,): how much its sequences speak for buying, about standard normal."""
    keen = rng.normal(size=stored)
    visits = np.where(rng.random(stored) < 1 / 12, 0, 1 + rng.poisson(3 + 2 / (1 + np.exp(-keen))))
    owner = np.repeat(np.arange(stored), visits)
    pause = np.round(rng.exponential(9 * DAY * np.exp(-0.6 * keen[owner])) + 3600)
    # Before its own row's as_of, the newest visit last: the sum of the pauses that follow.
    visit_ages = _sums_from_the_end(pause, visits)
    lines = 1 + rng.poisson(1.5, len(owner))
    line_visit = np.repeat(np.arange(len(owner)), lines)
    line_owner = owner[line_visit]
    within = np.arange(len(line_visit)) - np.repeat(np.cumsum(lines) - lines, lines)
    ages = visit_ages[line_visit] - 20.0 * within
    bought = rng.random(len(line_owner)) < 1 / (1 + np.exp(0.4 - 1.5 * keen[line_owner]))
    event_types = np.where(bought, PURCHASE, rng.integers(2, PURCHASE, len(line_owner))).astype(np.int32)
    # Keen shoppers buy food (the first three categories), the others look at the rest.
    food = rng.random(len(line_owner)) < 1 / (1 + np.exp(-1.5 * keen[line_owner]))
    items = np.where(food, rng.integers(2, 17, len(line_owner)), rng.integers(17, 32, len(line_owner))).astype(np.int32)
    items[rng.random(len(items)) < 0.04] = PADDING
    items[rng.random(len(items)) < 0.04] = UNKNOWN
    categories = catalogue.items["category"].values[items]
    prices = np.nan_to_num(catalogue.items["price"].values[items])
    values = np.where(bought, np.round(prices * rng.integers(1, 4, len(items)), 2), 0.0)
    line_counts = np.bincount(line_owner, minlength=stored)
    per_line, per_visit = _offsets(line_counts), _offsets(visits)

    def lately(days: float, weights: Array) -> Array:
        return np.bincount(line_owner, weights * (ages < days * DAY), minlength=stored)

    recency = np.full(stored, np.nan)
    recency[line_counts > 0] = ages[per_line[1:][line_counts > 0] - 1]
    tenure = np.full(stored, np.nan)
    tenure[line_counts > 0] = ages[per_line[:-1][line_counts > 0]]
    block: Block = {
        "items": Column(items, per_line, "item_id"),
        "event_types": Column(event_types, per_line, "event_type"),
        "categories": Column(categories, per_line, "items.category"),
        "values": Column(values, per_line),
        "gaps": Column(_gaps(ages, line_owner), per_line),
        "ages": Column(ages, per_line),
        "visit_gaps": Column(_gaps(visit_ages, owner), per_visit),
        "visit_values": Column(np.bincount(line_visit, values, minlength=len(owner)), per_visit),
        "visit_items": Column(lines, per_visit),
        "visit_ages": Column(visit_ages, per_visit),
        "user_purchases_28d": Column(lately(28, bought).astype(np.int64)),
        "user_events_7d": Column(lately(7, np.ones(len(ages))).astype(np.int64)),
        "user_spend_28d": Column(lately(28, values)),
        "user_recency": Column(recency),
        "user_tenure": Column(tenure.astype(np.float32)),
        "user_age": Column(rng.integers(0, 6, stored).astype(np.int32), dictionary="users.age"),
        "user_region": Column(rng.integers(0, 4, stored).astype(np.int32), dictionary="users.region"),
    }
    share = np.bincount(line_owner, bought, minlength=stored) / np.maximum(line_counts, 1)
    ends_in_purchase = np.zeros(stored)
    ends_in_purchase[line_counts > 0] = bought[per_line[1:][line_counts > 0] - 1]
    liking = (
        2.2 * (share - 0.5) + 0.6 * (ends_in_purchase - 0.5) + 0.25 * (2.0 - np.log1p(np.nan_to_num(recency, nan=60 * DAY) / DAY))
    )
    return block, liking / 0.9


def _chained(user: Block, rng: np.random.Generator, catalogue: Catalogue) -> Block:
    """The block with items of which each is likely the successor of the one before it."""
    column = user["items"]
    assert column.offsets is not None
    items = column.values.copy()
    known = items >= 2
    items[known] = _popular(int(known.sum()), rng)
    follows = rng.random(len(items)) < FOLLOWS
    first = set(column.offsets[:-1].tolist())
    for at in range(1, len(items)):
        if follows[at] and known[at] and known[at - 1] and at not in first:
            items[at] = SUCCESSOR[items[at - 1]]
    categories = catalogue.items["category"].values[items]
    return {**user, "items": replace(column, values=items), "categories": replace(user["categories"], values=categories)}


def _next_items(user: Block, rng: np.random.Generator) -> Array:
    """int32 (stored,): the item after the newest one."""
    newest = user["items"].padded(1)[:, 0]
    follows = (rng.random(len(newest)) < FOLLOWS) & (newest >= 2)
    return np.where(follows, SUCCESSOR[newest], _popular(len(newest), rng)).astype(np.int32)


def _popular(n: int, rng: np.random.Generator) -> Array:
    """int32 (n,): item codes drawn in proportion to 1, 1/2, 1/3, ..."""
    share = 1 / np.arange(1, ITEMS + 1)
    return rng.choice(np.arange(2, ITEMS + 2, dtype=np.int32), n, p=share / share.sum())


def _candidates(catalogue: Catalogue) -> Block:
    codes = np.arange(catalogue.size("item_id"), dtype=np.int32)
    return {
        "item": Column(codes, dictionary="item_id"),
        "item_category": Column(catalogue.items["category"].values, dictionary="items.category"),
        "item_price": Column(catalogue.items["price"].values),
        "item_popularity": Column(np.where(codes < 2, np.nan, codes * 7 % 10 / 9)),
    }


def _pairs(n: int, rng: np.random.Generator) -> Block:
    overlap = rng.random(n)
    overlap[rng.random(n) < 0.2] = np.nan
    return {"pair_overlap": Column(overlap), "pair_contacts": Column(rng.poisson(2.0, n))}


def _context(n: int, rng: np.random.Generator) -> Block:
    queries = _text("", "milk", "garden tools", "gifts for children")
    return {
        "channel": Column(rng.integers(2, 5, n).astype(np.int32), dictionary="channel"),
        "query": Column(queries[rng.integers(0, len(queries), n)]),
    }


def _newest_category(user: Block) -> Array:
    return user["categories"].padded(1)[:, 0]


def _shared(n: int, stored: int, rng: np.random.Generator) -> Array:
    """Every stored row at least once, some more often, in any order."""
    return rng.permutation(np.concatenate([np.arange(min(n, stored)), rng.integers(0, stored, max(0, n - stored))]))


def _sums_from_the_end(values: Array, lengths: Array) -> Array:
    total = np.cumsum(values[::-1])[::-1]
    after = np.append(total, 0.0)[np.cumsum(lengths)]
    sums: Array = np.round(total - np.repeat(after, lengths))
    return sums


def _gaps(ages: Array, owner: Array) -> Array:
    """Seconds since the owner's previous event; NaN for the first."""
    gaps = np.full(len(ages), np.nan)
    same = owner[1:] == owner[:-1]
    gaps[1:][same] = (ages[:-1] - ages[1:])[same]
    return gaps


def _offsets(lengths: Array) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _text(*values: str) -> Array:
    out = np.empty(len(values), object)
    out[:] = values
    return out
