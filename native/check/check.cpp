// Every kernel against a plain loop in double precision, on every instruction set of this processor, or on
// those that the arguments name, which it then must have.
// Built with sanitizers by `make check-native`, for another processor by `make check-neon`; runs without
// Python and JAX.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../kernels.h"
#include "../thread_pool.h"
#include "check_block.h"
#include "check_choice.h"
#include "check_mailbox.h"

namespace {

using bluejay::kernels;
typedef std::vector<float> Floats;

int num_failures = 0;

// Buffers are exactly as long as a kernel may touch: the address sanitizer sees the rest.
Floats normal(int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw;
  Floats values(static_cast<size_t>(count));
  for (float& x : values) x = draw(engine);
  return values;
}

void expect(const char* what, double error, double bound) {
  if (error <= bound) return;  // NaN fails
  std::printf("%s, %s: error %.2e, allowed %.2e\n", kernels().name, what, error, bound);
  ++num_failures;
}

double worst(const Floats& found, const std::vector<double>& expected) {
  double most = 0.0, scale = 1e-6;
  for (double x : expected) scale = std::max(scale, std::fabs(x));
  for (size_t i = 0; i < found.size(); ++i)
    most = std::max(most, std::isfinite(found[i]) ? std::fabs(found[i] - expected[i]) : INFINITY);
  return most / scale;
}

void check_matmul(int64_t rows, int64_t columns, int64_t depth, bool left_turned,
                  bool right_turned) {
  const Floats a = normal(rows * depth, 1), b = normal(columns * depth, 2);
  const bluejay::Operand left = left_turned ? bluejay::Operand{a.data(), 1, rows}
                                            : bluejay::Operand{a.data(), depth, 1};
  const bluejay::Operand right = right_turned ? bluejay::Operand{b.data(), 1, columns}
                                              : bluejay::Operand{b.data(), depth, 1};
  std::vector<double> expected(static_cast<size_t>(rows * columns));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      double total = 0.0;
      for (int64_t k = 0; k < depth; ++k)
        total += double(left.data[r * left.row_stride + k * left.k_stride]) *
                 right.data[c * right.row_stride + k * right.k_stride];
      expected[static_cast<size_t>(r * columns + c)] = total;
    }
  Floats out(expected.size(), NAN);
  kernels().matmul_float32(out.data(), left, right, rows, columns, depth);
  expect("matmul, float32", worst(out, expected), 2e-6);
  if (kernels().matmul_bfloat16 == nullptr) return;
  std::fill(out.begin(), out.end(), NAN);
  kernels().matmul_bfloat16(out.data(), left, right, rows, columns, depth);
  expect("matmul, bfloat16", worst(out, expected), 2e-2);
}

void check_layer_norm(int64_t rows, int64_t width) {
  const Floats x = normal(rows * width, 3), scale = normal(width, 4), bias = normal(width, 5);
  std::vector<double> expected(x.size());
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0.0, square = 0.0;
    for (int64_t i = 0; i < width; ++i) mean += x[r * width + i] / double(width);
    for (int64_t i = 0; i < width; ++i) square += std::pow(x[r * width + i] - mean, 2);
    const double rstd = 1.0 / std::sqrt(square / double(width) + 1e-5);
    for (int64_t i = 0; i < width; ++i)
      expected[r * width + i] = (x[r * width + i] - mean) * rstd * scale[i] + bias[i];
  }
  Floats y(x.size(), NAN), stats(2 * rows, NAN);
  kernels().layer_norm(y.data(), stats.data(), x.data(), scale.data(), bias.data(), rows, width,
                       1e-5f);
  expect("layer_norm", worst(y, expected), 2e-5);
  Floats dx(x.size(), NAN), dscale(width, NAN), dbias(width, NAN);
  kernels().layer_norm_backward(dx.data(), dscale.data(), dbias.data(), x.data(), x.data(),
                                stats.data(), scale.data(), rows, width);
  std::vector<double> sums(static_cast<size_t>(width), 0.0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) sums[i] += x[r * width + i];
  expect("layer_norm, gradient of the bias", worst(dbias, sums), 2e-5);
}

void check_cross_entropy(int64_t rows, int64_t width) {
  const Floats logits = normal(rows * width, 6), bias = normal(width, 7);
  std::vector<int32_t> targets(rows);
  std::vector<double> expected(rows), slopes(logits.size());
  const Floats upstream(rows, 1.0f), nothing(rows, 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    targets[r] = static_cast<int32_t>((r * 7) % width);
    double total = 0.0;
    for (int64_t i = 0; i < width; ++i) total += std::exp(double(logits[r * width + i]) + bias[i]);
    for (int64_t i = 0; i < width; ++i)
      slopes[r * width + i] = std::exp(double(logits[r * width + i]) + bias[i]) / total;
    slopes[r * width + targets[r]] -= 1.0;
    expected[r] = std::log(total) - logits[r * width + targets[r]] - bias[targets[r]];
  }
  Floats loss(rows, NAN), log_sum(rows, NAN), stats(2 * rows, NAN);
  kernels().cross_entropy(loss.data(), log_sum.data(), stats.data(), logits.data(), bias.data(),
                          targets.data(), rows, width);
  expect("cross_entropy", worst(loss, expected), 4e-6);
  Floats dlogits(logits.size(), NAN), dbias(width, NAN);
  kernels().cross_entropy_backward(dlogits.data(), dbias.data(), upstream.data(), nothing.data(),
                                   logits.data(), bias.data(), targets.data(), stats.data(), rows,
                                   width);
  expect("cross_entropy, gradient", worst(dlogits, slopes), 4e-6);
}

struct Middle {
  bluejay::BlockShape s;
  Floats in, bias, cos, sin;

  explicit Middle(bluejay::BlockShape shape) : s(shape) {
    in = normal(s.batch * s.length * s.in_stride(), 8);
    bias = normal(s.wide, 9);
    for (int64_t i = 0; i < s.length * s.pairs; ++i) {
      cos.push_back(std::cos(0.1f * static_cast<float>(i)));
      sin.push_back(std::sin(0.1f * static_cast<float>(i)));
    }
  }

  bluejay::MiddleInputs inputs() const { return {in.data(), bias.data(), cos.data(), sin.data()}; }

  // Value i of the turned query (0), the turned key (1) or the value (2).
  double part(int which, int64_t row, int64_t head, int64_t i) const {
    const float* p = in.data() + row * s.in_stride() + which * s.embed() + head * s.width;
    if (which == 2 || i >= 2 * s.pairs) return p[i];
    const int64_t at = row % s.length * s.pairs + i / 2;
    const double a = p[i / 2 * 2], b = p[i / 2 * 2 + 1];
    return i % 2 == 0 ? a * cos[at] - b * sin[at] : b * cos[at] + a * sin[at];
  }

  std::vector<double> expected() const {
    std::vector<double> out(static_cast<size_t>(s.batch * s.length * s.out_stride()));
    for (int64_t row = 0; row < s.batch * s.length; ++row) {
      double* to = out.data() + row * s.out_stride();
      for (int64_t head = 0; head < s.heads; ++head) attend(to + head * s.width, row, head);
      for (int64_t i = 0; i < s.wide; ++i) {
        const double x = double(in[row * s.in_stride() + 3 * s.embed() + i]) + bias[i];
        const double inner = 0.7978845608028654 * (x + 0.044715 * x * x * x);
        to[s.embed() + i] = 0.5 * x * (1.0 + std::tanh(inner));
      }
    }
    return out;
  }

  void attend(double* to, int64_t row, int64_t head) const {
    const int64_t first = row / s.length * s.length;
    std::vector<double> weights;
    double total = 0.0;
    for (int64_t key = first; key <= row; ++key) {
      double score = 0.0;
      for (int64_t i = 0; i < s.width; ++i)
        score += part(0, row, head, i) * part(1, key, head, i) / std::sqrt(double(s.width));
      weights.push_back(std::exp(score));
      total += weights.back();
    }
    for (int64_t i = 0; i < s.width; ++i) {
      to[i] = 0.0;
      for (int64_t key = first; key <= row; ++key)
        to[i] += weights[static_cast<size_t>(key - first)] / total * part(2, key, head, i);
    }
  }
};

void check_middle(bluejay::BlockShape shape) {
  const Middle m(shape);
  const auto expected = m.expected();
  Floats out(expected.size(), NAN), log_sum(shape.batch * shape.heads * shape.length, NAN);
  kernels().block_middle(out.data(), log_sum.data(), m.inputs(), shape);
  expect("block_middle", worst(out, expected), 5e-6);
  // The slope of sum(out^2) / 2 along a random direction, against a central difference.
  Floats din(m.in.size(), NAN), dbias(shape.wide, NAN);
  kernels().block_middle_backward(din.data(), dbias.data(), out.data(), out.data(),
                                  log_sum.data(), m.inputs(), shape);
  const Floats direction = normal(static_cast<int64_t>(m.in.size()), 10);
  double slope = 0.0, size = 0.0, step = 1e-3, halves[2];
  for (size_t i = 0; i < din.size(); ++i) {
    slope += double(din[i]) * direction[i];
    size += std::fabs(double(din[i]) * direction[i]);
  }
  for (int side = 0; side < 2; ++side) {
    Middle moved(shape);
    for (size_t i = 0; i < din.size(); ++i)
      moved.in[i] += static_cast<float>((side == 0 ? step : -step) * direction[i]);
    halves[side] = 0.0;
    for (double x : moved.expected()) halves[side] += 0.5 * x * x;
  }
  expect("block_middle, gradient", std::fabs((halves[0] - halves[1]) / (2 * step) - slope) / size,
         1e-4);
}

// Codes lie as quantized.h says; the rows are rounded here as the kernel rounds them.
void check_quantized(int64_t count, int64_t outputs, int64_t blocks, int bits, bool has_offsets) {
  using bluejay::kBlock;
  using bluejay::kGroup;
  const int64_t groups = (outputs + kGroup - 1) / kGroup, inputs = blocks * kBlock;
  const int64_t bytes = kBlock * kGroup * bits / 8;
  std::mt19937 engine(11);
  std::vector<uint8_t> codes(groups * blocks * bytes);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(engine());
  std::vector<uint16_t> scales(groups * blocks * kGroup), offsets(scales.size());
  for (uint16_t& scale : scales) scale = static_cast<uint16_t>(0x2000 + engine() % 0x400);
  for (uint16_t& offset : offsets) offset = static_cast<uint16_t>(0xb000 + engine() % 0x400);
  const Floats x = normal(count * inputs, 12);
  const int zero = has_offsets ? 0 : 1 << (bits - 1);
  std::vector<double> expected(count * outputs, 0.0);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t n = 0; n < outputs; ++n)
      for (int64_t b = 0; b < blocks; ++b) {
        const float* from = x.data() + r * inputs + b * kBlock;
        const int64_t place = n / kGroup * blocks + b, row = n % kGroup;
        const float scale = bluejay::half_to_float(scales[place * kGroup + row]);
        const float offset = has_offsets ? bluejay::half_to_float(offsets[place * kGroup + row]) : 0;
        float most = 0.0f;
        for (int i = 0; i < kBlock; ++i) most = std::max(most, std::fabs(from[i]));
        for (int i = 0; i < kBlock; ++i) {
          const int slice = i / 4 % (bits == 8 ? 8 : 4);
          int code = codes[place * bytes + slice * 64 + row * 4 + i % 4];
          if (bits == 4) code = i < 16 ? code & 15 : code >> 4;
          const double rounded = std::nearbyint(from[i] * (127.0f / most)) * (most / 127.0f);
          expected[r * outputs + n] += rounded * (double(scale) * (code - zero) + offset);
        }
      }
  Floats out(expected.size(), NAN);
  kernels().multiply_weights(out.data(), x.data(), count,
                             {bits == 8 ? bluejay::WeightKind::kInt8 : bluejay::WeightKind::kInt4,
                              codes.data(), scales.data(), has_offsets ? offsets.data() : nullptr,
                              outputs, inputs});
  expect(bits == 8 ? "quantized, 8 bits" : "quantized, 4 bits", worst(out, expected), 1e-5);
}

void check_block() {
  using bluejay::CacheKind;
  using bluejay::WeightKind;
  for (bool is_sequential : {false, true})
    for (CacheKind cache : {CacheKind::kFloat32, CacheKind::kFloat16, CacheKind::kInt8})
      for (WeightKind kind : {WeightKind::kFloat32, WeightKind::kInt8, WeightKind::kInt4}) {
        bluejay::check::BlockCase block(is_sequential, kind, cache);
        // Codes of a cache or of activations may fall to different sides of a tie.
        const bool is_exact = cache == CacheKind::kFloat32 && kind == WeightKind::kFloat32;
        expect("decoder_block", block.difference(), is_exact ? 2e-5 : 2e-2);
      }
}

void check_choice() {
  for (int64_t width : {1, 2, 17, 331, 5003})
    for (float spread : {0.01f, 3.0f, 40.0f}) {
      const bluejay::check::ChoiceCase rows(20, width, spread, static_cast<unsigned>(width));
      expect("choose", rows.wrong_rows(), 0.0);
    }
}

void check_all() {
  check_block();
  check_choice();
  for (int64_t count : {1, 2, 3, 4, 7, 8, 19})
    for (int64_t outputs : {1, 16, 37}) {
      check_quantized(count, outputs, 3, 8, false);
      check_quantized(count, outputs, 1, 4, false);
      check_quantized(count, outputs, 5, 4, true);
    }
  for (int64_t size : {1, 2, 5, 13, 14, 15, 31, 32, 33, 47, 65}) {
    check_matmul(size, 2 * size + 1, 3 * size, false, false);
    check_matmul(2 * size, size, size + 1, true, false);
    check_matmul(size, size + 7, 2 * size + 1, false, true);
    check_matmul(size + 3, size, 5, true, true);
    check_layer_norm(size, size + 2);
    check_layer_norm(2 * size, 3 * size);
    check_cross_entropy(size, 2 * size);
    check_cross_entropy(2 * size + 1, size);
  }
  check_matmul(70, 40, 1100, false, true);
  check_middle({1, 1, 1, 4, 2, 5});
  check_middle({2, 7, 3, 8, 2, 30});
  check_middle({3, 64, 2, 32, 8, 33});
  check_middle({2, 65, 1, 40, 20, 16});
  check_middle({1, 150, 2, 17, 4, 3});
}

// A child has none of its parent's threads, and must not wait for them.
void check_fork() {
#if !defined(__SANITIZE_THREAD__)  // which allows no threads in the child of a process that has some
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    num_failures = bluejay::num_threads() == 5 ? 0 : 1;
    check_matmul(200, 200, 200, false, true);
    std::fflush(stdout);
    _exit(num_failures == 0 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  expect("products in the child of a fork", status == 0 ? 0.0 : 1.0, 0.0);
#endif
}

}  // namespace

int main(int count, char** arguments) {
  std::printf("this processor gets: %s\n", kernels().name);
  std::vector<const char*> names(arguments + 1, arguments + count);
  const bool are_required = !names.empty();
  if (!are_required) names = {"portable", "avx2", "avx512", "avx512_bf16", "neon"};
  for (const char* name : names) {
    if (!bluejay::force_kernels(name)) {
      std::printf("%s: not on this processor, unverified\n", name);
      num_failures += are_required;
      continue;
    }
    for (int threads : {1, 2, 5}) {
      bluejay::set_num_threads(threads);
      check_all();
    }
    if (!are_required) check_fork();  // an emulator cannot fork a process that has threads
    std::printf("%s: checked\n", name);
  }
  bluejay::set_num_threads(1);
  if (const int wrong = bluejay::check::wrong_steps(300, 16, 50); wrong > 0) {
    std::printf("%d steps of calls were not read as they were posted\n", wrong);
    num_failures += wrong;
  }
  std::printf(num_failures == 0 ? "all kernels agree\n" : "%d failures\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}
