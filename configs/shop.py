"""Reviews of a shop on an edge device: would the customer recommend the product?

all-MiniLM-L6 (22.7 M parameters, Apache-2.0) is fine-tuned on 18,110 reviews of women's clothing (CC0 as its author
published it); two layers of it with half of their heads and neurons learn from it and are trained for 8 bits; the
student's file is run by ONNX Runtime on 4,518 test reviews, beside the teacher's in floats and the control's in 8 bits.
Papers: Muralidharan et al., Minitron, 2024 (arxiv.org/abs/2407.14679); Hinton et al. 2015 (arxiv.org/abs/1503.02531);
Jacob et al. 2018 (arxiv.org/abs/1712.05877). Data: Agarap 2018 (arxiv.org/abs/1805.03687).
Command: python -m jaxdistill.main --config configs/shop.py --workdir runs/shop (20 minutes on 2 busy cores; needs the
extras hf and onnx)
Result (4 seeds, files in 8 bits): AUC 0.9427, of the control 0.9381, of the teacher in floats 0.9500: experiments/shop.
"""

from jaxdistill import differ
from jaxdistill.run.presets import text

INT8 = "onnx(int8='dynamic')"


def get_config():
    return differ(
        text.get_config(),
        title="Reviews of a shop on an edge device",
        data={
            "name": "clothing_reviews/recommended",
            "tokens": f"sentences(tokenizer={text.MINILM!r}, length=64)",
        },
        student={
            "model": "cut(teacher='minilm', layers=2, heads=0.5, neurons=0.5)",
            "quantized": "aware(weights=8, inputs=8, start=0.5)",
        },
        evaluate={"every": 300, "batch_size": 251},
        exports={
            "student": {"to": INT8},
            "control": {"to": INT8, "model": "control"},
            "teacher": {"to": "onnx", "model": "teachers/minilm"},
        },
    )
