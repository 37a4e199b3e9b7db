"""Silence for libraries that talk beside a run's own progress."""

from __future__ import annotations


def quiet() -> None:
    """Silence the libraries' own bars and deprecation notes: the run has its own progress, errors still show.

    Warnings of the project itself, and of a user's code, are not touched.
    """
    import logging
    import warnings

    import datasets
    from transformers.utils import logging as hf_logging

    libraries = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub", "tensorboard")
    warnings.filterwarnings("ignore", module=rf"({'|'.join(libraries)})(\.|$)")
    datasets.disable_progress_bars()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    for name in ("trl", "accelerate", "peft", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
