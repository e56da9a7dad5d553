// The one header of rocThrust that CuPy's own copy of thrust::complex includes.
#pragma once
#define THRUST_NAMESPACE_BEGIN namespace thrust {
#define THRUST_NAMESPACE_END }
