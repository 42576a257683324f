"""As ``malicious.py``, for the models in torch: what their artefacts say is held against their weights before memory is taken."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from malicious import DEEP, Attack, at, rows, with_array, with_json, with_text, without

from zoo.contract import Artefact
from zoo.manager import Plugins, plugins
from zoo.stacking import Fitted

COLUMNS = ("items", "event_types", "ages", "user_region", "user_spend_28d")
SETTINGS = {
    "gru": ("binary", {"epochs": 1, "hidden": 4, "embedding": 2}),
    "gpt": ("ranking", {"epochs": 1, "width": 4, "layers": 1, "heads": 1}),
    "bert": ("binary", {"epochs": 1, "model_name_or_path": "tiny-random", "embed_encoder": True, "max_rows": 40}),
}


@cache
def found() -> Plugins:
    return plugins()


@cache
def facts() -> dict[str, dict[str, object]]:
    return {name: {"name": name, "model": name, "inputs": ["*"], "distribution": "zoo", "version": "0"} for name in SETTINGS}


@cache
def good() -> Artefact:
    """One part a model."""
    parts = []
    for name, (kind, settings) in SETTINGS.items():
        plugin = found().models[name].plugin
        params = plugin.spec.params().model_validate(settings)
        data = rows(kind, COLUMNS if kind == "binary" else ("items", "event_types", "ages", "gaps"))
        parts.append(plugin.fit(data, params=params, seed=0, progress=lambda done, text: None).save().nested(name))
    return Artefact.merged(*parts)


def load(artefact: Artefact) -> None:
    for name, about in facts().items():
        Fitted.load(about, artefact.part(name), found())


def params(name: str, **changed: object) -> Callable[[Artefact], Artefact]:
    """The stored parameters of a model, changed."""

    def change(text: str) -> str:
        stated = json.loads(text)
        stated["params"] |= changed
        return json.dumps(stated)

    return with_text(name, change)


def beyond(text: str) -> str:
    """The tokenizer with a word whose code no embedding has."""
    stated = json.loads(text)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    stated["added_tokens"].append({"id": 99_999, "content": "<beyond>", "special": True, **flags})
    return json.dumps(stated)


def folder(**files: bytes) -> str:
    place = Path(mkdtemp(prefix="zoo-encoder-"))
    for name, content in files.items():
        (place / name.replace("__", ".")).write_bytes(content)
    return str(place)


def elsewhere(name: str) -> Callable[[Artefact], Artefact]:
    return params(BERT, embed_encoder=False, model_name_or_path=name)


def _first(prefix: str) -> str:
    return next(name for name in sorted(good().arrays) if name.startswith(prefix))


GRU, GPT, BERT, CONFIG = "gru/model.json", "gpt/next_item.json", "bert/bert.json", "bert/encoder/config.json"
EVIL = b'{"model_type": "evil", "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}'
BERT_ONLY = b'{"model_type": "bert"}'
CODE = b"import os; os.mkdir('/tmp/zoo-was-here')"
PICKLED = pickle.dumps(Attack())
CONTENTS: dict[str, Callable[[Artefact], Artefact]] = {
    "a state of a billion": params(GRU, hidden=10**9),
    "an embedding of a billion": params(GRU, embedding=10**9),
    "a thousand layers": params(GRU, layers=1000),
    "a parameter that is not": params(GRU, __class__="os.system"),
    "more networks than there are": with_json(GRU, networks=10**9),
    "the artefact of another cell": with_json(GRU, cell="lstm"),
    "a mean that is a word": with_json(GRU, mean="one"),
    "a network nested deep": with_text(GRU, lambda _: DEEP),
    "a network that is a pickle": with_text(GRU, lambda _: pickle.dumps(Attack(), 0).decode()),
    "a lookup before the embeddings": lambda a: with_array(_first("gru/lookups/"), at(0, -1))(a),
    "a lookup beyond the embeddings": lambda a: with_array(_first("gru/lookups/"), at(-1, 2**31 - 1))(a),
    "a lookup of floats": lambda a: with_array(_first("gru/lookups/"), lambda array: array.astype(np.float32))(a),
    "weights that are missing": lambda a: without(_first("gru/networks/"))(a),
    "weights of another shape": lambda a: with_array(_first("gru/networks/"), lambda array: array[..., :1])(a),
    "weights of another type": lambda a: with_array(_first("gru/networks/"), lambda array: array.astype(np.complex64))(a),
    "a catalogue of a billion items": with_json(GPT, items=10**9),
    "a catalogue before nothing": with_json(GPT, items=-1),
    "a width of a billion": params(GPT, width=10**9),
    "windows of a billion events": params(GPT, max_length=10**9),
    "a device that is not": params(GPT, device="os.system"),
    "an encoder of a billion layers": with_json(CONFIG, num_hidden_layers=10**9),
    "an encoder a billion wide": with_json(CONFIG, hidden_size=10**9),
    "an encoder of a billion words": with_json(CONFIG, vocab_size=10**9),
    "an encoder that brings code": with_json(CONFIG, auto_map={"AutoModel": "evil--module.Class"}),
    "an encoder that brings a kernel": with_json(CONFIG, _attn_implementation="evil/kernel"),
    "an encoder in another format": with_json(CONFIG, quantization_config={"quant_method": "gptq"}),
    "an encoder of an unknown kind": with_json(CONFIG, model_type="os.system"),
    "an encoder without layers": with_json(CONFIG, num_hidden_layers=0),
    "a tokenizer of nothing": with_text("bert/encoder/tokenizer.json", lambda _: "{}"),
    "a tokenizer nested deep": with_text("bert/encoder/tokenizer.json", lambda _: DEEP),
    "a tokenizer of codes beyond the encoder": with_text("bert/encoder/tokenizer.json", beyond),
    "an encoder somewhere else": elsewhere("/etc"),
    "an encoder some steps up": elsewhere("../../../../etc"),
    "an encoder by an encoded step up": elsewhere("%2e%2e/%2e%2e/etc"),
    "an encoder in a folder of a pickle": lambda a: elsewhere(folder(config__json=BERT_ONLY, pytorch_model__bin=PICKLED))(a),
    "an encoder in a folder of code": lambda a: elsewhere(folder(config__json=EVIL, evil__py=CODE))(a),
}  # fmt: skip
