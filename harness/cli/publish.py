"""`cai publish`: a model of a run as it leaves it: merged, with its card and the report, in a folder or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reports.load import RunData


def publish(
    model: Annotated[str, typer.Argument(metavar="RUN:ARM", help="An arm, or a PM such as runs/demo:pm.rl_cai.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="On the hub: OWNER/NAME.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder and upload nothing.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Let all see a repository that is new.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write (default: RUN/published/ARM).")] = None,
) -> None:
    """Merge a trained model, write its card, and upload both with the report to the Hugging Face hub.

    The folder loads by itself: an arm with AutoModelForCausalLM, a PM with AutoModelForSequenceClassification, both in
    vLLM, lm-eval and RewardBench. Log in with `hf auth login`, or set HF_TOKEN.

    Examples:

    `cai publish runs/demo:rl_cai me/rl-cai --dry-run`

    `cai publish runs/demo:pm.rl_cai me/pm-rl-cai --dry-run`
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from harness.cli.console import Terminal
    from harness.errors import UserError, one_line

    place, colon, name = model.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"{model}: give RUN:ARM, as in runs/demo:rl_cai")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: no name of a repository ({one_line(error)}); give OWNER/NAME") from error
    run = Path(place)
    folder = write(run, name, repo, out or run / "published" / name)
    console = Terminal(soft_wrap=True)
    if dry_run:
        console.print(f"wrote {folder}; without --dry-run it goes to {repo}")
        return
    console.print(f"published {upload(folder, repo, private=not public)}")


def write(run: Path, name: str, repo: str, folder: Path) -> Path:
    """The folder that is published: a merged checkpoint, its card, the report. Raises UserError."""
    import shutil

    from harness import store
    from harness.models import outside
    from harness.quiet import quiet
    from reports import model_card
    from reports.load import RunData

    stage, data = stage_of(run, name), RunData(run)
    weights = _result(data, name, stage)
    quiet()
    store.writable(folder.parent)
    with store.disk_space(folder):
        pm = outside.merged(weights, folder)
        card = model_card.text(data, name, stage, repo, pm=pm)
        store.write_text(folder / "README.md", card)
        report = run / "report" / "index.html"
        if report.is_file():
            (folder / "report").mkdir(exist_ok=True)
            shutil.copy(report, folder / "report" / "index.html")
    return folder


def stage_of(run: Path, name: str) -> Path:
    """The folder of the newest finished stage that made model `name`."""
    from harness import manifest
    from harness.errors import UserError

    if not (run / "stages").is_dir():
        raise UserError(f"{run}: no run with trained models; give RUN:ARM, as in runs/demo:rl_cai")
    homes = [path.parent for path in run.glob("stages/*/*/model") if manifest.read(path.parent) is not None]
    found = [home for home in homes if home.parent.name == name]
    if not found:
        there = ", ".join(sorted({home.parent.name for home in homes})) or "none"
        raise UserError(f"{run}: no trained model {name!r}; there are {there}")
    return max(found, key=lambda home: (home / manifest.NAME).stat().st_mtime)


def _result(run: RunData, name: str, stage: Path) -> Path:
    """The weights that the run measured as the arm's result: its last, or the snapshot that `rl.result` chose."""
    from suites import chosen

    found = run.results[run.results["arm"] == name]
    if found.empty:
        return stage / "model"
    (row,) = found.to_dict("records")
    return chosen.saved(stage, row["last"])[row["step"]]


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Create the repository where it is new, and upload the folder; its address. Raises UserError."""
    import huggingface_hub

    from harness.errors import UserError, one_line

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repo, commit_message="Upload by cai publish")
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"{repo}: the hub did not take it ({one_line(error)}); log in with `hf auth login` and check the name; the "
            f"folder is kept in {folder}"
        ) from error
    return f"https://huggingface.co/{repo}"
