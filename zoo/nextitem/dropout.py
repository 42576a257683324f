"""Dropout whose masks are drawn a byte a value: on a processor, drawing them is what most of dropout's time goes to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def dropout(values: Tensor, share: float, training: bool) -> Tensor:
    """Values of which this share are 0 and the others as much larger (Srivastava et al. 2014); as they are unless ``training``.

    Draws from torch's generator. On a processor the share is rounded to 256ths, for which values are scaled; elsewhere it is torch's own.
    """
    if not training or not share or values.device.type != "cpu":
        return functional.dropout(values, share, training)
    cut, count = min(255, round(share * 256)), values.numel()
    drawn = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
    return values * (drawn[:count].view(values.shape) >= cut).to(values.dtype).mul_(256 / (256 - cut))
