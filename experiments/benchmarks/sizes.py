"""Shapes of the benchmarks, for JAX and PyTorch: those of a real run for one GPU, and small ones for two CPU cores.

Imports nothing, because PyTorch runs in a separate environment.
"""

GPU, CPU = "gpu", "cpu"
SIZES = {
    "head": {  # only two heads of different width and the divergence between them
        GPU: {"rows": 8, "length": 1024, "vocabulary": 151_936, "student": 896, "teacher": 1536, "chunks": 32},
        CPU: {"rows": 2, "length": 128, "vocabulary": 32_768, "student": 256, "teacher": 384, "chunks": 4},
    },
    "lm": {  # Qwen2.5's shapes
        GPU: {
            "rows": 8,
            "length": 1024,
            "vocabulary": 151_936,
            "chunks": 32,
            "student": {"width": 896, "depth": 24, "heads": 14, "kv_heads": 2, "ffn": 4864},
            "teacher": {"width": 1536, "depth": 28, "heads": 12, "kv_heads": 2, "ffn": 8960},
        },
        CPU: {
            "rows": 4,
            "length": 128,
            "vocabulary": 16_384,
            "chunks": 4,
            "student": {"width": 256, "depth": 4, "heads": 4, "kv_heads": 2, "ffn": 768},
            "teacher": {"width": 384, "depth": 6, "heads": 6, "kv_heads": 2, "ffn": 1024},
        },
    },
    "bert": {  # BERT-base and half of its layers: logits and hidden states
        GPU: {"rows": 128, "length": 128, "vocabulary": 30_522, "width": 768, "heads": 12, "depth": 6},
        CPU: {"rows": 8, "length": 64, "vocabulary": 30_522, "width": 768, "heads": 12, "depth": 2},
    },
    "vit": {  # ViT-B/16 and ViT-S/16: logits
        GPU: {"rows": 256, "image": 224, "depth": 12, "student": (384, 6), "teacher": (768, 12)},
        CPU: {"rows": 8, "image": 96, "depth": 4, "student": (192, 3), "teacher": (384, 6)},
    },
}
CLASSES = {"bert": 3, "vit": 1000}
TEMPERATURE = 2.0
