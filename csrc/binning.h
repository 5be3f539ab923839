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
        while (squared_chord >= table.edges[bin]) ++bin;
    }
    return bin;
}

}  // namespace semivario
