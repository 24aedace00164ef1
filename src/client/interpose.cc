// Every program that links libholo can be a worker: the start code calls this __libc_start_main instead of libc's. In a
// worker the static initialisers run as always, and then the worker loop takes the place of main(). The note marks such
// programs, so that an agent starts no other (it would run its main()).
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

#include "client/worker.h"

// An ELF note "holo", type 1: the local protocol, then the library's version.
asm(R"(
  .pushsection .note.holo, "a", @note
  .balign 4
  .globl holo_elf_note
  .hidden holo_elf_note
holo_elf_note:
  .long 5
  .long 2f - 1f
  .long 1
  .asciz "holo"
  .balign 4
1: .long 1
  .asciz ")" HOLO_VERSION R"("
2:
  .balign 4
  .popsection
)");

extern "C" {

extern const char holo_elf_note[];

using HoloMain = int (*)(int, char**, char**);
using HoloStart = int (*)(HoloMain, int, char**, void (*)(), void (*)(), void (*)(), void*);

__attribute__((visibility("default"))) int __libc_start_main(HoloMain main, int argc, char** argv, void (*init)(),
                                                             void (*fini)(), void (*rtld_fini)(), void* stack_end) {
  const char* volatile keep = holo_elf_note;  // A reference, so that no linker drops the note.
  (void)keep;
  const auto real = reinterpret_cast<HoloStart>(::dlsym(RTLD_NEXT, "__libc_start_main"));
  if (!real) ::_exit(127);
  const bool worker = std::getenv(holo::client::kWorkerFdVariable) != nullptr;
  return real(worker ? &holo::client::worker_main : main, argc, argv, init, fini, rtld_fini, stack_end);
}

}  // extern "C"
