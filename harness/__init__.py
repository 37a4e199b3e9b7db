"""What every pipeline and suite stands on: experiment, stages, store, models, generation, data, statistics."""

__version__ = "0.1.0"
