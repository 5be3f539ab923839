// Which distance bin a pair belongs to, without a search: a table over the float32 bits of h gives the bin or one
// a few below it, and exact comparisons of the float64 squared chord with the edges settle it.
#pragma once

#include "elementary.h"

namespace semivario {

// Bin 0 lies below the first edge, bin k from edge k − 1 to edge k, bin K + 1 beyond the last edge.
struct BinTable {
    const double* edges;        // (K + 2,) squared chords, rising, the last one infinite
    const std::int32_t* cells;  // (cell_count,) a lower bound of the bin of every h in the cell
    std::int32_t cell_count;
    std::int32_t first_cell;    // bits of the smallest h that the table tells apart, shifted
    std::int32_t shift;
    std::int32_t steps;         // how many bins above its cell's bound a pair may lie
    std::int32_t bins;          // K
};

SEMIVARIO_HD std::int32_t cell_of(const BinTable& table, float h) {
    std::int32_t cell = static_cast<std::int32_t>(bits_of(h) >> table.shift) - table.first_cell;
    cell = cell < 0 ? 0 : cell;
    return cell < table.cell_count ? cell : table.cell_count - 1;
}

SEMIVARIO_HD std::int32_t bin_of(const BinTable& table, double squared_chord, float h) {
    std::int32_t bin = table.cells[cell_of(table, h)];
    for (std::int32_t step = 0; step < table.steps; ++step) bin += squared_chord >= table.edges[bin] ? 1 : 0;
    return bin;
}

}  // namespace semivario
