"""Other people's weights: where they lie, how their names become ours, and how ours go back."""
