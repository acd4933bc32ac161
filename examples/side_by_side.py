"""Train several networks side by side, and plot their test accuracies."""

import options
from matplotlib.figure import Figure
from network import steps_to_test


def train_side_by_side(trains, stream, measure, args):
    """Train networks on the same batches; return what was measured.

    `trains` are functions, one for each network, that make a step of a batch
    of the `stream`. ``measure(step)``, called after some of the steps, returns
    a row of the result, and a line to print. There are fewer rows if the user
    interrupted it.
    """
    stops = set(steps_to_test(args.steps))
    rows = []
    with options.steps_of(args) as steps:
        for step in steps:
            batch = next(stream)
            for train in trains:
                train(*batch)
            if step in stops:
                row, line = measure(step)
                # First: what is printed is in the result, whenever Ctrl-C
                # comes.
                rows.append(row)
                options.say(line)
    return rows


def are_complete(rows, args):
    """Tell whether the user let the training end."""
    return len(rows) == len(steps_to_test(args.steps))


def plot_accuracies(rows, styles, title, caption):
    """Draw test accuracies over steps.

    `rows` are of steps made, then the accuracy of each network. `styles` maps
    the names of the networks, in the same order, to the styles of curves.
    Returns a Matplotlib figure.
    """
    figure = Figure(figsize=(8, 5))  # without pyplot: needs no display
    axes = figure.subplots()
    steps, *curves = zip(*rows)
    for (name, style), curve in zip(styles.items(), curves):
        axes.plot(steps, curve, style, markersize=4,
                  label=f"{name} (in the end {curve[-1]:.3f})")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    axes.set_title(title)
    axes.set_xlabel("training steps")
    axes.set_ylabel("test accuracy")
    figure.text(0.5, 0.01, caption, ha="center", va="bottom", fontsize=8,
                color="0.35")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure
