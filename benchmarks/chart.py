"""Draw how much longer than ours others take, as bars."""

from .goals import Cell
from .tables import COLUMNS, LABELS, LIMITS


def draw(path, results, cases, times):
    """Save a bar chart of the training steps' ratios, a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads, malloc = results["threads"][0], results["malloc"][0]
    isas = results["isa"]
    figure, axes = pyplot.subplots(
        len(isas), figsize=(10, 3.6 * len(isas)), squeeze=False)
    for axis, isa in zip(axes[:, 0], isas):
        cells = [Cell(isa, malloc, threads, True, False, case.name)
                 for case in cases]
        _bars(axis, cells, times)
        axis.set_title(f"Training step, {isa}, threads: {threads}",
                       fontsize=10)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, ncol=max(1, len(handles[0])),
                  loc="lower center")
    figure.savefig(str(path), dpi=100)
    pyplot.close(figure)


def _bars(axis, cells, times):
    ratios = {peer: [times.ratio(cell, peer, "ours") for cell in cells]
              for peer in COLUMNS + LIMITS}
    known = {peer: values for peer, values in ratios.items()
             if any(value is not None for value in values)}
    width = 0.8 / max(1, len(known))
    for index, (peer, values) in enumerate(known.items()):
        axis.bar([place + index * width for place in range(len(cells))],
                 [value or float("nan") for value in values], width,
                 label=LABELS[peer])
    axis.set_xticks([place + 0.4 for place in range(len(cells))])
    axis.set_xticklabels([cell.case for cell in cells], fontsize=8)
    axis.set_yscale("log")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_ylabel("time / ours")
