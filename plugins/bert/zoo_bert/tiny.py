"""``tiny-random``: two random layers over letters, made in code, so that tests and ``zoo plugin check`` need no download."""

from __future__ import annotations

import string

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

NAME = "tiny-random"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZE = 16


def tokenizer() -> Tokenizer:
    """WordPiece over ASCII letters, digits and punctuation."""
    letters = string.ascii_lowercase + string.digits
    vocabulary = [*SPECIAL, *string.punctuation, *letters, *(f"##{letter}" for letter in letters)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    made = Tokenizer(models.WordPiece(ids, unk_token=SPECIAL[1]))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return made


def model() -> nn.Module:
    """The same weights in every process."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=tokenizer().get_vocab_size(),
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * SIZE,
        max_position_embeddings=512,
        attn_implementation="sdpa",
    )
    made: nn.Module = BertModel(config, add_pooling_layer=False)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(made.named_parameters()):
            if weight.dim() > 1:
                weight.normal_(0.0, 0.3, generator=noise)
            else:
                weight.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    return made
