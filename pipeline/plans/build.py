"""`penstock build`: an ensemble's plans made before its workers need them, and the cache of plans looked at."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.assembly import open_encode_stage
from pipeline.errors import UserError
from pipeline.plans.cache import Kept, PlanCache, days_unused
from pipeline.settings import EnsembleSettings

# A plan that nobody has loaded for so long goes when plans are pruned.
UNUSED_DAYS = 30.0


def build(settings: EnsembleSettings) -> None:
    """Build what is missing, check it, load all of it once, and say what there is. Raises UserError, WorkerFailure."""
    if not settings.engine.on_gpu:
        raise settings.mistake("engine", "kind", message=f"{settings.engine.kind} needs no plans; allowed: tensorrt")
    started_s = time.monotonic()
    willing = settings.model_copy(update={"engine": settings.engine.model_copy(update={"plans": "build"})})
    willing._origin, willing._line_numbers = settings._origin, settings._line_numbers
    open_encode_stage(willing).close()
    print(f"ready after {time.monotonic() - started_s:.0f} s; {_places(settings)}")


def list_plans(folder: Path | None) -> None:
    """A line for each plan, the last used first."""
    cache = PlanCache(folder)
    plans = cache.plans()
    if not plans:
        print(f"no plans in {cache.folder}")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("MODEL", "PRECISION", "TOKENS", "MB", "BUILT IN", "UNUSED", "TENSORRT", "GPU", "CHECKED"):
        table.add_column(name, overflow="fold")
    for kept in plans:
        about = kept.about
        table.add_row(
            Path(about.model).name,
            about.precision,
            about.shape,
            str(about.bytes >> 20),
            f"{about.seconds:.0f} s",
            f"{days_unused(kept):.0f} d",
            about.tensorrt,
            about.gpu,
            "; ".join(f"{name}: {words}" for name, words in about.parity.items()),
        )
    Console(soft_wrap=True).print(table)
    print(f"{len(plans)} plans, {_megabytes(plans)} MB in {cache.folder}")


def prune_plans(folder: Path | None) -> None:
    """Remove what no worker has loaded for UNUSED_DAYS."""
    cache = PlanCache(folder)
    unused = [kept for kept in cache.plans() if days_unused(kept) > UNUSED_DAYS]
    for kept in unused:
        cache.remove(kept.key)
    cache.remove_aids(unused_days=UNUSED_DAYS)
    print(f"{len(unused)} plans removed, {_megabytes(unused)} MB, that were not used for {UNUSED_DAYS:g} days")


def require_one(*, build_wanted: bool, listing: bool, prune: bool, folder: Path | None) -> None:
    """Raises UserError unless exactly one thing is to be done, and with the folder that is meant."""
    if sum((build_wanted, listing, prune)) != 1:
        raise UserError("build: give ENSEMBLE.yaml, --list or --prune, one of them")
    if build_wanted and folder is not None:
        raise UserError("build: --plan-cache goes with --list and --prune; ENSEMBLE.yaml has engine.plan_cache")


def _places(settings: EnsembleSettings) -> str:
    """Where the plans are."""
    places = [f"{plan} is run as it is" for plan in dict.fromkeys(model.plan for model in settings.models) if plan]
    if any(model.plan is None for model in settings.models):
        places.insert(0, f"plans are in {PlanCache(settings.engine.plan_cache).folder}")
    return "; ".join(places)


def _megabytes(plans: list[Kept]) -> int:
    return sum(kept.about.bytes for kept in plans) >> 20
