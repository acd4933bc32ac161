"""Chain the moves of each running average that a graph holds."""

from .applications import Application
from .marker import Marker
from .moves import ScheduledMove

__all__ = ["Chains", "chain", "out_of_reach"]


class Chains:
    """Find the moves of each stored variable in a graph.

    `moves` maps an alias to a list of moves, of which ``advance(value)``
    returns the value after. Applications and loops that are not `computed`
    move nothing. `aliases` maps the variables that may stand for a stored one
    to their `Alias`.
    """

    def __init__(self, nodes, loops, computed, aliases):
        self.aliases, self.computed, self.moves = aliases, computed, {}
        self.applications = [Application(node) for node in nodes
                             if isinstance(node.op, Marker)]
        for application in self.applications:
            self._add(application.moves(), application.output in computed)
        for loop in loops:
            self._add(loop.moves(), not computed.isdisjoint(loop.outputs))

    def _add(self, pairs, are_computed):
        for alias, move in pairs:
            known = self.moves.setdefault(alias, [])
            if are_computed and not any(other.is_copy_of(move)
                                        for other in known):
                known.append(move)

    def check_reach(self, aliases):
        """Raise an error if an alias is to move, and nothing moves it here."""
        for alias in aliases:
            if alias not in self.aliases or (
                    alias in self.computed and alias not in self.moves):
                raise out_of_reach(alias)

    def groups(self):
        """Group each stored variable that moves with its aliases.

        All are in order of application; but variables in schedules of weights
        come last, as whether they move depends on the averages.
        """
        groups = {id(self.aliases[alias].container): []
                  for alias in self.moves if alias in self.aliases}
        in_order = sorted(self.aliases.items(),
                          key=lambda item: item[1].application or 0)
        for variable, alias in in_order:
            if id(alias.container) in groups:
                groups[id(alias.container)].append(variable)
        return sorted(groups.values(), key=self._place)

    def _place(self, group):
        is_scheduled = any(isinstance(move, ScheduledMove)
                           for move in self.of(group))
        numbers = [self.aliases[alias].application for alias in group]
        return is_scheduled, min(filter(None, numbers), default=0)

    def of(self, aliases):
        """List the moves of all these aliases, in order of application."""
        found = []
        for alias in aliases:
            found.extend(move for move in self.moves.get(alias, ())
                         if move not in found)
        return found


def chain(average, moves):
    """Return the value of an average after some moves."""
    for move in moves:
        average = move.advance(average)
        # Ranks compare how often an average moves.
        average.tag.moved = True
    return average


def out_of_reach(average):
    """Return the error about an average that is moved in another graph."""
    return ValueError(
        "The layer is inside another Op (such as OpFromGraph), so functions "
        f"cannot update its running average {average}. Build the output "
        "there with get_output(..., batch_norm_update_averages=False): it is "
        "normalized by the statistics of the batch as before, but leaves the "
        "averages as they are.")
