// What BatchNorm makes of a channel's statistics, one text for the CPU and the GPU: a few numbers for each channel.
#pragma once

#include <math.h>

#include <cstdint>

#include "shared/passes.h"

namespace explainfix {

// The rows of the factors [kFactors][channels] by which BatchNorm computes
// (x - mean) * invstd * weight + bias = alpha x + beta.
enum FactorRow { kMean, kInvstd, kAlpha, kBeta, kFactors };

// The arguments of a BatchNorm of a batch. Weight, bias and running statistics may be missing: null.
struct BatchNorm {
  int64_t channels;
  double count;  // of the pixels of a channel
  const void *weight, *bias;
  void *running_mean, *running_var;
  double share, eps;  // how far the running statistics move to those of the batch; what is added to the variance
  void* factors;
};

// Writes the factors of a channel, and moves its running statistics. A: the type of all these numbers.
template <class A>
EXPLAINFIX_BOTH void finish_batch_norm(const BatchNorm& n, int64_t channel, A mean, A var) {
  const A invstd = A(1) / sqrt(var + A(n.eps));
  const A alpha = n.weight ? static_cast<const A*>(n.weight)[channel] * invstd : invstd;
  A* factors = static_cast<A*>(n.factors) + channel;
  factors[kMean * n.channels] = mean;
  factors[kInvstd * n.channels] = invstd;
  factors[kAlpha * n.channels] = alpha;
  factors[kBeta * n.channels] = (n.bias ? static_cast<const A*>(n.bias)[channel] : A(0)) - mean * alpha;
  if (n.running_mean == nullptr) return;
  A *running_mean = static_cast<A*>(n.running_mean) + channel, *running_var = static_cast<A*>(n.running_var) + channel;
  const A unbiased = var * A(n.count / (n.count > 1 ? n.count - 1 : 1));
  *running_mean += A(n.share) * (mean - *running_mean);
  *running_var += A(n.share) * (unbiased - *running_var);
}

// The input's gradient is a grad + b x + c: b and c are the gradient through the batch's mean and variance.
template <class A>
struct BatchNormGrad {
  A a, b, c;
};

// sums: [2][channels], of grad and of grad * (x - mean) * invstd.
template <class A>
EXPLAINFIX_BOTH BatchNormGrad<A> batch_norm_grad(const A* factors, const A* sums, int64_t channels, int64_t channel,
                                                 A count) {
  const A alpha = factors[kAlpha * channels + channel];
  const A b = -alpha * factors[kInvstd * channels + channel] * sums[channels + channel] / count;
  return {alpha, b, -alpha * sums[channel] / count - b * factors[kMean * channels + channel]};
}

}  // namespace explainfix
