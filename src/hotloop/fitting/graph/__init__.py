"""A whole training step as one graph: proven to be a pure function, compiled or captured, checked.

``prover`` decides whether forward and loss may be replayed, ``pure_step`` writes the step as a
function of tensors, and ``inductor`` compiles it. On a CPU that is all; on CUDA ``replay``
captures what ``kernels`` compute, torch's or Inductor's, and ``cuda_graph`` the update after it.
``gradients`` ends before the update. ``graphed`` chooses, compares with the eager step, and falls
back.
"""

from __future__ import annotations
