#!/usr/bin/env python3
"""Draw what `make bench-proxy` has measured: tests/bench/picture.py RESULTS.json PICTURE.svg. Runs in the bench's own environment.

The ground is transparent, and the colours can be told from a light page and from a dark one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import figures
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#6e7681"
COLOURS = {"direct": "#8b949e", "nginx": "#4c8dda", "gateway": "#2da44e", "litellm": "#bf6a02"}
PROXIES = ("nginx", "gateway", "litellm")
#: What cannot be told from nothing stands at the foot of the scale.
LEAST_MS = 0.01
WIDTH = 0.27

STYLE = {
    "svg.fonttype": "none",
    # The same figures make the same file.
    "svg.hashsalt": "bench-proxy",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "hatch.linewidth": 0.6,
}


def number(value: float) -> str:
    """A figure with two digits that count."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def added(axes: Axes, paced: Sequence[figures.Cell]) -> None:
    """Bars of the median that each proxy adds to the first token, by number of streams, with a line up to the 99th percentile."""
    streams = sorted({one.streams for one in paced})
    for offset, way in zip((-WIDTH, 0.0, WIDTH), PROXIES, strict=True):
        for place, count in enumerate(streams):
            own, direct = figures.find(paced, way, count), figures.find(paced, "direct", count)
            if own is None or direct is None:
                continue
            p50, p99 = (
                max(LEAST_MS, getattr(own.first, rank) - getattr(direct.first, rank)) for rank in ("p50", "p99")
            )
            x = place + offset
            axes.bar(
                x,
                p50,
                WIDTH * 0.92,
                color=COLOURS[way],
                hatch="////" if own.full else None,
                edgecolor="#ffffff66",
                linewidth=0,
            )
            axes.plot([x, x], [p50, max(p50, p99)], color=COLOURS[way], linewidth=1.5)
            axes.plot([x], [max(p50, p99)], marker="_", color=COLOURS[way], markersize=9, markeredgewidth=1.5)
            axes.annotate(
                number(p50), (x, max(p50, p99)), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=9
            )
    axes.set_yscale("log")
    axes.set_ylim(LEAST_MS, axes.get_ylim()[1] * 2.5)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    axes.minorticks_off()
    axes.set_xticks(range(len(streams)), [f"{count} stream{'s' if count > 1 else ''}" for count in streams])
    axes.set_title("Added to the time to first token: p50, and up to p99 (ms, log scale)")


def short(axes: Axes, cells: Sequence[figures.Cell]) -> None:
    """Bars of the answers that a second of CPU time gives."""
    for place, one in enumerate(cells):
        per = one.answers / sum(one.cpu_s.values())
        axes.bar(place, per, 0.6, color=COLOURS[one.way])
        axes.annotate(number(per), (place, per), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set_yscale("log")
    axes.set_ylim(10, axes.get_ylim()[1] * 1.5)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    axes.minorticks_off()
    axes.set_xticks(range(len(cells)), [figures.NAMES[one.way] for one in cells])
    axes.set_title("Short answers per CPU-second (log scale)")


def draw(paced: Sequence[figures.Cell], answers: Sequence[figures.Cell], file: Path) -> None:
    """Write the picture."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
        for axes in (left, right):
            axes.set_facecolor("none")
            axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="x", length=0)
        added(left, paced)
        short(right, answers)
        keys = [mpl.patches.Patch(color=COLOURS[way], label=figures.NAMES[way]) for way in PROXIES]
        if any(one.full for one in paced):
            keys.append(
                mpl.patches.Patch(facecolor=INK, hatch="////", edgecolor="#ffffff66", label="cores full: a queue")
            )
        left.legend(handles=keys, loc="upper left", frameon=False, fontsize=9)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def main() -> int:
    results, picture = sys.argv[1:]
    stored = json.loads(Path(results).read_text(encoding="utf-8"))
    draw(figures.cells(stored["paced"]), figures.cells(stored["short"]), Path(picture))
    return 0


if __name__ == "__main__":
    sys.exit(main())
