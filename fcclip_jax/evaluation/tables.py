"""Figures as text."""

from collections.abc import Mapping


def panoptic_table(figures: Mapping) -> str:
    """Classes that occur, then all, things and stuff."""
    rows = [
        [c["name"], "thing" if c["isthing"] else "stuff", c["PQ"], c["SQ"], c["RQ"], c["TP"], c["FP"], c["FN"]]
        for c in figures["per_class"]
        if c["PQ"] is not None
    ]
    head = ["class", "", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
    sums = [
        [f"{name} ({figures['n' + suffix]})", "", *(figures[figure + suffix] for figure in ("PQ", "SQ", "RQ"))]
        for name, suffix in (("all classes", ""), ("things", "_th"), ("stuff", "_st"))
    ]
    return _table(head, rows, sums)


def semantic_table(figures: Mapping) -> str:
    """Classes that the truth has, then the four figures."""
    rows = [[c["name"], c["IoU"], c["ACC"], c["pixels"]] for c in figures["per_class"] if c["pixels"]]
    names = ("mIoU", "fwIoU", "mACC", "pACC")
    return _table(["class", "IoU", "ACC", "pixels"], rows, [[name, figures[name]] for name in names])


def instance_table(figures: Mapping) -> str:
    """Classes that the truth has, then all figures."""
    rows = [[c["name"], c["AP"], c["AP50"]] for c in figures["per_class"] if c["AP"] is not None]
    names = [name for name in figures if name.startswith(("AP", "AR"))]
    return _table(["class", "AP", "AP50"], rows, [[name, figures[name]] for name in names])


def _table(head: list, rows: list[list], sums: list[list]) -> str:
    cells = [[_cell(value) for value in row] + [""] * (len(head) - len(row)) for row in (head, *rows, *sums)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1 : len(rows) + 1], *([rule] if rows else []), *lines[len(rows) + 1 :]])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
