// image_f32, image_f16: pictures of bytes into the tensor that a network of pictures takes.
//
// In: `count` pictures, each `height` x `width` x `channels` UINT8, rows dense, anywhere, each of its own size (1 to 65535
// a side; 1 to 4 channels, of all the same). Out: [count, channels, out_height, out_width], dense, FP32 or FP16 (1 to
// 16384 a side). Each channel: (resized - mean[channel]) * scale[channel], in grey levels 0 .. 255.
//
// The resize is bilinear with half-pixel centres and without antialiasing (ONNX Resize: mode linear, half_pixel; PyTorch:
// interpolate(mode="bilinear", align_corners=False, antialias=False)): a large picture made small takes four pixels for
// one and skips those between. The source of x is (x + 1/2) * width / out_width - 1/2, not below 0, its whole part and its
// remainder in integers and the fraction rounded once; then in FP32, each operation rounded to nearest and none fused,
// first between the rows, then between the columns: a + fraction * (b - a). So the CPU's twin gives the same bits.
//
// Grid: x and y over tiles of 64 x 16 output pixels, z over pictures, any size. Block: 64 x 4.

constexpr u32 TILE_WIDTH = 64;
constexpr u32 TILE_HEIGHT = 16;
constexpr u32 BLOCK_HEIGHT = 4;

struct Picture {
    u64 pixels;
    u32 height;
    u32 width;
};

struct Normalisation {
    float mean[4];
    float scale[4];
};

// The two pixels of a side that one of the output lies between, and how far it is from the first to the second.
struct Tap {
    u32 first;
    u32 second;
    float fraction;
};

// 2 * size * 16384 fits 32 bits, and each term of the fraction fits FP32.
__device__ __forceinline__ Tap tap(u32 at, u32 size, u32 out) {
    const u32 twice = (2 * at + 1) * size;
    const u32 place = twice > out ? twice - out : 0;
    const u32 first = place / (2 * out);
    const u32 rest = place - first * (2 * out);
    return {first, min(first + 1, size - 1), __fdiv_rn(static_cast<float>(rest), static_cast<float>(2 * out))};
}

__device__ __forceinline__ float between(float a, float b, float fraction) {
    return __fadd_rn(a, __fmul_rn(fraction, __fsub_rn(b, a)));
}

__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(u16* to, float value) { *to = half_bits(value); }

template <u32 CHANNELS, typename Element>
__device__ __forceinline__ void preprocess(
    Element* destination, const Picture* pictures, u32 count, u32 out_height, u32 out_width, const Normalisation& normal) {
    __shared__ Tap rows[TILE_HEIGHT];
    const u32 x = blockIdx.x * TILE_WIDTH + threadIdx.x;
    const u32 top = blockIdx.y * TILE_HEIGHT;
    const u64 plane = static_cast<u64>(out_height) * out_width;
    for (u32 index = blockIdx.z; index < count; index += gridDim.z) {
        const Picture picture = pictures[index];
        const u8* pixels = reinterpret_cast<const u8*>(picture.pixels);
        const u32 lane = threadIdx.y * TILE_WIDTH + threadIdx.x;
        __syncthreads();  // the picture before this one may still be read from `rows`
        if (lane < TILE_HEIGHT && top + lane < out_height) {
            rows[lane] = tap(top + lane, picture.height, out_height);
        }
        __syncthreads();
        if (x >= out_width) {
            continue;
        }
        const Tap column = tap(x, picture.width, out_width);
        const u64 line = static_cast<u64>(picture.width) * CHANNELS;
        Element* to = destination + static_cast<u64>(index) * CHANNELS * plane + x;
        for (u32 y = threadIdx.y; y < TILE_HEIGHT && top + y < out_height; y += BLOCK_HEIGHT) {
            const Tap row = rows[y];
            const u8* upper = pixels + row.first * line;
            const u8* lower = pixels + row.second * line;
#pragma unroll
            for (u32 channel = 0; channel < CHANNELS; ++channel) {
                const u32 left = column.first * CHANNELS + channel, right = column.second * CHANNELS + channel;
                const float a = between(__ldg(upper + left), __ldg(lower + left), row.fraction);
                const float b = between(__ldg(upper + right), __ldg(lower + right), row.fraction);
                const float value = __fsub_rn(between(a, b, column.fraction), normal.mean[channel]);
                const u64 place = channel * plane + static_cast<u64>(top + y) * out_width;
                store(to + place, __fmul_rn(value, normal.scale[channel]));
            }
        }
    }
}

template <typename Element>
__device__ __forceinline__ void dispatch(
    Element* to, const Picture* pictures, u32 count, u32 channels, u32 height, u32 width, const Normalisation& normal) {
    switch (channels) {
        case 1: return preprocess<1>(to, pictures, count, height, width, normal);
        case 2: return preprocess<2>(to, pictures, count, height, width, normal);
        case 3: return preprocess<3>(to, pictures, count, height, width, normal);
        case 4: return preprocess<4>(to, pictures, count, height, width, normal);
    }
}

extern "C" __global__ void __launch_bounds__(TILE_WIDTH* BLOCK_HEIGHT) image_f32(
    float* to, const Picture* pictures, u32 count, u32 channels, u32 height, u32 width, Normalisation normal) {
    dispatch(to, pictures, count, channels, height, width, normal);
}

extern "C" __global__ void __launch_bounds__(TILE_WIDTH* BLOCK_HEIGHT) image_f16(
    u16* to, const Picture* pictures, u32 count, u32 channels, u32 height, u32 width, Normalisation normal) {
    dispatch(to, pictures, count, channels, height, width, normal);
}
