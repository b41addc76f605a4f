"""Name the arrays that quantisation and pruning add to a model's parameters and state. All of them start with zeros."""

LOG_SCALE = "/log_scale"  # suffix of a parameter: the logarithm of a learned factor of a weight's scales
RANGE = "/input_range"  # suffix of state: least and greatest input of a weight
CALLS = "quantize/calls"  # state: number of training calls
SQUARE = "/input_square"  # suffix of state: running mean of the squared inputs of a kernel


def is_added(name: str) -> bool:
    """Return True for the name of an array that quantisation or pruning has added to a model."""
    return is_of_quantizer(name) or name.endswith(SQUARE)


def is_of_quantizer(name: str) -> bool:
    """Return True for the name of an array that quantisation has added to a model."""
    return name.endswith((LOG_SCALE, RANGE)) or name == CALLS
