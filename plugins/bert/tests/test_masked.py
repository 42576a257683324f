"""Masked items: what is hidden, that the place of an event counts from the end, and what follows an item is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from zoo_bert import Bert
from zoo_bert.masked import MaskedNetwork
from zoo_bert.params import BertParams, ItemRanking, TextRanking

from zoo.nextitem.network import Tokens
from zoo.plugin import UNKNOWN, Target
from zoo.testing import toy

TINY = Bert().tiny()
RANKING: Any = TINY.ranking


def tokens(lengths: list[int]) -> Tokens:
    """Events of items 2, 3, ... behind a start, padded at the end."""
    length = torch.tensor(lengths)
    place = torch.arange(max(lengths))
    items = torch.where((place > 0) & (place < length[:, None]), place + 1, 0)
    return Tokens(items, (items > 0).long() * 2, (items > 0).long() * 3, length)


def network(**changes: Any) -> MaskedNetwork:
    torch.manual_seed(0)
    return MaskedNetwork(RANKING.model_copy(update=changes), 30, 4).eval()


def test_events_are_hidden_with_their_type_and_gap_and_told_where_they_were() -> None:
    window = tokens([20, 12, 3])
    read, place = network(masked=0.5, newest=0.0).pose(window)
    hidden = place >= 0
    assert hidden.any()
    assert (place[hidden] == torch.arange(20).expand(3, -1)[hidden]).all()
    assert (window.items[hidden] > UNKNOWN).all()
    assert (read.items[hidden] == UNKNOWN).all()
    assert (read.types[hidden] == 0).all()
    assert (read.gaps[hidden] == 0).all()
    for name in ("items", "types", "gaps"):
        assert (getattr(read, name)[~hidden] == getattr(window, name)[~hidden]).all()


def test_as_in_scoring_only_the_newest_event_is_hidden() -> None:
    window = tokens([20, 12, 3])
    read, place = network(newest=1.0).pose(window)
    assert [row[row >= 0].tolist() for row in place] == [[19], [11], [2]]
    shorter = Tokens(*(each.clone() for each in (window.items, window.types, window.gaps)), window.length - 1)
    shorter.items[torch.arange(3), shorter.length] = 0
    asked = network().ask(shorter)
    assert (asked.items[:, :20] == read.items).all()
    assert asked.length.tolist() == [20, 12, 3]


@pytest.mark.parametrize("nearer", [0.0, 1.0])
def test_padding_and_the_distance_from_the_start_change_no_state(nearer: float) -> None:
    model = network(layers=2, nearer=nearer)
    torch.manual_seed(1)
    vectors = torch.randn(1, 6, RANKING.width)
    padded = torch.cat([vectors, torch.randn(1, 5, RANKING.width)], 1)
    both = torch.cat([padded, torch.randn(1, 11, RANKING.width)])
    with torch.inference_mode():
        alone = model.states(vectors, torch.tensor([6]))
        beside = model.states(both, torch.tensor([6, 11]))[:1, :6]
    torch.testing.assert_close(beside, alone)


def test_leftward_every_event_is_asked_for_by_a_mask_behind_those_before_it() -> None:
    window = tokens([6, 4])
    read, place = network(leftward=1.0).pose(window)
    assert read.items.tolist() == [[0, 2, 3, 4, 5, 6, *[UNKNOWN] * 5], [0, 2, 3, 4, 0, 0, *[UNKNOWN] * 5]]
    assert place.tolist() == [[*[-1] * 6, 1, 2, 3, 4, 5], [*[-1] * 6, 1, 2, 3, -1, -1]]


@pytest.mark.parametrize("nearer", [0.0, 1.0])
def test_leftward_the_state_that_training_learns_from_is_the_one_that_scoring_asks(nearer: float) -> None:
    model = network(layers=2, leftward=1.0, nearer=nearer)
    with torch.inference_mode():
        read, place = model.pose(tokens([6, 4]))
        learnt = model.encode(read)
        for row, length in enumerate((6, 4)):
            newest = learnt[row, (place[row] == length - 1).nonzero().item()]
            shorter = tokens([length - 1])
            asked = model.ask(shorter)
            torch.testing.assert_close(model.encode(asked)[0, asked.length[0] - 1], newest)
            padded = (torch.cat([e, e.new_ones(1, 3)], 1) for e in (shorter.items, shorter.types, shorter.gaps))
            wider = model.ask(Tokens(*padded, shorter.length))
            torch.testing.assert_close(model.encode(wider)[0, wider.length[0] - 1], newest)


def test_leftward_what_stands_behind_an_event_changes_nothing_that_asks_for_it() -> None:
    model = network(layers=2, leftward=1.0)
    window, other = tokens([8]), tokens([8])
    other.items[0, 5:] = 20
    with torch.inference_mode():
        one, two = (model.encode(model.pose(each)[0]) for each in (window, other))
    assert torch.equal(one[:, :5], two[:, :5])
    assert torch.equal(one[:, 8 : 8 + 5], two[:, 8 : 8 + 5])  # the masks for events 1 to 5, the fifth of which sees 0 to 4
    assert not torch.equal(one[:, 8 + 5], two[:, 8 + 5])


def test_batches_take_turns_between_both_sides_and_one() -> None:
    torch.manual_seed(0)
    model = network(leftward=0.5)
    widths = [model.pose(tokens([8]))[0].items.shape[1] for _ in range(30)]
    assert set(widths) == {8, 15}


@pytest.mark.parametrize(("leftward", "nearer"), [(0.0, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_what_follows_an_item_is_found_and_saved(leftward: float, nearer: float) -> None:
    data, fresh = toy(300, 0, "ranking"), toy(100, 1, "ranking")
    params = TINY.model_copy(
        update={"ranking": RANKING.model_copy(update={"epochs": 40, "patience": 40, "leftward": leftward, "nearer": nearer})}
    )
    model = Bert().fit(data, params=params, seed=0, progress=lambda done, text: None)
    told = model.predict(fresh.batch)[:, 2:].argmax(1) + 2
    assert (told == fresh.target).mean() > 0.2  # the most popular item: 0.11
    np.testing.assert_array_equal(Bert().load(model.save()).predict(fresh.batch), model.predict(fresh.batch))
    assert data.kind == Target("ranking")


def test_the_mode_is_items_unless_it_is_said() -> None:
    assert BertParams.model_validate({"ranking": {"width": 32}}).ranking == ItemRanking(width=32)
    text = BertParams.model_validate({"ranking": {"mode": "text", "fades": 3}})
    assert text.ranking == TextRanking(fades=3)
    assert BertParams.model_validate_json(text.model_dump_json()) == text
    with pytest.raises(ValidationError, match="width 10 does not divide into 4 heads"):
        ItemRanking(width=10, heads=4)
    with pytest.raises(ValidationError, match="mode"):
        BertParams.model_validate({"ranking": {"mode": "pictures"}})
