"""List every rule that a config may break, in the order in which the rules are checked.

A rule is a function that returns nothing, or raises a `ConfigError`, which names the config path, the value and the
cure. Rules come in groups, by the values that they check (`views.py`). A later group relies on the earlier ones. No
rule compiles anything.
"""

from collections.abc import Callable
from typing import Any

from jaxdistill.run.rules import data, devices, exports, row_selection, run, specs, stage, terms

Rule = Callable[..., None]

RULES: dict[str, tuple[Rule, ...]] = {
    # the config of the run, and the number of devices
    "text": (
        devices.teachers_have_one_delivery,
        devices.teachers_with_own_devices,
        devices.mesh_fits,
        devices.pmap_splits_rows,
        devices.kernels_read_whole_rows,
        devices.batches_divide,
        devices.processes_have_a_coordinator,
        devices.process_is_below_processes,
        exports.exports_can_be_written,
    ),
    # the config of each stage, and the components that its spec strings name
    "stage text": (
        specs.objective_has_terms,
        specs.rates_are_not_negative,
        specs.weights_are_not_negative,
        specs.step_is_known,
        specs.models_are_known,
        specs.teachers_can_be_trained_here,
        specs.checkpoints_exist,
        specs.teachers_are_in_floats,
        specs.needs_are_known,
        specs.terms_have_samples,
        specs.terms_have_teachers,
        specs.teachers_have_gradients,
        specs.sampled_caches_suit_their_terms,
    ),
    # descriptions of the records
    "data": (
        data.specs_are_known,
        data.streams_have_their_own_names,
        data.images_are_preprocessed_alike,
        data.records_can_be_read,
        data.labels_have_one_class_for_each_prediction,
        data.test_records_match_training_records,
        data.test_records_are_not_trained_on,
        data.mixed_labels_have_the_classes,
        data.quiz_is_disjoint,
        data.order_is_possible,
        data.selection_is_possible,
        data.batches_hold_few_copies,
    ),
    # each stage, on shapes
    "stage": (
        stage.student_has_the_classes,
        stage.teachers_have_the_classes,
        terms.fusion_fits,
        terms.terms_fit,
        terms.class_numbers_match,
        terms.terms_of_pairs_read_embeddings,
        terms.text_reductions_have_texts,
        stage.evaluated_layers_exist,
        stage.teachers_have_values,
        stage.step_streams_exist,
        stage.teachers_support_the_step,
        stage.gate_is_trained_by_the_step,
        stage.own_models_can_be_evaluated,
        terms.terms_have_gradients,
        terms.masks_are_no_outputs,
        row_selection.selected_rows_divide,
        row_selection.rows_can_be_scored,
        stage.step_initialises,
        stage.activations_are_constrained,
        stage.tensor_divides_models,
    ),
    # the whole run
    "run": (
        run.student_can_be_measured,
        run.vocabularies_fit,
        run.teachers_read_their_texts,
        run.cut_vocabulary_has_tokens,
        run.categories_fit,
        run.streams_are_read,
        run.roles_have_parameters,
        run.chunks_divide_a_factored_head,
        run.kernels_have_chunks,
        run.kernels_have_a_compiler,
        exports.exports_can_hold_their_models,
    ),
    # each stage that is to be run, and not only planned
    "stage to run": (stage.memory_suffices,),
    # the files that models are loaded from
    "weights": (
        run.packages_exist,
        run.pretrained_weights_fit,
        run.teacher_checkpoints_fit,
        run.teacher_checkpoints_know_the_data,
    ),
    # the folder that the run writes to
    "workdir": (
        run.workdir_can_be_written,
        run.bucket_can_be_written,
        run.workdir_holds_this_run,
        run.steps_are_not_fewer_than_saved,
    ),
}


def check_rules(group: str, *subjects: Any) -> None:
    """Check all rules of a group, in order. A rule is a function that raises a `ConfigError` if the config breaks it.

    Args:
        group: a key of `RULES`, such as "data".
        subjects: arguments of each rule: the values to check, such as a `DataView`; for the group "workdir", also the
            folder of the run.

    Raises:
        ConfigError: a rule is broken; only the first one is reported.
    """
    for rule in RULES[group]:
        rule(*subjects)
