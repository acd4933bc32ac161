"""Name layers in messages."""

__all__ = ["label", "numbered_labels"]


def label(layer):
    """How messages refer to a layer: by its class, and its name if any."""
    kind = type(layer).__name__
    name = getattr(layer, "name", None)
    return kind if name is None else "%s %r" % (kind, name)


def numbered_labels(layers):
    """Labels of all layers of a network.

    Parameters
    ----------
    layers : list of Layer
        In an order that the user knows: that of
        :func:`lasagne.layers.get_all_layers`.

    Returns
    -------
    dict
        Layer → its label; with its number in the list, from 0, where the label
        alone does not tell it from others.
    """
    labels = [label(layer) for layer in layers]

    def is_clear(layer, text):
        return getattr(layer, "name", None) is not None and (
            labels.count(text) == 1)

    return {layer: text if is_clear(layer, text)
            else "%s (layer %d)" % (text, number)
            for number, (layer, text) in enumerate(zip(layers, labels))}
