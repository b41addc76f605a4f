"""Builders of data sets whose files come inside software packages, and a command that makes graphs of related classes.

No other module of the library imports a builder directly: a builder is imported when a config names its data set. To
add a builder, write a file in this folder and a line in `BUILDERS`.
"""

BUILDERS = {  # name of a data set -> the module here that registers it with TensorFlow Datasets
    "clothes": "digits",
    "clothing_reviews": "shop",
    "diagnoses": "medical",
    "emoji": "emoji",
    "emoji_names": "emoji",
    "mnist5k": "digits",
    "movie_ratings": "shop",
    "newsgroups": "texts",
    "phenotypes": "medical",
    "plain_english": "corpora",
    "reuters": "texts",
    "spam": "texts",
    "vader": "texts",
}
