"""Tiny decoders of transformers: Llama, Mistral, Qwen and GPT-2 with the settings in which they differ."""

from typing import Any

import numpy as np
from weights import tokens

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}


def reference(kind: str, padded: bool = False, attentions: bool = False, sizes: Any = None, **settings: Any):
    """Return a function `() -> (torch model, config, inputs, run)` for `record.py`."""

    def make():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = {"model_type": kind, **(sizes or SIZES), **settings}
        options = {key: value for key, value in config.items() if key != "model_type"}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options), attn_implementation="eager")
        inputs = {"input_ids": tokens(3, 10, config["vocab_size"])}
        if padded:
            inputs["attention_mask"] = (np.arange(10) < np.array([[10], [7], [3]])).astype(np.int32)

        def run() -> dict[str, Any]:
            given = {name: torch.from_numpy(x).long() for name, x in inputs.items()}
            out = model(**given, use_cache=False, output_hidden_states=True, output_attentions=attentions)
            said = {"logits": out.logits, **{f"hidden/{i}": x for i, x in enumerate(out.hidden_states)}}
            return said | {f"attention/{i}": x for i, x in enumerate(out.attentions or ())}

        return model, config, inputs, run

    return make


GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


REFERENCES = {
    "mistral": reference("mistral", attentions=True, sliding_window=4),
    "gpt2": reference("gpt2", padded=True, attentions=True, sizes=GPT2),
    "gpt2_untied": reference("gpt2", sizes=GPT2, n_inner=48, tie_word_embeddings=False, activation_function="gelu"),
    "llama_tied": reference("llama", padded=True, attentions=True, tie_word_embeddings=True),
    "llama_untied": reference("llama", num_key_value_heads=4, rope_theta=100000.0),
    "llama_scaled": reference("llama", rope_parameters={"rope_theta": 10000.0, **LLAMA3}),
    "qwen2": reference("qwen2", tie_word_embeddings=True),
    "qwen3": reference("qwen3", head_dim=16, rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"}),
}
