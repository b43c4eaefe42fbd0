// softmax_f32: each row of FP32 [rows, columns], dense, as exp(x - largest) / sum of those; in place where to == from.
//
// Each element is within a relative 1e-6 + 6e-8 * (largest - x) of the exact one (the second term is what the difference
// loses in FP32), for rows of up to 2^20; below 1.2e-38 it may be 0. A row with a NaN or a positive infinity is NaN, so is
// one of negative infinities alone; a negative infinity beside others gives 0.
//
// Grid: x over groups of rows, any size. Block: x threads of a row, a power of two from 32 to 1024, y rows side by side;
// more than one row only where x is 32. A row of at most 8 elements a thread is read once and kept in registers.

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 KEPT = 8;

struct Largest {
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};

// The value of all threads of a row, the same in each. `neutral` changes nothing.
template <typename Both>
__device__ __forceinline__ float reduce(float value, float neutral, float* shared) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = Both::of(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    if (blockDim.x == 32) {
        return value;
    }
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();  // whoever still reads what the reduction before this one left there
    if (lane == 0) {
        shared[warp] = value;
    }
    __syncthreads();
    value = lane < warps ? shared[lane] : neutral;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = Both::of(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    return value;
}

extern "C" __global__ void softmax_f32(float* to, const float* from, u64 rows, u32 columns) {
    __shared__ float shared[32];
    const float infinity = __int_as_float(0x7f800000);
    const u64 group = static_cast<u64>(gridDim.x) * blockDim.y;
    const bool keeps = columns <= KEPT * blockDim.x;
    for (u64 row = static_cast<u64>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += group) {
        const float* source = from + row * columns;
        float* target = to + row * columns;
        float largest = -infinity, sum = 0;
        if (keeps) {
            float kept[KEPT];
#pragma unroll
            for (u32 turn = 0; turn < KEPT; ++turn) {
                const u32 at = turn * blockDim.x + threadIdx.x;
                kept[turn] = at < columns ? source[at] : -infinity;
                largest = fmaxf(largest, kept[turn]);
            }
            largest = reduce<Largest>(largest, -infinity, shared);
#pragma unroll
            for (u32 turn = 0; turn < KEPT; ++turn) {
                const u32 at = turn * blockDim.x + threadIdx.x;
                kept[turn] = at < columns ? expf(kept[turn] - largest) : 0;
                sum += kept[turn];
            }
            const float share = 1 / reduce<Sum>(sum, 0, shared);
#pragma unroll
            for (u32 turn = 0; turn < KEPT; ++turn) {
                const u32 at = turn * blockDim.x + threadIdx.x;
                if (at < columns) {
                    target[at] = kept[turn] * share;
                }
            }
        } else {
            for (u32 at = threadIdx.x; at < columns; at += blockDim.x) {
                largest = fmaxf(largest, source[at]);
            }
            largest = reduce<Largest>(largest, -infinity, shared);
            for (u32 at = threadIdx.x; at < columns; at += blockDim.x) {
                sum += expf(source[at] - largest);
            }
            const float share = 1 / reduce<Sum>(sum, 0, shared);
            for (u32 at = threadIdx.x; at < columns; at += blockDim.x) {
                target[at] = expf(source[at] - largest) * share;
            }
        }
    }
}
