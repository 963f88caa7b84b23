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
    add.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                     help="an option of the data set, e.g. modalities=audio,text; may be repeated")  # fmt: skip
    add.add_argument("--first-result", metavar="DIR", help="then train and test on the pack; DIR keeps run and records")
    add.add_argument("--profile", default="smoke", help="size of that training (default: smoke)")
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
    _add_predict(verbs.add_parser("predict", help="what a finished run says of one clip, over time, and why"))
    add = verbs.add_parser("run-notebook", help="as python -m stf2m_core.notebook run", add_help=False)
    add.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def _add_predict(add: argparse.ArgumentParser) -> None:
    add.add_argument("clip", help="a recording, or the clip_id of a clip of the pack")
    add.add_argument("--run", required=True, help="folder of the finished run")
    add.add_argument("--support", help="folder with one sub-folder per label, or a CSV with path and label")
    add.add_argument("--pack", help="on which the run was trained (default: the one beside the run)")
    add.add_argument("--other-people", action="store_true", help="the support shows others than the person of the clip")
    add.add_argument("--text", default="", help="what is said in the clip")
    add.add_argument("--words", default="", help="a transcript with times instead: .srt, .vtt or .csv")
    add.add_argument("--window", type=float, help="length of a window in seconds (default: 2)")
    add.add_argument("--hop", type=float, help="from one window to the next, seconds (default: 0.25)")
    add.add_argument("--out", help="folder for prediction.json, timeline.csv and prediction.png")


def _do(options: argparse.Namespace) -> str:
    import stf2m_core as stf2m
    from stf2m_core.data.pack import verify

    if options.verb == "import":
        return _import(options)
    if options.verb == "fetch":
        from stf2m_core.data.fetch import fetch

        return f"{options.name} is in {fetch(options.name, options.to, files=options.file)}."
    if options.verb == "predict":
        return _predict(options)
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


def _predict(options: argparse.Namespace) -> str:
    """The answer in words; with --out also as files."""
    from pathlib import Path

    from stf2m_core import figures
    from stf2m_core.data.media.glance import glance
    from stf2m_core.predicting import PredictionSettings, predict

    chosen = {"window_s": options.window, "hop_s": options.hop}
    settings = PredictionSettings(**{name: value for name, value in chosen.items() if value is not None})
    person = False if options.other_people else None
    said = predict(options.run, options.clip, support=options.support, pack=options.pack, same_person=person,
                   text=options.text, words_path=options.words, settings=settings)  # fmt: skip
    words = said.in_words()
    if options.out:
        out = Path(options.out)
        said.to_json(out / "prediction.json")
        said.to_csv(out / "timeline.csv")
        seen = glance(options.clip, said.duration_s, n_pictures=6) if Path(options.clip).is_file() else None
        figures.save(figures.prediction(said, seen), out / "prediction.png")
        words += f"\n{out} holds prediction.json, timeline.csv and prediction.png."
    return words


def _import(options: argparse.Namespace) -> str:
    """The report of the import and, if asked for, a table of first results."""
    from stf2m_core.config import RunConfig
    from stf2m_core.data.manifest import import_dataset, options_of
    from stf2m_core.data.pack import open_pack

    RunConfig.preset(options.profile)  # refused before any work
    own = options_of(options.name, options.set)
    facts = {"source": options.source, "out": options.out, "overwrite": options.overwrite}
    report = import_dataset(options.name, **facts, **own)
    if not options.first_result:
        return str(report)
    from stf2m_core.own_data import first_result

    table = first_result(open_pack(report.pack), options.first_result, options.profile)
    return f"{report}\n\n{table.to_string()}"


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
