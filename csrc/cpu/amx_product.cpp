// A float32 v is split into two bfloat16, v ≈ h + l with h = bf16(v) and l = bf16(v − h), to 2⁻¹⁷ of v. A tile
// instruction multiplies 32-bit words that hold two bfloat16 each, and adds the products of the words' first halves
// and those of their second halves apart before it adds the two sums to a float32:
//
//     words of a row    words of a column    what one instruction adds
//     (h, l)            (h, l)               Σ h·h' + Σ l·l'     float32 and float16: both,
//     (h, l)            (l, h)               Σ h·l' + Σ l·h'       v·v' in full
//     (h, l)            (u, u)               Σ h·u  + Σ l·u      bfloat16 columns
//     (v₂ₖ, v₂ₖ₊₁)      (u₂ₖ, u₂ₖ₊₁)         Σ v·u               bfloat16 rows and columns: exact products
//
// so that rows and columns may change places without changing a bit. Every product of two rows is made by the same
// instructions in the same order, wherever the two lie in their blocks; the ends of ragged blocks are zeros or left
// out when the result is written.
//
//     tasks      a block of columns × a part of the rows, for the threads
//     pack       the block's columns as words, transposed into tiles of 16 words × 16 columns, once per task
//     multiply   32 rows × 32 columns over the whole length stay in four tiles
//
// A value that is NaN or infinite makes its row or column NaN; a denormal counts as 0.
#include "amx_product.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define SEMIVARIO_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // the intrinsics' own undefined vectors
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace semivario {
namespace {

constexpr std::int64_t SIDE = 16;            // rows or columns, and words, of a tile
constexpr std::int64_t TILE = SIDE * SIDE;   // words
constexpr std::int64_t BLOCK = 2 * SIDE;     // rows and columns that four tiles of sums hold
constexpr std::int64_t MOST_COLUMNS = 128;   // of a task
constexpr std::int64_t PACKED_WORDS = 1 << 18;  // of a task's columns, more only where 32 columns want it
constexpr std::int64_t FEWEST_ROWS = 128;    // of a task, so that packing stays a small part of it

std::int64_t blocks_of(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

}  // namespace

std::uint32_t* Words::take(std::int64_t count) {
    const std::size_t wanted = static_cast<std::size_t>(count + SIDE);
    if (memory_.size() < wanted) {
        memory_ = {};  // the old memory goes before the new comes
        memory_.resize(wanted);
        const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory_.data());
        start_ = memory_.data() + ((64 - address % 64) % 64) / 4;
    }
    return start_;
}

std::int64_t AmxProduct::words() const { return pairs_ ? (length_ + 1) / 2 : length_; }

// An odd number of cache lines, so that the rows of a tile lie in different sets.
std::int64_t AmxProduct::stride() const { return (blocks_of(words(), SIDE) | 1) * SIDE; }

AmxProduct::AmxProduct(std::int64_t length, Element columns, int threads)
    : length_(length), columns_(columns), threads_(threads), scratch_(static_cast<std::size_t>(threads)) {}

#if defined(SEMIVARIO_AMX)
namespace {

// How the words of columns are packed, see above.
enum class Packing { both, twice, pairs };

SEMIVARIO_AMX __m512i split(__m512 v) {
    const __m512i high = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
    const __m512 rest = _mm512_sub_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
    const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rest)));
    return _mm512_or_si512(high, _mm512_slli_epi32(low, 16));
}

// The first `left` of 16 elements, zeros beyond.
template <Element element>
SEMIVARIO_AMX __m512 load(const void* row, std::int64_t start, std::int64_t left) {
    const __mmask16 here = left >= SIDE ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    if constexpr (element == Element::float32) {
        return _mm512_maskz_loadu_ps(here, static_cast<const float*>(row) + start);
    } else {
        const __m256i halves = _mm256_maskz_loadu_epi16(here, static_cast<const std::uint16_t*>(row) + start);
        if constexpr (element == Element::float16) return _mm512_cvtph_ps(halves);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
}

// 16 words of two bfloat16 each: the first `left` of 32 elements, zeros beyond.
SEMIVARIO_AMX __m512i load_pairs(const void* row, std::int64_t start, std::int64_t left) {
    const __mmask32 here = left >= 2 * SIDE ? 0xffffffffu : (1u << left) - 1;
    return _mm512_maskz_loadu_epi16(here, static_cast<const std::uint16_t*>(row) + start);
}

const void* row_at(const Rows& rows, std::int64_t i) {
    const std::int64_t offset = rows.stride * (rows.index == nullptr ? i : rows.index[i]);
    return static_cast<const char*>(rows.data) + offset * (rows.element == Element::float32 ? 4 : 2);
}

template <Element element>
SEMIVARIO_AMX void split_row(const void* row, float scale, std::int64_t length, std::uint32_t* words) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (std::int64_t k = 0; k < length; k += SIDE) {
        _mm512_store_si512(words + k, split(_mm512_mul_ps(load<element>(row, k, length - k), factor)));
    }
}

SEMIVARIO_AMX void pair_row(const void* row, std::int64_t length, std::uint32_t* words) {
    for (std::int64_t k = 0; k < length; k += 2 * SIDE) {
        _mm512_store_si512(words + k / 2, load_pairs(row, k, length - k));
    }
}

SEMIVARIO_AMX void take_row(const void* row, Element element, bool pairs, float scale, std::int64_t length,
                            std::uint32_t* words) {
    if (pairs) return pair_row(row, length, words);
    switch (element) {
        case Element::float32: return split_row<Element::float32>(row, scale, length, words);
        case Element::bfloat16: return split_row<Element::bfloat16>(row, scale, length, words);
        case Element::float16: return split_row<Element::float16>(row, scale, length, words);
    }
}

// A 16 × 16 matrix of words, one row per vector.
SEMIVARIO_AMX void transpose(__m512i rows[SIDE]) {
    __m512i part[SIDE];
    for (int i = 0; i < 16; i += 2) {
        part[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        part[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        for (int k = 0; k < 2; ++k) {
            rows[i + 2 * k] = _mm512_unpacklo_epi64(part[i + k], part[i + k + 2]);
            rows[i + 2 * k + 1] = _mm512_unpackhi_epi64(part[i + k], part[i + k + 2]);
        }
    }
    for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < 16; k += 8) {
            part[i + k] = _mm512_shuffle_i32x4(rows[i + k], rows[i + k + 4], 0x88);
            part[i + k + 4] = _mm512_shuffle_i32x4(rows[i + k], rows[i + k + 4], 0xdd);
        }
    }
    for (int i = 0; i < 8; ++i) {
        rows[i] = _mm512_shuffle_i32x4(part[i], part[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(part[i], part[i + 8], 0xdd);
    }
}

// One tile of 16 words × 16 columns, and with Packing::both its twin two tiles on.
template <Packing packing, Element element>
SEMIVARIO_AMX void pack_tile(const void* const rows[SIDE], std::int64_t word, std::int64_t length, std::uint32_t* out) {
    __m512i words[SIDE];
    for (int j = 0; j < SIDE; ++j) {
        words[j] = _mm512_setzero_si512();
        if (rows[j] == nullptr) continue;
        if constexpr (packing == Packing::pairs) {
            words[j] = load_pairs(rows[j], 2 * word, length - 2 * word);
        } else {
            words[j] = split(load<element>(rows[j], word, length - word));
            if constexpr (packing == Packing::twice) words[j] = _mm512_or_si512(words[j], _mm512_slli_epi32(words[j], 16));
        }
    }
    transpose(words);
    for (int k = 0; k < SIDE; ++k) {
        _mm512_store_si512(out + k * SIDE, words[k]);
        if constexpr (packing == Packing::both) {
            _mm512_store_si512(out + 2 * TILE + k * SIDE, _mm512_rol_epi32(words[k], 16));
        }
    }
}

// Columns first … first + count − 1: for each 32 of them and each 16 words two tiles, or twice two.
template <Packing packing, Element element>
SEMIVARIO_AMX void pack(const Rows& columns, std::int64_t first, std::int64_t count, std::int64_t length,
                        std::int64_t steps, std::uint32_t* out) {
    constexpr std::int64_t per_step = (packing == Packing::both ? 4 : 2) * TILE;
    constexpr std::int64_t step_bytes = SIDE * (packing == Packing::pairs || element == Element::float32 ? 4 : 2);
    for (std::int64_t j = 0; j < blocks_of(count, BLOCK) * BLOCK; j += SIDE) {
        const void* rows[SIDE];
        const char* next[SIDE];  // on their way from memory meanwhile
        for (std::int64_t k = 0; k < SIDE; ++k) rows[k] = j + k < count ? row_at(columns, first + j + k) : nullptr;
        for (std::int64_t k = 0; k < SIDE; ++k) {
            next[k] = static_cast<const char*>(row_at(columns, first + std::min(j + SIDE + k, count - 1)));
        }
        std::uint32_t* tiles = out + j / BLOCK * steps * per_step + j % BLOCK / SIDE * TILE;
        for (std::int64_t step = 0; step < steps; ++step) {
            for (const char* row : next) _mm_prefetch(row + step * step_bytes, _MM_HINT_T0);
            pack_tile<packing, element>(rows, step * SIDE, length, tiles + step * per_step);
        }
    }
}

struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileShapes shapes{};  // in memory: the compiler does not see that the instruction reads all of it

SEMIVARIO_AMX void begin_tiles() { _tile_loadconfig(&shapes); }

SEMIVARIO_AMX void end_tiles() { _tile_release(); }

// Four tiles of sums: 32 rows × 32 columns.
template <bool both>
SEMIVARIO_AMX void multiply_block(const std::uint32_t* rows, std::int64_t stride, const std::uint32_t* columns,
                                  std::int64_t steps, float* out, std::int64_t out_stride) {
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
    const std::uint32_t* lower = rows + SIDE * stride;
    const long row_bytes = 4 * stride, out_bytes = 4 * out_stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::int64_t step = 0; step < steps; ++step) {
        _tile_loadd(4, rows, row_bytes);
        _tile_loadd(5, lower, row_bytes);
        _tile_loadd(6, columns, 64);
        _tile_loadd(7, columns + TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        if constexpr (both) {
            _tile_loadd(6, columns + 2 * TILE, 64);
            _tile_loadd(7, columns + 3 * TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        rows += SIDE;
        lower += SIDE;
        columns += (both ? 4 : 2) * TILE;
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + SIDE, out_bytes);
    _tile_stored(2, out + SIDE * out_stride, out_bytes);
    _tile_stored(3, out + SIDE * out_stride + SIDE, out_bytes);
}

// Rows first … first + count − 1 with packed columns, whose ranges of rows are `met_rows`.
template <bool both>
SEMIVARIO_AMX void multiply_rows(const std::uint32_t* words, std::int64_t stride, std::int64_t first,
                                 std::int64_t count, const std::uint32_t* packed, std::int64_t columns,
                                 const RowRange* met_rows, std::int64_t steps, float* out, std::int64_t out_stride) {
    for (std::int64_t i = 0; i < count; i += BLOCK) {
        for (std::int64_t j = 0; j < columns; j += BLOCK) {
            if (met_rows != nullptr && !meets(met_rows[j / MET_COLUMNS], first + i, first + i + 1)) continue;
            const std::uint32_t* tiles = packed + j / BLOCK * steps * (both ? 4 : 2) * TILE;
            float* corner = out + i * out_stride + j;
            if (i + BLOCK <= count && j + BLOCK <= columns) {
                multiply_block<both>(words + i * stride, stride, tiles, steps, corner, out_stride);
                continue;
            }
            alignas(64) float whole[BLOCK * BLOCK];
            multiply_block<both>(words + i * stride, stride, tiles, steps, whole, BLOCK);
            const std::int64_t width = std::min(BLOCK, columns - j);
            for (std::int64_t k = 0; k < std::min(BLOCK, count - i); ++k) {
                std::memcpy(corner + k * out_stride, whole + k * BLOCK, static_cast<std::size_t>(width) * sizeof(float));
            }
        }
    }
}

static_assert(BLOCK == MET_COLUMNS, "a block of sums is left out or not");

using Pack = void(const Rows&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::uint32_t*);

Pack* packer(Element element, bool pairs) {
    switch (element) {
        case Element::float32: return pack<Packing::both, Element::float32>;
        case Element::float16: return pack<Packing::both, Element::float16>;
        default:
            return pairs ? pack<Packing::pairs, Element::bfloat16> : pack<Packing::twice, Element::bfloat16>;
    }
}

const char* find_obstacle() {
    unsigned a, b, c, d;
    const bool has_tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 22) && (d & 1u << 24);
    const bool converts = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5);
    if (!has_tiles || !converts) return "the processor has no AMX for bfloat16";
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) return "the system does not permit AMX";
    return nullptr;
}

}  // namespace

const char* amx_unavailable() {
    static const char* const obstacle = find_obstacle();
    return obstacle;
}

void AmxProduct::take_rows(const Rows& rows, const float* scale) {
    pairs_ = rows.element == Element::bfloat16 && columns_ == Element::bfloat16 && scale == nullptr;
    std::uint32_t* words = rows_.take((rows.count + BLOCK) * stride());
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1)
    for (std::int64_t i = 0; i < rows.count; ++i) {
        take_row(row_at(rows, i), rows.element, pairs_, scale == nullptr ? 1.0f : scale[i], length_, words + i * stride());
    }
}

void AmxProduct::multiply(std::int64_t first, std::int64_t count, const Rows& columns, const RowRange* met_rows,
                          float* out, std::int64_t out_stride) {
    const bool both = columns.element != Element::bfloat16;
    const std::int64_t steps = blocks_of(words(), SIDE), per_column = steps * SIDE * (both ? 2 : 1);
    const std::int64_t most = std::clamp(PACKED_WORDS / per_column / BLOCK * BLOCK, BLOCK, MOST_COLUMNS);
    const std::int64_t column_blocks = blocks_of(columns.count, most);
    const std::int64_t wanted = std::min(blocks_of(count, FEWEST_ROWS), blocks_of(2 * threads_, column_blocks));
    const std::int64_t part = blocks_of(blocks_of(count, wanted), BLOCK) * BLOCK, parts = blocks_of(count, part);
    Pack* const pack_columns = packer(columns.element, pairs_);
    auto* const multiply_task = both ? multiply_rows<true> : multiply_rows<false>;
    for (Words& scratch : scratch_) scratch.take(per_column * blocks_of(most, BLOCK) * BLOCK);
    std::atomic<std::int64_t> left{column_blocks * parts};
#pragma omp parallel for schedule(static) num_threads(threads_) if (threads_ > 1)
    for (int thread = 0; thread < threads_; ++thread) {
        std::uint32_t* packed = scratch_[static_cast<std::size_t>(thread)].data();
        begin_tiles();
        for (std::int64_t task = --left; task >= 0; task = --left) {  // of a triangle, the longest columns first
            const std::int64_t j = task / parts * most, i = task % parts * part;
            const std::int64_t width = std::min(most, columns.count - j);
            const RowRange* met = met_rows == nullptr ? nullptr : met_rows + j / MET_COLUMNS;
            pack_columns(columns, j, width, length_, steps, packed);
            multiply_task(rows_.data() + (first + i) * stride(), stride(), i, std::min(part, count - i), packed, width,
                          met, steps, out + i * out_stride + j, out_stride);
        }
        end_tiles();
    }
}
#else

const char* amx_unavailable() { return "the compiler that built this package knows no AMX"; }

void AmxProduct::take_rows(const Rows&, const float*) {}

void AmxProduct::multiply(std::int64_t, std::int64_t, const Rows&, const RowRange*, float*, std::int64_t) {}

#endif

}  // namespace semivario
