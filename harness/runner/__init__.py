"""Who carries the stages of a graph out."""
