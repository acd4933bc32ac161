"""Repair Theano 1.0.5 and Lasagne, so that they run on a current machine.

:func:`prepare` has the modules of both packages repaired at the moment in
which they are imported, whoever imports them. :func:`apply` also checks the
installed versions, and imports Theano. Each file of this folder repairs one
package. Where nothing is to be repaired, nothing is changed, and the user's
Theano flags stay in force.
"""

import importlib
import itertools
import os
import warnings

# Not `from . import`, which would import the package around this one: the
# start-up hook needs this one alone.
from .blas import link_blas_of_scipy
from .compiler import remember_march_flags, remember_trials
from .glibc import raise_malloc_thresholds
from .importing import repair_on_import
from .lasagne import (
    count_grid_points,
    hand_flags_into_loops,
    ignore_image_shape_warning,
)
from .mpi4py import launched_rank, mpi4py_for_theano
from .number_types import (
    add_numbers_in_place,
    cast_numbers_in_place,
    compare_numbers_in_full,
    count_in_64_bits,
    divide_in_full,
    filter_numbers_in_full,
    let_integers_wrap,
)
from .numpy import numpy_for_theano
from .numpy_c_api import increment_rows, speak_numpy_2
from .python import distutils_for_theano, imp_for_theano, name_pickled_arrays
from .random_streams import copy_random_states, mask_in_64_bits
from .scan import compile_scan_extension
from .scipy import scipy_for_theano
from .setuptools import pkg_resources
from .theano import (
    forget_failed_import,
    let_clang_compile,
    link_without_libpython,
    max_pool_2d,
    own_compile_directory,
    provide_downsample,
    without_blas_warning,
    without_deprecation_warnings,
    words_for_a_missing_header,
)
from .theano_cache import keep_ops_without_props, version_code_in_files
from .theano_numpy import (
    be_dtypes,
    call_methods_by_new_names,
    flatten_inverse_of_unique,
    index_by_lists,
    keep_eigenvalues_real,
    partition_by_indices,
    take_short_signatures,
)
from .versions import check, explained

__all__ = ["apply", "launched_rank", "max_pool_2d", "prepare"]

_DURING = {
    "theano": [
        explained,
        without_deprecation_warnings,
        own_compile_directory,
        words_for_a_missing_header,
    ],
    "theano.scan_module.scan_perform_ext": [compile_scan_extension],
    "theano.tensor.blas_headers": [without_blas_warning],
    "lasagne": [explained],
}
_AFTERWARDS = {
    "theano": [
        provide_downsample,
        raise_malloc_thresholds,
    ],
    "theano.compile.debugmode": [call_methods_by_new_names],
    "theano.gof.cc": [keep_ops_without_props],
    "theano.configdefaults": [link_blas_of_scipy],
    "theano.gof.cmodule": [
        let_clang_compile,
        link_without_libpython,
        remember_march_flags,
        remember_trials,
        speak_numpy_2,
    ],
    "theano.gof.op": [version_code_in_files],
    "theano.gof.utils": [be_dtypes],
    "theano.misc.pkl_utils": [name_pickled_arrays],
    "theano.printing": [call_methods_by_new_names],
    "theano.sandbox.multinomial": [count_in_64_bits],
    "theano.sandbox.rng_mrg": [mask_in_64_bits],
    "theano.scalar.basic": [
        compare_numbers_in_full,
        divide_in_full,
        filter_numbers_in_full,
        let_integers_wrap,
        take_short_signatures,
    ],
    "theano.tensor.elemwise": [cast_numbers_in_place],
    "theano.tensor.extra_ops": [count_in_64_bits, flatten_inverse_of_unique],
    "theano.tensor.nlinalg": [keep_eigenvalues_real],
    "theano.tensor.nnet.sigm": [take_short_signatures],
    "theano.tensor.raw_random": [copy_random_states, count_in_64_bits],
    "theano.tensor.signal.pool": [index_by_lists],
    "theano.tensor.sort": [index_by_lists, partition_by_indices],
    "theano.tensor.subtensor": [add_numbers_in_place, increment_rows],
    # Not of the module that causes it: the context above ends later.
    "lasagne": [ignore_image_shape_warning],
    "lasagne.layers.recurrent": [hand_flags_into_loops],
    "lasagne.layers.special": [count_grid_points],
}

_INSTEAD = {
    "theano": {
        "distutils": distutils_for_theano,
        "imp": imp_for_theano,
        "mpi4py": mpi4py_for_theano,
        "numpy": numpy_for_theano,
        "pkg_resources": pkg_resources,
        "scipy": scipy_for_theano,
    },
    "lasagne": {"pkg_resources": pkg_resources},
}


def apply():
    """Check the installed versions and import Theano; again is harmless.

    Raises
    ------
    ImportError
        If Python, NumPy, Theano or Lasagne is missing or in a version that
        cannot work. The message names the versions that work and the command
        that installs them.
    """
    prepare()
    check()
    importlib.import_module("theano")
    check()  # A checkout tells its version only now.


def prepare():
    """Have Theano and Lasagne repaired as soon as they are imported.

    Raises nothing. If the installed versions cannot work and the import of
    Theano or Lasagne fails, its error tells why. Leaves out the repairs whose
    names the environment variable ``BNLASAGNE_NO_REPAIR`` lists.
    """
    forget_failed_import()
    names = os.environ.get("BNLASAGNE_NO_REPAIR", "").replace(",", " ").split()
    for name in set(names) - {repair.__name__ for repair in _all_repairs()}:
        warnings.warn(
            f"BNLASAGNE_NO_REPAIR names {name!r}, but there is no such repair."
            " docs/stack.md lists their names.", stacklevel=2)
    repair_on_import(
        _without(names, _DURING), _without(names, _AFTERWARDS),
        {package: {module: repair for module, repair in table.items()
                   if repair.__name__ not in names}
         for package, table in _INSTEAD.items()})


def _all_repairs():
    return itertools.chain(
        *_DURING.values(), *_AFTERWARDS.values(),
        *(table.values() for table in _INSTEAD.values()))


def _without(names, table):
    return {module: [repair for repair in repairs
                     if repair.__name__ not in names]
            for module, repairs in table.items()}
