// Every kernel once, on four threads, with nothing of Python around them: for ThreadSanitizer.
#include <cstdio>
#include <random>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace hpf {
namespace HPF_ISA {
extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
}  // namespace HPF_ISA
}  // namespace hpf

namespace {

using namespace hpf;

constexpr int threads = 4;
constexpr int64_t n = 1500, m = 1200, k = 30, pairs = 12000, length = 5;
std::mt19937 randomness(1);

template <class T>
T* drawn(int64_t size, double low, double high) {
  T* numbers = static_cast<T*>(take_memory(size, sizeof(T)));
  std::uniform_real_distribution<double> distribution(low, high);
  for (int64_t i = 0; i < size; ++i) numbers[i] = T(distribution(randomness));
  return numbers;
}

template <class T>
constexpr int64_t stride = (k * sizeof(T) + 63) / 64 * 64 / sizeof(T);

template <class T>
Matrix<T> matrix(int64_t rows) {
  T* numbers = drawn<T>(rows * stride<T>, 0.1, 1.0);
  for (int64_t u = 0; u < rows; ++u)
    for (int64_t j = k; j < stride<T>; ++j) numbers[u * stride<T> + j] = 0;
  return {numbers, rows, k, stride<T>};
}

template <class T>
Matrix<const T> to_read(const Matrix<T>& m) {
  return {m.data, m.rows, m.k, m.stride};
}

template <class T>
double everything(const Kernels<T>& kernels) {
  std::vector<int64_t> indptr{0}, indices;
  std::vector<T> data;
  for (int64_t u = 0; u < n; ++u) {
    for (int64_t i = 0; i < m; ++i)
      if (randomness() % 33 == 0) {
        indices.push_back(i);
        data.push_back(T(1 + randomness() % 5));
      }
    indptr.push_back(int64_t(indices.size()));
  }
  const Tiles<T> counts(n, m, indptr.data(), indices.data(), data.data(), threads, 100);
  const TilesView<T> tiles = counts.view();

  const Matrix<T> shape = matrix<T>(n), exp_log = matrix<T>(n), user_sums = matrix<T>(n), item_sums = matrix<T>(m);
  for (int64_t u = 0; u < n; u += 3)  // of every third user, products underflow
    for (int64_t j = 0; j < k; ++j) exp_log.data[u * stride<T> + j] *= T(sizeof(T) == 4 ? 1e-20 : 1e-155);
  const Rates<T> user_rates{drawn<double>(n, 1, 2), {}, drawn<double>(k, 1, 2)};
  const Rates<T> item_rates{drawn<double>(m, 1, 2), {}, drawn<double>(k, 1, 2)};
  double *log_scale = drawn<double>(n, 0, 1), *row_sums = drawn<double>(n, 0, 1), *column_sums = drawn<double>(k, 0, 1);
  const Factor<T> users{to_read(shape), user_rates, to_read(exp_log), log_scale};
  const Factor<T> items{to_read(matrix<T>(m)), item_rates, to_read(matrix<T>(m)), drawn<double>(m, 0, 1)};

  for (const bool exact : {false, true}) {
    kernels.allocate(tiles, users, items, user_sums, item_sums, exact, threads);
    kernels.allocate(tiles, users, items, user_sums, {}, exact, threads);
    kernels.allocate(tiles, users, items, {}, item_sums, exact, threads);
  }
  double sum = kernels.log_rate_sum(tiles, users.shape, items.shape, nullptr, nullptr, threads) +
               kernels.log_rate_sum(tiles, users.exp_log, items.exp_log, &users, &items, threads) +
               kernels.log_factorial_sum(tiles, threads) +
               kernels.gamma_entropy(users.shape, user_rates, 0.3, row_sums, threads) +
               kernels.distance(users.shape, users.exp_log, threads);
  kernels.mean(users.shape, user_rates, user_sums, threads);

  std::vector<int64_t> rows(pairs), columns(pairs), best(n * length);
  for (int64_t z = 0; z < pairs; ++z) rows[z] = randomness() % n, columns[z] = randomness() % m;
  kernels.predict_pairs(users.shape, items.shape, pairs, rows.data(), columns.data(), drawn<T>(pairs, 0, 1), threads);
  kernels.top_items(users.shape, items.shape, {indptr.data(), indices.data()}, length, best.data(),
                    drawn<T>(n * length, 0, 1), threads);
  kernels.gamma_update(shape, 0.3, user_rates, exp_log, log_scale, row_sums, column_sums, threads);
  return sum;
}

}  // namespace

int main() {
  std::printf("%g\n", everything(hpf::HPF_ISA::kernels_float) + everything(hpf::HPF_ISA::kernels_double));
}
