# Third-party libraries. Debian's packages are found; what Debian 12 does not carry (AWS-LC's libcrypto, BLAKE3, a
# current ngtcp2) is fetched by cargo as pinned in third_party/Cargo.lock and built once into HOLO_DEPS_DIR, shared by
# every preset; ngtcp2 by each preset.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

if(DEFINED ENV{HOLO_DEPS_DIR})
  set(HOLO_DEPS_DIR "$ENV{HOLO_DEPS_DIR}")
else()
  set(HOLO_DEPS_DIR "${CMAKE_SOURCE_DIR}/build/deps")
endif()

# Builds the pinned crates' C sources into a folder named by what they are built from; sets HOLO_DEPS_PREFIX.
function(holo_build_third_party)
  set(source "${CMAKE_SOURCE_DIR}/third_party")
  set(stamp "")
  foreach(input Cargo.lock CMakeLists.txt)
    file(SHA256 "${source}/${input}" hash)
    string(APPEND stamp ${hash})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}/${input}")
  endforeach()
  string(SHA256 stamp "${stamp}")
  string(SUBSTRING ${stamp} 0 12 stamp)
  set(prefix "${HOLO_DEPS_DIR}/${stamp}")
  set(HOLO_DEPS_PREFIX "${prefix}" PARENT_SCOPE)
  if(EXISTS "${prefix}/complete")
    return()
  endif()

  file(MAKE_DIRECTORY "${HOLO_DEPS_DIR}")
  file(LOCK "${HOLO_DEPS_DIR}/lock" GUARD FUNCTION)  # Two configures at once build it once.
  if(EXISTS "${prefix}/complete")
    return()
  endif()
  find_program(HOLO_CARGO cargo)
  if(NOT HOLO_CARGO)
    message(FATAL_ERROR "cargo is missing (it fetches AWS-LC, BLAKE3 and ngtcp2); type: apt-get install cargo-web")
  endif()

  message(STATUS "Fetching AWS-LC, BLAKE3 and ngtcp2 (pinned in third_party/Cargo.lock)")
  execute_process(
    COMMAND ${HOLO_CARGO} metadata --quiet --locked --format-version 1 --filter-platform x86_64-unknown-linux-gnu
            --manifest-path "${source}/Cargo.toml"
    OUTPUT_VARIABLE metadata ERROR_VARIABLE error RESULT_VARIABLE rc)
  if(NOT rc EQUAL 0)
    message(FATAL_ERROR "cargo could not fetch the crates of third_party/Cargo.lock: ${error}")
  endif()
  file(READ "${source}/Cargo.toml" pins)
  string(JSON count LENGTH "${metadata}" packages)
  math(EXPR last "${count} - 1")
  foreach(i RANGE ${last})
    string(JSON name GET "${metadata}" packages ${i} name)
    string(JSON version GET "${metadata}" packages ${i} version)
    string(FIND "${pins}" "${name} = \"=${version}\"" pinned)  # Others are what the pinned ones depend on.
    if(pinned EQUAL -1)
      continue()
    endif()
    string(JSON manifest GET "${metadata}" packages ${i} manifest_path)
    cmake_path(GET manifest PARENT_PATH root)
    set(crate_${name} "${root}")
  endforeach()

  message(STATUS "Building AWS-LC and BLAKE3 into ${prefix} (once, about a minute)")
  file(REMOVE_RECURSE "${prefix}.build" "${prefix}")
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S "${source}" -B "${prefix}.build" -G Ninja -DCMAKE_BUILD_TYPE=Release
            "-DCMAKE_INSTALL_PREFIX=${prefix}" -DCMAKE_INSTALL_LIBDIR=lib
            "-DAWS_LC_CRATE=${crate_aws-lc-sys}" "-DBLAKE3_CRATE=${crate_blake3}"
            "-DNGTCP2_CRATE=${crate_ngtcp2-sys}"
    OUTPUT_FILE "${HOLO_DEPS_DIR}/third_party.log" ERROR_FILE "${HOLO_DEPS_DIR}/third_party.log" RESULT_VARIABLE rc)
  if(rc EQUAL 0)
    execute_process(
      COMMAND ${CMAKE_COMMAND} --build "${prefix}.build" --target install
      OUTPUT_FILE "${HOLO_DEPS_DIR}/third_party.log" ERROR_FILE "${HOLO_DEPS_DIR}/third_party.log" RESULT_VARIABLE rc)
  endif()
  if(NOT rc EQUAL 0)
    message(FATAL_ERROR "AWS-LC and BLAKE3 did not build; see ${HOLO_DEPS_DIR}/third_party.log")
  endif()
  file(REMOVE_RECURSE "${prefix}.build")
  file(TOUCH "${prefix}/complete")
endfunction()
holo_build_third_party()

# The archives are exported by no program that links them, as they are nobody's interface.
add_library(holo::awslc STATIC IMPORTED GLOBAL)
set_target_properties(holo::awslc PROPERTIES
  IMPORTED_LOCATION "${HOLO_DEPS_PREFIX}/lib/libholo_awslc.a"
  INTERFACE_INCLUDE_DIRECTORIES "${HOLO_DEPS_PREFIX}/include"
  INTERFACE_LINK_LIBRARIES Threads::Threads
  INTERFACE_LINK_OPTIONS "LINKER:--exclude-libs,libholo_awslc.a")
add_library(holo::blake3 STATIC IMPORTED GLOBAL)
set_target_properties(holo::blake3 PROPERTIES
  IMPORTED_LOCATION "${HOLO_DEPS_PREFIX}/lib/libholo_blake3.a"
  INTERFACE_INCLUDE_DIRECTORIES "${HOLO_DEPS_PREFIX}/include"
  INTERFACE_LINK_OPTIONS "LINKER:--exclude-libs,libholo_blake3.a")

function(holo_add_ngtcp2)
  set(ENABLE_LIB_ONLY ON)
  set(ENABLE_SHARED_LIB OFF)
  set(ENABLE_OPENSSL OFF)
  set(BUILD_TESTING OFF)
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(CMAKE_WARN_DEPRECATED OFF)
  add_subdirectory("${HOLO_DEPS_PREFIX}/src/ngtcp2" ngtcp2 EXCLUDE_FROM_ALL SYSTEM)
  # What it asserts, peers must not get past.
  target_compile_options(ngtcp2_static PRIVATE -O2 -UNDEBUG -w "-ffile-prefix-map=${HOLO_DEPS_PREFIX}/src/=")
endfunction()
holo_add_ngtcp2()
add_library(holo::ngtcp2 ALIAS ngtcp2_static)

find_package(Protobuf REQUIRED)
find_package(fmt REQUIRED CONFIG)
find_package(spdlog REQUIRED CONFIG)
find_package(nlohmann_json REQUIRED CONFIG)
find_package(CLI11 REQUIRED CONFIG)
find_package(GTest REQUIRED CONFIG)
pkg_check_modules(raft REQUIRED IMPORTED_TARGET GLOBAL raft)
pkg_check_modules(curl REQUIRED IMPORTED_TARGET GLOBAL libcurl)
pkg_check_modules(hwloc REQUIRED IMPORTED_TARGET GLOBAL hwloc)
pkg_check_modules(tomlplusplus REQUIRED IMPORTED_TARGET GLOBAL tomlplusplus)
find_library(HOLO_ROCKSDB rocksdb REQUIRED)
find_library(HOLO_RAPIDCHECK rapidcheck REQUIRED)
find_path(HOLO_ASIO_INCLUDE asio.hpp REQUIRED)

# One short name per library, for holo_module(... LIBS ...).
add_library(holo::asio INTERFACE IMPORTED GLOBAL)
set_target_properties(holo::asio PROPERTIES
  INTERFACE_INCLUDE_DIRECTORIES "${HOLO_ASIO_INCLUDE}"
  INTERFACE_COMPILE_DEFINITIONS "ASIO_STANDALONE;ASIO_NO_DEPRECATED"
  INTERFACE_LINK_LIBRARIES Threads::Threads)
add_library(holo::protobuf ALIAS protobuf::libprotobuf-lite)
add_library(holo::rocksdb UNKNOWN IMPORTED GLOBAL)  # Its own package file demands packages that we do not need.
set_target_properties(holo::rocksdb PROPERTIES IMPORTED_LOCATION "${HOLO_ROCKSDB}")
add_library(holo::raft ALIAS PkgConfig::raft)
add_library(holo::curl ALIAS PkgConfig::curl)
add_library(holo::hwloc ALIAS PkgConfig::hwloc)
add_library(holo::toml ALIAS PkgConfig::tomlplusplus)
add_library(holo::test_libs INTERFACE IMPORTED GLOBAL)
target_link_libraries(holo::test_libs INTERFACE GTest::gmock_main GTest::gmock GTest::gtest ${HOLO_RAPIDCHECK})
