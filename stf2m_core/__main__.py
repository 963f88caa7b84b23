"""The verbs on the command line: python -m stf2m_core import|fetch|verify|train|...; --help on each."""

from __future__ import annotations

import argparse
import sys

from stf2m_core.errors import KitError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stf2m_core", description="Few-shot emotion recognition, ST-F2M.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("import", help="make a feature pack from a data set that has a manifest")
    add.add_argument("name", help="of the manifest, e.g. ravdess_features")
    add.add_argument("--source", help="folder of the data set's files; none for synemo")
    add.add_argument("--out", required=True, help="folder of the pack")
    add.add_argument("--overwrite", action="store_true", help="replace the pack that is there")
    add = verbs.add_parser("fetch", help="get the files of an open data set, or go on where it stopped")
    add.add_argument("name", help="of the manifest, e.g. ravdess")
    add.add_argument("--to", required=True, help="folder for the files")
    add.add_argument("--file", action="append", default=[], help="only this file; may be repeated (default: all)")
    add = verbs.add_parser("verify", help="check every hash and value of a pack")
    add.add_argument("pack")
    for verb, text in (("train", "meta-train on a pack, or continue"), ("evaluate", "meta-test a finished run")):
        add = verbs.add_parser(verb, help=text)
        add.add_argument("pack")
        add.add_argument("--results", default="results", help="folder of runs and records (default: results)")
        add.add_argument("--profile", default="smoke", help="smoke, standard or paper (default: smoke)")
        add.add_argument("--variant", default="full", help="full, or an ablation (default: full)")
        add.add_argument("--fold", type=int, default=0)
        add.add_argument("--seed", type=int, default=0)
    add = verbs.add_parser("run-notebook", help="as python -m stf2m_core.notebook run", add_help=False)
    add.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def _do(options: argparse.Namespace) -> str:
    import stf2m_core as stf2m
    from stf2m_core.data.pack import verify

    if options.verb == "import":
        facts = {"source": options.source, "out": options.out, "overwrite": options.overwrite}
        return str(stf2m.import_dataset(options.name, **facts))
    if options.verb == "fetch":
        from stf2m_core.data.fetch import fetch

        return f"{options.name} is in {fetch(options.name, options.to, files=options.file)}."
    if options.verb == "verify":
        verify(options.pack)
        return f"{options.pack} is whole."
    pack, experiment = stf2m.open_pack(options.pack), stf2m.experiment
    chosen = {"variant": options.variant, "fold": options.fold, "seed": options.seed}
    config = experiment.config_for(pack, options.profile, **chosen)
    if options.verb == "train":
        run = experiment.train_run(pack, config, options.results, variant=options.variant)
        return f"{run.path}: {run.summary['steps']} steps, best meta-validation NLL {run.summary['best_nll']:.3f}"
    records = experiment.evaluate_run(pack, config, options.results, variant=options.variant)
    return "\n".join(f"{record.name}: accuracy {record.accuracy}" for record in records)


def main(arguments: list[str] | None = None) -> int:
    """0 if done, 2 with one sentence on standard error if the user asked for what cannot be."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["run-notebook"]:
        from stf2m_core.notebook import main as run

        return run(["run", *arguments[1:]])
    options = _parser().parse_args(arguments)
    try:
        sys.stdout.write(_do(options) + "\n")
    except KitError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
