"""The GPU kernels: one text for CUDA, for Metal, and for a CPU that checks it.

It is no backend by itself.  A backend (CuPy's, MLX's) asks `call` what to launch, has `source` give
the text, compiles it once per `source.Kernel`, and launches it.  All of a call that has anything to
do with shapes, strides, flags and numbers is decided here.

The files
---------
``words/``
    The vocabulary.  ``row.h`` is what kernels are written in: a row, its lanes, loops over its
    scores, reductions, policies.  ``arithmetic.h`` has numbers in two words and the exponential.
    Under these lies one header per flavour, which alone knows the machine: ``cuda.h``, ``metal.h``
    and ``host.h`` (with ``host_machine.h``: fibers, watched memory).
``kernels/``
    The functions: ``nx_NAME_forward`` and ``nx_NAME_backward`` of a row.  Each serves every dtype,
    layout and geometry.
`abi`
    What kernels are handed: operands, 64-bit words, numbers, flags.  The texts get their names.
`programs`
    The list of functions, with the keywords they take.
`launch`
    Lanes, rows per block and registers by length and dtype.
`source`
    `Kernel`, all that is fixed at compile time (hashable: the key of a cache), and its source.
`call`
    From a `normx._plan.Plan` and the strides of the arrays to a `call.Launch`.
`emulator`
    The backend ``gpu-emulator`` over NumPy's arrays, for tests.

How a backend computes a plan
-----------------------------
Where arrays can be written to and the library has NumPy's functions, `call.forward` and
`call.backward` do steps 1, 2 and the results of gradients; `emulator` shows the rest.

1. ``program = call.program_of(plan)``; hand a `Refusal` on.  Nothing to do where 0 is in
   ``plan.shape``: the result is full of 0, or of -inf in log space.
2. Allocate the result, in the plan's dtype, and put the arrays under their `abi.Operand`: ``X`` the
   scores, ``WHERE`` the mask broadcast to ``plan.shape``, ``Y`` the result (one with a value per
   row broadcast to it too: strides 0), parameters that are *arrays* as ``P0 + k`` (k: the place in
   ``program.parameters``) and ``TEMPERATURE``, broadcast likewise.  Parameters that are numbers
   need no array: they travel among the words.  Sinks: `normx._sinks.sinks_aside`, ``SINK``.
   All but ``X``, ``G``, ``WHERE`` and ``Y`` are in `call.arithmetic_of` the dtype.
3. A `call.View` of each: strides in elements, 0 along axes of size 1, one for each axis of
   ``plan.shape`` (a sink's own axis not among them); whether the address is a multiple of 16.
   Arrays whose elements are not on multiples of their size have to be copied first.
4. ``go = call.launch(plan, program, views, parameters, sinks=(count, stride, DSINK's stride))``.
5. Compile ``source.cuda(go.kernel)`` (options `source.CUDA_OPTIONS`, no include path), cached by
   ``go.kernel``; the function is called ``go.kernel.name``.
6. Launch ``go.grid`` blocks of ``go.block`` threads, no dynamic shared memory, with one pointer per
   `abi.Operand` in its order (0 where there is none), and then, by value, a struct of
   ``abi.WORDS`` 64-bit integers (``go.words``) and ``abi.NUMBERS`` numbers (``go.numbers``) of the
   arithmetic's dtype.  As a NumPy dtype: ``[("words", "i8", abi.WORDS), ("numbers", kind,
   abi.NUMBERS)]``.  Nothing has to be synchronised, and nothing else is allocated.

Rows of several blocks: told ``resident`` (how many blocks of 1024 threads the device runs at once:
its multiprocessors), `call.launch` spreads rows that are too long for one block's registers over
more, which wait for each other.  Such a launch is a cooperative one, and ``abi.Operand.SCRATCH``
points to ``go.scratch`` bytes of zeros, which it does not leave so.  Told nothing, every row has
one block.

`call.topk` serves `normx.softmax_topk`.

For gradients, ``program_of(plan, backward=True)`` and ``launch(..., backward=True)``: ``G`` is the
cotangent in the storage dtype (of a reduction: broadcast, strides 0), ``Y`` the gradient of the
scores, and ``D0 + k``, ``DTEMPERATURE`` (shape `call.form_of`) and ``DSINK`` (that and an axis for
the sinks; `normx._sinks.sinks_along` brings it back) the gradients of what was passed: a view is a
wish.

On Metal
--------
`source.metal` gives the header and the body for ``mx.fast.metal_kernel`` and which operands they
name, in lower case; ``words`` (int64) and ``numbers`` (float32) are inputs too.  Arrays there are
contiguous: strides follow from an array's own shape, and are 0 where it broadcasts.  MLX puts
inputs of fewer than 8 elements into another address space: fill them up to 8.  The grid is
``go.grid * go.block`` threads, in groups of ``go.block``.  A name tells kernels apart only together
with ``flags``, ``outer`` and ``reduced``: put a hash of the source into what MLX is told.
"""
