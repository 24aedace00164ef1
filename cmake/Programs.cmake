# Examples, benches and fuzz targets: one program per file, or per folder with a main.cc. And the list of test programs.

add_custom_target(programs DEPENDS libholo)  # What a user runs; without the tests.
foreach(program holo holo-sim)
  if(TARGET ${program})
    add_dependencies(programs ${program})
  endif()
endforeach()

# Examples see what a user sees: the public headers and libholo.a.
file(GLOB example_files CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/examples/*.cc" "${CMAKE_SOURCE_DIR}/examples/*.c"
  "${CMAKE_SOURCE_DIR}/examples/*/main.cc")
foreach(file IN LISTS example_files)
  cmake_path(GET file STEM name)
  set(sources "${file}")
  if(name STREQUAL "main")
    cmake_path(GET file PARENT_PATH folder)
    cmake_path(GET folder FILENAME name)
    file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cc")
  endif()
  add_executable(example_${name} ${sources})
  set_target_properties(example_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin/examples")
  target_link_libraries(example_${name} PRIVATE holo_warnings holo::holo)
  add_dependencies(programs example_${name})
endforeach()

# Benches may look inside.
file(GLOB bench_files CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/bench/*.cc")
foreach(file IN LISTS bench_files)
  cmake_path(GET file STEM name)
  add_executable(bench_${name} "${file}")
  set_target_properties(bench_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin/bench")
  target_link_libraries(bench_${name} PRIVATE ${HOLO_MODULES} holo_flags)
endforeach()

# What the end-to-end tests run on their clusters.
if(HOLO_TESTS)
  file(GLOB e2e_files CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/test/e2e/*.cc")
  foreach(file IN LISTS e2e_files)
    cmake_path(GET file STEM name)
    add_executable(e2e_${name} "${file}")
    set_target_properties(e2e_${name} PROPERTIES
      OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/test/e2e")
    target_link_libraries(e2e_${name} PRIVATE holo_warnings holo::holo)
  endforeach()
endif()

add_custom_target(fuzzers)
if(HOLO_FUZZ)
  file(GLOB fuzz_files CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/fuzz/*_fuzz.cc")
  foreach(file IN LISTS fuzz_files)
    cmake_path(GET file STEM name)
    add_executable(${name} "${file}")
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/fuzz")
    target_link_libraries(${name} PRIVATE ${HOLO_MODULES} holo_flags)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    add_dependencies(fuzzers ${name})
  endforeach()
endif()

set(test_files ${HOLO_TEST_PROGRAMS})
list(TRANSFORM test_files REPLACE "(.+)" "$<TARGET_FILE:\\1>\n")
list(JOIN test_files "" test_files)
file(GENERATE OUTPUT "${CMAKE_BINARY_DIR}/tests.txt" CONTENT "${test_files}")
