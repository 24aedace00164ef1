// A binary that somebody asks the cluster to run: whatever the file holds, it has the note or one error.
#include <cstdlib>

#include "wire/elf_note.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  (void)holo::wire::find_holo_note(std::as_bytes(std::span(data, size)));
  return 0;
}
