"""What a user is told of a graph."""

from __future__ import annotations

from hotloop.fitting.graph.settings import GraphSettings


class GraphRemarks:
    """Says what the steps of a stage are run by, and why.

    Args:
        settings: those of the graph.
    """

    def __init__(self, settings: GraphSettings) -> None:
        self._say, self._by_default = settings.say, settings.by_default
        self._asked = settings.mode is True and not settings.by_default
        self._step = "training step" if settings.trains else "validation step"
        self._announced: set[bool] = set()  # by whether it updates

    def say_compiling(self) -> None:
        """Say why nothing is seen for a while."""
        self._say(f"compile: compiling the {self._step}, which takes seconds to minutes")

    def say_built(self, seconds: float, inductor: bool, why_eager_update: str | None) -> None:
        """Say once that there is a graph.

        Args:
            seconds: that it took.
            inductor: whether its kernels are Inductor's, though torch's could have been replayed.
            why_eager_update: why it ends with the gradients; None where it does not.
        """
        updates = why_eager_update is None
        if updates in self._announced:
            return
        self._announced.add(updates)
        text = f"compile: the {self._step} is one graph"
        if not updates:
            text += " up to its gradients"
        text += f", built in {seconds:.1f} s"
        if inductor:
            text += ", with kernels of Inductor's"
        if not updates:
            text += f"; the update is eager, since {why_eager_update}"
        self._say(text)

    def say_without_inductor(self, reason: str) -> None:
        """Say that Inductor writes no kernels."""
        self._say(f"compile: the {self._step} is left to torch's own kernels, since {reason}")

    def say_given_up(self, reason: str, was_tried: bool) -> None:
        """Say why the rest of the run is eager; not where nobody asked for or saw anything else."""
        if was_tried or not self._by_default:
            self._say(f"compile: the {self._step} runs eagerly, since {reason}")

    def say_unused(self) -> None:
        """Say that the run was too short for a graph that was asked for."""
        if self._asked:
            self._say(
                f"compile: each {self._step} ran eagerly: the run was over before a graph was made"
            )
