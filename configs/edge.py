"""For an edge device: a student is cut out of its teacher, learns from it, is trained for 8 bits, exported and checked.

One command goes the whole way: all-MiniLM-L6 (22.7 M parameters, Apache-2.0) is fine-tuned on newswire topics (Reuters
R8, free for research); the two layers that do most, with half of their heads and neurons, become the student; it learns
the teacher's soft targets, from half of the training on with 8-bit weights and inputs; and its file is run by ONNX
Runtime on all test records, beside the teacher's file in floats and the control's in 8 bits.
Papers: Muralidharan et al., Minitron, 2024 (arxiv.org/abs/2407.14679); Hinton et al. 2015 (arxiv.org/abs/1503.02531);
Jacob et al. 2018 (arxiv.org/abs/1712.05877).
Command: python -m jaxdistill.main --config configs/edge.py --workdir runs/edge (4 minutes on 2 busy cores; needs the
extras hf and onnx)
Result (seed 0; AMD EPYC, one thread): teacher 93.97 %, 90.90 MB, 5.16 ms in floats; student in 8 bits 95.93 %,
13.93 MB, 0.33 ms; control (the same cut, on labels alone) in 8 bits 95.43 %.
"""

from jaxdistill import differ
from jaxdistill.run.presets import text

INT8 = "onnx(int8='dynamic')"


def get_config():
    return differ(
        text.get_config(),
        title="Newswire topics on an edge device",
        data={"name": "reuters/r8", "tokens": f"sentences(tokenizer={text.MINILM!r}, length=24)"},
        student={
            "model": "cut(teacher='minilm', layers=2, heads=0.5, neurons=0.5)",
            "quantized": "aware(weights=8, inputs=8, start=0.5)",
        },
        evaluate={"every": 150, "batch_size": 199},
        exports={
            "student": {"to": INT8},
            "control": {"to": INT8, "model": "control"},
            "teacher": {"to": "onnx", "model": "teachers/minilm"},
            "teacher8": {"to": INT8, "model": "teachers/minilm"},
        },
    )
