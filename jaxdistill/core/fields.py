"""Names of fields of a batch that several folders use; this module imports nothing, so that reading data stays fast."""

TEACHER = "teacher/"  # prefix of the fields that a teacher, or a second reader, has for itself
