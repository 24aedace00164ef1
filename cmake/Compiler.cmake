# How everything of ours is compiled: warnings are errors, ccache when it is there, sanitizers on demand.

add_library(holo_warnings INTERFACE)
target_compile_options(holo_warnings INTERFACE
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror
  -Wno-missing-field-initializers  # Designated initializers leave members to their defaults on purpose.
  -fno-semantic-interposition
  # Same objects, and messages without a path of this machine, anywhere. (ccache hands the compiler relative paths.)
  "-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=" -ffile-prefix-map=../../=)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # -Wrestrict: GCC bug 105651. Sibling calls: a coroutine that resumes another must not grow the stack, at any -O.
  target_compile_options(holo_warnings INTERFACE -fpch-preprocess -Wno-restrict -foptimize-sibling-calls)
else()
  # Clang sees libstdc++ 12 use, inside its own headers, what it has deprecated; and calls [x = x] a shadow.
  target_compile_options(holo_warnings INTERFACE -Wno-deprecated-declarations -Wno-shadow)
endif()

add_library(holo_flags INTERFACE)
target_link_libraries(holo_flags INTERFACE holo_warnings)
target_include_directories(holo_flags INTERFACE "${CMAKE_SOURCE_DIR}/src" "${CMAKE_SOURCE_DIR}/include")
target_compile_definitions(holo_flags INTERFACE "HOLO_VERSION=\"${PROJECT_VERSION}\"")

add_link_options(LINKER:--as-needed)

if(HOLO_SANITIZE)
  add_compile_options(-fsanitize=${HOLO_SANITIZE} -fno-sanitize-recover=all -fno-sanitize=vptr -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${HOLO_SANITIZE})
endif()
if(HOLO_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
  if(NOT HOLO_SANITIZE MATCHES "address")
    # fuzz-fast goes on from what fuzz found; telling the fuzzer what each comparison compares is half of its time.
    add_compile_options(-fno-sanitize-coverage=trace-cmp)
  endif()
endif()

find_program(HOLO_CCACHE ccache)
if(HOLO_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Paths are taken relative to the source tree, so that every checkout shares one cache.
  set(launcher env "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime "${HOLO_CCACHE}")
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
endif()
