# holo_module(<folder under src> [DEPS <lower folders>...] [LIBS <libraries>...] [TEST_DEPS <folders>...] [PROGRAM <name>])
#
# src/core/memory becomes the static library holo_core_memory out of its *.cc and *.proto, and its *_test.cc become the
# program holo_core_memory_test. A folder of headers alone is an interface library; one without code yet is skipped.
# main.cc, where there is one, is the program PROGRAM. Adding a file needs no change here.

set(HOLO_MODULES "" CACHE INTERNAL "Every module's target")
set(HOLO_TEST_PROGRAMS "" CACHE INTERNAL "Every test program's target")
set(HOLO_GENERATED "${CMAKE_BINARY_DIR}/generated")

# The standard headers, precompiled once for modules and once (with GoogleTest) for tests. Nothing of a third party goes
# into the modules' one, or it would leak through the layers.
if(HOLO_PCH)
  set(std_headers <algorithm> <array> <atomic> <chrono> <coroutine> <cstdint> <cstring> <deque> <expected> <functional>
      <map> <memory> <optional> <set> <span> <string> <string_view> <unordered_map> <utility> <variant> <vector>)
  file(WRITE "${CMAKE_BINARY_DIR}/pch.cc" "")
  add_library(holo_pch OBJECT "${CMAKE_BINARY_DIR}/pch.cc")
  target_link_libraries(holo_pch PRIVATE holo_flags)
  target_precompile_headers(holo_pch PRIVATE ${std_headers})
  if(HOLO_TESTS)
    add_library(holo_test_pch OBJECT "${CMAKE_BINARY_DIR}/pch.cc")
    target_link_libraries(holo_test_pch PRIVATE holo_flags holo::test_libs)
    set_target_properties(holo_test_pch PROPERTIES POSITION_INDEPENDENT_CODE OFF)  # As programs are: the default, PIE.
    target_precompile_headers(holo_test_pch PRIVATE ${std_headers} <gmock/gmock.h> <gtest/gtest.h>)
  endif()
endif()

# Compiles the library `target` as ours.
function(holo_compile target)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:holo_flags>)
  if(HOLO_PCH)
    target_precompile_headers(${target} REUSE_FROM holo_pch)
  endif()
endfunction()

# Generates the messages of `protos` under HOLO_GENERATED/<folder> and adds them to `target`.
function(holo_generate_messages target folder)
  foreach(proto IN LISTS ARGN)
    cmake_path(GET proto STEM name)
    set(out "${HOLO_GENERATED}/${folder}/${name}.pb")
    add_custom_command(
      OUTPUT "${out}.cc" "${out}.h"
      COMMAND ${CMAKE_COMMAND} -E make_directory "${HOLO_GENERATED}"
      COMMAND protobuf::protoc "--cpp_out=${HOLO_GENERATED}" -I "${CMAKE_SOURCE_DIR}/src" "${proto}"
      DEPENDS "${proto}" ${ARGN} VERBATIM COMMENT "Messages of ${folder}/${name}.proto")
    target_sources(${target} PRIVATE "${out}.cc")
    set_source_files_properties("${out}.cc" PROPERTIES COMPILE_OPTIONS -w SKIP_PRECOMPILE_HEADERS ON)
  endforeach()
  target_include_directories(${target} SYSTEM PUBLIC $<BUILD_INTERFACE:${HOLO_GENERATED}>)
endfunction()

# One test program out of `sources`, linked with `ARGN`.
function(holo_test_program name sources)
  add_executable(${name} ${sources})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/test")
  target_link_libraries(${name} PRIVATE ${ARGN} holo_flags holo::test_libs)
  target_compile_definitions(${name} PRIVATE "HOLO_SOURCE_DIR=\"${CMAKE_SOURCE_DIR}\"")
  if(HOLO_PCH)
    target_precompile_headers(${name} REUSE_FROM holo_test_pch)
  endif()
  set(HOLO_TEST_PROGRAMS ${HOLO_TEST_PROGRAMS} ${name} CACHE INTERNAL "")
endfunction()

function(holo_module folder)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "PROGRAM" "DEPS;LIBS;TEST_DEPS")
  set(dir "${CMAKE_SOURCE_DIR}/src/${folder}")
  string(REPLACE "/" "_" target "holo_${folder}")
  file(GLOB sources CONFIGURE_DEPENDS "${dir}/*.cc")
  file(GLOB headers CONFIGURE_DEPENDS "${dir}/*.h")
  file(GLOB protos CONFIGURE_DEPENDS "${dir}/*.proto")
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(FILTER sources EXCLUDE REGEX "(_test|/main)\\.cc$")
  if(NOT sources AND NOT headers AND NOT protos AND NOT EXISTS "${dir}/main.cc")
    return()
  endif()

  set(lower "")
  foreach(dep IN LISTS arg_DEPS)
    string(REPLACE "/" "_" dep "holo_${dep}")
    if(TARGET ${dep})
      list(APPEND lower ${dep})
    endif()
  endforeach()

  if(sources OR protos)
    add_library(${target} STATIC ${sources})
    target_link_libraries(${target} PUBLIC ${lower} PRIVATE ${arg_LIBS})
    holo_compile(${target})
    if(protos)
      holo_generate_messages(${target} ${folder} ${protos})
      target_link_libraries(${target} PUBLIC holo::protobuf)  # Its messages are seen by the modules above.
    endif()
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE ${lower} ${arg_LIBS})
  endif()
  set(HOLO_MODULES ${HOLO_MODULES} ${target} CACHE INTERNAL "")

  if(arg_PROGRAM AND EXISTS "${dir}/main.cc")
    add_executable(${arg_PROGRAM} "${dir}/main.cc")
    target_link_libraries(${arg_PROGRAM} PRIVATE ${target} ${lower} ${arg_LIBS} holo_flags)
  endif()
  if(HOLO_TESTS AND tests)
    list(TRANSFORM arg_TEST_DEPS REPLACE "/" "_")
    list(TRANSFORM arg_TEST_DEPS PREPEND "holo_")
    holo_test_program(${target}_test "${tests}" ${target} ${arg_TEST_DEPS} ${lower} ${arg_LIBS})
  endif()
endfunction()
