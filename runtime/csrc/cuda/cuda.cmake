# The CUDA kernels, as objects that go into the library. Included where SPQ_CUDA is not OFF.
#
# Machine code for Turing, Ampere, Ada and Hopper; machines in between run the code of the one before them in their
# generation (8.6 that of 8.0), and newer ones compile the portable code when it is loaded. Every Hopper there is runs
# 9.0a, which leaves room for instructions that only it has; the portable code uses none of them.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 89-real 90a-real 90-virtual)
endif()

set(missing "")
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  find_package(CUDAToolkit QUIET)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 11.8)
    set(missing "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 11.8, the first with FP8")
  elseif(NOT TARGET CUDA::cudart_static)
    set(missing "there is no static CUDA runtime")
  endif()
else()
  set(missing "there is no nvcc that works")
endif()

if(missing AND NOT SPQ_CUDA STREQUAL "AUTO")
  message(FATAL_ERROR "SPQ_CUDA=${SPQ_CUDA}, but ${missing}")
elseif(missing)
  message(STATUS "No CUDA kernels: ${missing}")
else()
  add_library(spq_cuda OBJECT cuda/kernel.cpp cuda/device.cpp cuda/cublaslt.cpp cuda/direct.cu cuda/operands.cu)
  set_target_properties(spq_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
  # No fast math: the kernels rely on subnormals and on division that rounds correctly.
  target_compile_options(spq_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>"
                                          "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>")
  string(REGEX REPLACE "-(real|virtual)" "" architectures "${CMAKE_CUDA_ARCHITECTURES}")
  list(REMOVE_DUPLICATES architectures)
  string(REPLACE ";" "\", \"" architectures "\"${architectures}\"")
  string(REPLACE "\"" "\\\"" architectures "${architectures}")
  target_compile_definitions(spq_cuda PRIVATE "SPQ_CUDA_ARCHITECTURES=\"${architectures}\"")
  # The runtime goes in, and cuBLASLt is looked for at run time: the library needs no file of CUDA's to be loaded.
  target_link_libraries(spq_cuda PRIVATE CUDA::cudart_static)
  target_sources(spq_graph_ops PRIVATE $<TARGET_OBJECTS:spq_cuda>)
  target_link_libraries(spq_graph_ops PRIVATE CUDA::cudart_static)
  target_compile_definitions(spq_graph_ops PRIVATE SPQ_CUDA)
endif()
