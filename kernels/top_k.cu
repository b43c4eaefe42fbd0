// top_k_f32: the k largest of each row of FP32 [rows, columns], dense, the largest first, as values FP32 [rows, k] and
// their columns UINT32 [rows, k].
//
// Of equal values the one of the lower column goes first; NaN, whatever its sign, is larger than any number, and -0 equals
// 0. Values are the elements' own bits. So the answer is one, and the CPU's twin gives it bit for bit.
// 1 <= k <= 1024, k <= columns < 2^31.
//
// Grid: x over rows, any size. Block: 256 threads, one row at a time.

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 THREADS = 256;
constexpr u32 MOST = 1024;

// An element as a number that is larger where it goes first: 32 bits of its value, then its column, the lower the larger.
__device__ __forceinline__ u64 rank_of(float value, u32 column) {
    const u32 bits = __float_as_uint(value + 0.0f);  // -0 becomes 0
    const u32 ordered = value != value ? 0xffffffffu : ((bits & 0x80000000u) ? ~bits : bits | 0x80000000u);
    return static_cast<u64>(ordered) << 32 | (0xffffffffu - column);
}

struct Shared {
    u64 chosen[MOST];
    u32 counts[256];
    u32 warps[THREADS / 32];
    u32 digit;
    u32 missing;
    u32 alone;
    u32 taken;
};

// How many of each digit there are among the ranks that begin with `prefix`. One add for all equal ones of a warp, since
// the first digits of scores are mostly the same.
__device__ __forceinline__ void count_digits(Shared& shared, const float* row, u32 columns, u64 prefix, u32 shift) {
    const u32 lane = threadIdx.x % 32;
    for (u32 base = 0; base < columns; base += THREADS) {
        const u32 column = base + threadIdx.x;
        const u64 rank = column < columns ? rank_of(row[column], column) : 0;
        // Shifted twice, since a shift by 64 would be undefined.
        const bool counts = column < columns && ((rank ^ prefix) >> shift >> 8) == 0;
        const u32 active = __ballot_sync(ALL_LANES, counts);
        if (counts) {
            const u32 digit = static_cast<u32>(rank >> shift) & 255;
            const u32 equal = __match_any_sync(active, digit);
            if (lane == __ffs(equal) - 1) {
                atomicAdd(&shared.counts[digit], __popc(equal));
            }
        }
    }
}

// The digit of the rank that is the `missing`th from above: thread i sums up the counts of the i + 1 largest digits.
__device__ __forceinline__ void choose_digit(Shared& shared) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 digit = 255 - threadIdx.x;
    const u32 own = shared.counts[digit], missing = shared.missing;
    u32 sum = own;
#pragma unroll
    for (u32 distance = 1; distance < 32; distance *= 2) {
        const u32 below = __shfl_up_sync(ALL_LANES, sum, distance);
        sum += lane >= distance ? below : 0;
    }
    if (lane == 31) {
        shared.warps[warp] = sum;
    }
    __syncthreads();
    for (u32 before = 0; before < warp; ++before) {
        sum += shared.warps[before];
    }
    if (sum >= missing && sum - own < missing) {
        shared.digit = digit;
        shared.missing = missing - (sum - own);
        // All that have this digit are wanted: no need to tell them apart.
        shared.alone = sum == missing;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS) top_k_f32(
    float* values, u32* indices, const float* from, u64 rows, u32 columns, u32 k) {
    __shared__ Shared shared;
    u32 size = 1;
    while (size < k) {
        size *= 2;
    }
    for (u64 index = blockIdx.x; index < rows; index += gridDim.x) {
        const float* row = from + index * columns;
        __syncthreads();
        if (threadIdx.x == 0) {
            shared.missing = k;
            shared.taken = 0;
        }
        // The rank of the k-th, eight bits a turn.
        u64 least = 0;
        for (int shift = 56; shift >= 0; shift -= 8) {
            shared.counts[threadIdx.x] = 0;
            __syncthreads();
            count_digits(shared, row, columns, least, shift);
            __syncthreads();
            choose_digit(shared);
            least |= static_cast<u64>(shared.digit) << shift;
            if (shared.alone) {
                break;
            }
        }
        for (u32 at = threadIdx.x; at < size; at += THREADS) {
            shared.chosen[at] = 0;
        }
        __syncthreads();
        for (u32 column = threadIdx.x; column < columns; column += THREADS) {
            const u64 rank = rank_of(row[column], column);
            if (rank >= least) {
                shared.chosen[atomicAdd(&shared.taken, 1)] = rank;
            }
        }
        __syncthreads();
        // A bitonic sort, the largest first; what fills up to a power of two is 0 and stays behind.
        for (u32 length = 2; length <= size; length *= 2) {
            for (u32 distance = length / 2; distance > 0; distance /= 2) {
                for (u32 at = threadIdx.x; at < size; at += THREADS) {
                    const u32 other = at ^ distance;
                    const u64 one = shared.chosen[at], two = shared.chosen[other];
                    const bool descending = (at & length) == 0;
                    if (other > at && (one < two) == descending) {
                        shared.chosen[at] = two;
                        shared.chosen[other] = one;
                    }
                }
                __syncthreads();
            }
        }
        for (u32 at = threadIdx.x; at < k; at += THREADS) {
            const u32 column = 0xffffffffu - static_cast<u32>(shared.chosen[at]);
            values[index * k + at] = row[column];
            indices[index * k + at] = column;
        }
    }
}
