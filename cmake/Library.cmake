# libholo.a, what a user links: the objects of every module but the simulator and the program, and its installation.
# One archive: an object that a program does not use (the node, unless it calls holo::local) is not linked into it.
set(archive_modules ${HOLO_MODULES})
list(FILTER archive_modules EXCLUDE REGEX "^holo_(sim|cmd_)")
set(archive_objects "")
foreach(module IN LISTS archive_modules)
  get_target_property(type ${module} TYPE)
  if(type STREQUAL "STATIC_LIBRARY")
    list(APPEND archive_objects $<TARGET_OBJECTS:${module}>)
  endif()
endforeach()
add_library(libholo STATIC ${archive_objects})
set_target_properties(libholo PROPERTIES OUTPUT_NAME holo LINKER_LANGUAGE CXX)
target_include_directories(libholo INTERFACE "${CMAKE_SOURCE_DIR}/include")
target_compile_features(libholo INTERFACE cxx_std_23)

# The system's libraries, by the names that -l takes; --as-needed keeps those that a program does not use out of it.
set(HOLO_SYSTEM_LIBS protobuf-lite rocksdb raft spdlog fmt tomlplusplus)
set(HOLO_LINK_OPTIONS -Wl,--as-needed -Wl,--exclude-libs,libholo_awslc.a:libholo_blake3.a -pthread)
target_link_libraries(libholo INTERFACE holo::awslc holo::blake3 ${HOLO_SYSTEM_LIBS} Threads::Threads)
target_link_options(libholo INTERFACE ${HOLO_LINK_OPTIONS})
add_library(holo::holo ALIAS libholo)

# cmake --install: the program, the headers, the archives, and what find_package(holo) and pkg-config read.
include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/holo")
list(TRANSFORM HOLO_SYSTEM_LIBS PREPEND "-l" OUTPUT_VARIABLE pc_system_libs)
list(JOIN pc_system_libs " " HOLO_PC_SYSTEM_LIBS)
list(JOIN HOLO_LINK_OPTIONS " " HOLO_PC_LINK_OPTIONS)
configure_package_config_file("${CMAKE_SOURCE_DIR}/cmake/holoConfig.cmake.in" "${CMAKE_BINARY_DIR}/holoConfig.cmake"
  INSTALL_DESTINATION "${package_dir}" PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file("${CMAKE_BINARY_DIR}/holoConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
# Relative to the file itself, so that the tree may lie, and move, anywhere.
file(RELATIVE_PATH HOLO_PC_TO_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file("${CMAKE_SOURCE_DIR}/cmake/holo.pc.in" "${CMAKE_BINARY_DIR}/holo.pc" @ONLY)

install(FILES "${CMAKE_BINARY_DIR}/holoConfig.cmake" "${CMAKE_BINARY_DIR}/holoConfigVersion.cmake"
  DESTINATION "${package_dir}")
install(FILES "${CMAKE_BINARY_DIR}/holo.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
install(DIRECTORY "${CMAKE_SOURCE_DIR}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(TARGETS libholo ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${HOLO_DEPS_PREFIX}/lib/libholo_awslc.a" "${HOLO_DEPS_PREFIX}/lib/libholo_blake3.a"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${CMAKE_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
if(TARGET holo)
  install(TARGETS holo RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
