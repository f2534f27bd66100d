// A strip is a few neighbouring columns of a plane, of one channel or two, which a thread of the depthwise kernel reads
// or writes row by row.
#pragma once

#include <type_traits>

#include "cuda/device/common/elements.cuh"

namespace explainfix {
namespace device {

// An element from its bits, and back. The second argument only says of which type it is.
__device__ inline float value_of_bits(uint32_t bits, float) { return float_of_bits(bits); }
__device__ inline float value_of_bits(uint32_t bits, Bf16) { return float_of_bits(bits << 16); }
__device__ inline float value_of_bits(uint32_t bits, Fp16) { return float_of_fp16(uint16_t(bits)); }
__device__ inline uint32_t bits_of(float value) { return bits_of_float(value); }
__device__ inline uint32_t bits_of(Bf16 value) { return value.bits; }
__device__ inline uint32_t bits_of(Fp16 value) { return value.bits; }

// The elements of V neighbouring channels at a pixel, as one load or store moves them. In registers they stay one
// number: the compiler would take a struct apart as soon as it is loaded.
template <class T, int V>
struct Packed {
  static constexpr int bytes = sizeof(T) * V, shift = 8 * sizeof(T);
  using Memory = std::conditional_t<bytes == 2, uint16_t, std::conditional_t<bytes == 4, uint32_t, uint64_t>>;
  using Number = std::conditional_t<bytes == 8, uint64_t, uint32_t>;
  static_assert(sizeof(Memory) == bytes, "a pixel must have 2, 4 or 8 bytes");
  Number number;

  __device__ __forceinline__ static Packed load(const void* at) { return {*static_cast<const Memory*>(at)}; }
  __device__ __forceinline__ void store(void* at) const { *static_cast<Memory*>(at) = Memory(number); }

  __device__ __forceinline__ void unpack(float (&to)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = value_of_bits(uint32_t(number >> shift * v), T());
  }
  __device__ __forceinline__ static Packed pack(const float (&from)[V]) {
    Packed packed{0};
#pragma unroll
    for (int v = 0; v < V; ++v) packed.number |= Number(bits_of(T(from[v]))) << shift * v;
    return packed;
  }
};

// The rows of a plane that exist and are wanted: `count` of them from `first` on. A strip begins with the row number
// `next` counted from `first`; rows below 0 lie above and are not wanted.
struct RowRange {
  int first, count, next;
};

// Pixels that do not exist or are not wanted read as zero and are not written. T is const for a strip that is read.
template <class T, int V, int columns, bool channels_last>
class Strip {
  using Element = std::remove_const_t<T>;
  using Pixel = Packed<Element, V>;
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;

 public:
  // plane: its first pixel. column: the strip's first one, which may lie outside.
  __device__ __forceinline__ Strip(T* plane, int width, int channels, RowRange rows, int column)
      : next_(rows.next), rows_(rows.count), spacing_(channels_last ? unsigned(channels) * sizeof(T) : sizeof(T)) {
    pitch_ = int64_t(width) * spacing_;
    at_ = reinterpret_cast<Byte*>(plane) + (rows.first + rows.next) * pitch_ + column * int64_t(spacing_);
    paired_ = !channels_last && (width | column) % 2 == 0 && uintptr_t(plane) % (2 * sizeof(T)) == 0;
    inside_ = bits_below(width - column) & ~bits_below(-column);
  }

  // Are there wanted rows left?
  __device__ __forceinline__ bool goes_on() const { return next_ < rows_; }

  __device__ __forceinline__ void load_row(Pixel (&to)[columns]) {
    const uint32_t there = columns_there();
#pragma unroll
    for (int c = 0; c < columns; ++c) to[c] = there >> c & 1 ? Pixel::load(at_ + c * spacing_) : Pixel{0};
    next_row();
  }

  __device__ __forceinline__ void store_row(const float (&from)[columns][V]) {
    const uint32_t there = columns_there();
    if (paired_) {
#pragma unroll
      for (int c = 0; c < columns; c += 2) {
        const float pair[2] = {from[c][0], from[c + 1][0]};
        if (there >> c & 1) Packed<Element, 2>::pack(pair).store(at_ + c * spacing_);
      }
    } else {
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        if (there >> c & 1) Pixel::pack(from[c]).store(at_ + c * spacing_);
      }
    }
    next_row();
  }

 private:
  __device__ __forceinline__ static uint32_t bits_below(int count) {
    return count <= 0 ? 0 : (1u << (count < columns ? count : columns)) - 1;
  }

  __device__ __forceinline__ uint32_t columns_there() const { return unsigned(next_) < unsigned(rows_) ? inside_ : 0; }
  __device__ __forceinline__ void next_row() {
    at_ += pitch_;
    ++next_;
  }

  int next_, rows_;
  unsigned spacing_;  // bytes from a pixel to the next
  int64_t pitch_;     // bytes from a row to the next
  Byte* at_;          // the first column in row next_
  uint32_t inside_;   // a bit for each column: is it in the plane?
  bool paired_;       // two columns of a plane may be written at once, so that fewer sectors are written in parts
};

}  // namespace device
}  // namespace explainfix
