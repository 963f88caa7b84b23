"""The main job behind `make reproduce`: a folder of data and a profile enter, a table and figures leave.

The plan is a list of notebook runs: 00, 11, 12, 13 and 16 once, 01 to 09 and 14 for each data set, 17 on the small
synthetic set; `jobs` runs those that are not up to date. The other notebooks are lessons, which make no table.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stf2m_core.errors import KitError, ManifestError, RunError
from stf2m_core.jobs import ROOT, Job, execute

PROFILES = ("smoke", "standard", "paper")
_CONTRASTS = 30  # episodes per factor in notebook 17, a minute or so; the notebook alone draws more
_CONTRASTED = ("full", "no-temporal", "no-spatial")  # the variants whose runs notebook 17 reads
EMBEDDED = "synemo"
VOTES = "crema_d_votes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data set to run the main job on."""

    name: str
    """Of its manifest, and of the pack made from it."""
    source: str = ""
    """The folder of its files; "" for a generated set."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What tells these files from others: the manifest, and size and time of each file."""


def find_datasets(folder: str | None) -> list[Dataset]:
    """The data sets in the folder; the embedded synthetic one if none is named.

    Data sets of which the kit knows how to read them but not what to ask are no part of the main job.

    Raises:
        ManifestError: if the folder is not there or holds no data set that the kit has a study for.
    """
    from stf2m_core.data.manifest import find, load_manifest
    from stf2m_core.experiment import STUDIES

    if not folder:
        return [Dataset(name=EMBEDDED, facts={"manifest": load_manifest(EMBEDDED).path.read_text(encoding="utf-8")})]
    found = {manifest.name: (manifest, place) for manifest, place in find(folder, among=STUDIES)}
    datasets = []
    for name, (manifest, place) in sorted(found.items()):
        stats = {file.path: (place / file.path).stat() for file in manifest.files}
        files = {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}
        facts = {"manifest": manifest.path.read_text(encoding="utf-8"), "files": files}
        datasets.append(Dataset(name=name, source=str(place.resolve()), facts=facts))
    return datasets


def find_votes(folder: str | None) -> Dataset:
    """The votes of CREMA-D in the folder or in one of its folders; made-up votes if they are not there."""
    from stf2m_core.data.adapters.crema_d_votes import votes_file

    there = [Path(folder)] if folder and Path(folder).is_dir() else []
    for place in [*there, *(inside for one in there for inside in sorted(one.iterdir()))]:
        if path := votes_file(place):
            stat = path.stat()
            files = {path.relative_to(place).as_posix(): [stat.st_size, stat.st_mtime_ns]}
            return Dataset(name=VOTES, source=str(place.resolve()), facts={"files": files})
    return Dataset(name=VOTES)


def _find(folder: str | None) -> tuple[list[Dataset], Dataset]:
    """Data sets and votes; a folder that holds votes alone is good for what is made of votes."""
    votes = find_votes(folder)
    try:
        return find_datasets(folder), votes
    except ManifestError:
        if not votes.source:
            raise
        return [], votes


def find_others(folder: str | None, datasets: Sequence[Dataset]) -> str:
    """A sentence that names the data sets in the folder which are no part of the main job; "" if there are none."""
    from stf2m_core.data.manifest import find

    taken = {VOTES, *(dataset.name for dataset in datasets)}
    try:
        found = find(folder) if folder else []
    except ManifestError:  # nothing that any manifest describes
        found = []
    names = [f"{manifest.name} in {place}" for manifest, place in found if manifest.name not in taken]
    if not names:
        return ""
    return f"Found, but not part of this, as the kit has no study for it: {', '.join(names)}. Notebook 12 imports it.\n"


def plan(
    datasets: Sequence[Dataset],
    profile: str,
    *,
    results: Path = Path("results"),
    votes: Dataset | None = None,
    notebooks: Path = ROOT / "notebooks",
    design: Callable[[str, str], Any] | None = None,
) -> list[Job]:
    """All notebook runs of the main job.

    Args:
        datasets: to be run one beside the other.
        profile: smoke, standard or paper.
        results: the folder of everything that is made; absolute in the parameters, since notebooks run in their own.
        votes: to be fused, as `find_votes` gives them; made-up ones if not given.
        notebooks: the folder of the notebooks.
        design: name of the data set and profile to its folds, seeds and variants; `experiment.design` if not given.
    """
    if design is None:
        from stf2m_core.experiment import design
    results = results.resolve()
    given = {"results": str(results)}
    votes = votes or Dataset(name=VOTES)
    first = ("00_check_environment",)
    raters = given | {"source": votes.source}
    fusion = raters | {"profile": profile}
    jobs = [
        _job("00_check_environment", notebooks, given),
        _job("11_labels_and_raters", notebooks, raters, id=f"{VOTES}/11_raters", needs=first, data=votes.facts),
        _job("12_bring_your_own_data", notebooks, given | {"profile": "smoke"}, needs=first),
        _job("13_from_recordings_to_views", notebooks, given, needs=first),
        _job(
            "16_fuse_votes",
            notebooks,
            fusion,
            id=f"{VOTES}/16_fuse_votes",
            needs=first,
            data=votes.facts,
            leaves=(f"tables/{VOTES}/fusion.md",),
        ),
    ]
    for dataset in datasets:
        jobs += _plan_dataset(dataset, profile, results, notebooks, design(dataset.name, profile))
    return jobs


def _job(step: str, notebooks: Path, parameters: dict[str, Any], *, id: str = "", **settings: Any) -> Job:
    return Job(id=id or step, notebook=str(notebooks / f"{step}.ipynb"), parameters=parameters, **settings)


def _plan_dataset(dataset: Dataset, profile: str, results: Path, notebooks: Path, design: Any) -> list[Job]:
    name = dataset.name
    jobs: list[Job] = []
    folders = {"pack": str(results / "packs" / name), "results": str(results)}

    def add(
        step: str, needs: Sequence[str], *, suffix: str = "", gpu: int = 0, early: bool = False,
        leaves: tuple[str, ...] = (), **parameters: Any,
    ) -> str:  # fmt: skip
        id, settings = f"{name}/{step}{suffix}", {"gpu": gpu, "early": early, "leaves": leaves}
        jobs.append(_job(step, notebooks, folders | parameters, id=id, needs=tuple(needs), **settings))
        return id

    prepared = f"{name}/01_prepare_data"
    source = {"dataset": name, "source": dataset.source, "results": str(results), "profile": profile}
    settings = {"needs": ("00_check_environment",), "outputs": (f"packs/{name}",), "data": dataset.facts}
    jobs.append(_job("01_prepare_data", notebooks, source, id=prepared, **settings))
    add("02_look_at_views", [prepared])
    add("03_sample_episodes", [prepared], profile=profile)
    evaluated, trained = [], {}
    for variant, fold, seed in _runs(design):
        run = {"profile": profile, "variant": variant, "fold": fold, "seed": seed}
        suffix = f"-{variant}-fold{fold}-seed{seed}"
        leaves = (f"runs/{name}/{suffix[1:]}-*/model.safetensors",)
        made = add("06_meta_train", [prepared], suffix=suffix, gpu=1, early=True, leaves=leaves, **run)
        leaves = (f"records/{name}/st-f2m_{variant}_*_fold{fold}_seed{seed}_*.json",)
        evaluated.append(add("07_evaluate", [made], suffix=suffix, gpu=1, leaves=leaves, **run))
        trained[variant, fold, seed] = made
    shown = {"fold": design.folds[0], "seed": design.seeds[0]}
    for step in ("04_watch_the_rules_fire", "05_adapt_to_one_episode", "14_read_one_clip"):
        add(step, [trained["full", shown["fold"], shown["seed"]]], gpu=1, profile=profile, **shown)
    ablated = add("08_ablate", evaluated, gpu=1, profile=profile)
    leaves = (f"tables/{name}/main.md", f"tables/{name}/gains.md", f"figures/{name}/*.png")
    add("09_figures_and_tables", [ablated], leaves=leaves, profile=profile)
    shown = [trained.get((variant, design.folds[0], design.seeds[0])) for variant in _CONTRASTED]
    if name == EMBEDDED and profile == "smoke" and all(shown):  # the larger packs are not pure, and have no reference
        add("17_ablate_on_synthetic_truth", shown, gpu=1, early=True, profile=profile, episodes=_CONTRASTS)
    return jobs


def _runs(design: Any) -> list[tuple[str, int, int]]:
    runs = [
        (variant, int(fold), int(seed)) for variant, folds in design.variants for fold in folds for seed in design.seeds
    ]
    if ("full", design.folds[0], design.seeds[0]) not in runs:
        raise RunError(f"the design has the runs {runs}", expected="the variant full on its first fold among them")
    return runs


def report(jobs: Sequence[Job], results: Path) -> str:
    """What was made and where, in plain words, ending with the tables themselves; failures first if there are any."""
    lines = []
    missing = [job for job in jobs if not (results / ".done" / f"{job.id}.json").exists()]
    failed = [job for job in missing if (results / "executed" / f"{job.id}.failed.ipynb").exists()]
    for job in failed:
        lines.append(f"Failed: {job.id}; see {results / 'executed' / f'{job.id}.failed.ipynb'}")
    if missing:
        lines.append(f"{len(missing)} of {len(jobs)} notebooks are not done; the same command goes on from here.")
    for name in dict.fromkeys(job.id.partition("/")[0] for job in jobs if "/" in job.id):
        lines += ["", *_made(name, results)]
    return "\n".join(lines).strip() + "\n"


def _made(name: str, results: Path) -> list[str]:
    words = {"packs": "the data as a feature pack", "runs": "trained models", "records": "results with provenance"}
    words |= {"tables": "tables", "figures": "figures", "executed": "the notebooks as they ran (.html to read)"}
    there = [kind for kind in words if (results / kind / name).is_dir()]
    lines = [f"{name}: what was made"] + [f"  {results / kind / name}  {words[kind]}" for kind in there]
    tables = [results / "tables" / name / f"{table}.md" for table in ("main", "gains", "fusion")]
    for table in tables:
        lines += ["", table.read_text(encoding="utf-8").strip()] if table.exists() else []
    return lines


def main(arguments: list[str] | None = None) -> int:
    """`python -m stf2m_core.reproduce`; 0 if all is done, 1 if a notebook failed, 2 if nothing could start."""
    parser = argparse.ArgumentParser(prog="python -m stf2m_core.reproduce", description="From data to a table.")
    parser.add_argument("--data", metavar="DIR", help="folder of real data; without it the embedded synthetic set")
    parser.add_argument("--profile", choices=PROFILES, default="smoke", help="size of the whole (default: smoke)")
    parser.add_argument("--cores", type=int, default=1, help="notebooks at the same time (default: 1)")
    parser.add_argument("--results", default="results", help="folder of everything that is made (default: results)")
    parser.add_argument("--where", choices=("local", "slurm"), default="local", help="this machine, or through Slurm")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would run, and why")
    options = parser.parse_args(arguments)
    results = Path(options.results).expanduser()
    try:
        # where a shell leaves the ~ of DATA=~/folder as it is
        options.data = options.data and os.path.expanduser(options.data)
        datasets, votes = _find(options.data)
        jobs = plan(datasets, options.profile, results=results, votes=votes)
        sys.stdout.write(find_others(options.data, datasets))
        code = execute(jobs, results, cores=max(1, options.cores), dry_run=options.dry_run, where=options.where)
    except KitError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. The same command goes on from here.\n")
        return 130
    if not options.dry_run:
        sys.stdout.write("\n" + report(jobs, results))
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
