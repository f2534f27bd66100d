// Works out tiles, passes and scratch memory of the hadamard kernel (cpu/tile/hadamard_conv.h), and runs it.
#include "cpu/driver/hadamard.h"

#include "cpu/driver/driver.h"
#include "cpu/tile/hadamard_conv.h"

namespace explainfix {
namespace {

constexpr int64_t kZFloats = 1 << 16;  // that z is sized for: 256 KB, so that it stays in the second-level cache

std::vector<int16_t> places_of(const Tensor& t, const char* name, int64_t most) {
  const Tensor dense = dense_in(t);
  const int16_t* data = dense.const_data_ptr<int16_t>();
  std::vector<int16_t> places(data, data + t.numel());
  for (int16_t place : places) {
    EXPLAINFIX_CHECK(place >= 0 && place < most, name, " must be in [0, ", most, "), got ", place);
  }
  return places;
}

// The passes of a convolution, and what they point to.
struct Passes {
  std::vector<HadamardPass> passes;
  std::vector<HadamardRead> reads;
  std::vector<int32_t> writes, unread;
  std::vector<HadamardTerm> terms;
  std::vector<float> scaled;  // the second filters' taps

  // Begins a pass; add its channels, then end it.
  void begin() { passes.push_back({count(reads), 0, count(writes), 0, count(unread), 0}); }
  void end(int64_t rows) {
    std::vector<bool> read(rows);
    for (size_t i = passes.back().read_begin; i < reads.size(); ++i) {
      reads[i].adds = read[reads[i].row];
      read[reads[i].row] = true;
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (!read[r]) unread.push_back(int32_t(r));
    }
    passes.back().read_end = count(reads);
    passes.back().write_end = count(writes);
    passes.back().unread_end = count(unread);
  }

 private:
  template <class T>
  static int32_t count(const std::vector<T>& v) {
    return int32_t(v.size());
  }
};

std::vector<float> scaled(const std::vector<float>& taps, double scale) {
  std::vector<float> result;
  result.reserve(taps.size());
  for (float tap : taps) result.push_back(float(scale * tap));
  return result;
}

// Forward: a pass for each chunk of outputs, whose terms are transformed apart.
Passes forward_passes(const HadamardFilters& f) {
  Passes p;
  p.scaled = scaled(f.columns, f.scale);
  for (int64_t g = 0; g < f.groups; ++g) {
    for (int64_t j = 0; j < f.chunks; ++j) {
      p.begin();
      for (int64_t i = 0; i < f.per_group; ++i) {
        for (int64_t t = 0; t < f.terms; ++t) {
          const int64_t row = t * f.order + f.in_place[g * f.per_group + i];
          p.reads.push_back({int32_t(g * f.per_group + i), int32_t(row), false, f.row(t, j, g, i)});
        }
      }
      for (int64_t o = g * f.outputs / f.groups; o < (g + 1) * f.outputs / f.groups; ++o) {
        if (f.out_place[o] / f.order != j) continue;
        p.writes.push_back(int32_t(o));
        for (int64_t t = 0; t < f.terms; ++t) {
          p.terms.push_back({int32_t(t * f.order + f.out_place[o] % f.order), &p.scaled[(t * f.outputs + o) * f.kh]});
        }
      }
      p.end(f.terms * f.order);
    }
  }
  return p;
}

// The input gradient: one pass a group, since an input sums over all chunks and terms.
Passes gradient_passes(const HadamardFilters& f) {
  Passes p;
  p.scaled = scaled(f.rows, f.scale);
  for (int64_t g = 0; g < f.groups; ++g) {
    p.begin();
    for (int64_t o = g * f.outputs / f.groups; o < (g + 1) * f.outputs / f.groups; ++o) {
      for (int64_t t = 0; t < f.terms; ++t) {
        const int64_t row = t * f.chunks * f.order + f.out_place[o];
        p.reads.push_back({int32_t(o), int32_t(row), false, f.column(t, o)});
      }
    }
    for (int64_t i = 0; i < f.per_group; ++i) {
      p.writes.push_back(int32_t(g * f.per_group + i));
      for (int64_t t = 0; t < f.terms; ++t) {
        for (int64_t j = 0; j < f.chunks; ++j) {
          const int64_t row = (t * f.chunks + j) * f.order + f.in_place[g * f.per_group + i];
          p.terms.push_back({int32_t(row), p.scaled.data() + (f.row(t, j, g, i) - f.rows.data())});
        }
      }
    }
    p.end(f.terms * f.chunks * f.order);
  }
  return p;
}

// Cuts the bits of `stages` into steps of about equal size: butterflies of `most` bits fit the registers.
void choose_steps(HadamardConv& c, int64_t stages, int most) {
  const int bits = __builtin_popcountll(stages), steps = (bits + most - 1) / most;
  c.steps = steps;
  for (int s = 0; s < steps; ++s) {
    c.step[s] = 0;
    for (int k = bits * s / steps; k < bits * (s + 1) / steps; ++k) {
      const int64_t bit = stages & -stages;
      c.step[s] |= int(bit);
      stages ^= bit;
    }
  }
}

// Floats of a row of z, for a tile of y.
int64_t z_floats(const HadamardConv& c, int64_t rows, int64_t columns) {
  const HadamardAxis &v = c.vertical, &h = c.horizontal;
  const int64_t z_rows = c.transposed ? rows : (rows - 1) * v.stride + v.kernel;
  return z_rows * (c.transposed ? (columns + h.kernel) / h.stride + 1 : columns + (h.kernel - 1) / h.stride);
}

// The masks that flat tiles need.
std::vector<uint16_t> masks_of(HadamardConv& c, int lanes) {
  const int vectors = (c.tile_rows + c.vertical.kernel) * c.width / lanes + 2, kernel = c.horizontal.kernel;
  std::vector<uint16_t> masks(size_t(vectors) * kernel);
  for (int k = 0; k < kernel; ++k) {
    const int shift = c.transposed ? c.horizontal.padding - k : k - c.horizontal.padding;
    uint16_t* mask = &masks[size_t(k) * vectors];
    c.inside[k] = mask;
    for (int p = 0, column = 0; p < vectors * lanes; ++p) {
      mask[p / lanes] |= uint16_t(column + shift >= 0 && column + shift < c.width) << p % lanes;
      if (++column == c.width) column = 0;
    }
  }
  return masks;
}

// Cuts y into tiles as large as z may be, but enough of them for all threads.
void choose_tiles(HadamardConv& c) {
  const int64_t most = std::max<int64_t>(16, kZFloats / (int64_t(c.branches) * c.order));
  int64_t columns = c.out_width;
  while (columns > 512 || (columns > 64 && z_floats(c, 1, columns) > most)) columns = (columns + 1) / 2;
  const auto pieces = [](int64_t size, int64_t piece) { return (size + piece - 1) / piece; };
  c.tile_columns = int(columns);
  c.column_tiles = int(pieces(c.out_width, columns));
  int64_t rows = c.out_height, parts = 1;
  const int64_t tasks = int64_t(c.images) * c.groups * c.column_tiles, wanted = 2 * thread_count();
  const int64_t least = 2 * c.vertical.kernel;  // else the rows that neighbours compute, too, are too many
  while (rows > 1 &&
         (z_floats(c, rows, columns) > most || (rows > least && tasks * pieces(c.out_height, rows) < wanted))) {
    rows = pieces(c.out_height, ++parts);
  }
  c.tile_rows = int(rows);
  c.row_tiles = int(pieces(c.out_height, rows));
}

// Sizes scratch memory for the largest tile. Kernels read up to two vectors, and shifts by a filter, beyond an end.
void size_scratch(HadamardConv& c) {
  constexpr int64_t kBeyond = 48;
  const HadamardAxis &v = c.vertical, &h = c.horizontal;
  const int64_t z = z_floats(c, c.tile_rows, c.tile_columns);
  // An odd number of cache lines, so that rows of z do not all fall into the same set of a cache.
  c.row_floats = round_up(z + kBeyond);
  c.row_floats += c.row_floats / 16 % 2 ? 0 : 16;
  c.z_size = int64_t(c.branches) * c.order * c.row_floats;
  const int64_t columns = z / (c.transposed ? c.tile_rows : (c.tile_rows - 1) * v.stride + v.kernel);
  const int64_t x_rows =
      c.transposed ? (c.tile_rows + v.kernel) / v.stride + 1 : (c.tile_rows - 1) * v.stride + v.kernel;
  c.plane = round_up(x_rows * columns + kBeyond);
  c.lines_size = (c.x_joined ? kJoinedChannels : 1) * (c.transposed ? 1 : h.stride) * c.plane + kBeyond;
  c.segment = round_up(std::max<int64_t>(kSegmentFloats, columns) + kBeyond);
  c.out_size = (c.y_joined ? kJoinedChannels : 1) * h.stride * c.segment;
}

HadamardAxis axis_of(const HadamardFilters& f, const ConvParams& conv, int axis) {
  return {int(axis ? f.kw : f.kh), int(conv.stride[axis]), int(conv.padding[axis])};
}

}  // namespace

HadamardFilters::HadamardFilters(const HadamardBank& bank)
    : terms(bank.columns.size(0)),
      chunks(bank.rows.size(1)),
      groups(bank.rows.size(2)),
      outputs(bank.columns.size(1)),
      per_group(bank.rows.size(3)),
      kh(bank.columns.size(2)),
      kw(bank.rows.size(4)),
      order(bank.order),
      stages(bank.stages),
      scale(bank.scale),
      columns(floats_of(bank.columns)),
      rows(floats_of(bank.rows)),
      out_place(places_of(bank.outputs, "outputs", chunks * order)),
      in_place(places_of(bank.inputs, "inputs", order)) {}

void HadamardFilters::filter(int64_t output, int64_t input, double* to) const {
  const int64_t group = group_of(output), p = out_place[output] % order, q = in_place[group * per_group + input];
  const bool zero = (p ^ q) & (order - 1) & ~stages;
  const double sign = zero ? 0 : __builtin_popcountll(p & q & stages) % 2 ? -scale : scale;
  std::fill(to, to + kh * kw, 0.0);
  for (int64_t t = 0; t < terms; ++t) {
    const float *c = column(t, output), *r = row(t, out_place[output] / order, group, input);
    for (int64_t k = 0; k < kh * kw; ++k) to[k] += sign * c[k / kw] * r[k % kw];
  }
}

bool hadamard_fits(const Tensor& x, const HadamardFilters& f, const ConvParams& conv) {
  const auto within = [](int64_t value) { return value < 1 << 24; };  // sizes are counted in 32 bits
  bool fits = x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16;
  for (int a = 0; a < 2; ++a) {
    fits &= conv.stride[a] <= 2 && conv.dilation[a] == 1 && (a ? f.kw : f.kh) <= kMaxHadamardKernel;
    fits &= within(x.size(2 + a)) && within(conv.padding[a]);
  }
  return fits;
}

void run_hadamard(const Tensor& x, Tensor& y, const std::optional<Tensor>& bias, const HadamardFilters& f,
                  const ConvParams& conv, bool transposed, const Finish& finish) {
  if (y.numel() == 0) return;
  const Passes passes = transposed ? gradient_passes(f) : forward_passes(f);
  const std::vector<float> bias_values = bias ? floats_of(*bias) : std::vector<float>();
  HadamardConv c{};
  c.x = planes_of(x);
  c.y = planes_of(y);
  c.x_joined = c.x.c == 1 && c.x.w != 1;
  c.y_joined = c.y.c == 1 && c.y.w != 1;
  c.bias = bias ? bias_values.data() : nullptr;
  c.finish = finish;
  c.height = int(x.size(2));
  c.width = int(x.size(3));
  c.out_height = int(y.size(2));
  c.out_width = int(y.size(3));
  c.transposed = transposed;
  c.vertical = axis_of(f, conv, 0);
  c.horizontal = axis_of(f, conv, 1);
  c.images = int(x.size(0));
  c.groups = int(f.groups);
  c.passes = int(passes.passes.size() / f.groups);
  c.pass = passes.passes.data();
  c.reads = passes.reads.data();
  c.writes = passes.writes.data();
  c.term = passes.terms.data();
  c.unread = passes.unread.data();
  c.branches = int(transposed ? f.terms * f.chunks : f.terms);
  c.terms = c.branches;
  c.order = int(f.order);
  const TileKernels& k = kernels();
  choose_steps(c, f.stages, k.lanes == 16 ? 4 : 3);
  choose_tiles(c);
  c.flat = c.vertical.stride == 1 && c.horizontal.stride == 1 && c.width == c.out_width && c.column_tiles == 1;
  const std::vector<uint16_t> masks = c.flat ? masks_of(c, k.lanes) : std::vector<uint16_t>();
  size_scratch(c);
  const int64_t tasks = int64_t(c.images) * c.groups * c.row_tiles * c.column_tiles;
  const int64_t floats = round_up(c.z_size + c.lines_size + c.out_size + c.order * kBlockPixels);
  run_tasks(std::vector<HadamardConv>{c}, tasks, 1, floats, k.hadamard);
}

}  // namespace explainfix
