# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: ANN001, ANN202, N803, SIM108
"""BLAKE3's compression function and its tree as Triton kernels; `blake3_gpu` launches them.

After "BLAKE3: one function, fast everywhere" (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020), section 2. Words are
uint32 and little-endian, like the device. A chaining value's eight words are `stride` words apart, so that the same
word of neighbouring values is contiguous. The functions are Triton's language, not Python: so there are no annotations.
"""

import triton
import triton.language as tl

# Table 1: the initialisation vector, which is SHA-256's.
IV0 = tl.constexpr(0x6A09E667)
IV1 = tl.constexpr(0xBB67AE85)
IV2 = tl.constexpr(0x3C6EF372)
IV3 = tl.constexpr(0xA54FF53A)
IV4 = tl.constexpr(0x510E527F)
IV5 = tl.constexpr(0x9B05688C)
IV6 = tl.constexpr(0x1F83D9AB)
IV7 = tl.constexpr(0x5BE0CD19)

# Table 3: the flags of a compression.
CHUNK_START = tl.constexpr(1)
CHUNK_END = tl.constexpr(2)
PARENT = tl.constexpr(4)
ROOT = tl.constexpr(8)

# Section 2.1: a chunk is 1024 bytes, a block 64.
BLOCK_BYTES = tl.constexpr(64)
BLOCK_WORDS = tl.constexpr(16)
CHUNK_BYTES = tl.constexpr(1024)
CHUNK_WORDS = tl.constexpr(256)
CHUNK_BLOCKS = tl.constexpr(16)


@triton.jit
def _rotate_right(word, COUNT: tl.constexpr):
    return (word >> COUNT) | (word << (32 - COUNT))


@triton.jit
def _g(a, b, c, d, x, y):
    """The quarter round, section 2.2."""
    a = a + b + x
    d = _rotate_right(d ^ a, 16)
    c = c + d
    b = _rotate_right(b ^ c, 12)
    a = a + b + y
    d = _rotate_right(d ^ a, 8)
    c = c + d
    b = _rotate_right(b ^ c, 7)
    return a, b, c, d


@triton.jit
def _round(v, m):
    """One round: the columns, then the diagonals of the 4x4 state `v`, with the 16 words of the message `m`."""
    v0, v4, v8, v12 = _g(v[0], v[4], v[8], v[12], m[0], m[1])
    v1, v5, v9, v13 = _g(v[1], v[5], v[9], v[13], m[2], m[3])
    v2, v6, v10, v14 = _g(v[2], v[6], v[10], v[14], m[4], m[5])
    v3, v7, v11, v15 = _g(v[3], v[7], v[11], v[15], m[6], m[7])
    v0, v5, v10, v15 = _g(v0, v5, v10, v15, m[8], m[9])
    v1, v6, v11, v12 = _g(v1, v6, v11, v12, m[10], m[11])
    v2, v7, v8, v13 = _g(v2, v7, v8, v13, m[12], m[13])
    v3, v4, v9, v14 = _g(v3, v4, v9, v14, m[14], m[15])
    return v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15


@triton.jit
def _permuted(m):
    """The message as the next round takes it, table 2. Only names change: it costs no instruction."""
    return m[2], m[6], m[3], m[10], m[7], m[0], m[4], m[13], m[1], m[11], m[12], m[5], m[9], m[14], m[15], m[8]


@triton.jit
def _compress(h, m, counter_low, counter_high, length, flags):
    """The chaining value of a block of 16 words `m` after the 8 words `h`, section 2.2."""
    v = (h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], IV0, IV1, IV2, IV3, counter_low, counter_high, length, flags)
    v = _round(v, m)
    for _ in tl.static_range(6):
        m = _permuted(m)
        v = _round(v, m)
    return (
        v[0] ^ v[8], v[1] ^ v[9], v[2] ^ v[10], v[3] ^ v[11],
        v[4] ^ v[12], v[5] ^ v[13], v[6] ^ v[14], v[7] ^ v[15],
    )  # fmt: skip


@triton.jit
def _initial(SIZE: tl.constexpr):
    zero = tl.zeros([SIZE], tl.uint32)
    return zero + IV0, zero + IV1, zero + IV2, zero + IV3, zero + IV4, zero + IV5, zero + IV6, zero + IV7


@triton.jit
def _store(values, stride, h, mask):
    """Store the eight words of chaining values; `values` points at word 0 of each."""
    tl.store(values, h[0], mask)
    tl.store(values + stride, h[1], mask)
    tl.store(values + 2 * stride, h[2], mask)
    tl.store(values + 3 * stride, h[3], mask)
    tl.store(values + 4 * stride, h[4], mask)
    tl.store(values + 5 * stride, h[5], mask)
    tl.store(values + 6 * stride, h[6], mask)
    tl.store(values + 7 * stride, h[7], mask)


@triton.jit
def _load_two(words):
    return tl.split(tl.load(words[:, None] + tl.arange(0, 2)[None, :]))


@triton.jit
def _load_words(words):
    """The 16 words of a block a lane, one by one."""
    return (
        tl.load(words), tl.load(words + 1), tl.load(words + 2), tl.load(words + 3),
        tl.load(words + 4), tl.load(words + 5), tl.load(words + 6), tl.load(words + 7),
        tl.load(words + 8), tl.load(words + 9), tl.load(words + 10), tl.load(words + 11),
        tl.load(words + 12), tl.load(words + 13), tl.load(words + 14), tl.load(words + 15),
    )  # fmt: skip


@triton.jit
def _load_pairs(words):
    """The 16 words of a block a lane, two in each load; `words` is known to be a multiple of 8."""
    w0, w1 = _load_two(words)
    w2, w3 = _load_two(words + 2)
    w4, w5 = _load_two(words + 4)
    w6, w7 = _load_two(words + 6)
    w8, w9 = _load_two(words + 8)
    w10, w11 = _load_two(words + 10)
    w12, w13 = _load_two(words + 12)
    w14, w15 = _load_two(words + 14)
    return w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15


@triton.jit
def _funnel(low, high, shift):
    """The four bytes that begin `shift` (0 to 3) bytes into `low` and end in `high`."""
    both = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    return (both >> (8 * shift).to(tl.uint64)).to(tl.uint32)


@triton.jit
def _funnel_block(w, after, shift):
    """The 16 words that begin `shift` bytes into the 16 words `w`; `after` is the word behind them."""
    return (
        _funnel(w[0], w[1], shift), _funnel(w[1], w[2], shift),
        _funnel(w[2], w[3], shift), _funnel(w[3], w[4], shift),
        _funnel(w[4], w[5], shift), _funnel(w[5], w[6], shift),
        _funnel(w[6], w[7], shift), _funnel(w[7], w[8], shift),
        _funnel(w[8], w[9], shift), _funnel(w[9], w[10], shift),
        _funnel(w[10], w[11], shift), _funnel(w[11], w[12], shift),
        _funnel(w[12], w[13], shift), _funnel(w[13], w[14], shift),
        _funnel(w[14], w[15], shift), _funnel(w[15], after, shift),
    )  # fmt: skip


@triton.jit(do_not_specialize=["data", "values", "first", "count", "shift", "stride"])
def hash_chunks(
    data,
    values,
    first: tl.int64,
    count: tl.int32,
    shift: tl.int32,
    stride: tl.int32,
    FUNNEL: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Hash `count` whole chunks of `data`, from chunk `first` on, a lane each; none of them is the root.

    `data` (bytes) is at a multiple of 8, as safetensors' own files are, or, if FUNNEL, `shift` (0 to 3) bytes behind a
    multiple of 4: then the word behind each block is read too, which holds the block's last bytes.
    """
    lane = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    begin = data + first * CHUNK_BYTES
    if FUNNEL:
        begin = begin - shift
    words = tl.multiple_of(begin.to(tl.pointer_type(tl.uint32)), 4 if FUNNEL else 8)
    # A lane too many hashes the last chunk once more and stores nothing: its loads need no mask.
    chunk = words + tl.minimum(lane, count - 1) * CHUNK_WORDS
    number = first + lane
    counter_low, counter_high = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    h = _initial(SIZE)
    length = tl.full([SIZE], BLOCK_BYTES, tl.uint32)
    for block in range(CHUNK_BLOCKS):
        at = chunk + block * BLOCK_WORDS
        if FUNNEL:
            m = _funnel_block(_load_words(at), tl.load(at + BLOCK_WORDS), shift)
        else:
            m = _load_pairs(at)
        flags = tl.where(block == 0, CHUNK_START, 0) + tl.where(block == CHUNK_BLOCKS - 1, CHUNK_END, 0)
        h = _compress(h, m, counter_low, counter_high, length, tl.zeros([SIZE], tl.uint32) + flags.to(tl.uint32))
    _store(values + lane, stride, h, lane < count)


@triton.jit
def _load_tail(words, index, valid_words):
    """Word `index`, or 0 if it is behind the `valid_words` words of the data."""
    return tl.load(words + index, index < valid_words, other=0)


@triton.jit
def _keep(word, index, size):
    """Word `index` of data of `size` bytes, with zeros for the bytes behind its end."""
    kept = tl.maximum(tl.minimum(size - 4 * index, 4), 0).to(tl.uint64)
    return word & ((1 << (8 * kept)) - 1).to(tl.uint32)


@triton.jit(do_not_specialize=["data", "values", "number", "size", "shift", "stride", "root"])
def hash_last_chunk(data, values, number: tl.int64, size: tl.int32, shift: tl.int32, stride: tl.int32, root: tl.int32):
    """Hash chunk `number` of `data`, the last one, of `size` bytes (0 to 1024); `root` if it is also the only one.

    `data` (bytes) is `shift` bytes behind a multiple of 4. One lane, one block after the other: once a message.
    """
    begin = data + number * CHUNK_BYTES - shift
    words = begin.to(tl.pointer_type(tl.uint32)) + tl.zeros([1], tl.int32)
    valid_words = (shift + size + 3) // 4
    zero = tl.zeros([1], tl.uint32)
    counter = tl.zeros([1], tl.int64) + number
    h = _initial(1)
    blocks = tl.maximum((size + BLOCK_BYTES - 1) // BLOCK_BYTES, 1)
    for block in range(blocks):
        i = block * BLOCK_WORDS
        m = (
            _load_tail(words, i, valid_words), _load_tail(words, i + 1, valid_words),
            _load_tail(words, i + 2, valid_words), _load_tail(words, i + 3, valid_words),
            _load_tail(words, i + 4, valid_words), _load_tail(words, i + 5, valid_words),
            _load_tail(words, i + 6, valid_words), _load_tail(words, i + 7, valid_words),
            _load_tail(words, i + 8, valid_words), _load_tail(words, i + 9, valid_words),
            _load_tail(words, i + 10, valid_words), _load_tail(words, i + 11, valid_words),
            _load_tail(words, i + 12, valid_words), _load_tail(words, i + 13, valid_words),
            _load_tail(words, i + 14, valid_words), _load_tail(words, i + 15, valid_words),
        )  # fmt: skip
        m = _funnel_block(m, _load_tail(words, i + 16, valid_words), shift)
        m = (
            _keep(m[0], i, size), _keep(m[1], i + 1, size), _keep(m[2], i + 2, size), _keep(m[3], i + 3, size),
            _keep(m[4], i + 4, size), _keep(m[5], i + 5, size), _keep(m[6], i + 6, size), _keep(m[7], i + 7, size),
            _keep(m[8], i + 8, size), _keep(m[9], i + 9, size), _keep(m[10], i + 10, size), _keep(m[11], i + 11, size),
            _keep(m[12], i + 12, size), _keep(m[13], i + 13, size), _keep(m[14], i + 14, size),
            _keep(m[15], i + 15, size),
        )  # fmt: skip
        length = tl.minimum(size - block * BLOCK_BYTES, BLOCK_BYTES)
        flags = tl.where(block == 0, CHUNK_START, 0) + tl.where(block == blocks - 1, CHUNK_END + root * ROOT, 0)
        h = _compress(
            h,
            m,
            counter.to(tl.uint32),
            (counter >> 32).to(tl.uint32),
            zero + length.to(tl.uint32),
            zero + flags.to(tl.uint32),
        )
    only = tl.arange(0, 1)
    _store(values + only, stride, h, only == 0)


@triton.jit
def _load_value(values, stride, mask):
    """The eight words of chaining values; `values` points at word 0 of each."""
    return (
        tl.load(values, mask), tl.load(values + stride, mask),
        tl.load(values + 2 * stride, mask), tl.load(values + 3 * stride, mask),
        tl.load(values + 4 * stride, mask), tl.load(values + 5 * stride, mask),
        tl.load(values + 6 * stride, mask), tl.load(values + 7 * stride, mask),
    )  # fmt: skip


@triton.jit
def _parent(left, right, flags, SIZE: tl.constexpr):
    """The chaining value of parent nodes from their children's, section 2.1."""
    m = (
        left[0], left[1], left[2], left[3], left[4], left[5], left[6], left[7],
        right[0], right[1], right[2], right[3], right[4], right[5], right[6], right[7],
    )  # fmt: skip
    zero = tl.zeros([SIZE], tl.uint32)
    return _compress(_initial(SIZE), m, zero, zero, zero + BLOCK_BYTES, zero + flags.to(tl.uint32))


@triton.jit
def _where(condition, x, y):
    return (
        tl.where(condition, x[0], y[0]), tl.where(condition, x[1], y[1]),
        tl.where(condition, x[2], y[2]), tl.where(condition, x[3], y[3]),
        tl.where(condition, x[4], y[4]), tl.where(condition, x[5], y[5]),
        tl.where(condition, x[6], y[6]), tl.where(condition, x[7], y[7]),
    )  # fmt: skip


@triton.jit(do_not_specialize=["children", "values", "count", "child_stride", "stride", "root"])
def merge(
    children,
    values,
    count: tl.int32,
    child_stride: tl.int32,
    stride: tl.int32,
    root: tl.int32,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Reduce each GROUP of the `count` neighbouring chaining values to one; `root` if what comes out is the root.

    Neighbours are paired and an odd last one is carried up, level by level, which gives the tree of section 2.1: its
    left subtrees are complete. Each level is written over the beginning of the one below, SIZE parents at a time.
    """
    group = tl.program_id(0)
    children += group * GROUP
    count = tl.minimum(count - group * GROUP, GROUP)
    while count > 1:
        flags = PARENT + tl.where(count == 2, root * ROOT, 0)
        above = (count + 1) // 2
        for begin in range(0, above, SIZE):
            index = begin + tl.arange(0, SIZE)
            paired = index < count // 2
            left = _load_value(children + 2 * index, child_stride, index < above)
            right = _load_value(children + 2 * index + 1, child_stride, paired)
            # All lanes have read before any writes; and have written before any reads the next level.
            tl.debug_barrier()
            result = _where(paired, _parent(left, right, flags, SIZE), left)
            _store(children + index, child_stride, result, index < above)
            tl.debug_barrier()
        count = above
    only = tl.arange(0, 1)
    _store(values + group + only, stride, _load_value(children + only, child_stride, only == 0), only == 0)
