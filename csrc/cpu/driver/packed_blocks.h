// Reads the blocks of the sparse index family from what Python packed (shared/packed_layout.h), and checks every word
// that the kernels index by: whoever calls the op may bring any words, and a kernel that trusted them would read or
// write wherever they say. Called by cpu/driver/tiling.cpp and cpu/driver/stride2_grad.cpp.
#pragma once

#include <cstring>

#include "cpu/driver/blocks.h"
#include "cpu/driver/driver.h"

namespace explainfix {

// The words, and checks of them.
struct PackedWords {
  const int32_t* words;
  int64_t size;

  explicit PackedWords(const Tensor& packed) : words(packed.const_data_ptr<int32_t>()), size(packed.numel()) {
    EXPLAINFIX_CHECK(packed.is_cpu() && packed.dim() == 1 && packed.is_contiguous(),
                     "packed must be [words], contiguous, on the CPU, got ", packed.dim(), " dimensions");
  }

  static void check(bool ok, const char* what) {
    EXPLAINFIX_CHECK(ok, "packed must be what pack_index made for this bank and geometry, but ", what,
                     " do not fit them");
  }

  // `count` of T that lie `offset` words from the start.
  template <class T>
  const T* at(int64_t offset, int64_t count, const char* what) const {
    check(offset >= 0 && offset <= size && count >= 0 && count <= (size - offset) * 4 / int64_t(sizeof(T)), what);
    return reinterpret_cast<const T*>(words + offset);
  }

  const IndexHeader& header() const { return *at<IndexHeader>(0, 1, "the first words"); }

  void made_for(int64_t stride) const {
    const int made = header().stride;
    EXPLAINFIX_CHECK(made == stride, "packed must be made for stride ", stride, ", got one for ", made);
  }
};

// Checks that blocks have the channels [0, channels) one after the other, each one at least and `most` at most.
struct ChannelsInOrder {
  int32_t end = 0;

  void add(int32_t first, int32_t last, int32_t most) {
    PackedWords::check(first == end && last > first && last - first <= most, "the channels of a block");
    end = last;
  }
  void finish(int32_t channels) { PackedWords::check(end == channels, "the channels of a group"); }
};

// Counts the rows of quads, whose outputs must be in [first, last) or `none`, which stands for no output.
inline int64_t count_rows(const Quad* quad, int32_t quads, int32_t first, int32_t last, int32_t none) {
  typedef int32_t Outputs __attribute__((vector_size(4 * kIndexQuadOutputs)));
  Outputs wrong{};
  int64_t count = 0;
  for (int32_t i = 0; i < quads; ++i) {
    Outputs output;
    memcpy(&output, quad[i].output, sizeof(output));
    wrong |= (output < first) | ((output >= last) & (output != none));
    count += quad[i].added + quad[i].subtracted;
  }
  bool ok = true;
  for (int i = 0; i < kIndexQuadOutputs; ++i) ok &= !wrong[i];
  PackedWords::check(ok, "the outputs of a quad");
  return count;
}

// Reads a list, whose quads name rows below `rows` to such outputs.
inline QuadList read_list(const PackedWords& packed, const PackedQuadList& list, int32_t rows, int32_t first,
                          int32_t last, int32_t none) {
  const Quad* quad = packed.at<Quad>(list.quads_at, list.quads, "the places of quads");
  const int64_t count = kIndexQuadOutputs * count_rows(quad, list.quads, first, last, none);
  // Kernels load the numbers after the last ones too.
  const uint16_t* row = packed.at<uint16_t>(list.rows_at, count + kIndexQuadOutputs, "the places of rows");
  PackedWords::check(kernels().largest(row, count) < rows, "the rows of a quad");
  return {list.quads, quad, row};
}

// Checks what a block computes: functions that there are, into rows that the block has, from channels of its own.
inline void check_ops(const TiledConv& c, const IndexBlock& block, const Segment* segment, const TransformOp* op) {
  const int K = c.kernel, columns_end = 1 << K;
  for (int32_t i = 0; i < block.segments; ++i) {
    const Segment& s = segment[i];
    const bool square = s.u == kIndexSquare;
    PackedWords::check(square ? c.rank >= K * K : s.u >= 0 && int64_t(s.u) * K < c.rank, "the functions of a segment");
    PackedWords::check(
        square ? s.columns == 3 || s.columns == columns_end - 1 : s.columns > 0 && s.columns < columns_end,
        "the columns of a segment");
    const int bits = __builtin_popcount(uint32_t(s.columns)), rows = square ? bits * bits : bits;
    bool ok = true;
    for (int32_t k = s.begin; k < s.end; ++k) {
      ok &= op[k].channel >= block.channel_begin && op[k].channel < block.channel_end;
      ok &= op[k].prefetch >= -1 && op[k].prefetch < c.in_channels;
      ok &= op[k].row >= 1 && op[k].row <= block.rows - rows && op[k].columns == s.columns;
    }
    PackedWords::check(ok, "the channels, rows or columns of a segment");
  }
}

// A section says how large its largest block is: scratch memory is sized by that.
template <class Section, class B>
void read_sizes(const Section& section, int64_t blocks, int32_t groups, int32_t channels, B& b) {
  PackedWords::check(section.groups == groups && section.blocks >= 1 && section.blocks <= blocks, "the blocks");
  PackedWords::check(section.max_rows >= 0 && section.max_rows <= 1 << 16, "the rows of the largest block");
  PackedWords::check(section.max_channels >= 0 && section.max_channels <= channels,
                     "the channels of the largest block");
  PackedWords::check(section.nonzero >= 0, "the nonzero filters");
  b.max_rows = section.max_rows;
  b.max_channels = section.max_channels;
  b.work = double(section.nonzero) / groups;
}

inline void read_block(const PackedWords& packed, const TiledConv& c, const IndexBlock& block, Blocks& b) {
  PackedWords::check(block.rows >= 1 && block.rows <= b.max_rows, "the rows of a block");
  const Segment* segment = packed.at<Segment>(block.segments_at, block.segments, "the segments of a block");
  int32_t ops = 0;
  for (int32_t i = 0; i < block.segments; ++i) {
    PackedWords::check(segment[i].begin >= 0, "the ops of a segment");
    ops = std::max(ops, segment[i].end);
  }
  const TransformOp* op = packed.at<TransformOp>(block.ops_at, ops, "the ops of a block");
  check_ops(c, block, segment, op);
  b.blocks.push_back({block.channel_begin, block.channel_end, block.rows, block.segments, segment, op,
                      b.lists.data() + b.lists.size()});
  const PackedQuadList* list = packed.at<PackedQuadList>(block.lists_at, c.chunks, "the lists of a block");
  for (int i = 0; i < c.chunks; ++i) {
    const int first = i * kIndexChunkOutputs, last = std::min(first + kIndexChunkOutputs, c.out_channels);
    b.lists.push_back(read_list(packed, list[i], block.rows, first, last, c.out_channels));
  }
}

// Fills in c's basis as read_basis does, by the names that the words have for its functions.
inline Basis read_index_basis(TiledConv& c, const Correlation& conv, const PackedWords& packed) {
  const bool dct = packed.header().dct;
  Basis basis = read_basis(c, conv, dct ? Functions::kDct : Functions::kRaster);
  PackedWords::check(c.separable || !dct, "the functions");
  if (dct) c.rank = c.kernel * c.kernel;  // blocks may name any
  return basis;
}

// c: sizes and basis of the convolution whose blocks these are; for the input gradient, channels are exchanged in it.
inline Blocks read_sparse_index_blocks(const PackedWords& packed, const TiledConv& c, bool input_grad) {
  if (input_grad) packed.made_for(c.stride);
  Blocks b;
  const int64_t at = input_grad ? packed.header().input_grad : packed.header().forward;
  const IndexSection& section = *packed.at<IndexSection>(at, 1, "the first words");
  read_sizes(section, int64_t(c.groups) * c.in_channels, c.groups, c.in_channels, b);
  PackedWords::check(section.chunks == c.chunks, "the chunks of outputs");
  const int32_t* begin = packed.at<int32_t>(at + kIndexSectionWords, int64_t(c.groups) + 1, "the groups");
  b.begin.assign(begin, begin + c.groups + 1);
  PackedWords::check(b.begin.front() == 0 && b.begin.back() == section.blocks, "the blocks of the groups");
  const int64_t blocks_at = at + kIndexSectionWords + c.groups + 1;
  const IndexBlock* block = packed.at<IndexBlock>(blocks_at, section.blocks, "the blocks");
  b.lists.reserve(size_t(section.blocks) * c.chunks);  // blocks point into it: it must not move
  for (int g = 0; g < c.groups; ++g) {
    PackedWords::check(b.begin[g + 1] <= section.blocks, "the blocks of a group");
    ChannelsInOrder channels;
    for (int32_t i = b.begin[g]; i < b.begin[g + 1]; ++i) {
      channels.add(block[i].channel_begin, block[i].channel_end, b.max_channels);
      read_block(packed, c, block[i], b);
    }
    channels.finish(c.in_channels);
  }
  return b;
}

inline void read_stride2_block(const PackedWords& packed, const TiledConv& c, const PackedStride2Block& block,
                               Stride2Blocks& b) {
  const int64_t count = int64_t(block.channel_end - block.channel_begin) * b.functions;
  const int32_t* row = packed.at<int32_t>(block.rows_at, count, "the rows of a block");
  bool ok = true;
  for (int64_t i = 0; i < count; ++i) ok &= row[i] >= 0 && row[i] <= b.max_rows;
  PackedWords::check(ok, "the rows of a block");
  b.blocks.push_back({block.channel_begin, block.channel_end, row, b.lists.data() + b.lists.size()});
  const PackedQuadList* list = packed.at<PackedQuadList>(block.lists_at, b.out_blocks, "the lists of a block");
  for (int i = 0; i < b.out_blocks; ++i) {  // z has row 0 and those of all outputs, g a row after the last sum's
    b.lists.push_back(read_list(packed, list[i], c.in_channels + 1, 0, b.max_rows, b.max_rows));
  }
}

inline Stride2Blocks read_sparse_index_stride2_blocks(const PackedWords& packed, const Stride2Grad& t) {
  packed.made_for(2);
  Stride2Blocks b;
  const TiledConv& c = t.grid;  // what it reads are the outputs' gradients
  const int channels = t.parities[0].out_channels;
  const int64_t at = packed.header().input_grad;
  const Stride2Section& section = *packed.at<Stride2Section>(at, 1, "the first words");
  read_sizes(section, channels, c.groups, channels, b);
  b.out_blocks = (c.in_channels + kStride2Outputs - 1) / kStride2Outputs;
  PackedWords::check(section.out_blocks == b.out_blocks, "the blocks of outputs");
  PackedWords::check(section.functions >= std::max(c.rank, c.kernel * c.kernel), "the functions");
  b.per_group = section.blocks;
  b.functions = section.functions;
  b.group_blocks = true;
  const int64_t blocks = int64_t(c.groups) * b.per_group;
  const auto* block = packed.at<PackedStride2Block>(at + kStride2SectionWords, blocks, "the blocks");
  b.lists.reserve(size_t(blocks) * b.out_blocks);
  for (int g = 0; g < c.groups; ++g) {
    ChannelsInOrder in_order;
    for (int i = 0; i < b.per_group; ++i, ++block) {
      in_order.add(block->channel_begin, block->channel_end, b.max_channels);
      read_stride2_block(packed, c, *block, b);
    }
    in_order.finish(channels);
  }
  return b;
}

}  // namespace explainfix
