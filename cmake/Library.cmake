# libholo.a, what a user links: the objects of every module but the simulator and the program, and its installation.
set(archive_modules ${HOLO_MODULES})
list(FILTER archive_modules EXCLUDE REGEX "^holo_(sim|cmd_)")
set(archive_objects "")
foreach(module IN LISTS archive_modules)
  get_target_property(type ${module} TYPE)
  if(type STREQUAL "STATIC_LIBRARY")
    list(APPEND archive_objects $<TARGET_OBJECTS:${module}>)
  endif()
endforeach()

add_library(holo_archive STATIC ${archive_objects})
