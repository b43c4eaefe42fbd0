// gather: the tensors of several requests into one batch.
//
// For each of `count` parts: `bytes` from `address` to `destination + offset`, then padding up to `room` bytes. Byte i of
// the padding is byte i % 8 of `padding` (little-endian), so that an element of 1, 2, 4 or 8 bytes, repeated, pads
// elements. A dense batch has room == bytes and each offset where the part before it ends; a ragged one that is padded has
// parts of one row each, all of one room. Parts may lie anywhere, in device memory or in pinned memory of the host, and
// may not overlap in the destination. bytes <= room; offsets and sizes are in bytes and of 64 bits. Exact.
//
// Grid: y over parts, x over the bytes of the largest; any size is right. Block: one dimension, at least 32 threads.

// Fills bytes with a pattern of eight that begins at the first of them.
__device__ __forceinline__ void fill_bytes(u8* to, u64 bytes, u64 pattern, u64 first, u64 step) {
    const u64 head = bytes_before_aligned(to, bytes, sizeof(u64));
    const u64 words = (bytes - head) / sizeof(u64);
    const u64 tail = head + words * sizeof(u64);
    const auto byte = [pattern](u64 at) { return static_cast<u8>(pattern >> (8 * (at & 7))); };
    if (first < head) {
        to[first] = byte(first);
    }
    if (first < bytes - tail) {
        to[tail + first] = byte(tail + first);
    }
    // The pattern as it stands from the first whole word on; a shift by 64 would be undefined.
    const u64 turned = head == 0 ? pattern : (pattern >> (8 * head)) | (pattern << (64 - 8 * head));
    u64* target = reinterpret_cast<u64*>(to + head);
    for (u64 at = first; at < words; at += step) {
        target[at] = turned;
    }
}

extern "C" __global__ void gather(u8* destination, const Part* parts, u32 count, u64 padding) {
    const u64 first = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u32 index = blockIdx.y; index < count; index += gridDim.y) {
        const Part part = parts[index];
        u8* to = destination + part.offset;
        copy_bytes(to, reinterpret_cast<const u8*>(part.address), part.bytes, first, step);
        fill_bytes(to + part.bytes, part.room - part.bytes, padding, first, step);
    }
}
