"""Name layers in messages."""

import collections

__all__ = ["label", "numbered_labels"]


def label(layer):
    """Name a layer by its class, and by its name if it has one."""
    kind = type(layer).__name__
    name = getattr(layer, "name", None)
    return kind if name is None else f"{kind} {name!r}"


def numbered_labels(layers):
    """Map each layer of a network to a label that tells it from the others.

    Layers without a name, or with the same label as others, have their number
    in the list as well, from 0. The order should be one that the user knows:
    that of :func:`lasagne.layers.get_all_layers`.
    """
    labels = [label(layer) for layer in layers]
    counts = collections.Counter(labels)
    return {layer: text if getattr(layer, "name", None) is not None
            and counts[text] == 1 else f"{text} (layer {number})"
            for number, (layer, text) in enumerate(zip(layers, labels))}
