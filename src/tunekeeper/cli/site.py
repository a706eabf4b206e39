"""`tunekeeper site`: the published reports, and the retirement dates of the home directory, as a static site."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tunekeeper.cli.options import options_of


def site(
    context: typer.Context,
    reports: Annotated[Path, typer.Option(help="Directory of reports, as `tunekeeper report --out` writes it.")],
    out: Annotated[Path, typer.Option(help="Directory of the site; it is replaced as a whole.")],
    title: Annotated[str, typer.Option(help="Name of the site.")] = "Diff Insight Report",
    base_url: Annotated[
        str, typer.Option(metavar="URL", help="Where the site will be; without it links in feeds are relative.")
    ] = "",
    language: Annotated[
        str, typer.Option(help="Language of the words around the reports.", show_default="that of most reports")
    ] = "",
    license_: Annotated[
        list[str] | None,
        typer.Option(
            "--license",
            metavar="[OWNER/REPO=]LICENCE",
            help="Licence of the documents, or of one source's; may be given again.",
        ),
    ] = None,
) -> None:
    """Make a site of published reports: pages, search, feeds, a calendar."""
    from tunekeeper.cli.home import local_store
    from tunekeeper.cli.output import note, show
    from tunekeeper.insight.calendar import retirements_of
    from tunekeeper.insight.published import read_reports
    from tunekeeper.insight.site import Site, build, write

    options = options_of(context)
    found, warnings = read_reports(reports)
    if reports.resolve().is_relative_to(out.resolve()):
        raise typer.BadParameter("the site would replace the reports; choose another --out.")
    for warning in warnings:
        note(f"Warning: {warning}")
    with local_store(options) as store:
        retirements = retirements_of(store.catalog())
    made = Site(
        reports=found,
        retirements=retirements,
        title=title,
        base_url=base_url,
        language=language,
        licenses=_licenses(license_ or []),
    )
    n_files = write(build(made), out)
    answer = {
        "out": str(out),
        "reports": len(found),
        "retirements": len(retirements),
        "files": n_files,
        "warnings": warnings,
    }
    left_out = f" {len(warnings)} files were left out." if warnings else ""
    show(
        options,
        answer,
        lambda: f"{out / 'index.html'}: {len(found)} reports, {len(retirements)} retirement dates.{left_out}",
    )


def _licenses(given: Sequence[str]) -> dict[str, str]:
    licenses = {}
    for text in given:
        name, separator, license_ = text.partition("=")
        licenses[name if separator else ""] = license_ if separator else name
    return licenses
