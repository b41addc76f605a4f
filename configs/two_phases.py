"""TinyBERT's two phases: first the hidden states of mapped layers, then the soft targets; all weights 1.

Paper: Jiao et al., TinyBERT, 2020 (arxiv.org/abs/1909.10351), here from a residual network to a perceptron.
Command: python -m jaxdistill.main --config configs/two_phases.py --workdir runs/two_phases (3 minutes on 2 cores)
Result (seed 0): student 93.0 %, control (the same student on labels alone) 94.6 %. On digits the first phase takes more
steps than it is worth; with half of the run spent on it the student reaches 91.7 %.
"""

from pathlib import Path

from jaxdistill import differ, load_config


def get_config():
    return differ(
        load_config(str(Path(__file__).with_name("quickstart.py"))),
        title="TinyBERT's two phases",
        student={"model": "mlp(widths=(128, 128), classes=10)"},
        objective={
            "hidden": {"term": "hidden(layers='uniform')", "weight": "phases(values=(1.0, 0.0), at=(0.2,))"},
            "kd": {"term": "kd(temperature=4.0)", "weight": "phases(values=(0.0, 1.0), at=(0.2,))"},
        },
        rate="linear(start=0.003, end=0.0003)",
    )
