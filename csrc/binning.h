// Which distance bin a pair belongs to, without a search: a table over the leading bits of h + offset names the
// bin, or, where an edge is near, a bin to go up from by comparing the float64 squared chord with the edges.
#pragma once

#include "elementary.h"

namespace semivario {

// Bin 0 lies below the first edge, bin k from edge k − 1 to edge k, bin K + 1 beyond the last edge.
struct BinTable {
    const double* edges;        // (K + 2,) squared chords, rising, the last one infinite
    const std::int32_t* cells;  // (cell_count,) the bin of every h in the cell, or NEAR_EDGE + the lowest of them
    std::int32_t cell_count;
    std::int32_t first_cell;    // leading bits of the first cell
    std::int32_t shift;         // number of trailing bits
    float offset;               // 0 for cells of equal ratio, large for cells of equal width
    std::int32_t bins;          // K
};

constexpr std::int32_t NEAR_EDGE = 1 << 30;

SEMIVARIO_HD std::int32_t cell_of(const BinTable& table, float h) {
    std::int32_t cell = static_cast<std::int32_t>(bits_of(h + table.offset) >> table.shift) - table.first_cell;
    cell = cell < 0 ? 0 : cell;
    return cell < table.cell_count ? cell : table.cell_count - 1;
}

SEMIVARIO_HD std::int32_t settled_bin(const BinTable& table, std::int32_t bin, double squared_chord) {
    if (bin >= NEAR_EDGE) {
        bin -= NEAR_EDGE;
        bin += squared_chord >= table.edges[bin] ? 1 : 0;  // nearly always all, and no branch
        while (squared_chord >= table.edges[bin]) ++bin;
    }
    return bin;
}

// One side of a tile, sorted along a space-filling curve.
struct BinnedSide {
    std::int64_t size;
    const double* axes[3];        // unit vectors
    const float* inverse_norm;    // 1 / |v|
    const std::int32_t* block;    // rising: which spatial block the place belongs to
};

// The rows that MET_COLUMNS consecutive columns meet, first … last − 1, in whole groups of MET_COLUMNS rows but for
// the ragged end; none where last ≤ first.
struct RowRange {
    std::int32_t first, last;
};
constexpr int MET_COLUMNS = 32;

// Whether they meet all of rows first … last − 1, which lie in one such group.
SEMIVARIO_HD bool meets(RowRange met, std::int64_t first, std::int64_t last) {
    return met.first <= first && last <= met.last;
}

constexpr int BIN_SUMS = 4;  // count, Σh, Σd, Σd²

// Sums are kept in whole units, so many of them to 1 km, to d = 1 and to d² = 1: MOST_ADDED values of h ≤ 20,016 km
// and d ≤ 2 stay below 2³². h is kept to 2 m and d to 1.2e-7, both without bias.
constexpr int MOST_ADDED = 512;
constexpr float H_UNITS = 256.0f;
constexpr float D_UNITS = 4194304.0f - 1.0f;
constexpr float D2_UNITS = 2097152.0f - 1.0f;

constexpr double DUPLICATE_SQUARED_CHORD = 1e-28;  // 64 nm: above the rounding of the unit vectors

}  // namespace semivario
