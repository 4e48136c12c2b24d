"""``codi-engine pairs``: making, reviewing, filtering and checking clean/corrupted pairs."""

from __future__ import annotations

import click

from codi_engine.cli.options import DEBUG, JSON, QUIET

_FORCE = click.option("--force", is_flag=True, help="Overwrite an existing file.")


@click.group()
def pairs() -> None:
    """Make, review, filter and check clean/corrupted pairs.

    \b
      codi-engine pairs generate problems.jsonl pairs.jsonl
      codi-engine pairs review pairs.jsonl
      codi-engine pairs filter pairs.jsonl good.jsonl --approved --both-correct --model FILE.yaml
      codi-engine pairs validate good.jsonl
    """


@pairs.command()
@click.argument("problems")
@click.argument("out")
@click.option("--per-problem", type=click.IntRange(min=1), default=1, show_default=True, help="Pairs of one problem, different numbers first.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--delta", type=click.FloatRange(min=0, min_open=True), default=0.5, show_default=True, help="How far a number may go, as a share of itself.")
@click.option("--range", "span", type=(float, float), metavar="LOW HIGH", help="Bounds of the new numbers.")
@click.option("--limit", type=click.IntRange(min=1), help="The first N problems only.")
@click.option("--known-only", is_flag=True, help="Leave out pairs whose answer the annotations do not give.")
@_FORCE
@QUIET
@DEBUG
def generate(
    problems: str,
    out: str,
    per_problem: int,
    seed: int,
    delta: float,
    span: tuple[float, float] | None,
    limit: int | None,
    known_only: bool,
    force: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Change one number of each question in PROBLEMS and write the pairs to OUT.

    The corrupted answer is computed from the solution's annotations (<<16-3-4=9>>) where they determine it; elsewhere it is
    left to review. Every pair is marked needs_review.
    """
    from codi_engine.cli import show
    from codi_engine.core.pairs.alter import Bounds
    from codi_engine.core.pairs.pairing import generate_pairs

    low, high = span or (None, None)
    if low is not None and high is not None and low > high:
        raise click.UsageError(f"--range {low:g} {high:g}: the first must not be larger than the second")
    done = generate_pairs(
        problems, out, per_problem=per_problem, seed=seed, bounds=Bounds(delta, low, high), limit=limit, known_only=known_only, force=force
    )  # fmt: skip
    if not quiet:
        show.table([*done.lines(), ("file", str(done.path)), ("next", f"codi-engine pairs review {done.path}")])


@pairs.command()
@click.argument("file")
@click.option("--all", "everything", is_flag=True, help="Show the decided ones again.")
@click.option("--export", metavar="CSV", help="Write a table for a spreadsheet instead.")
@click.option("--import", "import_", metavar="CSV", help="Take the decisions of a table (approve, reject or nothing); all of them or none.")
@_FORCE
@QUIET
@DEBUG
def review(file: str, everything: bool, export: str | None, import_: str | None, force: bool, quiet: bool, debug: bool) -> None:
    """Approve or reject the pairs of FILE, one key each; every decision is saved at once, the same command goes on."""
    from codi_engine.cli import show
    from codi_engine.core.pairs.pair_review import export_csv, import_csv, open_for_review

    if export and import_:
        raise click.UsageError("--export and --import are two commands")
    if not export and not import_:
        from codi_engine.cli.pair_session import review as session

        session(file, everything)
        return
    opened = open_for_review(file)
    lines = import_csv(opened, import_).lines() if import_ else [("rows", f"{export_csv(opened, str(export), force):,}"), ("table", str(export))]
    if not quiet:
        show.table(lines)


@pairs.command("filter")
@click.argument("file")
@click.argument("out")
@click.option("--approved", is_flag=True, help="Approved in review.")
@click.option("--distinct-answers", is_flag=True, help="Two answers, and not the same.")
@click.option("--both-correct", is_flag=True, help="The model answers both sides right.")
@click.option("--needs-latents", is_flag=True, help="… and both wrong with every latent set to zero.")
@click.option("--equal-length", is_flag=True, help="Both prompts have the same number of tokens.")
@click.option("--model", metavar="demo|FILE.yaml", help="The model to ask: of an experiment file, or the demo's.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="A.B=C", help="Change the file's model, generate, batch_size or memory.")
@click.option("--device", help="auto, cpu, cuda, cuda:1 …")
@click.option("--run", metavar="DIR", help="Where the model's answers are kept. Default: OUT.run.")
@_FORCE
@QUIET
@DEBUG
def filter_(
    file: str,
    out: str,
    model: str | None,
    overrides: tuple[str, ...],
    device: str | None,
    run: str | None,
    force: bool,
    quiet: bool,
    debug: bool,
    **filters: bool,
) -> None:
    """Write the pairs of FILE that pass every filter to OUT, with what the model did as fields.

    The model answers both sides, unedited and with every latent set to zero. What is interrupted goes on with the same command.
    """
    from codi_engine.cli import show
    from codi_engine.cli.progress import progress
    from codi_engine.core.pairs.pair_filter import Filters, filter_pairs

    with progress(quiet) as shown:
        done = filter_pairs(file, out, Filters(**filters), model=model, overrides=overrides, device=device, run=run, force=force, progress=shown)
    if not quiet:
        show.table([*done.lines(), ("file", str(done.path)), *([("run", str(done.run))] if done.run else [])])


@pairs.command()
@click.argument("file")
@JSON
@DEBUG
def validate(file: str, as_json: bool, debug: bool) -> int:
    """Say everything that is wrong with the pairs of FILE, by line and pair; exit code 2 where something is."""
    from dataclasses import asdict

    from codi_engine.core.pairs.pair_checks import check_pairs
    from codi_engine.core.text import json_shown, neutral

    read, problems = check_pairs(file)
    if as_json:
        click.echo(json_shown({"file": str(read.path), "pairs": len(read.pairs), "problems": [asdict(p) for p in problems]}, 1))
        return 2 if problems else 0
    for problem in problems:
        click.echo(neutral(f"{problem.place}: pair {problem.pair_id or '?'}: {problem.kind}: {problem.message}"))
    bad = len({p.place for p in problems})
    click.echo(
        f"{len(read.pairs):,} {'pair' if len(read.pairs) == 1 else 'pairs'}, "
        + (f"{len(problems):,} {'mistake' if len(problems) == 1 else 'mistakes'} in {bad:,} of them" if problems else "nothing wrong")
    )
    return 2 if problems else 0
