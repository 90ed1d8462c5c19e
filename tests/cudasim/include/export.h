// The entry points of a compiled module: for each kernel its signature and its launch, both deduced
// from the kernel's C++ type.
#pragma once

#include <cstddef>
#include <cstdio>
#include <type_traits>
#include <utility>

#include "cuda_fp16.h"
#include "runtime.h"
#include "vectors.h"

namespace cudasim {

// numpy's letter and size of a parameter's type, such as f4 or i8; V and the size for structures, V0 for void.
template <class T>
constexpr char letter() {
  return std::is_same_v<T, bool>                                    ? 'b'
         : std::is_same_v<T, __half> || std::is_floating_point_v<T> ? 'f'
         : !std::is_integral_v<T>                                   ? 'V'
         : std::is_signed_v<T>                                      ? 'i'
                                                                    : 'u';
}
template <class T>
constexpr size_t size() {
  if constexpr (std::is_void_v<T>) {
    return 0;
  } else {
    return sizeof(T);
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

    // Writes "f4" for a scalar, "*f4" for a pointer, and a space; returns how many characters.  Not by
    // std::string, which takes longer to compile than a small kernel.
    template <class T>
    int write_parameter(char* text) {
  if constexpr (std::is_pointer_v<T>) {
    using Target = typename Element<std::remove_cv_t<std::remove_pointer_t<T>>>::type;
    return std::sprintf(text, "*%c%zu ", letter<Target>(), size<Target>());
  } else {
    return std::sprintf(text, "%c%zu ", letter<std::remove_cv_t<T>>(), size<T>());
  }
}

template <auto function>
struct Kernel;

template <class... Parameters, void (*function)(Parameters...)>
struct Kernel<function> {
  static void call(void** arguments) { call(arguments, std::index_sequence_for<Parameters...>{}); }

  static const char* signature() {
    static char text[24 * sizeof...(Parameters) + 1];  // a size has at most twenty digits
    char* end = text;
    ((end += write_parameter<Parameters>(end)), ...);
    return text;
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
