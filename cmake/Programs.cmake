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

# Fuzz targets: one program per file, and for those that say so (NAME in `stubbed`) a second one, NAME without _fuzz plus
# _stub_fuzz, whose crypto module is fuzz/stub. An archive's member is linked only where a symbol is missing: the stub
# defines all of the module's, so nothing of it comes in, and two definitions do not link.
add_custom_target(fuzzers)
file(GLOB fuzz_files CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/fuzz/*_fuzz.cc")
set(stubbed hyperbus_codec_fuzz packet_session_fuzz stream_session_fuzz)
if(HOLO_FUZZ)
  function(holo_fuzz_program name)
    add_executable(${name} ${ARGN})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/fuzz")
    target_include_directories(${name} PRIVATE "${CMAKE_SOURCE_DIR}/fuzz")
    # Those of the hyperbus are built without everything above it, as they are built most often.
    set(modules ${HOLO_MODULES})
    if(name MATCHES "^(hyperbus|handshake|session|packet_session|stream_session)_")
      set(modules holo_core_hyperbus holo_driver_quic holo_obs holo_crypto holo_env holo_base)
    endif()
    target_link_libraries(${name} PRIVATE ${modules} holo_flags)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    add_dependencies(fuzzers ${name})
  endfunction()
  foreach(file IN LISTS fuzz_files)
    cmake_path(GET file STEM name)
    holo_fuzz_program(${name} "${file}")
    if(name IN_LIST stubbed)
      string(REGEX REPLACE "_fuzz$" "_stub_fuzz" stub_name ${name})
      holo_fuzz_program(${stub_name} "${file}" "${CMAKE_SOURCE_DIR}/fuzz/stub/crypto.cc")
      target_compile_definitions(${stub_name} PRIVATE HOLO_FUZZ_STUB)
    endif()
  endforeach()
elseif(HOLO_TESTS)
  # The same targets in one test, over the inputs that are kept.
  set(targets "")
  foreach(file IN LISTS fuzz_files)
    cmake_path(GET file STEM name)
    string(APPEND targets "TARGET(${name})\n")
    set_source_files_properties("${file}" PROPERTIES SKIP_PRECOMPILE_HEADERS ON COMPILE_DEFINITIONS
      "LLVMFuzzerTestOneInput=holo_${name};LLVMFuzzerInitialize=holo_initialize_${name}"
      COMPILE_OPTIONS -Wno-error)  # The fuzz preset holds them to the warnings.
  endforeach()
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/generated/fuzz_targets.inc" CONTENT "${targets}")
  holo_test_program(holo_fuzz_replay_test "${CMAKE_SOURCE_DIR}/fuzz/replay_test.cc;${fuzz_files}" ${HOLO_MODULES})
  target_include_directories(holo_fuzz_replay_test PRIVATE "${CMAKE_SOURCE_DIR}/fuzz" "${HOLO_GENERATED}")
endif()

set(test_files ${HOLO_TEST_PROGRAMS})
list(TRANSFORM test_files REPLACE "(.+)" "$<TARGET_FILE:\\1>\n")
list(JOIN test_files "" test_files)
file(GENERATE OUTPUT "${CMAKE_BINARY_DIR}/tests.txt" CONTENT "${test_files}")
