"""Study whether a student learns other languages from a teacher that reads English alone."""
