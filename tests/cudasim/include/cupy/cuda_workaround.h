// In place of CuPy's header, which mends NVRTC's lack of a standard library.
#pragma once
