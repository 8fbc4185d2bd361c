"""The whole ACmix layer as one native pass on a CPU: C++ in `src/`, loaded through ctypes.

* `build.py` compiles the sources, at first use or into a wheel.
* `library.py` finds or builds the library for this CPU's instruction set and loads it.
* `layer.py` says which layers it can run and calls it, `window.py` does the same for the paths of a Swin layer.

Everything else in the package works without it. If there is no library and no compiler, the layers run on the Python
backend. The readable definition of what is computed here is `acmix_zoo.ops.local_attention` and
`acmix_zoo.ops.shift_conv`, and for Swin in `acmix_zoo.ops.window_paths`.
"""
