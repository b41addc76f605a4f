"""Study whether an ontology places classes that have no example."""
