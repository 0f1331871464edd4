"""What each experiment teaches, in sentences made of the numbers that were measured."""

from __future__ import annotations

import math

from hotloop.experiments.bench.outcome import Outcome, Row
from hotloop.experiments.units import mebibytes, rate, seconds, share

_WORTH_SAYING = 1.1  # a ratio below it is noise
_FAR_BELOW = 0.3  # of the copy rate: then something else than memory takes the time
_MOST_LOAD = 0.5  # processes a core
_CPU = "cpu"


def lessons(outcome: Outcome, experiment: str) -> list[str]:
    """Return an experiment's lesson, one paragraph an item, on every device that ran it."""
    teach = {"matmul": _matmul, "linear-regression": _regression, "image": _image}[experiment]
    paragraphs = [
        teach(outcome, info["device"])
        for info in outcome.devices
        if outcome.rows_of(experiment, info["device"])
    ]
    reference = "out=" if experiment == "matmul" else "floor"
    comparison = _compare_devices(outcome, experiment, reference)
    return [paragraph for paragraph in (*paragraphs, comparison) if paragraph]


def headline(outcome: Outcome, experiment: str) -> str:
    """Return an experiment's lesson in one short sentence."""
    if experiment == "matmul":
        return "Warm up, wait for the device, then stop the clock."
    if experiment == "linear-regression":
        return "Three parameters, a million rows: memory decides, not arithmetic."
    floors = [row for row in outcome.rows_of("image") if row.form == "floor"]
    books = [row for row in outcome.rows_of("image") if row.form == "textbook"]
    if not floors or not books:
        return "Look at what stands beside the arithmetic."
    wasted = 1 - floors[0].median / books[0].median
    if wasted < 1 - 1 / _WORTH_SAYING:
        return "Here the arithmetic is nearly all of the time."
    return f"{share(wasted)} of the textbook's epoch can go without a faster device."


def doubts(outcome: Outcome) -> list[str]:
    """Return what speaks against the figures, one sentence each: a busy machine, a slow peak."""
    found = []
    if outcome.busy is not None and outcome.busy > _MOST_LOAD:
        found.append(
            f"The machine was busy when this began (load {outcome.busy:.1f} a core over the last "
            f"minute): times are longer than they need be."
        )
    for device, measured in outcome.slow_peaks.items():
        found.append(
            f"On {device} the large product that measures the peak reached "
            f"{rate(measured, 'FLOP/s')} only, though the experiment's product was faster: the "
            f"machine did something else meanwhile. Shares are of the faster one."
        )
    return found


def _matmul(outcome: Outcome, device: str) -> str:
    where = outcome.name_of(device)
    warm, out = (outcome.find("matmul", device, form) for form in ("warm", "out="))
    book = outcome.find("matmul", device, "textbook")
    words = []
    if book is not None and warm is not None:
        words.append(
            f"On {where} the textbook's clock shows {seconds(book.median)}, and a warm product "
            f"takes {seconds(warm.median)}."
        )
        words.append(_why_the_clock_is_wrong(device, book, warm))
    if warm is not None and warm.flops_per_second is not None:
        words.append(
            f"Warm, that is {rate(warm.flops_per_second, 'FLOP/s')}, {share(warm.flops_share)} "
            f"of what the device was measured to reach with square matrices."
        )
    if warm is not None and out is not None:
        ratio = warm.median / out.median
        if ratio > _WORTH_SAYING:
            words.append(
                f"Into memory that is there already (out=) it takes {seconds(out.median)}, "
                f"{ratio:.1f} times less: the rest of the time went into getting "
                f"{mebibytes(_result_bytes(outcome))} for the result, anew in each call."
            )
        else:
            words.append(
                f"Memory that is there already (out=) makes little difference: "
                f"{seconds(out.median)}."
            )
    idle = outcome.find("matmul", device, "unsynchronised")
    if idle is not None and warm is not None:
        words.append(
            f"A warm call returns after {seconds(idle.median)}, long before the product is "
            f"there: taken at its word it would be {share(idle.flops_share)} of the device's "
            f"measured rate. A share above 100% is how you recognise a clock that did not wait."
        )
    return " ".join(word for word in words if word)


def _why_the_clock_is_wrong(device: str, book: Row, warm: Row) -> str:
    beyond = book.first_seconds - warm.median
    if device != _CPU and beyond > 0:
        return (
            f"The first call, waited for, takes {seconds(book.first_seconds)}: "
            f"{seconds(beyond)} of it is start-up (loading the library's kernels, its handle and "
            f"its workspace), which a process pays once and which the product has no part in."
        )
    if book.median > _WORTH_SAYING * warm.median:
        return (
            f"The first call pays {seconds(book.median - warm.median)} once: threads start, "
            f"caches are cold, the library chooses its kernel."
        )
    if warm.median > _WORTH_SAYING * book.median:
        return (
            f"The first call was the faster one here, so chance plays a large part: warm calls "
            f"range from {seconds(warm.fastest)} to {seconds(warm.slowest)}. One single reading "
            f"says little; take the median of several."
        )
    return "On a CPU a call returns when the work is done, so that the mistake costs little here."


def _regression(outcome: Outcome, device: str) -> str:
    where, rates = outcome.name_of(device), outcome.rates_of(device)
    name = "linear-regression"
    book, model, floor = (
        outcome.find(name, device, form) for form in ("textbook", "KerasModel", "floor")
    )
    words = []
    work = outcome.work[name]
    if work["flops"] and work["bytes"] and rates.get("copy") and rates.get("float32"):
        intensity = work["flops"] / work["bytes"]
        copy, peak = float(rates["copy"] or 0), float(rates["float32"] or 1)
        words.append(
            f"A step does {work['flops'] / 1e6:.3g} million operations on "
            f"{work['bytes'] / 1e6:.3g} MB, {intensity:.2f} for each byte. At the "
            f"{rate(copy, 'B/s')} that {where} copies, that allows "
            f"{rate(intensity * copy, 'FLOP/s')}, {share(intensity * copy / peak)} of its "
            f"measured peak: more arithmetic units would change nothing."
        )
    if floor is not None:
        words.append(
            f"The floor takes {seconds(floor.median)} a step, which is "
            f"{rate(floor.bytes_per_second, 'B/s')}, {share(floor.bytes_share)} of the copy rate"
            + _judge_share(floor.bytes_share or 0.0)
        )
    words.append(_forms(book, model, floor))
    if device != _CPU and book is not None:
        words.append(
            "loss.item() makes the host wait in each step, so that the device idles while the "
            "next step is queued; KerasModel keeps the losses on the device."
        )
    return " ".join(word for word in words if word)


def _judge_share(of_copy_rate: float) -> str:
    if of_copy_rate > 1:
        return " (more than all of it, for part of the data stays in a cache)."
    if of_copy_rate < _FAR_BELOW:
        return (
            ". That is far below it: look for other programs on the machine, or for steps that "
            "are too small to fill the device."
        )
    return "."


def _image(outcome: Outcome, device: str) -> str:
    book, model, floor = (
        outcome.find("image", device, form) for form in ("textbook", "KerasModel", "floor")
    )
    words = [f"On {outcome.name_of(device)}:", _forms(book, model, floor)]
    if floor is not None and floor.flops_per_second is not None:
        words.append(
            f"Even the floor reaches {rate(floor.flops_per_second, 'FLOP/s')}, "
            f"{share(floor.flops_share)} of the measured peak: small convolutions, pooling and "
            f"the optimizer do not keep all units busy."
        )
    if book is not None and floor is not None and book.median > _WORTH_SAYING * floor.median:
        words.append(
            f"{share(1 - floor.median / book.median)} of the textbook's time is beyond the floor: "
            f"samples read and collated one by one, metrics, waiting for each loss, a layout in "
            f"memory that the kernels like less. A faster device does not take that away; data "
            f"that stays in memory and losses that are read late do."
        )
    return " ".join(word for word in words if word)


def _forms(book: Row | None, model: Row | None, floor: Row | None) -> str:
    """Say how the three forms compare, a warm unit of each."""
    if book is None or model is None or floor is None:
        return ""
    ratio = book.median / model.median
    fast, slow = (model, book) if ratio > 1 else (book, model)
    if max(ratio, 1 / ratio) <= _WORTH_SAYING:
        verdict = "as fast as the textbook's loop, within the noise"
    else:
        kind = f"{ratio:.2f} times as fast" if ratio > 1 else f"{1 / ratio:.2f} times as slow"
        verdict = f"{kind} as the textbook's loop"
        if fast.median >= slow.fastest or slow.median <= fast.slowest:
            verdict += "; but their ranges overlap, so noise has a part in it"
    return (
        f"A warm {book.unit} takes {seconds(book.median)} in the textbook's loop, "
        f"{seconds(model.median)} through KerasModel ({verdict}) and {seconds(floor.median)} at "
        f"the floor."
    )


def _compare_devices(outcome: Outcome, experiment: str, form: str) -> str:
    """Say what the accelerator gains, and after how much work its start-up is paid back."""
    cpu = outcome.find(experiment, _CPU, form)
    others = [row for row in outcome.rows_of(experiment) if row.form == form and row.device != _CPU]
    if not others or cpu is None:
        return ""
    best = min(others, key=lambda row: row.median)
    ratio = cpu.median / best.median
    startup = _startup_of(outcome, best)
    if ratio <= 1:
        return (
            f"The CPU is {1 / ratio:.1f} times as fast as {best.device} here: the work is too "
            f"small for it."
        )
    more = startup - _startup_of(outcome, cpu)
    text = (
        f"{best.device} takes {seconds(best.median)} where the CPU takes {seconds(cpu.median)}, "
        f"{ratio:.1f} times less ({form})."
    )
    if more <= 0:
        return text
    num_units = math.ceil(more / (cpu.median - best.median))
    return (
        f"{text} What it needs once, {seconds(startup)} ({seconds(more)} more than the CPU), is "
        f"paid back after {num_units:,} of these {best.unit}s."
    )


def _startup_of(outcome: Outcome, row: Row) -> float:
    """Return what a row's process had to do once, in seconds; without what other forms had."""
    others = {other.form for other in outcome.rows_of(row.experiment)} - {row.form}
    costs = outcome.startup[row.experiment][row.device]
    return sum(
        value
        for what, value in costs.items()
        if not any(f", {other}, " in what for other in others)
    )


def _result_bytes(outcome: Outcome) -> int:
    return 4 * int(outcome.sizes["matmul_rows"]) ** 2
