"""The commands and their options; each hands over to its own module.

An error that a user can put right, or that a library raises, is one line on stderr
and exit code 2; ``normx --debug COMMAND`` shows the traceback instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import normx
from normx._plan import FLOATS
from normx.cli import screen


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise screen.allowed("command", args[0], self.commands)
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except (KeyboardInterrupt, typer.Abort):
            _fail("stopped", 130)
        except Exception as error:
            if given[:1] == ["--debug"]:
                raise
            command = getattr(getattr(error, "ctx", None), "command_path", "")
            hint = f" (see {command} --help)" if command else ""
            _fail(f"{screen.one_line(error)}{hint}", 2)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    typer.echo(f"normx: {message}", err=True)
    sys.exit(code)


app = typer.Typer(
    name="normx",
    cls=OneLineErrors,
    rich_markup_mode="markdown",  # reflows paragraphs
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"normx {normx.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def normx_command(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (first option).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """The softmax family on every array library, at memory speed, right to the last few bits."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_FILE = "PATH.png"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the picture goes.", metavar=_FILE)] = Path(
        "normx-demo.png"
    ),
    picture: Annotated[
        bool, typer.Option("--picture/--no-picture", help="Whether to draw a picture as well.")
    ] = True,
) -> None:
    """Run every function on real attention scores, on every library and backend here.

    The table says what really ran, how long it took, and the largest error. The picture shows one
    row with its tokens, and one head's map, under each function.
    """
    from normx._record import registry
    from normx.cli import demo as it
    from normx.cli import samples
    from normx.cli.picture import figure, target

    if picture:
        target(out)
        figure(1, 1)  # before the work: is matplotlib there?
    x = samples.table_scores()
    with screen.progress((1 + len(registry())) * len(it.places())) as step:
        lines = list(it.run(x, step))
    console = screen.console()
    console.print(it.table(lines, x))
    for reason in it.refusals(lines):
        console.print(f"  not run: {reason}", style="dim", markup=False)
    if picture:
        it.draw(out)
        console.print(f"picture: {out}", markup=False)


@app.command()
def info() -> None:
    """Say what is installed, what can be used, and why the rest cannot."""
    from normx.cli import info as it

    console = screen.console()
    for table in (it.here(), it.backends(), it.libraries()):
        console.print(table)


@app.command()
def capabilities(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As a table for a page on GitHub.")
    ] = False,
) -> None:
    """Show which backend computes which function, for which library and dtype."""
    from normx.cli import capabilities as it

    if markdown:
        typer.echo(it.markdown(), nl=False)
    else:
        screen.console().print(it.table())


@app.command()
def plot(
    function: Annotated[
        str, typer.Argument(help="A function of normx, such as softmax.", metavar="FUNCTION")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where the picture goes; normx-FUNCTION.png by default.", metavar=_FILE),
    ] = None,
) -> None:
    """Draw a function's weights on one common row, and the largest weight as rows grow."""
    from normx.cli import plot as it
    from normx.cli.picture import target

    record = it.record_named(function)
    path = target(out or Path(f"normx-{function}.png"))
    it.draw(record, path)
    screen.console().print(f"picture: {path}", markup=False)


@app.command()
def experiment(
    name: Annotated[
        str | None,
        typer.Argument(help="Such as dispersion; without one, all are listed.", metavar="NAME"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the picture goes; normx-NAME.png by default.", metavar=_FILE),
    ] = None,
    picture: Annotated[
        bool, typer.Option("--picture/--no-picture", help="Whether to draw a picture as well.")
    ] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="Far too small, in seconds: whether all works.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a section for docs/experiments.md.")
    ] = False,
) -> None:
    """Reproduce a claim of a paper: what it says, what was measured, and whether it held.

    Minutes on two cores, and the same figures in every run.
    """
    from normx.cli import experiment as it
    from normx.cli.picture import figure, target

    console = screen.console()
    if name is None:
        console.print(it.overview())
        return
    chosen = it.named(name)
    path = target(out or Path(f"normx-{name}.png"))
    if picture and not markdown:
        figure(1, 1)  # before the work: is matplotlib there?
    with screen.progress(chosen.steps(quick)) as step:
        outcome = chosen.outcome(quick, step)
    if markdown:
        typer.echo(it.markdown(chosen, outcome), nl=False)
        return
    console.print(it.table(chosen, outcome))
    if picture:
        it.draw(chosen, outcome, path)
        console.print(f"picture: {path}", markup=False)


@app.command()
def bench(
    function: Annotated[
        str | None,
        typer.Argument(
            help="A function of normx, such as softmax; all by default.", metavar="FUNCTION"
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Sizes joined by x, such as 64x1024; may be repeated.", metavar="NxM"),
    ] = None,
    axis: Annotated[int | None, typer.Option(help="Reduced axis of every shape.")] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(FLOATS)}.")] = "float32",
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 7,
    threads: Annotated[
        int, typer.Option(help="Threads of normx, torch, ONNX Runtime and, if possible, JAX.")
    ] = 1,
    ready: Annotated[
        bool | None,
        typer.Option(
            "--out-array/--fresh",
            help="Whether results go into a ready array (where that is possible) or a new one.",
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Compare with this one only; may be repeated. All by default."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all timings there.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the comparison there.", metavar=_FILE)
    ] = None,
    algorithms: Annotated[
        bool,
        typer.Option(
            "--algorithms", help="Compare the CPU kernels' algorithms on one row of growing length."
        ),
    ] = False,
    max_size: Annotated[int, typer.Option(help="Longest row of --algorithms.")] = 1 << 26,
    device: Annotated[
        str, typer.Option(help="cpu, or gpu: softmax on CUDA, over lengths and dtypes.")
    ] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small arrays only: whether all works, in seconds.")
    ] = False,
) -> None:
    """Time a function beside its peers, on the same data, in one interleaved run.

    Without --shape: a small matrix in cache, the whole call of one short row, four large ones, and
    columns. Every time stands beside those of normx and of a copy, and the largest error.

    Without FUNCTION: every function, forward and backward, and the project's targets.

    cross_entropy and SphericalHead, of normx.losses: a step of training, in float32, beside torch's
    loss and beside a dense layer.
    """
    from normx.cli import bench as it
    from normx.cli import training

    settings = it.Settings(dtype, repeats, threads)
    it.check(settings)
    if device not in _DEVICES:
        raise screen.allowed("device", device, _DEVICES)
    if function is not None and function in training.STUDIES:
        wide = None if dtype == "float32" else dtype
        away = None if device == "cpu" else device
        others = (shape or None, axis, ready, peer or None, plot, algorithms or None, wide, away)
        if any(value is not None for value in others):
            raise screen.CommandError(
                f"normx bench {function} takes --repeats, --threads, --quick and --json"
            )
        _check_files(json, None)
        _training(function, settings, quick, json)
        return
    if device == "gpu":
        _on_gpu(it.record_named(function) if function else None, settings, quick, json, plot)
        return
    if function is None:
        _check_whole(
            shape=shape or None,
            axis=axis,
            out_array=ready or None,
            fresh=ready is False or None,
            peer=peer or None,
            plot=plot,
            algorithms=algorithms or None,
        )
        _check_files(json, None)
        _catalogue(settings, quick, json)
        return
    record = it.record_named(function)
    _check_files(json, plot)
    if algorithms:
        _study(record, settings, max_size, json, plot)
        return
    from normx.cli import bench_report as report

    chosen = it.cases(shape or (["64x1024"] if quick else ()), axis, ready)
    peers = it.peers_named(peer or ())
    with screen.progress(it.steps_of(chosen, settings, peers)) as step:
        results = it.run(record, chosen, settings, peers, step)
    console = screen.console()
    console.print(report.machine_line(), style="dim", markup=False)
    for table in report.tables(function, results, settings):
        console.print(table)
    console.print(report.footnote(settings), style="dim", markup=False)
    busy = [score.busy_threads for result in results for score in result.scores]
    _warn(report.disturbed(busy))
    if json is not None:
        report.write_json(json, report.as_json(function, results, settings))
    if plot is not None:
        report.draw(function, results, settings, plot)
    _say_where(json, plot)


_DEVICES = ("cpu", "gpu")


def _on_gpu(record: Any, settings: Any, quick: bool, json: Path | None, plot: Path | None) -> None:
    from normx.cli import bench_report as report
    from normx.cli import gpu as it

    it.check()
    _check_files(json, plot)
    chosen = it.cases(record, settings.dtype, quick=quick)
    with screen.progress(len(chosen) * settings.repeats) as step:
        results = it.run(chosen, settings.repeats, it.cuda(), step)
    console = screen.console()
    for table in it.tables(results):
        console.print(table)
    console.print(it.footnote(results, settings.repeats), style="dim", markup=False)
    if json is not None:
        report.write_json(json, it.as_json(results, settings.repeats))
    if plot is not None:
        it.draw(results, settings.repeats, plot)
    _say_where(json, plot)


def _check_whole(**options: Any) -> None:
    """Refuse options that mean nothing where no function is named."""
    for name, value in options.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            raise screen.CommandError(
                f"{flag} needs a FUNCTION, such as: normx bench softmax {flag}"
            )


def _catalogue(settings: Any, quick: bool, json: Path | None) -> None:
    from normx.cli import bench_report as report
    from normx.cli import catalogue, targets

    races, wanted = catalogue.races(quick), targets.chosen(quick)
    with screen.progress(len(races) + len(wanted)) as step:
        found = [(race, catalogue.measure(race, settings, step)) for race in races]
        reached = [
            it
            for (name, case), together in wanted.items()
            for it in targets.measure(name, case, together, settings.repeats, step)
        ]
    console = screen.console()
    console.print(report.machine_line(), style="dim", markup=False)
    for table in (*catalogue.tables(found, settings), targets.table(reached)):
        console.print(table)
    console.print(catalogue.footnote(settings), style="dim", markup=False)
    _warn(report.disturbed(score.busy_threads for _, it in found for score in it.scores))
    if json is not None:
        content = report.as_json("catalogue", [], settings)
        parts = {"cases": catalogue.as_json(found), "targets": targets.as_json(reached)}
        report.write_json(json, content | parts)
    _say_where(json, None)


def _training(name: str, settings: Any, quick: bool, json: Path | None) -> None:
    from normx.cli import bench_report as report
    from normx.cli import training as it

    study = it.STUDIES[name]
    with screen.progress(study.steps(settings, quick)) as step:
        lines = study.run(settings, quick, step)
    console = screen.console()
    console.print(report.machine_line(), style="dim", markup=False)
    console.print(it.table(study, lines, settings))
    _warn(report.disturbed(line.busy_threads for line in lines))
    if json is not None:
        content = report.as_json(name, [], settings)
        report.write_json(json, content | {"training": it.as_json(lines)})
    _say_where(json, None)


def _study(record: Any, settings: Any, max_size: int, json: Path | None, plot: Path | None) -> None:
    from dataclasses import asdict

    from normx.cli import algorithms as it
    from normx.cli import bench_report as report

    sizes = it.lengths(max_size)
    it.kernels()
    with screen.progress(len(sizes)) as step:
        points = it.study(record, sizes, settings, step)
    console = screen.console()
    console.print(report.machine_line(), style="dim", markup=False)
    for table in it.tables(record.name, points, settings):
        console.print(table)
    _warn(report.disturbed(p.busy_threads for p in points))
    if json is not None:
        content = report.as_json(record.name, [], settings)
        report.write_json(json, content | {"algorithms": [asdict(point) for point in points]})
    if plot is not None:
        it.draw(record.name, points, settings, report.machine_line(), plot)
    _say_where(json, plot)


def _check_files(json: Path | None, plot: Path | None) -> None:
    """Refuse what cannot be written before anything is timed."""
    from normx.cli.picture import figure, target

    if plot is not None:
        target(plot)
        figure(1, 1)
    if json is not None and not json.absolute().parent.is_dir():
        raise screen.no_folder(json)


def _warn(text: str) -> None:
    if text:
        screen.console().print(text, style="yellow", markup=False)


def _say_where(json: Path | None, plot: Path | None) -> None:
    for what, path in (("timings", json), ("picture", plot)):
        if path is not None:
            screen.console().print(f"{what}: {path}", markup=False)
