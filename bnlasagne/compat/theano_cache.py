"""Have Theano find in its cache of compiled code what it compiled before.

Theano 1.0.5 compiles some of its Ops again in each process, such as softmax,
dropout's random numbers, `Alloc` and `DimShuffle`: a second or so for each."""

import contextlib
import functools
import hashlib
import pickle

__all__ = ["keep_ops_without_props", "version_code_in_files"]


def keep_ops_without_props(cc):
    """Cache the code of Ops whose `__props__` is empty, as of all others.

    Theano makes `__props__` a part of the version of the code, and takes an
    empty part for "has no version: do not keep". This goes if
    ``CLinker.cmodule_key`` no longer does so, and is without effect then.
    """
    original = cc.CLinker.cmodule_key

    @functools.wraps(original)
    def cmodule_key(self):
        key = original(self)
        if key is None or key[0]:
            return key
        return _version(self) if _can_be_kept(key[1]) else (), key[1]

    cc.CLinker.cmodule_key = cmodule_key


def _version(linker):
    """Return the version of a linker's code, empty if a part of it has none.

    With a digest of the code, so that code which changed, while the Op's
    version did not, is not taken from the cache. Of other Ops it is.
    """
    parts = []
    for node in linker.node_order:
        parts.append(node.op.c_code_cache_version_apply(node))
        parts += [variable.type.c_code_cache_version()
                  for variable in node.inputs + node.outputs]
    return (*parts, _digest(linker.get_src_code())) if all(parts) else ()


def _can_be_kept(signature):
    """Tell whether Theano is going to find a signature again.

    Where a versioned one, of an Op that a function defines for example, is
    lost in a pickle, Theano stops with an error.
    """
    with contextlib.suppress(Exception):
        kept = pickle.loads(pickle.dumps(signature, pickle.HIGHEST_PROTOCOL))
        return bool(kept == signature and hash(kept) == hash(signature))
    return False


def version_code_in_files(op):
    """Have an Op with its code in files tell the same version in each process.

    Theano's version is the hash of a string, which Python changes from process
    to process. What was compiled is never found again, and stays in the
    compile directory for a month. This goes if ``COp.c_code_cache_version``
    does not call `hash`.
    """
    original = op.COp.c_code_cache_version

    @functools.wraps(original)
    def c_code_cache_version(self):
        first, *others = original(self)
        if first == hash(tuple(self.func_codes)):
            first = _digest("\0".join(self.func_codes))
        return (first, *others)

    op.COp.c_code_cache_version = c_code_cache_version


def _digest(text):
    """Return a number by which texts are told apart."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16)
