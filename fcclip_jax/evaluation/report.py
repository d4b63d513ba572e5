"""What an evaluation says in the end: figures.json, and report.md with the paper's row beside one's own."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcclip_jax.evaluation import tables
from fcclip_jax.evaluation.evaluator import MAIN_FIGURE
from fcclip_jax.evaluation.json_files import write_json
from fcclip_jax.evaluation.paper import BACKBONES, published

_TABLES = {"panoptic": tables.panoptic_table, "semantic": tables.semantic_table, "instance": tables.instance_table}


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of an evaluation.

    `figures`: task to the metric's figures, percent; `images`: counted; `expected`: images that the benchmark has, None
    where that is not known; `skipped`: the reasons, one an image; `departures`: what was not done as in the paper;
    `worst`: (percent, image name) of the images with the lowest figures, the lowest first.
    """

    benchmark: str
    title: str
    backbone: str
    classifier: str
    figures: Mapping[str, Mapping[str, Any]]
    images: int
    expected: int | None
    skipped: Sequence[str] = ()
    departures: Sequence[str] = ()
    worst: Sequence[tuple[float, str]] = ()

    def paper(self) -> Mapping[str, float]:
        """The published figures, by the paper's names."""
        return published(self.backbone, self.benchmark, self.classifier)

    def row(self) -> dict[str, float | None]:
        """One's own, by the paper's names."""
        return {name: self.figures[task][name] for task, name in MAIN_FIGURE.items() if task in self.figures}


def write_report(folder: Path, report: Report, identity: Mapping[str, Any]) -> None:
    """Writes `figures.json` and `report.md`, each aside and renamed."""
    content = {
        "benchmark": report.benchmark,
        "images": report.images,
        "skipped": list(report.skipped),
        **report.figures,
        "paper": dict(report.paper()),
        "evaluation": identity,
    }
    write_json(folder / "figures.json", content)
    aside = folder / ".report.md.partial"
    aside.write_text(markdown(report), encoding="utf-8")
    aside.replace(folder / "report.md")


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [f"# {report.title}", comparison(report), "\n".join(f"- {line}" for line in notes(report))]
    for task, figures in report.figures.items():
        parts += [f"## {task.capitalize()}", f"```\n{_TABLES[task](figures)}\n```"]
    if report.worst:
        lines = "\n".join(f"| {name} | {score:.2f} |" for score, name in report.worst)
        parts += ["## Lowest images", f"| image | percent |\n|---|---|\n{lines}"]
    if report.skipped:
        parts += ["## Passed over", "\n".join(f"- {reason}" for reason in report.skipped)]
    return "\n\n".join(parts) + "\n"


def comparison(report: Report) -> str:
    """A Markdown table: one's own row, the paper's, and the difference."""
    own, paper = report.row(), report.paper()
    names = list(own)
    rows = [(f"this run ({report.backbone})", own)]
    if paper:
        difference = {
            name: own[name] - paper[name] if own[name] is not None and name in paper else None for name in names
        }
        rows += [(f"FC-CLIP, {BACKBONES[report.backbone]} (paper)", paper), ("difference", difference)]
    lines = [["percent", *names], ["---"] * (len(names) + 1)]
    for title, values in rows:
        style = "{:+.2f}" if title == "difference" else "{:.2f}"
        lines.append([title, *("-" if values.get(n) is None else style.format(values[n]) for n in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(report: Report) -> list[str]:
    """What a reader of the row must know."""
    found = []
    total = report.images + len(report.skipped)
    if report.expected is not None and total != report.expected:
        found.append(f"{total} of the benchmark's {report.expected} images")
    else:
        found.append(f"{total} images")
    if report.skipped:
        found.append(f"{len(report.skipped)} of them could not be used and are not counted")
    found += report.departures
    if not report.paper():
        found.append(f"the paper has no row for {report.backbone} on this benchmark with this classifier")
    return found
