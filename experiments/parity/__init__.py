"""Compare the outputs of published weights here with those of the software that they were published for."""
