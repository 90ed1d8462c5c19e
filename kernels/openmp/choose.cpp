// The neighbours of items: which occur together far more often than by chance.
#include "operations.h"
#include "ranking.h"
#include "rows.h"
#include "scratch.h"
#include "special.h"

namespace hpf {
namespace HPF_ISA {

void choose_neighbours(Incidence users, Incidence items, int64_t begin, int64_t end, int64_t n, int32_t* chosen,
                       int threads) {
  const int64_t m = items.rows, nonzeros = items.indptr[end] - items.indptr[begin];
  const int team = threads_for(nonzeros, 1 + items.indptr[m] / users.rows, threads);
  Scratch<int32_t> all_together(m, team), all_met(m + 1, team);
  Scratch<double> all_scores(m, team), all_best(n, team);
  Scratch<int64_t> all_columns(n, team);
#pragma omp parallel num_threads(team)
  {
    int32_t *together = all_together.share(), *met = all_met.share();
    double* score = all_scores.share();
    for (int64_t j = 0; j < m; ++j) together[j] = 0;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = begin; i < end; ++i) {
      int64_t size = 0;  // of `met`, the items that occur with this one
      for (int64_t z = items.indptr[i]; z < items.indptr[i + 1]; ++z) {
        const int64_t u = items.indices[z];
        for (int64_t y = users.indptr[u]; y < users.indptr[u + 1]; ++y) {
          const int32_t j = users.indices[y];
          met[size] = j;
          size += together[j]++ == 0;
        }
      }
      const double own = double(items.indptr[i + 1] - items.indptr[i]) / double(users.rows);
#pragma omp simd
      for (int64_t a = 0; a < size; ++a) {
        const int32_t j = met[a];
        const double both = together[j], expected = own * double(items.indptr[j + 1] - items.indptr[j]);
        score[a] = both * log_normal(both / expected);
      }
      Ranking<double> best{all_best.share(), all_columns.share(), n, 0};
      for (int64_t a = 0; a < size; ++a) {
        const int64_t j = met[a];
        together[j] = 0;
        if (j != i && (best.size < n || precedes_last(best, score[a], j))) take(best, score[a], j);
      }
      // Of equal scores the lower number comes first, so the same heap brings them into ascending order.
      for (int64_t a = 0; a < best.size; ++a) best.score[a] = 0;
      make_heap(best);
      finish(best);
      int32_t* out = chosen + (i - begin) * n;
      for (int64_t a = 0; a < n; ++a) out[a] = static_cast<int32_t>(best.column[a]);
    }
  }
}

}  // namespace HPF_ISA
}  // namespace hpf
