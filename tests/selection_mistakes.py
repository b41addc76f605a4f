"""Mistakes of a config of the step `batch_selection`, in the form of `mistakes.py`."""

SELECTION_MISTAKES = {
    "selected rows that are no whole number": (
        ["step=batch_selection(loss=cross_entropy(), share=0.3)"],
        "step",
        "0.3 of 32 rows are 9.6 selected rows",
        "Choose a share or a batch_size that gives a multiple of 1",
    ),
    "selected rows that microbatches do not divide": (
        ["step=batch_selection(loss=cross_entropy(), share=0.34375)", "accumulate=2"],
        "step",
        "0.34375 of 32 rows are 11 selected rows",
        "that gives a multiple of 2 (mesh.data x mesh.fsdp x accumulate)",
    ),
    "selected rows that the devices of fsdp do not divide": (
        ["step=batch_selection(loss=cross_entropy(), share=0.34375)", "mesh.data=1", "mesh.fsdp=2"],
        "step",
        "0.34375 of 32 rows are 11 selected rows",
        "that gives a multiple of 2 (mesh.data x mesh.fsdp x accumulate)",
    ),
    "no selected row": (
        ["step=batch_selection(loss=cross_entropy(), share=0.00001)"],
        "step",
        "1e-05 of 32 rows are 0.00032 selected rows",
        "Choose a share",
    ),
    "scores by a teacher of which the largest logits are sent": (
        ["step=batch_selection(loss=cross_entropy(), share=0.5)", "teachers.big.placement=submesh(devices=1, top=2)"],
        "teachers.big.placement",
        "scores each row by the teacher's outputs, and needs all its logits",
        "submesh(...) without top=",
    ),
    "a step with a dict as a loss": (["step=batch_selection(loss={'a': 1})"], "step", "is no loss", "Give the spec"),
    "a step with a loss that is none": (
        ["step=batch_selection(loss=4, share=0.5)"],
        "step",
        "4 is no loss",
        "Give the spec string of one of",
    ),
}
