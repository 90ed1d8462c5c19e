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
constexpr int64_t n = 1500, m = 1200, factors = 30, l = 48, pairs = 12000, length = 5;
std::mt19937 randomness(1);

template <class T>
T* drawn(int64_t size, double low, double high) {
  T* numbers = static_cast<T*>(take_memory(size, sizeof(T)));
  std::uniform_real_distribution<double> distribution(low, high);
  for (int64_t i = 0; i < size; ++i) numbers[i] = T(distribution(randomness));
  return numbers;
}

template <class T>
constexpr int64_t stride_of = (factors * sizeof(T) + 63) / 64 * 64 / sizeof(T);

template <class T>
Matrix<T> matrix(int64_t rows, int64_t k = factors, int64_t stride = stride_of<T>) {
  T* numbers = drawn<T>(rows * stride, 0.1, 1.0);
  for (int64_t u = 0; u < rows; ++u)
    for (int64_t j = k; j < stride; ++j) numbers[u * stride + j] = 0;
  return {numbers, rows, k, stride};
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
    for (int64_t j = 0; j < factors; ++j) exp_log.data[u * stride_of<T> + j] *= T(sizeof(T) == 4 ? 1e-20 : 1e-155);
  const Rates<T> user_rates{drawn<double>(n, 1, 2), {}, drawn<double>(factors, 1, 2)};
  const Rates<T> item_rates{drawn<double>(m, 1, 2), {}, drawn<double>(factors, 1, 2)};
  double *log_scale = drawn<double>(n, 0, 1), *row_sums = drawn<double>(n, 0, 1),
         *column_sums = drawn<double>(factors, 0, 1);
  const Factor<T> users{to_read(shape), user_rates, to_read(exp_log), log_scale, 1.0};
  const Factor<T> items{to_read(matrix<T>(m)), item_rates, to_read(matrix<T>(m)), drawn<double>(m, 0, 1), 1.0};

  for (const bool exact : {false, true}) {
    kernels.allocate(tiles, users, items, user_sums, item_sums, exact, threads);
    kernels.allocate(tiles, users, items, user_sums, {}, exact, threads);
    kernels.allocate(tiles, users, items, {}, item_sums, exact, threads);
  }
  kernels.log_count_products(tiles, items.shape, log_scale, true, user_sums, threads);
  kernels.log_count_products(tiles, users.shape, items.log_scale, false, item_sums, threads);
  double sum = kernels.log_rate_sum(tiles, users.shape, items.shape, nullptr, nullptr, threads) +
               kernels.log_rate_sum(tiles, users.exp_log, items.exp_log, &users, &items, threads) +
               kernels.log_factorial_sum(tiles, threads) +
               kernels.gamma_entropy(users.shape, user_rates, 0.3, row_sums, threads) +
               kernels.distance(users.shape, users.exp_log, threads);

  std::vector<int64_t> starts{0};  // of the users of each item
  std::vector<int32_t> indices_in_32(indices.begin(), indices.end()), users_of;
  std::vector<T> counts_of;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t u = 0; u < n; ++u)
      for (int64_t z = indptr[u]; z < indptr[u + 1]; ++z)
        if (indices[z] == i) users_of.push_back(int32_t(u)), counts_of.push_back(data[z]);
    starts.push_back(int64_t(users_of.size()));
  }
  std::vector<int32_t> sources, targets;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < l; ++j) sources.push_back(int32_t(j + (j >= i))), targets.push_back(int32_t(i * j % m));
  std::vector<int64_t> starts_of_targets;
  for (int64_t i = 0; i <= m; ++i) starts_of_targets.push_back(i * l);
  const std::vector<int64_t> users_in_64(users_of.begin(), users_of.end());
  const Tiles<T> by_item(m, n, starts.data(), users_in_64.data(), counts_of.data(), threads, 100);
  const TilesView<T> item_tiles = by_item.view();
  const Had had(item_tiles, indptr.data(), indices.data(), sources.data(), l, threads);
  const Matrix<T> weight_sums = matrix<T>(m, l, l);
  const Rates<T> weight_rates{drawn<double>(m, 1, 2), {}, drawn<double>(l, 1, 2)};
  const Factor<T> weights{to_read(matrix<T>(m, l, l)), weight_rates, to_read(matrix<T>(m, l, l)),
                          drawn<double>(m, -60, 1), 1.0};
  for (const bool exact : {false, true}) {
    kernels.allocate_with_neighbours(item_tiles, had.view(), items, users, weights, item_sums, weight_sums, user_sums,
                                     exact, threads);
    kernels.allocate_with_neighbours(item_tiles, had.view(), items, users, weights, item_sums, weight_sums, {}, exact,
                                     threads);
    kernels.allocate_with_neighbours(item_tiles, had.view(), items, users, weights, {}, {}, user_sums, exact, threads);
  }
  sum += kernels.log_rate_sum_with_neighbours(item_tiles, had.view(), items.shape, users.shape, weights.shape, nullptr,
                                              nullptr, nullptr, threads) +
         kernels.log_rate_sum_with_neighbours(item_tiles, had.view(), items.exp_log, users.exp_log, weights.exp_log,
                                              &items, &users, &weights, threads);
  std::vector<int32_t> chosen(m * length);
  kernels.choose_neighbours({n, indptr.data(), indices_in_32.data()}, {m, starts.data(), users_of.data()}, 0, m, length,
                            chosen.data(), threads);
  kernels.mean(users.shape, user_rates, user_sums, threads);

  std::vector<int64_t> rows(pairs), columns(pairs), best(n * length);
  for (int64_t z = 0; z < pairs; ++z) rows[z] = randomness() % n, columns[z] = randomness() % m;
  kernels.predict_pairs(users.shape, items.shape, pairs, rows.data(), columns.data(), drawn<T>(pairs, 0, 1), threads);
  kernels.neighbour_rates(indptr.data(), indices.data(), m, sources.data(), weights.shape, pairs, rows.data(),
                          columns.data(), drawn<T>(pairs, 0, 1), threads);
  const ItemScores<T> added{indptr.data(), indices.data(), starts_of_targets.data(), targets.data(),
                            drawn<T>(m * l, 0, 1)};
  for (const ItemScores<T>& scores : {ItemScores<T>{}, added})
    kernels.top_items(users.shape, items.shape, {indptr.data(), indices.data()}, scores, length, best.data(),
                      drawn<T>(n * length, 0, 1), threads);
  for (const double temperature : {1.0, 1.25})
    kernels.gamma_update(shape, 0.3, user_rates, exp_log, log_scale, row_sums, column_sums, temperature, threads);
  return sum;
}

}  // namespace

int main() {
  std::printf("%g\n", everything(hpf::HPF_ISA::kernels_float) + everything(hpf::HPF_ISA::kernels_double));
}
