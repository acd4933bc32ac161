"""Moments of data that comes in parts: count, mean, sum of squares."""

import numpy as np

__all__ = ["Moments", "PooledMoments"]


class Moments:
    """Count, mean and sum of squared deviations, in double precision.

    Moments of parts, merged by :meth:`merge`, are those of the whole, whatever
    its mean and however it was cut.

    Parameters
    ----------
    count : int
        Number of values that each entry of `mean` is taken over.
    mean : array
        Of float64. Without any values, it has no meaning.
    m2 : array
        Sum of squared deviations from the mean; of the shape of `mean`.

    References
    ----------
    .. [1] Chan, Tony F.; Golub, Gene H.; LeVeque, Randall J. (1983):
           Algorithms for Computing the Sample Variance: Analysis and
           Recommendations. The American Statistician 37 (3).

    Examples
    --------
    >>> import numpy as np
    >>> from bnlasagne import Moments
    >>> parts = [np.array([[1.], [2.]]), np.array([[6.]])]
    >>> moments = Moments.of(parts[0], axes=(0,))
    >>> moments = moments.merge(Moments.of(parts[1], axes=(0,)))
    >>> moments.count, moments.mean, moments.variance()
    (3, array([[3.]]), array([[4.66666667]]))
    """

    def __init__(self, count, mean, m2):
        self.count = count
        self.mean = mean
        self.m2 = m2

    def __repr__(self):
        return "Moments(count=%r, mean=%r, m2=%r)" % (
            self.count, self.mean, self.m2)

    @classmethod
    def of(cls, values, axes):
        """Moments of an array over some axes, which stay, with size 1.

        Parameters
        ----------
        values : array
        axes : tuple of int

        Returns
        -------
        Moments
        """
        values = np.asarray(values)
        count = int(np.prod([values.shape[axis] for axis in axes]))
        if not count:
            shape = [1 if axis in axes else size
                     for axis, size in enumerate(values.shape)]
            return cls(0, np.zeros(shape), np.zeros(shape))
        with np.errstate(invalid="ignore", over="ignore"):
            mean = values.mean(axes, dtype=np.float64, keepdims=True)
            deviation = values - mean
            rest = deviation.mean(axes, keepdims=True)
            # What rounded the mean, which the deviations tell.
            m2 = np.square(deviation).sum(axes, keepdims=True)
            return cls(count, mean + rest,
                       np.maximum(m2 - count * np.square(rest), 0))

    def merge(self, other):
        """Moments of these values and others together.

        Parameters
        ----------
        other : Moments
            Of the same shape.

        Returns
        -------
        Moments
        """
        if not other.count:
            return self
        if not self.count:
            return other
        count = self.count + other.count
        weight = other.count / count
        with np.errstate(invalid="ignore", over="ignore"):
            delta = other.mean - self.mean
            between = np.square(delta) * (self.count * weight)
            return Moments(count, self.mean + delta * weight,
                           self.m2 + other.m2 + between)

    def variance(self, ddof=0):
        """Variance.

        Parameters
        ----------
        ddof : int
            The sum of squares is divided by the count less this: 0 for the
            biased variance, by which training normalizes, 1 for the unbiased.

        Returns
        -------
        array
            Of float64.

        Raises
        ------
        ValueError
            If there are not more than `ddof` values.
        """
        if self.count <= ddof:
            raise ValueError("The variance with ddof=%r takes more than %r "
                             "values, got %d." % (ddof, ddof, self.count))
        return self.m2 / (self.count - ddof)

    def std(self, ddof=0):
        """Standard deviation; see :meth:`variance`."""
        return np.sqrt(self.variance(ddof))

    def is_finite(self):
        """Whether there is neither an infinity nor a NaN in them."""
        return bool(np.all(np.isfinite(self.mean))
                    and np.all(np.isfinite(self.m2)))


class PooledMoments:
    """Moments of parts, added up without rounding.

    So neither the order of the parts nor who added up which of them makes a
    difference to what comes out, not even in the last bit.

    Parameters
    ----------
    shape : tuple of int
        Of the mean.

    Notes
    -----
    A number of double precision is a whole multiple of 2 ** -1074, so sums of
    such numbers and of their squares are whole numbers, which Python has of
    any size.

    Examples
    --------
    >>> import numpy as np
    >>> from bnlasagne.kernels.moments import Moments, PooledMoments
    >>> pooled = PooledMoments((1, 1))
    >>> for part in np.array([[1.], [2.]]), np.array([[6.]]):
    ...     pooled.add(Moments.of(part, axes=(0,)))
    >>> pooled.moments()
    Moments(count=3, mean=array([[3.]]), m2=array([[14.]]))
    """

    def __init__(self, shape):
        self.shape = tuple(shape)
        self.count = 0
        self._sums = self._squares = [0] * int(np.prod(self.shape))

    def add(self, moments):
        """Add the moments of a part; they must be finite."""
        if not moments.count:
            return
        n = moments.count
        means = list(map(_whole, moments.mean.ravel().tolist()))
        self.count += n
        self._sums = [total + n * mean
                      for total, mean in zip(self._sums, means)]
        self._squares = [
            total + n * mean * mean + (_whole(m2) << _BITS)
            for total, mean, m2 in zip(self._squares, means,
                                       moments.m2.ravel().tolist())]

    def __add__(self, other):
        """Those of all parts of both."""
        both = PooledMoments(self.shape)
        both.count = self.count + other.count
        both._sums = [one + two for one, two
                      in zip(self._sums, other._sums)]
        both._squares = [one + two for one, two
                         in zip(self._squares, other._squares)]
        return both

    def moments(self):
        """What was added up, each number rounded once.

        Returns
        -------
        Moments
            Infinite where it is too large for double precision.
        """
        if not self.count:
            return Moments(0, np.zeros(self.shape), np.zeros(self.shape))
        n = self.count
        mean = [_divided(total, n << _BITS) for total in self._sums]
        m2 = [_divided(n * squares - total * total, n << 2 * _BITS)
              for total, squares in zip(self._sums, self._squares)]
        return Moments(n, np.reshape(mean, self.shape),
                       np.reshape(m2, self.shape))


# The smallest number of double precision is 2 ** -1074.
_BITS = 1074


def _whole(value):
    """A finite number, in multiples of the smallest one."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_BITS + 1 - denominator.bit_length())


def _divided(numerator, denominator):
    try:
        return numerator / denominator
    except OverflowError:
        return float("inf")
