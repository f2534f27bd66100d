// The basis as the tile kernels take it: rows of the DCT-II where it is made of them, taps otherwise. Made by
// read_basis of cpu/driver/driver.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/tile/tiled_conv.h"

namespace explainfix {

// Finds each function of `basis` among the products of two DCT-II rows u and v, and names it: names[l] = u * K + v, or
// ~(u * K + v) if it is the negative of that. Returns false if one is neither. `table` gets the rows; flipping a basis
// negates its odd rows.
inline bool find_dct(const std::vector<double>& basis, int kernel, bool flipped, float* table,
                     std::vector<int>& names) {
  std::vector<double> rows(kernel * kernel);
  for (int u = 0; u < kernel; ++u) {
    for (int k = 0; k < kernel; ++k) {
      const double norm = std::sqrt((u ? 2.0 : 1.0) / kernel);
      rows[u * kernel + k] = norm * std::cos(M_PI * (k + 0.5) * u / kernel);
      table[u * kernel + k] = float(flipped && u % 2 ? -rows[u * kernel + k] : rows[u * kernel + k]);
    }
  }
  const int k2 = kernel * kernel;
  for (size_t l = 0; l < basis.size() / k2; ++l) {
    int name = 0;
    for (; name < k2; ++name) {
      bool same = true, negative = true;
      for (int t = 0; t < k2 && (same || negative); ++t) {
        const double product = rows[name / kernel * kernel + t / kernel] * rows[name % kernel * kernel + t % kernel];
        same &= std::abs(basis[l * k2 + t] - product) < 1e-9;
        negative &= std::abs(basis[l * k2 + t] + product) < 1e-9;
      }
      if (same || negative) {
        names.push_back(same ? name : ~name);
        break;
      }
    }
    if (name == k2) return false;
  }
  return true;
}

// Which bases of DCT functions a kernel takes as such: any, also negatives and the same one twice (kDct); each once at
// most, none negative (kDistinct); all or the first in raster order, where the number of a function is its frequencies
// (kRaster).
enum class Functions { kDct, kDistinct, kRaster };

inline bool are(Functions wanted, const std::vector<int>& names) {
  for (int l = 0; l < int(names.size()); ++l) {
    if (wanted == Functions::kRaster && names[l] != l) return false;
    const bool once = names[l] >= 0 && std::count(names.begin(), names.end(), names[l]) == 1;
    if (wanted == Functions::kDistinct && !once) return false;
  }
  return true;
}

// Fills in c's basis, and keeps the memory alive that it points to. `names` tells which DCT function each one is (as
// find_dct does); without the DCT, function l is called l.
struct Basis {
  std::vector<float> taps;
  std::vector<int> names;

  Basis(TiledConv& c, const std::vector<double>& basis, bool flipped, double scale, Functions wanted) {
    const int k2 = c.kernel * c.kernel;
    c.rank = int(basis.size()) / k2;
    c.scale = float(scale);
    c.separable = find_dct(basis, c.kernel, flipped, c.table, names) && are(wanted, names);
    if (c.separable) return;
    names.clear();
    for (int l = 0; l < c.rank; ++l) {
      names.push_back(l);
      for (int t = 0; t < k2; ++t) {
        taps.push_back(float(scale * basis[l * k2 + (flipped ? k2 - 1 - t : t)]));
      }
    }
    // A kernel reads K functions at a time: room for those after the last.
    taps.resize(size_t(c.rank + c.kernel) * k2, 0.0f);
    c.taps = taps.data();
  }
};

}  // namespace explainfix
