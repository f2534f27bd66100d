// The layout of the op's `packed` argument, in which Python lays a bank out as a kernel reads it. Every number that
// both sides must agree on stands here and in Python's packers under a similar name;
// tests/ops/plans/test_packed_layout.py compares them. Offsets inside of `packed` are in int32 words from its start
// unless something else is said.
//
// z[i, f] below is input channel i filtered by basis function f, at the pixels of a tile; it is stored as one row.
#pragma once

#include <cstdint>

namespace explainfix {

// ---------------------------------------------------------------------------------------------------------------------
// Sparse index plan on the CPU. Written by `pack_index`, read by cpu/driver/packed_blocks.h.

constexpr int kIndexHeaderWords = 3;     // offsets of the forward and the input gradient's section; the stride
constexpr int kIndexSectionWords = 6;    // IndexSection
constexpr int kIndexBlockWords = 7;      // IndexBlock
constexpr int kIndexSegmentWords = 4;    // Segment
constexpr int kIndexOpWords = 4;         // TransformOp
constexpr int kIndexQuadListWords = 3;   // PackedQuadList
constexpr int kIndexQuadWords = 5;       // Quad
constexpr int kIndexQuadOutputs = 4;     // outputs that are accumulated together; a task reads their rows by one load
constexpr int kIndexChunkOutputs = 64;   // outputs whose lists are sorted by length together; a task takes whole chunks
constexpr int kStride2SectionWords = 7;  // Stride2Section
constexpr int kStride2BlockWords = 4;    // PackedStride2Block
constexpr int kStride2Outputs = 128;     // outputs of a block; with AVX-512 their gradients in a sub-tile take 56 KB
// In place of a u, which may be K or more where there are more than K x K functions: a square of functions (Segment).
constexpr int kIndexSquare = 2147483647;

// The words at the start.
struct IndexHeader {
  int32_t forward, input_grad;  // offsets of the two sections
  int16_t stride;               // that the input gradient's section was made for: 2 has a section of its own kind
  int16_t dct;  // 1: functions go by their number u * K + v in the DCT; 0 (as of version 0.1): by their own number
};

// A forward section, or the gradient's with stride 1, where inputs and outputs are exchanged. After it: the index of
// the first block of each group, how many blocks there are, and the blocks.
struct IndexSection {
  int32_t groups, blocks, chunks;
  int32_t max_rows, max_channels;  // of the largest block
  int32_t nonzero;                 // filters that are not zero
};

// Input channels whose rows of z fit the cache together.
struct IndexBlock {
  int32_t channel_begin, channel_end;
  int32_t rows;  // of z; row 0 is zero
  int32_t segments;
  int32_t segments_at, ops_at, lists_at;  // offsets of Segment[], TransformOp[] and PackedQuadList[chunks]
};

// Ops of one kind that follow each other, so that the processor predicts the branch on the kind.
struct Segment {
  int32_t u;           // of the functions (u, v), which are called u * K + v; or kIndexSquare
  int32_t columns;     // as the ops have it; of a square the bits of the lowest two or of all K
  int32_t begin, end;  // ops [begin, end)
};

// "Filter `channel` by the functions (u, v), u the segment's, with bit v set in `columns`; write the results to rows of
// z from `row` on." In a square bit u is to be set, too.
struct TransformOp {
  int32_t channel, row, columns;
  int32_t prefetch;  // a channel that a later op reads first, or -1
};

// Where the lists of one chunk of outputs lie. A row of padding or more follows a block's last: kernels load one ahead.
struct PackedQuadList {
  int32_t quads;              // how many
  int32_t quads_at, rows_at;  // offsets of Quad[] and of their rows of z, uint16 [row][4 outputs], quad after quad
};

// Four outputs that are accumulated together. Their rows to add come first, then those to subtract: filters that are
// the negative of a function. Shorter lists are padded with row 0; the number of outputs in place of an output says
// that there is no such output, and its sum is thrown away.
struct Quad {
  uint16_t added, subtracted;  // rows of z, of each of the four
  int32_t output[kIndexQuadOutputs];
};

// The input gradient's section for stride 2. It names, for each function of each input channel, the outputs whose
// filter is that function: their gradients are summed before they are filtered. The blocks follow.
struct Stride2Section {
  int32_t groups, blocks;  // blocks of input channels of a group
  int32_t out_blocks;      // of kStride2Outputs outputs
  int32_t functions;       // words of a channel in the table of rows
  int32_t max_rows, max_channels;
  int32_t nonzero;
};

struct PackedStride2Block {
  int32_t channel_begin, channel_end;
  int32_t rows_at;   // offset of int32 [channel][function]: which sum it has, counted from 1; 0 if no filter uses it
  int32_t lists_at;  // offset of PackedQuadList[out_blocks]
};

static_assert(sizeof(IndexHeader) == 4 * kIndexHeaderWords && sizeof(IndexSection) == 4 * kIndexSectionWords);
static_assert(sizeof(IndexBlock) == 4 * kIndexBlockWords && sizeof(Segment) == 4 * kIndexSegmentWords);
static_assert(sizeof(TransformOp) == 4 * kIndexOpWords && sizeof(PackedQuadList) == 4 * kIndexQuadListWords);
static_assert(sizeof(Quad) == 4 * kIndexQuadWords && sizeof(Stride2Section) == 4 * kStride2SectionWords);
static_assert(sizeof(PackedStride2Block) == 4 * kStride2BlockWords);

// ---------------------------------------------------------------------------------------------------------------------
// Depthwise plan on CUDA. Written by `pack_depthwise`, read by cuda/launch/depthwise.cu.

constexpr int kDepthwiseSeparableFrom = 5;  // K from which on filters that are a column times a row are packed as such

}  // namespace explainfix
