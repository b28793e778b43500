// cuBLAS, NCCL and the driver as far as torch calls them, computing nothing; see runtime.cpp. The
// wheels have no headers for them that a host compiler reads: arguments that nothing is written to
// are left out.
#include "fake_cuda.h"

extern "C" {

#define SUCCEEDS(name) \
    int name() { return 0; }
#define COUNTS(name)     \
    int name() {         \
        count(#name);    \
        count("launches"); \
        return 0;        \
    }
#define GIVES_HANDLE(name)         \
    int name(void** handle) {      \
        *handle = fresh();  \
        return 0;                  \
    }

GIVES_HANDLE(cublasCreate_v2)
SUCCEEDS(cublasDestroy_v2)
SUCCEEDS(cublasSetStream_v2)
SUCCEEDS(cublasSetWorkspace_v2)
SUCCEEDS(cublasSetMathMode)
SUCCEEDS(cublasSetPointerMode_v2)
int cublasGetMathMode(void*, int* mode) { return *mode = 0; }
int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0; }
COUNTS(cublasGemmEx)
COUNTS(cublasGemmStridedBatchedEx)
COUNTS(cublasSgemm_v2)
COUNTS(cublasSgemmStridedBatched)
GIVES_HANDLE(cublasLtMatmulDescCreate)
GIVES_HANDLE(cublasLtMatmulPreferenceCreate)
GIVES_HANDLE(cublasLtMatrixLayoutCreate)
SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatmulPreferenceDestroy)
SUCCEEDS(cublasLtMatrixLayoutDestroy)
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
COUNTS(cublasLtMatmul)
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*,
                                   int* found) {
    *found = 1;
    return 0;
}

// The driver, which libcaffe2_nvrtc.so links with; torch asks it for the context.
int cuCtxGetCurrent(void** context) {
    *context = fresh();
    return 0;
}
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
    *flags = 0, *active = 1;
    return 0;
}
SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuDevicePrimaryCtxRetain)

int ncclGetUniqueId(void*) { return 0; }
int ncclGetVersion(int* version) {
    *version = 22807;
    return 0;
}
const char* ncclGetErrorString(int) { return "no error"; }
const char* ncclGetLastError(void*) { return ""; }
GIVES_HANDLE(ncclCommInitRank)
GIVES_HANDLE(ncclCommInitRankConfig)
GIVES_HANDLE(ncclCommInitRankScalable)
int ncclCommGetAsyncError(void*, int* error) { return *error = 0; }
SUCCEEDS(ncclCommAbort)
SUCCEEDS(ncclCommDestroy)
SUCCEEDS(ncclCommFinalize)
SUCCEEDS(ncclCommRegister)
SUCCEEDS(ncclCommDeregister)
SUCCEEDS(ncclGroupStart)
SUCCEEDS(ncclGroupEnd)
COUNTS(ncclAllReduce)
COUNTS(ncclReduceScatter)
COUNTS(ncclAllGather)
COUNTS(ncclBroadcast)
COUNTS(ncclBcast)
COUNTS(ncclReduce)

}  // extern "C"
