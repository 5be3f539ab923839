// Products of the rows of two matrices, Σ_k a_ik·b_jk, by the bfloat16 tiles of AMX, as accurate as float32 needs.
#pragma once

#include <cstdint>
#include <vector>

#include "../binning.h"

namespace semivario {

enum class Element { float32, bfloat16, float16 };

// Row i starts at data + stride·index[i], in elements; without an index at data + stride·i.
struct Rows {
    const void* data;
    std::int64_t stride;
    const std::int64_t* index;
    std::int64_t count;
    Element element;
};

// Why AMX cannot be used here, null where it can.
const char* amx_unavailable();

// Memory for 32-bit words, aligned as the cache's lines are, that grows where it must and keeps nothing then.
class Words {
  public:
    std::uint32_t* take(std::int64_t count);
    std::uint32_t* data() const { return start_; }

  private:
    std::vector<std::uint32_t> memory_;
    std::uint32_t* start_ = nullptr;
};

// A row block that meets columns tile by tile. Memory: 4 bytes an element of the row block, and about 1 MiB a
// thread.
class AmxProduct {
  public:
    // `length` elements a row; `columns` is the element of all columns to come.
    AmxProduct(std::int64_t length, Element columns, int threads);

    // Loads the row block; row i is multiplied by scale[i], or by 1 without a scale.
    void take_rows(const Rows& rows, const float* scale);

    // out (count, columns.count): rows first … first + count − 1 of the block with the columns, but for rows that
    // the columns do not meet, `met_rows`, counted from `first`; null where they meet all.
    void multiply(std::int64_t first, std::int64_t count, const Rows& columns, const RowRange* met_rows, float* out,
                  std::int64_t out_stride);

  private:
    std::int64_t words() const;   // of a row
    std::int64_t stride() const;  // words from one row to the next

    std::int64_t length_;
    Element columns_;
    int threads_;
    bool pairs_ = false;  // a word of a row holds two elements, not the two parts of one
    Words rows_;
    std::vector<Words> scratch_;  // of each thread
};

}  // namespace semivario
