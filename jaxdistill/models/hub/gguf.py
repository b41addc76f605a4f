"""Read GGUF, llama.cpp's file format for quantised weights, as a Hugging Face checkpoint in float32.

Names, config and the layout of rotary heads are converted to the conventions of transformers. The package `gguf`
dequantises one tensor at a time, and only the rows that are needed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import WeightsError, as_weights_error
from jaxdistill.models.hub.gguf_header import TensorEntry, read_header
from jaxdistill.models.hub.source import ArrayInfo

ARCHITECTURES = ("llama", "qwen2", "qwen3")
NAMES = {  # llama.cpp layer name: transformers layer name
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
    """A GGUF file of a decoder language model, opened as a checkpoint whose arrays are read on demand (a `Source`).

    path: path of the file
    fields: the metadata of the file by key, including the tokenizer
    config: the metadata as a config in the format of transformers
    arrays: shape and dtype of every array, by the array's name in transformers

    Raises:
        WeightsError: the file is not a GGUF file, is damaged, or has an unsupported architecture or setting.
        DamageError: its folder was written by jaxdistill, and the file has changed since.
    """

    def __init__(self, path: Path):
        self.path = str(path)
        seal.check_in_folder(path, listed=True)
        with as_weights_error(path):
            try:
                self.fields, tensors = read_header(path)
            except ImportError:
                raise WeightsError(f"{path} needs the package gguf: pip install 'jaxdistill[hf]'") from None
            self.config = _config(self.path, self.fields, tensors)
            self._tensors = {_hf_name(name): tensor for name, tensor in tensors.items()}
            if len(self._tensors) < len(tensors):
                raise WeightsError(f"{path} has two tensors for one parameter; convert the model again")
            self.arrays = {name: ArrayInfo(tensor.shape, _dtype(tensor)) for name, tensor in self._tensors.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part of an array, dequantised to float32.

        A row (a slice along the first axis) consists of whole blocks of quantised values. Therefore only the rows from
        the first to the last wanted row are read from the file, and only the wanted rows are dequantised. The other
        axes are sliced afterwards.

        Args:
            name: name of the array in transformers, a key of `arrays`.
            index: one slice per axis, or empty for the whole array.

        Raises:
            WeightsError: the file is damaged, or has an encoding that the package gguf cannot decode.
        """
        with as_weights_error(self.path):
            return self._read(name, index)

    def _read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        from gguf import dequantize

        tensor = self._tensors[name]
        rows = file_rows(self.config, name, tensor.shape)
        row_size = tensor.size // len(rows)
        rows = rows[index[0] if index and len(tensor.shape) > 1 else slice(None)]
        first, count = (int(rows.min()), int(np.ptp(rows)) + 1) if rows.size else (0, 0)
        content = np.fromfile(self.path, np.uint8, count * row_size, offset=tensor.offset + first * row_size)
        data = content.reshape(count, row_size)
        if not np.array_equal(rows, np.arange(first, first + count)):
            data = data[rows - first]
        try:
            values = dequantize(data, tensor.encoding)
        except NotImplementedError:
            cure = "convert the file to another encoding"
            raise WeightsError(f"{self.path}: gguf cannot decode {tensor.encoding.name} ({name}); {cure}") from None
        return values[:, *index[1:]] if len(tensor.shape) > 1 else values[0][index]


def file_rows(config: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the row index at which a GGUF file stores each row of an array, `[rows]` integers.

    A vector is one row. For Llama models, llama.cpp rotates neighbouring units of a head, and transformers rotates
    units at the distance of half a head (`models/rotary.py`). The file therefore has the rows of query and key
    kernels in another order; all other rows have the same order.

    Args:
        config: config of the model in the format of transformers.
        name: name of the array in transformers.
        shape: shape of the array.
    """
    rows = np.arange(shape[0] if len(shape) > 1 else 1)
    projection = re.search(r"self_attn\.([qk])_proj\.weight$", name)
    if config["model_type"] != "llama" or not projection:
        return rows
    heads = config["num_attention_heads" if projection[1] == "q" else "num_key_value_heads"]
    return rows.reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def llama_cpp_name(name: str) -> str:
    """Convert the name of an array in transformers to its name in llama.cpp: the inverse of `_hf_name`."""
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    assert match is not None, name
    converted = next(file_name for file_name, hf_name in NAMES.items() if hf_name == match[2])
    return f"{converted}.{match[3]}" if match[1] is None else f"blk.{match[1]}.{converted}.{match[3]}"


def _dtype(tensor: TensorEntry) -> str:
    """Return the dtype that an array has after it is read: "float32", or an integer type such as "I32"."""
    return tensor.encoding.name if tensor.encoding.name in INTEGERS else "float32"


def _hf_name(name: str) -> str:
    """Convert a llama.cpp name to the name in transformers; a name without a counterpart stays unchanged."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in NAMES:
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{NAMES[match[2]]}.{match[3]}"


def _config(path: str, fields: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> dict[str, Any]:
    """Convert the metadata of a GGUF file to a config in the format of transformers."""
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise WeightsError(
            f"{path}: the architecture {architecture!r} is not supported. Known: {', '.join(ARCHITECTURES)}"
        )

    def field(name: str) -> Any:
        if f"{architecture}.{name}" not in fields:
            raise WeightsError(f"{path} is incomplete: it has no {architecture}.{name}; convert the model again")
        return fields[f"{architecture}.{name}"]

    optional = lambda name, default: fields.get(f"{architecture}.{name}", default)
    if "token_embd.weight" not in tensors:
        raise WeightsError(f"{path} is incomplete: it has no token_embd.weight; convert the model again")
    width, heads = field("embedding_length"), field("attention.head_count")
    kv_heads, head_size = optional("attention.head_count_kv", heads), optional("attention.key_length", None)
    _check_heads(path, width, heads, kv_heads, head_size)
    head_size = head_size or width // heads
    if optional("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in tensors:
        raise WeightsError(f"{path}: scaled rotary positions are not supported in GGUF; use the safetensors file")
    if optional("rope.dimension_count", head_size) != head_size or optional("expert_count", 0):
        raise WeightsError(f"{path}: partial rotary positions and mixtures of experts are not supported")
    ids = {f"{name}_token_id": fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    return {
        "model_type": architecture,
        "architectures": [f"{architecture.capitalize()}ForCausalLM"],
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "intermediate_size": field("feed_forward_length"),
        "max_position_embeddings": field("context_length"),
        "rope_theta": _shortest_decimal(optional("rope.freq_base", 10000.0)),
        "rms_norm_eps": _shortest_decimal(field("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in tensors,
        **ids,
    }


def _shortest_decimal(value: float) -> float:
    """Return the shortest decimal number with the same float32 value, such as 1e-05 for 9.999999747e-06."""
    return float(str(np.float32(value)))


def _check_heads(path: str, width: Any, heads: Any, kv_heads: Any, head_size: Any) -> None:
    counts = {"embedding_length": width, "head_count": heads, "head_count_kv": kv_heads, "key_length": head_size}
    for name, count in counts.items():
        if not (isinstance(count, int) and count > 0) and not (name == "key_length" and count is None):
            raise WeightsError(f"{path} has invalid heads: {name} is {count!r}, not a positive integer")
    if heads % kv_heads:
        raise WeightsError(f"{path} has invalid heads: head_count_kv={kv_heads} does not divide head_count={heads}")
    if head_size is None and width % heads:
        raise WeightsError(f"{path} has invalid heads: head_count={heads} does not divide embedding_length={width}")
