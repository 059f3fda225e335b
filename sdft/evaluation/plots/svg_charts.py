"""Plots as SVG text for self-contained pages."""

import io

MAX_COLUMNS = 4
MAX_LABELED_LINES = 8  # plots with more lines have no legend
BLUE, GREY, AMBER = "#2563eb", "#98a2b3", "#d97706"  # fine-tuned, axes, real images
LINE_COLORS = [BLUE, "#d97706", "#15803d", "#9333ea", "#b42318", "#0e7490"]


def plot_small_multiples(panels: dict[str, tuple[list[dict], float | None]], positions: list[float], axis: str) -> str:
    """One small plot per score: its values with intervals over `positions`, and the score of real images as a dotted line."""
    if not panels:
        return ""
    figure, panes = create_figure(-(-len(panels) // MAX_COLUMNS), MAX_COLUMNS, 1.9)
    for axes, (title, (scores, real)) in zip(panes, panels.items(), strict=False):
        points = [(x, score) for x, score in zip(positions, scores, strict=True) if score["value"] is not None]
        axes.plot([x for x, _ in points], [s["value"] for _, s in points], color=BLUE, marker=".", linewidth=1.6)
        spans = [(x, s["low"], s["high"]) for x, s in points if s.get("low") is not None]
        if spans:
            axes.fill_between(*zip(*spans, strict=True), color=BLUE, alpha=0.15, linewidth=0)
        if real is not None:
            axes.axhline(real, color=AMBER, linestyle=":", linewidth=1.4)
        style_axes(axes, title, axis)
    return render_svg(figure)


def plot_lines_with_spread(panels: dict[str, dict[str, list[tuple[float, float, list[float]]]]], axis: str) -> str:
    """One small plot per score; `panels` maps titles to lines, and line names to points (position, mean, single values)."""
    rows = -(-len(panels) // MAX_COLUMNS)
    figure, panes = create_figure(rows, min(len(panels), MAX_COLUMNS), 2.2)
    for axes, (title, lines) in zip(panes, panels.items(), strict=False):
        positions = {x for line in lines.values() for x, _, _ in line}
        unconnected = not any(len(line) > 1 for line in lines.values())
        for colour, (name, line) in zip(
            [BLUE] * len(lines) if unconnected else LINE_COLORS * 9, lines.items(), strict=False
        ):
            means, dots = [(x, y) for x, y, _ in line], [(x, y) for x, _, values in line for y in values]
            axes.plot(
                *zip(*means, strict=True),
                color=colour,
                linewidth=1.6,
                label=None if unconnected else escape_mathtext(name),
            )
            axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=7 if unconnected else 4)
        if min(positions, default=0) > 0 and max(positions) / min(positions) > 5:
            axes.set_xscale("log", base=2 if all(float(x).is_integer() for x in positions) else 10)
            if len(positions) < 9:
                axes.set_xticks(sorted(positions), [f"{x:g}" for x in sorted(positions)])
                axes.minorticks_off()
        style_axes(axes, title, axis)
    if (
        any(1 < len(lines) <= MAX_LABELED_LINES for lines in panels.values())
        and panes[0].get_legend_handles_labels()[0]
    ):
        panes[0].legend(frameon=False, fontsize=7)
    return render_svg(figure)


def plot_pareto_scatter(points: dict[str, tuple[float, float]], x: str, y: str, up: bool, log: bool) -> str:
    """Settings by cost and score, with the Pareto front; `up` means that a higher score is better."""
    figure, (axes,) = create_figure(1, 1, 3.2, width=5.2)
    for cost, score in points.values():
        axes.plot(cost, score, "o", color=BLUE, markersize=5)
    better = max if up else min
    front = [p for p in points.values() if all(better(p[1], q[1]) == p[1] for q in points.values() if q[0] <= p[0])]
    axes.plot(*zip(*sorted(front), strict=True), color=AMBER, linewidth=1.4, zorder=0)
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.18)
    style_axes(axes, f"{y} {'↑' if up else '↓'}", x)
    figure.draw_without_rendering()  # computes the layout that label positions depend on
    label_points(axes, points)
    return render_svg(figure)


def label_points(axes, points: dict[str, tuple[float, float]]) -> list[tuple[float, float]]:
    """Write a name to the right of each point, lower where labels would overlap; return the offsets in points."""
    occupied, offsets, line = [], [], 9
    for name, point in sorted(points.items(), key=lambda item: -item[1][1]):
        left, middle = axes.transData.transform(point) * 72 / axes.figure.dpi
        right, lower = left + 4 * len(name), 3
        while any(abs(middle + lower - m) < line and left < r and le < right for m, le, r in occupied):
            lower -= line
        occupied.append((middle + lower, left, right))
        offsets.append((6, lower))
        axes.annotate(escape_mathtext(name), point, textcoords="offset points", xytext=offsets[-1], fontsize=7)
    return offsets


def create_figure(rows: int, columns: int, height: float, width: float = 10.6):
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(min(width, 3.4 * columns) if columns > 1 else min(width, 5.2), height * rows), layout="constrained"
    )
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def style_axes(axes, title: str, axis: str) -> None:
    axes.set_title(escape_mathtext(title), fontsize=9, loc="left")
    axes.set_xlabel(escape_mathtext(axis), fontsize=8, color=GREY)
    axes.tick_params(labelsize=7, colors=GREY, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def escape_mathtext(text: str) -> str:
    """Escape dollar signs, which start a formula in matplotlib."""
    return text.replace("$", r"\$")


def render_svg(figure) -> str:
    import matplotlib

    text = io.StringIO()
    for axes in figure.axes:
        axes.set_visible(axes.has_data())
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sdft", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]
