"""GGUF, llama.cpp's file of quantised weights, read as a Hugging Face checkpoint in float32.

Names, config and the layout of rotary heads become those of transformers; the package `gguf` dequantises, one tensor
at a time and only the rows that are asked for.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core.errors import WeightsError
from jaxdistill.models.hub.gguf_header import Stored, read_header
from jaxdistill.models.hub.source import Look

ARCHITECTURES = ("llama", "qwen2", "qwen3")
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
INTEGERS = ("I8", "I16", "I32", "I64")


class Gguf:
    """A decoder in a GGUF file, as a `Source`.

    fields: the file's metadata as they are, the tokenizer's among them

    Raises:
        WeightsError: no GGUF file, a damaged one, an unknown architecture, or settings that no decoder of ours has.
    """

    def __init__(self, path: Path):
        self.where = str(path)
        try:
            self.fields, stored = read_header(path)
        except ImportError:
            raise WeightsError(f"{path} needs the package gguf: pip install 'jaxdistill[hf]'") from None
        self.config = _config(self.where, self.fields, stored)
        self._stored = {_theirs(name): each for name, each in stored.items()}
        self.arrays = {name: Look(each.shape, _dtype(each)) for name, each in self._stored.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of an array, float32."""
        from gguf import dequantize

        stored = self._stored[name]
        rows = self._rows(name, stored.shape)[index[0] if index and len(stored.shape) > 1 else slice(None)]
        first, count = (int(rows.min()), int(np.ptp(rows)) + 1) if rows.size else (0, 0)
        size = stored.size // len(self._rows(name, stored.shape))
        content = np.fromfile(self.where, np.uint8, count * size, offset=stored.offset + first * size)
        data = content.reshape(count, size)
        if not np.array_equal(rows, np.arange(first, first + count)):
            data = data[rows - first]
        try:
            values = dequantize(data, stored.kind)
        except NotImplementedError:
            raise WeightsError(f"{self.where}: gguf cannot decode {stored.kind.name} ({name})") from None
        return values[:, *index[1:]] if len(stored.shape) > 1 else values[0][index]

    def _rows(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Where each row of an array lies in the file; a vector is one row.

        llama.cpp turns neighbours of a Llama's head, so that it keeps the rows of queries and keys interleaved.
        """
        rows = np.arange(shape[0] if len(shape) > 1 else 1)
        turned = re.search(r"self_attn\.([qk])_proj\.weight$", name)
        if self.config["model_type"] != "llama" or not turned:
            return rows
        heads = self.config["num_attention_heads" if turned[1] == "q" else "num_key_value_heads"]
        return rows.reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _dtype(stored: Stored) -> str:
    return stored.kind.name if stored.kind.name in INTEGERS else "float32"


def _theirs(name: str) -> str:
    """The name in transformers; what has none keeps llama.cpp's, and will be surplus."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in NAMES:
        return name
    layer = "" if found[1] is None else f"model.layers.{found[1]}."
    return f"{layer}{NAMES[found[2]]}.{found[3]}"


def _config(where: str, fields: Mapping[str, Any], stored: Mapping[str, Stored]) -> dict[str, Any]:
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise WeightsError(
            f"{where}: its architecture is {kind!r}, and none of ours. Known: {', '.join(ARCHITECTURES)}"
        )

    def field(name: str) -> Any:
        if f"{kind}.{name}" not in fields:
            raise WeightsError(f"{where} is incomplete: it has no {kind}.{name}")
        return fields[f"{kind}.{name}"]

    optional = lambda name, default: fields.get(f"{kind}.{name}", default)
    if "token_embd.weight" not in stored:
        raise WeightsError(f"{where} is incomplete: it has no token_embd.weight")
    width, heads = field("embedding_length"), field("attention.head_count")
    kv_heads, head_size = optional("attention.head_count_kv", heads), optional("attention.key_length", None)
    _check_heads(where, width, heads, kv_heads, head_size)
    head_size = head_size or width // heads
    if optional("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in stored:
        raise WeightsError(f"{where}: scaled rotary positions are not read from GGUF; take the safetensors")
    if optional("rope.dimension_count", head_size) != head_size or optional("expert_count", 0):
        raise WeightsError(f"{where}: partly turned heads and mixtures of experts are none of ours")
    ids = {f"{name}_token_id": fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    return {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "vocab_size": stored["token_embd.weight"].shape[0],
        "hidden_size": width,
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "intermediate_size": field("feed_forward_length"),
        "max_position_embeddings": field("context_length"),
        "rope_theta": _short(optional("rope.freq_base", 10000.0)),
        "rms_norm_eps": _short(field("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in stored,
        **ids,
    }


def _short(value: float) -> float:
    """The number that was meant: 1e-05 where float32 holds 9.999999747e-06."""
    return float(str(np.float32(value)))


def _check_heads(where: str, width: Any, heads: Any, kv_heads: Any, head_size: Any) -> None:
    counts = {"embedding_length": width, "head_count": heads, "head_count_kv": kv_heads, "key_length": head_size}
    for name, count in counts.items():
        if not (isinstance(count, int) and count > 0) and not (name == "key_length" and count is None):
            raise WeightsError(f"{where} has impossible heads: {name} is {count!r}, not a positive number")
    if heads % kv_heads:
        raise WeightsError(f"{where} has impossible heads: {kv_heads} for keys do not divide {heads} for queries")
    if head_size is None and width % heads:
        raise WeightsError(f"{where} has impossible heads: {heads} do not divide a width of {width}")
