"""Draw the statistics of batch normalization layers."""

import numpy as np

from ..networks.labels import label
from .population import PopulationStatistics

__all__ = ["plot_statistics"]


def plot_statistics(found, figure=None):
    """Draw running averages against population statistics.

    Each layer has a row with two panels: means to the left, standard
    deviations to the right, with one point per channel. A point lies on the
    diagonal if the running average equals the population statistic. Two
    numbers tell how far the running averages have drifted; they are zero if
    all points lie on the diagonal. They are root mean squares over the
    channels c of

    .. math::
        (m_c - \\mu_c) / \\sigma_c
        \\quad\\text{and}\\quad
        s_c / \\sigma_c - 1

    with running averages :math:`m, s` and population statistics
    :math:`\\mu, \\sigma`.
    Channels that are constant over the population are drawn, but left out of
    the numbers.

    Parameters
    ----------
    found : PopulationStatistics
        From :func:`update_population_statistics`. The running averages are
        those that it replaced.
    figure : matplotlib.figure.Figure or None
        Where to draw. By default, in a new figure, tall enough for its rows.
        It is made without pyplot, so that no display is needed.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with its method `savefig`.

    Raises
    ------
    ImportError
        If matplotlib is not installed. The extra ``plot`` brings it.
    TypeError
        If `found` is something else.
    ValueError
        If `found` has no layers.

    Examples
    --------
    >>> found = update_population_statistics(
    ...     network, batches)  # doctest: +SKIP
    >>> plot_statistics(found).savefig("statistics.png")  # doctest: +SKIP
    """
    _check(found)
    if figure is None:
        figure = _new_figure(len(found))
    rows = figure.subplots(len(found), 2, squeeze=False)
    for row, layer in zip(rows, found):
        # Statistics that an earlier version pickled have no labels.
        name = layer.name or found.labels.get(layer, label(layer))
        # A pair of dollars would set what is between them as a formula.
        _draw_layer(row, name.replace("$", r"\$"), found.replaced[layer],
                    (found[layer].mean, found[layer].std()))
    return figure


def _check(found):
    if not isinstance(found, PopulationStatistics):
        raise TypeError(
            "plot_statistics(): found must be what "
            f"update_population_statistics() returned, got {found!r}.")
    if not found:
        raise ValueError(
            "plot_statistics(): found has no layers. Pass what "
            "update_population_statistics() returned.")


def _new_figure(rows):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot_statistics() needs matplotlib, which the extra 'plot' "
            "brings: in a clone, pip install '.[plot]'. Or pip install "
            "matplotlib.") from error
    return Figure(figsize=(6.4, 3.2 * rows), constrained_layout=True)


def _draw_layer(row, name, running, population):
    """Draw a layer's panels, from two pairs of mean and deviation."""
    running = [np.ravel(value).astype(np.float64) for value in running]
    population = [np.ravel(value) for value in population]
    drifts = _drifts(running, population)
    none_varies = not (population[1] > 0).any()
    # The name leads the left title only, so that it can be as long as a row.
    for axes, x, y, drift, kind, head in zip(
            row, population, running, drifts, ("mean", "std"), (name, "")):
        axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=1)
        axes.plot(x, y, "o", color="C0", markersize=4, markeredgewidth=0,
                  alpha=0.6, zorder=2)
        limits = _limits(x, y)
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
        axes.set_xlabel("population " + kind)
        axes.set_ylabel("running " + kind)
        text = "none varies" if none_varies else f"{drift:.3g}"
        axes.set_title(f"{head}\ndrift of {kind}s: {text}", loc="left",
                       fontsize="medium")


def _drifts(running, population):
    """Compute the drifts of mean and deviation; NaN if no channel varies."""
    std = population[1]
    varies = std > 0
    if not varies.any():
        return np.nan, np.nan
    # Averages that ran off to infinity, or a channel that hardly varies.
    with np.errstate(over="ignore"):
        return tuple(
            float(np.sqrt(np.mean(np.square(
                (ours[varies] - theirs[varies]) / std[varies]))))
            for ours, theirs in zip(running, population))


def _limits(*values):
    """Find a range that holds all finite values, with a margin."""
    values = np.concatenate(values)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = values.min(), values.max()
    # Where all are equal, there is no range to take a part of.
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin
