// What nvcc and NVRTC know without any #include, so that an unchanged .cu source compiles with g++.
#pragma once

#include <math.h>  // isnan and its like outside std::
#include <algorithm>
#include <bit>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "arithmetic.h"
#include "atomics.h"
#include "cuda_fp16.h"
#include "export.h"
#include "runtime.h"
#include "vectors.h"
#include "warp.h"

#define __CUDACC__ 1
#define __CUDACC_VER_MAJOR__ 13
#define __CUDA_ARCH__ 800

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __constant__ static
// One section for all of them: the runtime poisons it before each block, and ASan puts redzones
// between its variables.
#define __shared__ static __attribute__((section("cudasim_shared")))

#define threadIdx (::cudasim::current->index)
#define blockIdx (::cudasim::current->block)
#define blockDim (::cudasim::block_size)
#define gridDim (::cudasim::grid_size)
constexpr int warpSize = 32;
