// cast_FROM_TO: `count` elements of one type as another, in order; source and destination do not overlap.
//
// To FP16 and BF16: to nearest, ties to even; what is too large is infinite, subnormal numbers are kept. To INT8: to
// nearest, ties to even, then saturated to -128 .. 127; NaN is 0. To FP32: exact. Each NaN becomes the one quiet NaN of
// the type without a sign: 0x7e00, 0x7fc0, 0x7fc00000; what it carried is lost. Bit for bit what the CPU's twin gives.
//
// Grid and block: one dimension, any size; four elements a thread and turn where both addresses allow that.

template <typename Type>
struct alignas(4 * sizeof(Type)) Four {
    Type values[4];
};

// To and from differ in how they convert, not in how they walk.
template <typename Conversion, typename To, typename From>
__device__ __forceinline__ void cast(To* __restrict__ to, const From* __restrict__ from, u64 count) {
    const u64 first = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    const bool aligned = reinterpret_cast<u64>(to) % sizeof(Four<To>) == 0 && reinterpret_cast<u64>(from) % sizeof(Four<From>) == 0;
    const u64 fours = aligned ? count / 4 : 0;
    for (u64 at = first; at < fours; at += step) {
        const Four<From> source = reinterpret_cast<const Four<From>*>(from)[at];
        Four<To> target;
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) {
            target.values[lane] = Conversion::of(source.values[lane]);
        }
        reinterpret_cast<Four<To>*>(to)[at] = target;
    }
    for (u64 at = 4 * fours + first; at < count; at += step) {
        to[at] = Conversion::of(from[at]);
    }
}

struct ToHalf {
    static __device__ __forceinline__ u16 of(float value) { return half_bits(value); }
};

struct ToBrain {
    static __device__ __forceinline__ u16 of(float value) {
        u16 bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return value != value ? static_cast<u16>(0x7fc0) : bits;
    }
};

struct ToByte {
    static __device__ __forceinline__ signed char of(float value) {
        const int nearest = __float2int_rn(value);
        const int saturated = nearest < -128 ? -128 : (nearest > 127 ? 127 : nearest);
        return static_cast<signed char>(value != value ? 0 : saturated);
    }
};

struct FromHalf {
    static __device__ __forceinline__ float of(u16 bits) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value != value ? __uint_as_float(0x7fc00000) : value;
    }
};

struct FromBrain {
    static __device__ __forceinline__ float of(u16 bits) {
        const float value = __uint_as_float(static_cast<u32>(bits) << 16);
        return value != value ? __uint_as_float(0x7fc00000) : value;
    }
};

struct FromByte {
    static __device__ __forceinline__ float of(signed char value) { return static_cast<float>(value); }
};

extern "C" __global__ void cast_f32_f16(u16* to, const float* from, u64 count) { cast<ToHalf>(to, from, count); }
extern "C" __global__ void cast_f32_bf16(u16* to, const float* from, u64 count) { cast<ToBrain>(to, from, count); }
extern "C" __global__ void cast_f32_i8(signed char* to, const float* from, u64 count) { cast<ToByte>(to, from, count); }
extern "C" __global__ void cast_f16_f32(float* to, const u16* from, u64 count) { cast<FromHalf>(to, from, count); }
extern "C" __global__ void cast_bf16_f32(float* to, const u16* from, u64 count) { cast<FromBrain>(to, from, count); }
extern "C" __global__ void cast_i8_f32(float* to, const signed char* from, u64 count) { cast<FromByte>(to, from, count); }
