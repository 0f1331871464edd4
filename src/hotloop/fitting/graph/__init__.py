"""A whole training step as one graph: proven to be a pure function, compiled or captured, checked.

``prover`` decides whether forward and loss may be replayed, ``pure_step`` writes the step as a
function of tensors, ``inductor`` compiles it for a CPU and ``cuda_graph`` captures it on CUDA;
``graphed`` chooses, compares with the eager step, and falls back.
"""

from __future__ import annotations
