"""Data sets that come inside packages, and hierarchies of concepts: nothing else in the library imports them.

A builder is imported when a config names its data set. A new one is a file here and a line below.
"""

BUILDERS = {  # name of a data set -> the module here that registers it with TensorFlow Datasets
    "clothes": "digits",
    "emoji": "emoji",
    "mnist5k": "digits",
    "newsgroups": "texts",
    "plain_english": "corpora",
    "reuters": "texts",
    "spam": "texts",
    "vader": "texts",
}
