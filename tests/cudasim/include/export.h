// The entry points of a compiled module: for each kernel its signature and its launch, both deduced
// from the kernel's C++ type.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda_fp16.h"
#include "runtime.h"
#include "vectors.h"

namespace cudasim {

// numpy's name of a parameter's type, such as f4 or i8; V and the size for structures, V0 for void.
template <class T>
std::string type_name() {
  if constexpr (std::is_void_v<T>) {
    return "V0";
  } else {
    const char kind = std::is_same_v<T, bool>       ? 'b'
                      : std::is_same_v<T, __half>   ? 'f'
                      : std::is_floating_point_v<T> ? 'f'
                      : !std::is_integral_v<T>      ? 'V'
                      : std::is_signed_v<T>         ? 'i'
                                                    : 'u';
    return kind + std::to_string(sizeof(T));
  }
}

template <class T>
struct Element {  // what an array behind a T* is made of
  using type = T;
};
#define CUDASIM_ELEMENT(vector, element) \
  template <>                            \
  struct Element<vector> {               \
    using type = element;                \
  };
// clang-format off
CUDASIM_ELEMENT(int2, int) CUDASIM_ELEMENT(int4, int)
CUDASIM_ELEMENT(uint2, unsigned) CUDASIM_ELEMENT(uint4, unsigned)
CUDASIM_ELEMENT(longlong2, long long) CUDASIM_ELEMENT(ulonglong2, unsigned long long)
CUDASIM_ELEMENT(float2, float) CUDASIM_ELEMENT(float4, float)
CUDASIM_ELEMENT(double2, double) CUDASIM_ELEMENT(double4, double)
CUDASIM_ELEMENT(__half2, __half)
    // clang-format on

    template <class T>
    std::string parameter_name() {  // "f4" for a scalar, "*f4" for a pointer
  if constexpr (std::is_pointer_v<T>) {
    using Target = std::remove_cv_t<std::remove_pointer_t<T>>;
    return "*" + type_name<typename Element<Target>::type>();
  } else {
    return type_name<std::remove_cv_t<T>>();
  }
}

template <auto function>
struct Kernel;

template <class... Parameters, void (*function)(Parameters...)>
struct Kernel<function> {
  static void call(void** arguments) { call(arguments, std::index_sequence_for<Parameters...>{}); }

  static const char* signature() {
    static const std::string text = ((parameter_name<Parameters>() + " ") + ... + "");
    return text.c_str();
  }

 private:
  template <size_t... number>
  static void call(void** arguments, std::index_sequence<number...>) {
    function(*static_cast<std::remove_reference_t<Parameters>*>(arguments[number])...);
  }
};

}  // namespace cudasim

// The linker defines these two at the ends of the section, if there is one.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_cudasim_shared[], __stop_cudasim_shared[];

#define CUDASIM_EXPORT(kernel)                                                                                      \
  extern "C" __attribute__((visibility("default"))) const char* cudasim_signature_##kernel() {                      \
    return cudasim::Kernel<&kernel>::signature();                                                                   \
  }                                                                                                                 \
  extern "C" __attribute__((visibility("default"))) const char* cudasim_launch_##kernel(const cudasim::Launch* how, \
                                                                                        void** arguments) {         \
    const cudasim::Code code{cudasim::Kernel<&kernel>::call, __start_cudasim_shared, __stop_cudasim_shared};        \
    return cudasim::launch(code, *how, arguments);                                                                  \
  }
