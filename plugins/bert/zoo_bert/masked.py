"""Masked items (BERT4Rec: Sun et al. 2019): a bidirectional transformer tells hidden events of a history from those on both sides.

An event of an UNKNOWN item is one whose item is hidden, so that code serves as the mask. The next item is told by a mask at the end, behind
which nothing stands. So in a share of the batches every event is asked for as scoring asks: by a mask of its own behind the events
before it, which it sees and which do not see it. Batches of both kinds take turns as in UniLM (Dong et al. 2019, "Unified language model
pre-training"); events and the masks that ask for them are the two streams of XLNet (Yang et al. 2019). That near events matter more may
be given instead of learnt, by a slope of attention (ALiBi: Press, Smith and Lewis 2022, "Train short, test long").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.nextitem.blocks import Block
from zoo.nextitem.network import Network, Tokens
from zoo.plugin import PADDING, UNKNOWN

if TYPE_CHECKING:
    from zoo_bert.params import ItemRanking


@dataclass(frozen=True)
class Asked(Tokens):
    """Events, then masks that ask for the next one, padding between them counted into ``length``.

    before: int64 (b, q), behind how many events of its row, at least one, each mask stands. last: int64 (b,), the most of them in a row.
    """

    before: Tensor
    last: Tensor


class Behind(NamedTuple):
    """What is added where masks of ``Asked`` look: events at events (heads, t, t), and the q masks at events (b, heads, q, t)."""

    events: Tensor
    masks: Tensor


class MaskedBlock(Block):
    """Every event sees all that a mask leaves, or, ``Behind``, an event those up to itself and a mask those before it."""

    def look(self, q: Tensor, k: Tensor, v: Tensor, how: Tensor | Behind | None) -> Tensor:
        if not isinstance(how, Behind):
            return super().look(q, k, v, how)
        attend, t = functional.scaled_dot_product_attention, how.masks.shape[3]
        k, v = k[:, :, :t], v[:, :, :t]
        told = attend(q[:, :, :t], k, v, attn_mask=how.events)
        return torch.cat([told, attend(q[:, :, t:], k, v, attn_mask=how.masks)], 2)


class MaskedNetwork(Network):
    """Places are counted from the end, where the next item is asked for.

    Where masks stand behind every event and attention has a slope, that alone tells the order: embeddings of places would be learnt for
    masks all over a window, of which only the last is asked for in scoring.
    """

    def __init__(self, params: ItemRanking, items: int, types: int) -> None:
        super().__init__(params, items, types)
        self.masked, self.newest, self.leftward = params.masked, params.newest, params.leftward
        self.nearer = params.nearer
        # one head for the last events, one for the last dozens, and so on
        self.register_buffer("slope", 2.0 ** (-1.0 - 4.0 * torch.arange(params.heads)), persistent=False)
        self.slope: Tensor
        self.place = None if self.nearer and self.leftward else nn.Embedding(params.max_length + 1, params.width)
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=0.02)
        self.blocks = nn.ModuleList(MaskedBlock(params) for _ in range(params.layers))
        self.last, self.turn = nn.LayerNorm(params.width), nn.Linear(params.width, params.width)
        self.told = nn.LayerNorm(params.width)
        nn.init.normal_(self.turn.weight, std=params.width**-0.5)
        nn.init.zeros_(self.turn.bias)

    def pose(self, window: Tokens) -> tuple[Tokens, Tensor]:
        """A share ``masked`` of the events is hidden; in a share ``newest`` of the windows only the newest one, as in scoring.

        In a share ``leftward`` of the batches every event but the first is asked for by a mask behind those before it.
        """
        place = torch.arange(window.items.shape[1], device=window.items.device)
        told = (place < window.length[:, None]) & (window.items > UNKNOWN)
        if self.leftward and bool(torch.rand(()) < self.leftward):
            before = place[1:].expand(len(told), -1)
            asked = torch.cat([torch.full_like(window.items, -1), torch.where(told[:, 1:], before, -1)], 1)
            return _asked(window, before, window.length - 1), asked
        hidden = torch.rand(window.items.shape, device=place.device) < self.masked
        end = place == window.length[:, None] - 1
        hidden = torch.where(torch.rand(len(hidden), 1, device=place.device) < self.newest, end, hidden) & told
        return _masked(window, hidden), torch.where(hidden, place, -1)

    def ask(self, history: Tokens) -> Tokens:
        """The history with a hidden event after it."""
        if self.leftward:
            return _asked(history, history.length[:, None], history.length)
        room = torch.zeros_like(history.length)[:, None]
        longer = (torch.cat([each, room], 1) for each in (history.items, history.types, history.gaps))
        wide = Tokens(*longer, history.length + 1)
        place = torch.arange(wide.items.shape[1], device=room.device)
        return _masked(wide, place == history.length[:, None])

    def encode(self, tokens: Tokens) -> Tensor:
        if not isinstance(tokens, Asked):
            return super().encode(tokens)
        place = torch.arange(tokens.items.shape[1] - tokens.before.shape[1], device=tokens.items.device)
        rows = tokens.before[:1] if bool((tokens.before == tokens.before[:1]).all()) else tokens.before
        how = Behind(self._near(place, place, place <= place[:, None]), self._near(rows, place, place < rows[:, :, None]))
        back = tokens.last[:, None] - torch.cat([place.expand(len(tokens.before), -1), tokens.before], 1)
        return self._states(self.vectors(tokens), back, how)

    def states(self, vectors: Tensor, length: Tensor) -> Tensor:
        place = torch.arange(vectors.shape[1], device=length.device)
        back = length[:, None] - 1 - place
        here = back >= 0
        whole = bool(here.all())
        if self.nearer:
            how: Tensor | None = self._near(place, place, here[: 1 if whole else None, None])
        else:
            how = None if whole else here[:, None, None]
        return self._states(vectors, back, how)

    def _near(self, of: Tensor, place: Tensor, seen: Tensor) -> Tensor:
        """What is added to attention: of what stands at ``of`` (..., q) at events (t,): -inf where not seen, less the farther away else."""
        apart = (of[..., None] - place).abs()
        return torch.where(seen[..., None, :, :], -self.nearer * self.slope[:, None, None] * apart[..., None, :, :], -torch.inf)

    def _states(self, vectors: Tensor, back: Tensor, how: Tensor | Behind | None) -> Tensor:
        """back: int64 (b, t), how far each is from the end."""
        if self.place is not None:
            vectors = vectors + self.place(back.clamp(min=0))
        for block in self.blocks:
            vectors = block(vectors, how)
        told: Tensor = self.told(functional.gelu(self.turn(self.last(vectors))))
        return told


def _asked(window: Tokens, before: Tensor, last: Tensor) -> Asked:
    """The window with masks behind ``before`` (b, q) of its events. last: (b,), the place of what is asked for at the end."""
    masks = torch.full_like(before, UNKNOWN), torch.full_like(before, PADDING), torch.full_like(before, PADDING)
    longer = [torch.cat(pair, 1) for pair in zip((window.items, window.types, window.gaps), masks, strict=True)]
    return Asked(*longer, torch.full_like(last, longer[0].shape[1]), before, last)


def _masked(tokens: Tokens, hidden: Tensor) -> Tokens:
    return Tokens(
        tokens.items.masked_fill(hidden, UNKNOWN),
        tokens.types.masked_fill(hidden, PADDING),
        tokens.gaps.masked_fill(hidden, PADDING),
        tokens.length,
    )
