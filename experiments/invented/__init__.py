"""Study what invented images are worth: warped and mixed from a few real ones, and labelled by a teacher."""
