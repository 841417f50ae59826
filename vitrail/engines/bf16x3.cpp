// y = x W^T + b in float32 on the bfloat16 matrix units (AMX): each number is the sum of a high and a low bfloat16, and
// of the four products of parts the three that matter are summed in float32. Two parts hold 16 of float32's 24 bits.
//
// Shapes   M rows of x, K inputs, N outputs. A tile is 16 rows of 64 bytes, a block SIDE x SIDE numbers: of x, or of W
//          with pairs of inputs side by side, as the units want it, two tiles of high parts, then two of low ones.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

using std::int64_t;

constexpr int64_t SIDE = 32, TILE = 512, BLOCK = 4 * TILE;  // in numbers
constexpr int64_t ROOM = 768 << 10;                         // bytes of split rows that stay in a core's second cache

struct alignas(64) Tiles {
    uint8_t palette = 1, start = 0, none[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static inline __m512 widen(__m256i bfloat16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}

// `rows` rows of `width` numbers, `stride` apart, to a block; what is missing of it is zero
static inline void split(const float* x, int64_t stride, int64_t rows, int64_t width, uint16_t* block) {
    const auto first = static_cast<__mmask16>((uint64_t{1} << std::min<int64_t>(width, 16)) - 1);
    const auto second = static_cast<__mmask16>((uint64_t{1} << std::max<int64_t>(width - 16, 0)) - 1);
    for (int64_t row = 0; row < SIDE; ++row, block += SIDE) {
        const auto here = static_cast<__mmask16>(row < rows ? -1 : 0);
        const float* from = x + (row < rows ? row * stride : 0);
        const __m512 left = _mm512_maskz_loadu_ps(first & here, from);
        const __m512 right = _mm512_maskz_loadu_ps(second & here, from + 16);
        const auto high = (__m512i)_mm512_cvtne2ps_pbh(right, left);
        const __m512 left_rest = _mm512_sub_ps(left, widen(_mm512_castsi512_si256(high)));
        const __m512 right_rest = _mm512_sub_ps(right, widen(_mm512_extracti64x4_epi64(high, 1)));
        _mm512_store_si512(block, high);
        _mm512_store_si512(block + 2 * TILE, (__m512i)_mm512_cvtne2ps_pbh(right_rest, left_rest));
    }
}

static inline void products() {  // tiles 0 to 3 += tiles 4, 5 times 6, 7
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

static inline void multiply(const uint16_t* x, const uint16_t* w, int64_t steps, float* y) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps; ++step, x += BLOCK, w += BLOCK) {
        _tile_loadd(4, x, 64);
        _tile_loadd(5, x + TILE, 64);
        _tile_loadd(6, w + 2 * TILE, 64);
        _tile_loadd(7, w + 3 * TILE, 64);
        products();  // high x low
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w + TILE, 64);
        products();  // high x high
        _tile_loadd(4, x + 2 * TILE, 64);
        _tile_loadd(5, x + 3 * TILE, 64);
        products();  // low x high
    }
    _tile_stored(0, y, 4 * SIDE);
    _tile_stored(1, y + 16, 4 * SIDE);
    _tile_stored(2, y + 16 * SIDE, 4 * SIDE);
    _tile_stored(3, y + 16 * SIDE + 16, 4 * SIDE);
}

// Linux gives the tiles to a process that asks; false where there are none
extern "C" bool allowed() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

// x (M, K), w: blocks [output][input] as above, b (N) -> y (M, N)
extern "C" void linear(const float* x, const uint16_t* w, const float* b, float* y, int64_t M, int64_t K, int64_t N,
                       int threads) {
    const int64_t steps = (K + SIDE - 1) / SIDE, columns = (N + SIDE - 1) / SIDE, rows = (M + SIDE - 1) / SIDE;
    const int64_t most = std::max<int64_t>(1, ROOM / (steps * BLOCK * 2));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) {
        const int64_t begin = rows * thread / threads, end = rows * (thread + 1) / threads;
        if (begin == end) continue;
        const Tiles tiles;
        _tile_loadconfig(&tiles);
        const int64_t parts = (end - begin + most - 1) / most, tall = (end - begin + parts - 1) / parts;
        auto* blocks = static_cast<uint16_t*>(std::aligned_alloc(64, tall * steps * BLOCK * 2));
        alignas(64) float sums[SIDE * SIDE];
        for (int64_t top = begin; top < end; top += tall) {
            const int64_t bottom = std::min(top + tall, end);
            for (int64_t row = top; row < bottom; ++row)
                for (int64_t step = 0; step < steps; ++step)
                    split(x + row * SIDE * K + step * SIDE, K, std::min(SIDE, M - row * SIDE),
                          std::min(SIDE, K - step * SIDE), blocks + ((row - top) * steps + step) * BLOCK);
            for (int64_t column = 0; column < columns; ++column)
                for (int64_t row = top; row < bottom; ++row) {
                    multiply(blocks + (row - top) * steps * BLOCK, w + column * steps * BLOCK, steps, sums);
                    const int64_t high = std::min(SIDE, M - row * SIDE), wide = std::min(SIDE, N - column * SIDE);
                    float* to = y + row * SIDE * N + column * SIDE;
                    for (int64_t i = 0; i < high; ++i)
                        for (int64_t j = 0; j < wide; ++j)
                            to[i * N + j] = sums[i * SIDE + j] + b[column * SIDE + j];
                }
        }
        std::free(blocks);
        _tile_release();
    }
}
