"""Copy a graph with some of its variables replaced."""

__all__ = ["Copies"]


class Copies(dict):
    """Map variables to their copies; others stay as they are."""

    def of(self, variables):
        return [self.get(variable, variable) for variable in variables]

    def add(self, node):
        """Copy a node, unless its inputs stay as they are."""
        inputs = self.of(node.inputs)
        if inputs != node.inputs:
            copy = node.clone_with_new_inputs(inputs, strict=False)
            self.update(zip(node.outputs, copy.outputs))
