# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: ANN001, ANN202, N803, N806
"""Group norm and SiLU over channels-last images as Triton kernels; `triton_operations` launches them.

In three launches: mean and squared deviation of each piece of an image, those of the whole image, the values. Sums are made in
an order that depends on the image's size alone: the same image gives the same bits, whatever else is in the batch. Deviations
are from the mean, not differences of large squares (Chan, Golub and LeVeque, 1983).
"""

import triton
import triton.language as tl


@triton.jit
def _combined(count, mean, deviation, added, added_mean, added_deviation):
    """Return count, mean and squared deviation of two sets together."""
    total = count + added
    apart = added_mean - mean
    share = added / tl.maximum(total, 1.0)
    return total, mean + apart * share, deviation + added_deviation + apart * apart * count * share


@triton.jit(do_not_specialize=["places", "piece", "pieces"])
def group_pieces(
    x, bias, shortcut, total, means, deviations, places, piece, pieces,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, GROUPS_BLOCK: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr,
    BIASED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Program (n, b): places `piece` n to `piece` (n + 1) of image b. GROUPS_BLOCK and BLOCK are powers of two over the number
    of groups and the channels of one."""
    number, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    EACH: tl.constexpr = CHANNELS // GROUPS
    group = tl.arange(0, GROUPS_BLOCK)[None, :, None]
    channel = tl.arange(0, BLOCK)[None, None, :]
    columns = group * EACH + channel
    inside = (group < GROUPS) & (channel < EACH)
    if BIASED:
        biases = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    count = tl.zeros((GROUPS_BLOCK,), tl.float32)
    mean = tl.zeros((GROUPS_BLOCK,), tl.float32)
    deviation = tl.zeros((GROUPS_BLOCK,), tl.float32)
    end = tl.minimum((number + 1) * piece, places)
    for begin in range(number * piece, end, PLACES):
        place = begin + tl.arange(0, PLACES)[:, None, None]
        mask = inside & (place < end)
        at = (image * places + place) * CHANNELS + columns
        values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if BIASED:
            values += biases
        if ADDED:
            values += tl.load(shortcut + at, mask=mask, other=0.0).to(tl.float32)
            rounded = values.to(total.dtype.element_ty)
            tl.store(total + at, rounded, mask=mask)
            values = rounded.to(tl.float32)
        added = tl.minimum(end - begin, PLACES).to(tl.float32) * EACH
        values = tl.where(mask, values, 0.0)
        added_mean = tl.sum(tl.sum(values, axis=2), axis=0) / added
        apart = tl.where(mask, values - added_mean[None, :, None], 0.0)
        added_deviation = tl.sum(tl.sum(apart * apart, axis=2), axis=0)
        count, mean, deviation = _combined(count, mean, deviation, added, added_mean, added_deviation)
    groups = tl.arange(0, GROUPS_BLOCK)
    at = (image * GROUPS + groups) * pieces + number
    tl.store(means + at, mean, mask=groups < GROUPS)
    tl.store(deviations + at, deviation, mask=groups < GROUPS)


@triton.jit(do_not_specialize=["places", "piece", "pieces"])
def group_whole(
    means, deviations, weight, shift, bias, factors, shifts, places, piece, pieces, epsilon,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Program (g, b): what group g of image b is multiplied with, and what is added then, for each channel. PIECES is a power
    of two of at least the number of pieces."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    EACH: tl.constexpr = CHANNELS // GROUPS
    number = tl.arange(0, PIECES)
    mask = number < pieces
    counts = tl.where(mask, tl.minimum(places - number * piece, piece), 0).to(tl.float32) * EACH
    at = (image * GROUPS + group) * pieces + number
    mean = tl.load(means + at, mask=mask, other=0.0)
    deviation = tl.load(deviations + at, mask=mask, other=0.0)
    count = places.to(tl.float32) * EACH
    whole = tl.sum(mean * counts, axis=0) / count
    apart = mean - whole
    variance = tl.sum(deviation + counts * apart * apart, axis=0) / count
    channel = tl.arange(0, BLOCK)
    inside = channel < EACH
    column = group * EACH + channel
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) * tl.rsqrt(variance + epsilon)
    centre = whole
    if BIASED:
        centre = whole - tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32) - centre * factor
    tl.store(factors + image * CHANNELS + column, factor, mask=inside)
    tl.store(shifts + image * CHANNELS + column, added, mask=inside)


@triton.jit(do_not_specialize=["places"])
def group_values(
    x, factors, shifts, out, places,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Program (n, b): PLACES places of image b. BLOCK is a power of two of at least the number of channels."""
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < CHANNELS
    mask = inside & (place < places)
    factor = tl.load(factors + image * CHANNELS + column, mask=inside, other=0.0)
    shift = tl.load(shifts + image * CHANNELS + column, mask=inside, other=0.0)
    at = (image * places + place) * CHANNELS + column
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * factor + shift
    if SILU:
        values = values * tl.sigmoid(values)
    tl.store(out + at, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["places", "columns"])
def double_places(
    x, bias, shortcut, out, places, columns,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Program n: PLACES places of all images, which have `columns` of them in each line, four times each."""
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = channel < CHANNELS
    mask = inside & (place < places)
    values = tl.load(x + place * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        values += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        values += tl.load(shortcut + place * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
    rounded = values.to(out.dtype.element_ty)
    line, column = place // columns, place % columns
    first = (line * 4 * columns + 2 * column) * CHANNELS + channel
    tl.store(out + first, rounded, mask=mask)
    tl.store(out + first + CHANNELS, rounded, mask=mask)
    tl.store(out + first + 2 * columns * CHANNELS, rounded, mask=mask)
    tl.store(out + first + (2 * columns + 1) * CHANNELS, rounded, mask=mask)
