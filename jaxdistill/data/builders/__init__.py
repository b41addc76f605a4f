"""Data sets that come inside packages, and hierarchies of concepts: nothing else in the library imports them."""
