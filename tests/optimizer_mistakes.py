"""Mistakes of a config about optimisers, learning rates and loss weights, in the form of `mistakes.py`."""

OPTIMIZER_MISTAKES = {
    "an unknown optimizer": (["optimizer=adam()"], "optimizer", "'adam'", "Did you mean 'adamw'?"),
    "a mean that grows": (["optimizer=adamw(b1=1.5)"], "optimizer", "got 1.5", "b1 must be at least 0 and below 1"),
    "a mean of Lion that grows": (
        ["optimizer=lion(b2=1.0)"],
        "optimizer",
        "got 1.0",
        "b2 must be at least 0 and below",
    ),
    "a negative momentum": (
        ["optimizer=sgd(momentum=-2.0)"],
        "optimizer",
        "got -2.0",
        "momentum must be at least 0 and below 1",
    ),
    "a decay that grows weights": (
        ["optimizer=adamw(weight_decay=-1.0)"],
        "optimizer",
        "got -1.0",
        "weight_decay must be at least 0",
    ),
    "a negative epsilon": (["optimizer=adamw(eps=-1e-8)"], "optimizer", "got -1e-08", "eps must be at least 0"),
    "a momentum of a role that grows": (
        ["roles.student.optimizer=sgd(momentum=1.0)"],
        "roles.student.optimizer",
        "got 1.0",
        "momentum must be at least 0 and below 1",
    ),
    "an unknown schedule": (["rate=cosin(start=1)"], "rate", "'cosin'", "Did you mean 'cosine'?"),
    "a number with a comma": (
        ["rate=1e-3,5"],
        "rate",
        "'1e-3,5' is neither a number nor a schedule",
        "Schedules: constant, cosine, linear, phases, step.",
    ),
    "a line without an end": (
        ["rate=linear(start=1)"],
        "rate",
        "'linear(start=1)': missing a required argument: 'end'",
        "Arguments: start: float, end: float, begin=0.0, until=1.0.",
    ),
    "a curve beyond all numbers": (
        ["rate=step(start=1.0, factor=2.0, every=1e-9)"],
        "rate",
        "this schedule cannot be computed",
        "over 40 steps",
    ),
    "a rate that climbs": (["rate=-0.1"], "rate", "-0.1", "a learning rate is 0 or more"),
    "a rate of a role that climbs": (["roles.student.rate=-0.1"], "roles.student.rate", "-0.1", "is 0 or more"),
    "a rate of a role that turns negative": (
        ["roles.terms.rate=linear(start=0.1, end=-0.2)"],
        "roles.terms.rate",
        "'linear(start=0.1, end=-0.2)' reaches -0.2",
        "a learning rate is 0 or more",
    ),
    "a rate of a teacher that climbs": (
        ["teachers.big.rate=-0.3"],
        "teachers.big.rate",
        "'-0.3' reaches -0.3",
        "a learning rate is 0 or more",
    ),
    "an unknown role": (["roles.term.rate=0.1"], "roles.term", "'term'", "Did you mean 'terms'?"),
    "a role without parameters": (
        ["roles.fusion.rate=0.1"],
        "roles.fusion",
        "'fusion' has no parameters",
        "leave it out",
    ),
    "a negative weight": (["objective.kd.weight=-0.5"], "objective.kd.weight", "'-0.5'", "a loss weight is 0 or more"),
    "a weight that turns negative": (
        ["objective.kd.weight=linear(start=1, end=-0.5)"],
        "objective.kd.weight",
        "reaches -0.5",
        "a loss weight is 0 or more",
    ),
    "a negative weight of a task": (
        ["task.cross_entropy.weight=-1"],
        "task.cross_entropy.weight",
        "'-1' reaches -1",
        "a loss weight is 0 or more",
    ),
}
