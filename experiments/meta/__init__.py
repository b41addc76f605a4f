"""Study whether a quiz of the student corrects a teacher that learned wrong labels."""
