"""`cai models` and `cai doctor`: what there is, and whether this machine can run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def models(run: Annotated[Path, typer.Argument(help="A run's folder.")] = Path("runs")) -> None:
    """List the models and snapshots that a run has trained, with their folders.

    Example: `cai models runs/demo`
    """
    from rich.table import Column, Table

    from harness.cli.console import Terminal
    from harness.errors import UserError

    if not run.is_dir():
        raise UserError(f"{run}: no such folder; train models with `cai run experiments/demo.yaml`")
    configs = sorted({*run.rglob("model/config.json"), *run.rglob("*/adapter_config.json")})
    kept = [path.parent for path in configs if ".partial" not in str(path) and "checkpoint" not in str(path)]
    table = Table("stage", "checkpoint", Column("folder", overflow="fold"))
    for folder in kept:
        home = folder.parent if folder.name == "model" else folder.parents[1]
        table.add_row(home.parent.name, "final" if folder.name == "model" else folder.name, str(folder))
    Terminal().print(table if kept else f"{run}: no models yet; train them with `cai run experiments/demo.yaml`")


def _gpu() -> tuple[str, str]:
    """What the driver says of the GPUs, and whether this torch can use them."""
    import torch

    try:
        import pynvml
    except ImportError:
        there = torch.cuda.is_available()
        return torch.cuda.get_device_name() if there else "none that torch sees", "optional: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "none: no NVIDIA driver here", ""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    names = ", ".join(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    found = f"{names}, driver {pynvml.nvmlSystemGetDriverVersion()}"
    return found, "" if torch.cuda.is_available() else f"torch {torch.__version__} cannot use it; install a CUDA build"


def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's rates, for `cai plan --estimate`: a minute.")
    ] = False,
    model: Annotated[str, typer.Option(help="With --measure: the model, best of the size to be run.")] = "embedded",
) -> None:
    """Check this machine: versions, device, memory, disk, the embedded model, optional extras.

    Examples:

    `cai doctor`

    `cai doctor --measure`
    """
    if measure:
        return _measure(model)
    import importlib.util
    import shutil

    import psutil
    from rich.table import Column, Table

    from harness import store
    from harness.cli.console import Terminal
    from harness.models import checkpoints, embedded

    table = Table("what", Column("found", overflow="fold"), "so")
    for name, version in store.versions().items():
        table.add_row(name, version, "" if version != "not installed" else "pip install -e .")
    table.add_row("device", store.device_name(), f"runs in {checkpoints.dtype_for(checkpoints.device())}")
    table.add_row("gpu", *_gpu())
    free = psutil.virtual_memory().available / 2**30
    table.add_row("memory", f"{free:.1f} GiB free", "enough for the demo" if free > 6 else "the demo wants 6 GiB")
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    table.add_row("disk", f"{disk:.1f} GiB free", "enough for the demo" if disk > 8 else "the demo wants 8 GiB")
    cached = embedded.cache_folder() / "SmolLM2-135M-Instruct" / "config.json"
    table.add_row(
        "embedded model", str(cached.parent) if cached.is_file() else "not fetched yet", "fetched at first use"
    )
    for extra, module in (("dashboard", "streamlit"), ("vllm", "vllm"), ("tensorboard", "tensorboard")):
        there = importlib.util.find_spec(module) is not None
        table.add_row(
            extra, "installed" if there else "not installed", "" if there else f"optional: pip install {module}"
        )
    Terminal().print(table)


def _measure(model: str) -> None:
    """Measure the rates and keep them in the cache."""
    from rich.table import Table

    from harness.cli.console import Terminal
    from harness.cli.run import quiet
    from harness.estimate import measure, rates

    quiet()
    console = Terminal()
    with Terminal(stderr=True).status("measuring") as status:
        found = measure.measure(model, note=lambda said: status.update(f"measuring: {said}"))
    table = Table("rate", "value", "of what, a second", title=found.source, title_justify="left")
    for name, what in rates.MEASURED.items():
        table.add_row(name, f"{getattr(found, name):.3g}", what)
    console.print(table)
    console.print(f"Kept in {rates.keep(found)}, for `cai plan EXPERIMENT.yaml --estimate`")
