// What HIP source sees before its first line. Macros with the prefix __hipsim_ are markers that compile.py rewrites.
#pragma once
#include <hip/hip_version.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>

#include "hipsim/device_abi.h"

#define __HIPSIM__ 1
#define __HIPCC__ 1
#define __HIPCC_RTC__ 1
#define __HIP__ 1
#define __HIP_PLATFORM_AMD__ 1
#define __HIP_DEVICE_COMPILE__ 1

#define __global__ __hipsim_global__
#define __launch_bounds__(...) __hipsim_bounds__(__VA_ARGS__)
#define __shared__ __hipsim_shared__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict

#define threadIdx (hipsim_self->index)
#define blockIdx (*const_cast<const hipsim_dim3*>(&hipsim_block_index))
#define blockDim (*const_cast<const hipsim_dim3*>(&hipsim_block_dim))
#define gridDim (*const_cast<const hipsim_dim3*>(&hipsim_grid_dim))
#define warpSize (+hipsim_wave_size)

// Where a call that takes HIPSIM_HERE as its last parameters was made.
#define HIPSIM_HERE const char *hipsim_file = __builtin_FILE(), int hipsim_line = __builtin_LINE()
#define HIPSIM_SITE(operation) (hipsim_site{operation, hipsim_file, hipsim_line})

#include "hipsim/entry.h"
#include "hipsim/vector_types.h"
#include "hipsim/math.h"
#include "hipsim/half.h"
#include "hipsim/atomics.h"
#include "hipsim/sync.h"
#include "hipsim/amdgcn.h"
#include "hipsim/matrix.h"
