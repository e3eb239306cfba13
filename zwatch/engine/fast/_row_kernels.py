# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: ANN001, ANN202, N803
"""The operations over rows as Triton kernels; `triton_operations` launches them, `operations` says what they compute.

A program keeps whole rows in registers, so that each is read and written once. How far apart rows are is compiled in: only then
can a lane read 16 bytes at a time. The functions are Triton's language, not
Python: so there are no annotations.
"""

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)
LEAST = tl.constexpr(1e-12)


@triton.jit
def _normed(values, mask, factor, epsilon, WIDTH: tl.constexpr, CENTRED: tl.constexpr):
    """Normalize a row, float32; beyond its end it is 0."""
    if CENTRED:
        values = tl.where(mask, values - tl.sum(values, axis=0) / WIDTH, 0.0)
    return values * tl.rsqrt(tl.sum(values * values, axis=0) / WIDTH + epsilon) * factor


@triton.jit
def _store(values, mask, columns, out, scales, row, WIDTH: tl.constexpr, SCALED: tl.constexpr):
    """Round a row once and write it; as fp8 with its scale if asked."""
    if SCALED:
        scale = tl.maximum(tl.max(tl.abs(tl.where(mask, values, 0.0)), axis=0), LEAST) / LARGEST
        tl.store(scales + row, scale)
        values = values / scale
    tl.store(out + row * WIDTH + columns, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def norm_rows(
    x, factor, out, scales, tokens, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, APART: tl.constexpr, CENTRED: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Program (n, b): rows ROWS n to ROWS (n + 1) of image b. APART: how far apart the factors of two images are."""
    first, image = tl.program_id(0) * ROWS, tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    factors = tl.load(factor + image * APART + columns, mask=inside, other=0.0).to(tl.float32)
    for number in tl.static_range(ROWS):
        row = image * tokens + first + number
        mask = inside & (first + number < tokens)
        values = tl.load(x + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
        values = _normed(values, inside, factors, epsilon, WIDTH, CENTRED)
        if first + number < tokens:
            _store(values, mask, columns, out, scales, row, WIDTH, SCALED)


@triton.jit(do_not_specialize=["tokens"])
def residual_rows(
    x, change, factor, following, total, out, scales, tokens, epsilon, following_epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, APART: tl.constexpr, FOLLOWING_APART: tl.constexpr,
    NORMED: tl.constexpr, FOLLOWED: tl.constexpr, CENTRED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """As `norm_rows`: x + the normalized change, and that normalized."""
    first, image = tl.program_id(0) * ROWS, tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    if NORMED:
        factors = tl.load(factor + image * APART + columns, mask=inside, other=0.0).to(tl.float32)
    if FOLLOWED:
        followings = tl.load(following + image * FOLLOWING_APART + columns, mask=inside, other=0.0).to(tl.float32)
    for number in tl.static_range(ROWS):
        row = image * tokens + first + number
        mask = inside & (first + number < tokens)
        changes = tl.load(change + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
        values = tl.load(x + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
        if NORMED:
            changes = _normed(changes, inside, factors, epsilon, WIDTH, False)
        rounded = (values + changes).to(total.dtype.element_ty)
        tl.store(total + row * WIDTH + columns, rounded, mask=mask)
        if FOLLOWED:
            # Of what was written, so that both results belong together.
            values = _normed(rounded.to(tl.float32), inside, followings, following_epsilon, WIDTH, CENTRED)
            if first + number < tokens:
                _store(values, mask, columns, out, scales, row, WIDTH, SCALED)


@triton.jit
def gated_rows(
    left, right, out, scales,
    LEFT_APART: tl.constexpr, RIGHT_APART: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Program (n, m): block m of row n; the whole row if it is scaled."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    gates = tl.load(left + row * LEFT_APART + columns, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(right + row * RIGHT_APART + columns, mask=mask, other=0.0).to(tl.float32)
    _store(gates * tl.sigmoid(gates) * values, mask, columns, out, scales, row, WIDTH, SCALED)


@triton.jit
def scaled_rows(x, out, scales, APART: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Program n: row n as fp8."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    values = tl.load(x + row * APART + columns, mask=mask, other=0.0).to(tl.float32)
    _store(values, mask, columns, out, scales, row, WIDTH, True)


@triton.jit(do_not_specialize=["tokens"])
def rotate_heads(
    query, key, query_factor, key_factor, cosine, sine, tokens, epsilon,
    QUERY_APART: tl.constexpr, KEY_APART: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, HEADS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, NORMED: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Program (t, b, n): the heads of token t of image b, of the query or the key. BLOCK is of half a head."""
    token, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tl.program_id(2) == 0:
        _rotate(query + (image * tokens + token) * QUERY_APART, query_factor, cosine, sine, token, epsilon,
                QUERIES, HEAD, HEADS_BLOCK, BLOCK, NORMED, INTERLEAVED)  # fmt: skip
    else:
        _rotate(key + (image * tokens + token) * KEY_APART, key_factor, cosine, sine, token, epsilon,
                KEYS, HEAD, HEADS_BLOCK, BLOCK, NORMED, INTERLEAVED)  # fmt: skip


@triton.jit
def _rotate(
    x, factor, cosine, sine, token, epsilon,
    HEADS: tl.constexpr, HEAD: tl.constexpr, HEADS_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    NORMED: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    heads, pairs = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    if INTERLEAVED:
        # Neighbours are read together: in halves, each would be an access of its own.
        both = tl.arange(0, 2 * BLOCK)[None, :]
        mask = (heads < HEADS) & (both < HEAD)
        values = tl.load(x + heads * HEAD + both, mask=mask, other=0.0).to(tl.float32)
        left, right = tl.split(tl.reshape(values, (HEADS_BLOCK, BLOCK, 2)))
        at, beside = 2 * pairs, 2 * pairs + 1
    else:
        at, beside = pairs, pairs + HEAD // 2
        mask = (heads < HEADS) & (pairs < HEAD // 2)
        left = tl.load(x + heads * HEAD + at, mask=mask, other=0.0).to(tl.float32)
        right = tl.load(x + heads * HEAD + beside, mask=mask, other=0.0).to(tl.float32)
    is_pair = pairs < HEAD // 2
    if NORMED:
        scale = tl.rsqrt((tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)) / HEAD + epsilon)[:, None]
        left = left * scale * tl.load(factor + at, mask=is_pair, other=0.0).to(tl.float32)
        right = right * scale * tl.load(factor + beside, mask=is_pair, other=0.0).to(tl.float32)
    cosines = tl.load(cosine + token * (HEAD // 2) + pairs, mask=is_pair, other=0.0)
    sines = tl.load(sine + token * (HEAD // 2) + pairs, mask=is_pair, other=0.0)
    turned_left = left * cosines - right * sines
    turned_right = right * cosines + left * sines
    if INTERLEAVED:
        values = tl.reshape(tl.join(turned_left, turned_right), (HEADS_BLOCK, 2 * BLOCK))
        tl.store(x + heads * HEAD + both, values.to(x.dtype.element_ty), mask=mask)
    else:
        tl.store(x + heads * HEAD + at, turned_left.to(x.dtype.element_ty), mask=mask)
        tl.store(x + heads * HEAD + beside, turned_right.to(x.dtype.element_ty), mask=mask)
