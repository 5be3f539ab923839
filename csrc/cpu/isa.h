// What the files that are compiled once per instruction set share; SEMIVARIO_ISA names the one at hand.
#pragma once

#define SEMIVARIO_JOIN_(prefix, isa) prefix##isa
#define SEMIVARIO_NAME(prefix, isa) SEMIVARIO_JOIN_(prefix, isa)
#define SEMIVARIO_STRING_(isa) #isa
#define SEMIVARIO_STRING(isa) SEMIVARIO_STRING_(isa)

#if defined(_MSC_VER)
#define SEMIVARIO_SIMD
#define SEMIVARIO_RESTRICT __restrict
#else
#define SEMIVARIO_SIMD _Pragma("omp simd")
#define SEMIVARIO_RESTRICT __restrict__
#endif
