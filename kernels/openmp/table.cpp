// The table of functions of one instruction set.
#include "operations.h"

namespace hpf {
namespace HPF_ISA {
namespace {

template <class T>
constexpr Kernels<T> table = {gamma_update<T>,
                              extrapolate<T>,
                              mean<T>,
                              gamma_entropy<T>,
                              allocate<T>,
                              allocate_with_neighbours<T>,
                              log_rate_sum<T>,
                              log_rate_sum_with_neighbours<T>,
                              log_count_products<T>,
                              log_factorial_sum<T>,
                              predict_pairs<T>,
                              neighbour_rates<T>,
                              choose_neighbours,
                              byte_bounds<T>,
                              top_items<T>,
                              distance<T>};

}  // namespace

extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
const Kernels<float> kernels_float = table<float>;
const Kernels<double> kernels_double = table<double>;

}  // namespace HPF_ISA
}  // namespace hpf
