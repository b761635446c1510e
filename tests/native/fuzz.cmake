# The fuzzers of the CPU kernels: cmake -DSPQ_FUZZ=ON -DSPQ_CUDA=OFF runtime/csrc, targets `fuzz` and `fuzz_int8`. Included by
# runtime/csrc/CMakeLists.txt, whose list of kernels and flags for each instruction set it takes.
option(SPQ_SANITIZE "build the fuzzer with the address and undefined behaviour sanitizers" ON)

set(fuzz ${CMAKE_CURRENT_LIST_DIR})
add_executable(fuzz EXCLUDE_FROM_ALL ${kernels} ${fuzz}/fuzz.cpp ${fuzz}/cases.cpp ${fuzz}/numbers.cpp)
add_executable(fuzz_int8 EXCLUDE_FROM_ALL ${kernels} ${fuzz}/fuzz_int8.cpp)
find_package(Threads REQUIRED)
foreach(fuzzer IN ITEMS fuzz fuzz_int8)
  target_link_libraries(${fuzzer} PRIVATE Threads::Threads)
  # The release flags come first on the command line, so -O1 holds.
  target_compile_options(${fuzzer} PRIVATE ${options} -O1 -g1)
  if(SPQ_SANITIZE)
    set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_compile_options(${fuzzer} PRIVATE ${sanitizers})
    target_link_options(${fuzzer} PRIVATE ${sanitizers})
  endif()
endforeach()
