"""What a model is: names to checkpoints, text to tokens, sampling and scoring, each engine one file."""
