// In place of CuPy's header, which needs Thrust: enough to declare pointers to complex numbers.
#pragma once
template <class T>
struct complex {
  T real, imaginary;
};
