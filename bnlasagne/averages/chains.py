"""Chain the moves of each running average that a graph holds."""

from .moves import ScheduledMove

__all__ = ["Chains", "chain", "out_of_reach"]


class Chains:
    """Find the moves of each stored variable in a graph.

    Parameters
    ----------
    aliases : dict
        For the variables that may stand for a stored one, their `Alias`.
    applications : list of Application
    loops : list of Loop
    computed : set of Theano variables
        See :func:`bnlasagne.theano_tools.needed.needed`. Applications and
        loops that are not among them move nothing.

    Attributes
    ----------
    moves : dict
        Alias → list of moves. A move's method ``advance(value)`` takes the
        value before and returns the value after.
    """

    def __init__(self, aliases, applications, loops, computed):
        self._aliases = aliases
        self.moves = {}
        for application in applications:
            self._add(application.moves(), application.output in computed)
        for loop in loops:
            self._add(loop.moves(), not computed.isdisjoint(loop.outputs))

    def _add(self, pairs, are_computed):
        for alias, move in pairs:
            known = self.moves.setdefault(alias, [])
            if are_computed and not any(other.is_like(move)
                                        for other in known):
                known.append(move)

    def groups(self):
        """The aliases of each stored variable that moves, with the variable.

        Returns
        -------
        list of list
            All in order of application. Variables in schedules of weights come
            last: whether they move depends on the averages.
        """
        groups = {id(self._aliases[alias].container): []
                  for alias in self.moves if alias in self._aliases}
        for variable in sorted(self._aliases, key=self._application):
            group = groups.get(id(self._aliases[variable].container))
            if group is not None:
                group.append(variable)
        return sorted(groups.values(), key=self._place)

    def _application(self, alias):
        return self._aliases[alias].application or 0

    def _place(self, group):
        is_scheduled = any(isinstance(move, ScheduledMove)
                           for move in self.of(group))
        return is_scheduled, min(
            filter(None, map(self._application, group)), default=0)

    def of(self, aliases):
        """The moves of all these aliases, in order of application."""
        found = []
        for alias in aliases:
            found.extend(move for move in self.moves.get(alias, ())
                         if move not in found)
        return found


def chain(average, moves):
    """The value of an average after some moves."""
    value = average
    for move in moves:
        value = move.advance(value)
        # Ranks compare how often an average moves.
        value.tag.moved = True
    return value


def out_of_reach(average):
    """The error about an average whose statistics another Op computes."""
    return ValueError(
        f"The running average {average} is to be updated from statistics that "
        "another Op computes in a graph of its own, where they are out of "
        "reach. Build the output with get_output(..., "
        "batch_norm_update_averages=False) there: it is normalized by the "
        "statistics of the batch as before, but leaves the averages of its "
        "batch normalization layers as they are.")
