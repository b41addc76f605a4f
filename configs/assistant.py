"""Teacher assistant: a small student learns from a medium network that was itself distilled from a large teacher.

Paper: Mirzadeh, Farajtabar, Li, Levine, Matsukawa and Ghasemzadeh, Improved Knowledge Distillation via Teacher
Assistant, 2020 (arxiv.org/abs/1902.03393). Each link of the chain is one run; the student of this one is the assistant.
Command: python -m jaxdistill.main --config configs/assistant.py --workdir runs/assistant (3 minutes on 2 cores)
The student: python -m jaxdistill.main --config configs/assistant.py --workdir runs/assisted \
    "--config.student.model=mlp(widths=(16,), classes=10)" \
    "--config.teachers.above.model=mlp(widths=(128,), classes=10)" --config.teachers.above.checkpoint=runs/assistant
Result: not run. experiments/assistant has a smaller chain, on 500 digits over 5 seeds: no significant gain.
"""

from pathlib import Path

from jaxdistill import differ, load_config


def get_config():
    config = load_config(str(Path(__file__).with_name("quickstart.py")))
    return differ(config, title="Teacher assistant: digits", teachers={"above": config.teachers.resnet.to_dict()})
