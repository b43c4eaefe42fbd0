// What the kernels share. It stands before each kernel's text when that is compiled, so that neither nvcc nor NVRTC
// needs a path to look in, and it includes nothing, so that NVRTC needs no headers of CUDA.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// One of the memories that a batch is gathered from or scattered to: `bytes` at `address`, which stand at `offset` of the
// batch, where there is room for `room` of them. The launch code's structs are laid out the same.
struct Part {
    u64 address;
    u64 bytes;
    u64 offset;
    u64 room;
};

// Copies words with every `step`th thread from `first` on. Four loads are under way before the first store waits for one.
template <typename Word>
__device__ __forceinline__ void copy_words(u8* to, const u8* from, u64 words, u64 first, u64 step) {
    Word* target = reinterpret_cast<Word*>(to);
    const Word* source = reinterpret_cast<const Word*>(from);
    u64 at = first;
    for (; at + 3 * step < words; at += 4 * step) {
        const Word a = source[at], b = source[at + step], c = source[at + 2 * step], d = source[at + 3 * step];
        target[at] = a;
        target[at + step] = b;
        target[at + 2 * step] = c;
        target[at + 3 * step] = d;
    }
    for (; at < words; at += step) {
        target[at] = source[at];
    }
}

// Bytes before the first address that is a multiple of `size`, of `bytes` at most.
__device__ __forceinline__ u64 bytes_before_aligned(const u8* at, u64 bytes, u64 size) {
    const u64 head = (0 - reinterpret_cast<u64>(at)) & (size - 1);
    return head < bytes ? head : bytes;
}

// Copies bytes whose addresses differ by a multiple of a word. Head and tail are shorter than a word: a thread a byte.
template <typename Word>
__device__ __forceinline__ void copy_aligned(u8* to, const u8* from, u64 bytes, u64 first, u64 step) {
    const u64 head = bytes_before_aligned(to, bytes, sizeof(Word));
    const u64 words = (bytes - head) / sizeof(Word);
    const u64 tail = head + words * sizeof(Word);
    if (first < head) {
        to[first] = from[first];
    }
    if (first < bytes - tail) {
        to[tail + first] = from[tail + first];
    }
    copy_words<Word>(to + head, from + head, words, first, step);
}

// Copies bytes with every `step`th thread from `first` on, at least 32 of them, in the widest words that both addresses allow.
__device__ __forceinline__ void copy_bytes(u8* to, const u8* from, u64 bytes, u64 first, u64 step) {
    const u64 differ = reinterpret_cast<u64>(to) ^ reinterpret_cast<u64>(from);
    if ((differ & 15) == 0) {
        copy_aligned<uint4>(to, from, bytes, first, step);
    } else if ((differ & 7) == 0) {
        copy_aligned<u64>(to, from, bytes, first, step);
    } else if ((differ & 3) == 0) {
        copy_aligned<u32>(to, from, bytes, first, step);
    } else {
        copy_words<u8>(to, from, bytes, first, step);
    }
}

// FP32 to the bits of FP16, to nearest, ties to even; too large ones are infinite; each NaN is 0x7e00.
__device__ __forceinline__ u16 half_bits(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return value != value ? static_cast<u16>(0x7e00) : bits;
}
