"""Merge the moments of parts of data: count, mean, sum of squares."""

import numpy as np

__all__ = ["Moments"]


class Moments:
    """Hold count, mean and sum of squared deviations, in double precision.

    The moments of parts, merged by :meth:`merge`, are those of the whole,
    whatever its mean and however it was cut.

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

    Merging rounds, so that the last bits depend on the order. Exact sums do
    not; they are arrays to be added:

    >>> total = sum(Moments.of(part, (0,)).exact_sums() for part in parts)
    >>> Moments.from_exact_sums(total)
    Moments(count=3, mean=array([[3.]]), m2=array([[14.]]))
    """

    def __init__(self, count, mean, m2):
        self.count = count
        self.mean = mean
        self.m2 = m2

    def __repr__(self):
        return f"Moments(count={self.count}, mean={self.mean!r}, " \
            f"m2={self.m2!r})"

    @classmethod
    def empty(cls, shape):
        """Return the moments of no values.

        Parameters
        ----------
        shape : sequence of int
            Of the mean.
        """
        return cls(0, np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(cls, values, axes, mask=None):
        """Compute the moments of an array over some axes.

        Parameters
        ----------
        values : array
        axes : tuple of int
            They stay, with size 1.
        mask : array or None
            Values count where it is not zero; by default, all do. It has the
            number of dimensions of `values`, size 1 along the other axes, and
            may have size 1 along some of the `axes`.

        Returns
        -------
        Moments

        Raises
        ------
        ValueError
            If the mask has another shape.
        """
        values = np.asarray(values)
        short = [1 if axis in axes else size
                 for axis, size in enumerate(values.shape)]
        if mask is None:
            count = int(np.prod([values.shape[axis] for axis in axes]))
        else:
            mask = np.asarray(mask) != 0
            _check_mask(mask, values, axes)
            count = values.size * int(mask.sum()) // max(
                mask.size * int(np.prod(short)), 1)
        if not count:
            return cls.empty(short)

        def total(array):
            if mask is not None:
                array = np.where(mask, array, 0)
            return array.sum(axes, dtype=np.float64, keepdims=True)

        with np.errstate(invalid="ignore", over="ignore"):
            mean = total(values) / count
            # The deviations tell by how much the mean was rounded.
            mean = mean + total(values - mean) / count
            m2 = total(np.square(values - mean))
            return cls(count, mean, m2)

    def merge(self, other):
        """Merge with the moments of other values.

        Parameters
        ----------
        other : Moments
            Of the same shape.

        Returns
        -------
        Moments
            Those of all values together.
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
        """Compute the variance.

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
            raise ValueError(
                f"Moments: the variance with ddof={ddof!r} takes more than "
                f"{ddof!r} values, got {self.count}.")
        return self.m2 / (self.count - ddof)

    def std(self, ddof=0):
        """Compute the standard deviation; see :meth:`variance`."""
        return np.sqrt(self.variance(ddof))

    def is_finite(self):
        """Tell whether there is neither an infinity nor a NaN in them."""
        return bool(np.all(np.isfinite(self.mean))
                    and np.all(np.isfinite(self.m2)))

    # As messages between ranks

    def to_vector(self):
        """Write them into one vector: the count, the means, the sums.

        Returns
        -------
        array
            Of float64, with 1 + 2 C entries for C channels.
        """
        return np.concatenate([[self.count], np.ravel(self.mean),
                               np.ravel(self.m2)])

    @classmethod
    def from_vector(cls, vector):
        """Read them from a vector, as :meth:`to_vector` makes it.

        Parameters
        ----------
        vector : array or Theano vector
            Of a Theano vector, the count, mean and sums are expressions.

        Returns
        -------
        Moments
            The mean is a vector.
        """
        channels = (vector.shape[0] - 1) // 2
        return cls(vector[0], vector[1:1 + channels], vector[1 + channels:])

    # Sums that do not depend on the order. A number of double precision is a
    # whole multiple of 2 ** -_BITS; so sums of such numbers and of their
    # squares are whole numbers, which Python has of any size.

    def exact_sums(self):
        """Write them as sums that can be added without rounding.

        Add the arrays of several parts, in any order and grouping: what
        :meth:`from_exact_sums` makes of their sum is the same in all bits.

        Returns
        -------
        array
            Of whole numbers: the count, the sum and the sum of squares of the
            values in each channel. Its shape is that of the mean, after a
            first axis of size 3.
        """
        if not self.count:
            return np.zeros((3,) + np.shape(self.mean), object)
        mean = _whole(self.mean)
        sums = self.count * mean
        squares = sums * mean + (_whole(self.m2) << _BITS)
        return np.stack([np.full_like(sums, self.count), sums, squares])

    @classmethod
    def from_exact_sums(cls, total):
        """Read them from exact sums, each number rounded once.

        Parameters
        ----------
        total : array
            Sum of what :meth:`exact_sums` returned.

        Returns
        -------
        Moments
            Infinite where they are too large for double precision.
        """
        counts, sums, squares = total
        count = counts.ravel()[0]
        if not count:
            return cls.empty(counts.shape)
        m2 = count * squares - sums * sums
        return cls(count, _divided(sums, count << _BITS).astype(float),
                   _divided(m2, count << 2 * _BITS).astype(float))


def _check_mask(mask, values, axes):
    if mask.ndim != values.ndim or any(
            size != 1 and (axis not in axes or size != values.shape[axis])
            for axis, size in enumerate(mask.shape)):
        raise ValueError(
            f"Moments: a mask of shape {mask.shape} does not go with values "
            f"of shape {values.shape}, normalized over axes {tuple(axes)}.")


# The smallest number of double precision is 2 ** -1074. As `frexp` has it, it
# has 52 bits more.
_BITS = 1074 + 52


def _whole(values):
    """Express finite numbers in whole multiples of 2 ** -_BITS."""
    fractions, exponents = np.frexp(values)
    numbers = np.ldexp(fractions, 53).astype(np.int64).astype(object)
    return numbers << (exponents + _BITS - 53).astype(object)


def _ratio(numerator, denominator):
    try:
        return numerator / denominator
    except OverflowError:
        return float("inf")


_divided = np.frompyfunc(_ratio, 2, 1)
