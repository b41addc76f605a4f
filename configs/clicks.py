"""Clicks: a wide deep and cross network teaches a narrow one, whose table and kernels have 8 bits.

MovieLens-100k (research only; GroupLens), split in time: will a user give a film 4 or 5 stars? Teacher (83,074
parameters) and student (12,802) read 9 categories; the student's file is run by ONNX Runtime beside the teacher's. The
teacher was chosen among 12 on two earlier windows of the training records, not on the test records.
Papers: Wang et al., DCN V2, 2021 (arxiv.org/abs/2008.13535); Hinton et al. 2015 (arxiv.org/abs/1503.02531); Jacob et
al. 2018 (arxiv.org/abs/1712.05877). Data: Harper and Konstan 2015 (doi.org/10.1145/2827872).
Command: python -m jaxdistill.main --config configs/clicks.py --workdir runs/clicks (a minute on 2 cores; needs the
extra onnx)
Result (5 seeds, files in 8 bits): AUC 0.6997, of the control 0.7002, of the teacher in floats 0.6938: experiments/shop.
"""

from jaxdistill import make

INT8 = "onnx(int8='dynamic')"


def get_config():
    return make(
        title="Clicks on an edge device",
        steps=600,
        batch_size=256,
        rate="cosine(start=0.003)",
        optimizer="adamw(weight_decay=0.1)",
        data={"name": "movie_ratings"},
        student={
            "model": "dcn(categories=2693, width=4, classes=2, crosses=1, widths=(16,))",
            "quantized": "aware(weights=8, inputs=8, start=0.5)",
        },
        teachers={
            "wide": {
                "model": "dcn(categories=2693, width=16, classes=2, crosses=1, widths=(128,), dropout=0.3)",
                "steps": 400,
                "rate": "cosine(start=0.001)",
            }
        },
        objective={"kd": {"term": "kd(temperature=1.0)"}, "cross_entropy": {}},
        evaluate={"every": 300, "batch_size": 1000, "layers": ()},
        exports={
            "student": {"to": INT8},
            "control": {"to": INT8, "model": "control"},
            "teacher": {"to": "onnx", "model": "teachers/wide"},
        },
    )
